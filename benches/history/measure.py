#!/usr/bin/env python3
"""Measures topics with history: CPU time of the server per delivery, compared with topics without a rule, and the
latency of others while some subscribers never read.

    cargo build --release
    benches/history/measure.py [--rounds N] [--slice SECONDS] [--duration TIME] [--rows cpu,fanout,slow] [PROGRAM...]

Needs Python without packages and two cores: the servers run on the first, the loads on the second. The cases of a row
and the programs (target/release/deeperhub-ws) alternate. The machine should have no other load.

cpu: one subscriber on each of 1,000 topics, 16 publishers, 128 B.
fanout: 1,000 subscribers of one topic, one message in flight, 128 B.
slow: 1,000 messages of 1 KiB a second to 100 subscribers of one topic, without slow readers and with ten.

In the first two rows, each program has a server and a load that stay, because two servers of the same program can differ
by more than what is measured. For each case, the server gets other rules (SIGHUP). Histories fill for a moment, and then a
slice of time yields the CPU time of the server's threads, divided by the messages that it sent. The load of another program
is stopped meanwhile. Prints medians of the rounds, and the median and the quartiles of the ratios within a round. The first
case also comes last once more: its ratio shows the error.

In the last row, each run has a server of its own. Prints medians, and the median and the range of the ratios.
"""

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import tempfile
import time
import urllib.request

TOPICS = ["topics", "--subscribers", "1000", "--topics", "1000", "--publishers", "16", "--in-flight", "16"]
FANOUT = ["fanout", "--subscribers", "1000", "--in-flight", "1"]
RATE = ["--subscribers", "100", "--rate", "1000", "--size", "1024"]
KEEPS_ALL = "bench.>: history=30000 history_bytes=64MiB"

# Messages that the rules of the cases with slices keep of a topic. The first case is the base of the ratios.
HISTORIES = {"no rule": 0, "history=10": 10, "history=100": 100, "no rule again": 0}
SLICED = {"cpu": TOPICS, "fanout": FANOUT}

# Cases with the rule of the server and the arguments of the load. The first one is the base of the ratios.
WHOLE = {
    "slow": {
        "no slow readers": (KEEPS_ALL, ["fanout", *RATE]),
        "10 slow readers": (KEEPS_ALL, ["slow", "--slow-readers", "10", *RATE]),
    },
}

# Time in which a load connects, in which it fills the histories, and in which a server finishes what a stopped load sent.
WARM_UP_SECONDS = 4
FILL_SECONDS = 0.4
SETTLE_SECONDS = 0.03


class Server:
    """A server on the first core."""

    def __init__(self, program, rule, config=None):
        flags = ["--host", "127.0.0.1", "--port", "0", "--api-listen", "127.0.0.1:0", "--workers", "1"]
        flags += ["--rate-limit", "0", "--max-connections", "9000", "--ping-interval", "600s"]
        flags += ["--topic", rule] if rule else []
        flags += ["--config", config] if config else []
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        self.process = subprocess.Popen(["taskset", "-c", "0", program, *flags], **pipes)
        self.program = program
        line = self.process.stdout.readline()
        addresses = re.search(r"(ws://[\d.]+:\d+).*API (http://[^)]+)", line)
        if not addresses:
            raise SystemExit(f"{program} has not started")
        self.url, self.api = addresses.groups()

    def load(self, arguments):
        """Returns the command of a load on the second core."""
        return ["taskset", "-c", "1", self.program, "bench", *arguments, "--url", self.url + "/", "--json"]

    def counts(self):
        """Returns the CPU microseconds of all threads, and the number of messages sent."""
        tasks = f"/proc/{self.process.pid}/task"
        nanoseconds = 0
        for task in os.listdir(tasks):
            with open(f"{tasks}/{task}/schedstat", encoding="ascii") as file:
                nanoseconds += int(file.read().split()[0])
        with urllib.request.urlopen(self.api + "/metrics") as response:
            metrics = response.read().decode()
        sent = re.findall(r"^deeperhub_messages_sent_total\S* (\S+)", metrics, re.MULTILINE)
        return nanoseconds / 1000, sum(float(value) for value in sent)

    def end(self):
        self.process.kill()
        self.process.wait()


class Sliced:
    """A server with a load that runs in slices, each with a rule for its topics."""

    def __init__(self, program, load):
        self.config = tempfile.NamedTemporaryFile(mode="w", suffix=".toml")
        self.server = Server(program, None, self.config.name)
        command = self.server.load([*load, "--duration", "24h"])
        self.load = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(WARM_UP_SECONDS)
        self.stop()

    def set_history(self, messages):
        self.config.seek(0)
        self.config.truncate()
        if messages:
            self.config.write(f'[[topics]]\nmatch = "bench.>"\nhistory = {messages}\n')
        self.config.flush()
        self.server.process.send_signal(signal.SIGHUP)

    def begin(self, messages):
        """Continues the load with a rule, and fills the histories."""
        self.set_history(messages)
        self.load.send_signal(signal.SIGCONT)
        time.sleep(FILL_SECONDS)

    def stop(self):
        self.load.send_signal(signal.SIGSTOP)

    def slice(self, messages, seconds):
        """Runs the load for some time. Returns the CPU microseconds of the server per message."""
        self.begin(messages)
        before = self.server.counts()
        time.sleep(seconds)
        self.stop()
        time.sleep(SETTLE_SECONDS)
        after = self.server.counts()
        if after[1] == before[1]:
            raise SystemExit("a load has sent nothing")
        return (after[0] - before[0]) / (after[1] - before[1])

    def end(self):
        self.load.kill()
        self.load.wait()
        self.server.end()
        self.config.close()


def alternate(keys, rounds, measure):
    """Measures all keys in each round, each time from another one on. Returns the values of each key."""
    values = {key: [] for key in keys}
    for index in range(rounds):
        first = index % len(keys)
        for key in keys[first:] + keys[:first]:
            values[key].append(measure(key))
    return values


def measure_slices(row, args):
    keys = [(program, name) for program in args.programs for name in HISTORIES]
    servers = {}
    try:
        for program in args.programs:
            servers[program] = Sliced(program, SLICED[row])
        return alternate(keys, args.rounds, lambda key: servers[key[0]].slice(HISTORIES[key[1]], args.slice))
    finally:
        for server in servers.values():
            server.end()


def measure_whole(row, args):
    def p99(key):
        program, name = key
        rule, load = WHOLE[row][name]
        server = Server(program, rule)
        try:
            command = server.load([*load, "--duration", args.duration])
            report = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            return json.loads(report.stdout)["messages"]["latency_microseconds"]["p99"]
        finally:
            server.end()

    keys = [(program, name) for program in args.programs for name in WHOLE[row]]
    return alternate(keys, args.rounds, p99)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--slice", type=float, default=0.4)
    parser.add_argument("--duration", default="3s")
    parser.add_argument("--rows", default="cpu,fanout,slow")
    parser.add_argument("programs", nargs="*", default=["target/release/deeperhub-ws"])
    args = parser.parse_args()
    for row in args.rows.split(","):
        is_sliced = row in SLICED
        values = measure_slices(row, args) if is_sliced else measure_whole(row, args)
        spread = "quartiles" if is_sliced else "range"
        print(f"{row}, {args.rounds} rounds, median in microseconds, and median and {spread} of the ratio to the first")
        for (program, name), found in values.items():
            base = values[program, next(iter(values))[1]]
            ratios = sorted(one / other for one, other in zip(found, base))
            ends = (len(ratios) // 4, 3 * len(ratios) // 4) if is_sliced else (0, -1)
            low, high = (ratios[end] for end in ends)
            ratio = f"{statistics.median(ratios):.3f} [{low:.3f}-{high:.3f}]"
            print(f"  {program} {name}: {statistics.median(found):.2f}, {ratio}")


if __name__ == "__main__":
    main()
