#!/usr/bin/env python3
"""Compares where the time of a delivery goes with and without history, function by function.

    cargo build --release
    benches/history/profile.py [--rounds N] [--history N] [--row cpu|fanout] [PROGRAM]

Needs `perf` (Debian: linux-perf), and what measure.py needs. One server with one load gets other rules in turn (SIGHUP), and
`perf record -e cpu-clock` samples it meanwhile. Prints the microseconds of a delivery in the kernel and in the program, and
the functions that differ most: the difference, without history, with history. A sample stands for the time of its core
without other programs, so the sum is less than the CPU time that measure.py shows.
"""

import argparse
import collections
import re
import subprocess
import tempfile

from measure import SLICED, Sliced

SAMPLES_PER_SECOND = 7000
SLICE_SECONDS = "1.5"
FUNCTIONS = 25


def samples(pid, path):
    """Returns the number of samples of each function in a slice of time."""
    record = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(SAMPLES_PER_SECOND), "-p", str(pid), "-o", path]
    subprocess.run([*record, "--", "sleep", SLICE_SECONDS], check=True, stderr=subprocess.DEVNULL)
    report = ["perf", "report", "-i", path, "--no-children", "--sort", "symbol", "--stdio", "-n", "-g", "none"]
    text = subprocess.run(report, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    return {name: int(count) for count, name in re.findall(r"^ *[\d.]+% +(\d+) +(\[.\] \S.*?)(?:  +.*)?$", text, re.M)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", nargs="?", default="target/release/deeperhub-ws")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--history", type=int, default=10)
    parser.add_argument("--row", choices=list(SLICED), default="cpu")
    args = parser.parse_args()
    found, messages = collections.defaultdict(collections.Counter), collections.Counter()
    server = Sliced(args.program, SLICED[args.row])
    with tempfile.NamedTemporaryFile() as file:
        try:
            for number in range(args.rounds):
                # Each goes first in half of the rounds.
                for history in [0, args.history][:: 1 if number % 2 else -1]:
                    server.begin(history)
                    before = server.server.counts()[1]
                    found[history].update(samples(server.server.process.pid, file.name))
                    messages[history] += server.server.counts()[1] - before
                    server.stop()
        finally:
            server.end()

    def microseconds(history, name):
        return found[history][name] / SAMPLES_PER_SECOND * 1e6 / messages[history]

    names = set(found[0]) | set(found[args.history])
    for part, mark in [("all", "["), ("kernel", "[k]"), ("program", "[.]")]:
        sums = [sum(microseconds(history, name) for name in names if name.startswith(mark)) for history in (0, args.history)]
        print(f"{part}: {sums[0]:.3f} without history, {sums[1]:.3f} with it, ratio {sums[1] / sums[0]:.3f}")
    rows = [(microseconds(args.history, name) - microseconds(0, name), name) for name in names]
    for difference, name in sorted(rows, key=lambda row: -abs(row[0]))[:FUNCTIONS]:
        print(f"{difference:+.3f}  {microseconds(0, name):.3f}  {microseconds(args.history, name):.3f}  {name}")


if __name__ == "__main__":
    main()
