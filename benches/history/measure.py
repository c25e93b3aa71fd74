#!/usr/bin/env python3
"""Measures topics with history: CPU time of the server per delivery, compared with topics without a rule, and the
latency of others while some subscribers never read.

    cargo build --release
    benches/history/measure.py [--rounds N] [--duration TIME] [--rows cpu,slow] [PROGRAM...]

Needs Python without packages and two cores: the server runs on the first, the load on the second. The cases of a row
and the programs (target/release/deeperhub-ws) alternate, and each run has a server of its own. Prints medians of the
rounds, and the median and the range of the ratios within a round. The machine should have no other load.

cpu: one subscriber on each of 1,000 topics, 16 publishers, 128 B.
slow: 1,000 messages of 1 KiB a second to 100 subscribers of one topic, without slow readers and with ten.
"""

import argparse
import json
import re
import statistics
import subprocess

TOPICS = ["topics", "--subscribers", "1000", "--topics", "1000", "--publishers", "16", "--in-flight", "16"]
RATE = ["--subscribers", "100", "--rate", "1000", "--size", "1024"]
KEEPS_ALL = "bench.>: history=30000 history_bytes=64MiB"

# Cases with the rule of the server and the arguments of the load. The first one is the base of the ratios.
CASES = {
    "cpu": {
        "no rule": (None, TOPICS),
        "history=10": ("bench.>: history=10", TOPICS),
        "history=100": ("bench.>: history=100", TOPICS),
    },
    "slow": {
        "no slow readers": (KEEPS_ALL, ["fanout", *RATE]),
        "10 slow readers": (KEEPS_ALL, ["slow", "--slow-readers", "10", *RATE]),
    },
}


def run(program, rule, load, duration):
    """Runs a server and a load. Returns the report of the load."""
    flags = ["--host", "127.0.0.1", "--port", "0", "--api-listen", "off", "--workers", "1", "--rate-limit", "0"]
    flags += ["--max-connections", "19000"] + (["--topic", rule] if rule else [])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    server = subprocess.Popen(["taskset", "-c", "0", program, *flags], **pipes)
    try:
        address = None
        while address is None:
            line = server.stdout.readline()
            if not line:
                raise SystemExit(f"{program} has not started")
            address = re.search(r"ws://[\d.]+:\d+", line)
        target = ["--url", address.group(0) + "/", "--server-pid", str(server.pid), "--duration", duration]
        command = ["taskset", "-c", "1", program, "bench", *load, *target, "--json"]
        return json.loads(subprocess.run(command, check=True, **pipes).stdout)
    finally:
        server.kill()
        server.wait()


def value(row, report):
    """Returns microseconds: CPU time of the server per delivery, or the 99th percentile of the latency."""
    if row == "cpu":
        return report["server"]["cpu_microseconds_per_message"]
    return report["messages"]["latency_microseconds"]["p99"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--duration", default="3s")
    parser.add_argument("--rows", default="cpu,slow")
    parser.add_argument("programs", nargs="*", default=["target/release/deeperhub-ws"])
    args = parser.parse_args()
    for row in args.rows.split(","):
        cases = CASES[row]
        values = {(program, name): [] for program in args.programs for name in cases}
        for index in range(args.rounds):
            order = list(values)
            first = index % len(order)
            for program, name in order[first:] + order[:first]:
                rule, load = cases[name]
                values[program, name].append(value(row, run(program, rule, load, args.duration)))
        print(f"{row}, {args.rounds} rounds, median in microseconds and ratio to the first case")
        for (program, name), found in values.items():
            base = values[program, next(iter(cases))]
            ratios = [one / other for one, other in zip(found, base)]
            spread = f"{statistics.median(ratios):.3f} [{min(ratios):.2f}-{max(ratios):.2f}]"
            print(f"  {program} {name}: {statistics.median(found):.2f}, {spread}")


if __name__ == "__main__":
    main()
