#!/usr/bin/env python3
"""Measures a storm: all clients of one node of a cluster return to another node, which follows none of their topics.

    cargo build --release
    benches/cluster/storm.py [--clients N] [--topics N] [--missed N] [--rate N] [--rounds N]
        [--publish-rate N] [--subscribers N] [--setup redis|nats] [PROGRAM...]

Needs redis-server (`tests/peers/install redis-server`) or NATS JetStream (`tests/peers/install python`), and Python
without packages. Each round starts a broker and two
nodes for each program (target/release/deeperhub-ws), and runs `bench recover` with `--return-to` the second node. Prints
one line for each round. The CPU time is that of the second node, for connecting, subscribing and replaying. With
--publish-rate and --subscribers, others stay connected to the first node, and the latency of their messages is printed.
"""

import argparse
import json
import re
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack

from brokers import Broker, stop

COLUMNS = ["program", "recovered", "lost", "repeated", "out of order", "live after ms: p50", "p99", "max",
           "others' ms: p50", "p99", "CPU µs per client", "reads of the store"]


def start_node(program, node, broker, arguments):
    """Returns a node, the port of its clients, and the URL of its API."""
    command = [program, "--port", "0", "--api-listen", "127.0.0.1:0", "--rate-limit", "0", "--workers", "1"]
    command += ["--max-connections", str(arguments.clients + 100), "--cluster", broker, "--node-id", node]
    command += ["--max-subscriptions", str(arguments.clients + 100), "--topic", f"bench.>: history={arguments.missed + 50}"]
    # The missed messages are published as fast as the node takes them.
    command += ["--cluster-queue-bytes", "268435456"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    line = process.stdout.readline()
    return process, re.search(r"ws://([^ ]+)", line)[1], re.search(r"API (http://[^)]+)", line)[1]


def get(url):
    with urllib.request.urlopen(url) as answer:
        return answer.read().decode()


def wait_until_ready(api):
    while True:
        try:
            return get(f"{api}/health/ready")
        except OSError:
            time.sleep(0.05)


def count_reads(api):
    return sum(int(float(value)) for value in re.findall(r"deeperhub_store_reads_total{.*} (\S+)", get(f"{api}/metrics")))


def measure(program, arguments):
    """Runs one round and returns a cell for each column."""
    with ExitStack() as running:
        broker = running.enter_context(Broker(arguments.setup, keeps_streams=True))
        nodes = []
        for name in "ab":
            nodes.append(start_node(program, name, broker.url, arguments))
            running.callback(stop, [nodes[-1][0]])
        for _, _, api in nodes:
            wait_until_ready(api)
        (_, from_address, _), (second, to_address, to_api) = nodes
        reads = count_reads(to_api)
        flags = {"clients": arguments.clients, "topics": arguments.topics, "missed": arguments.missed,
                 "rate": arguments.rate, "publish-rate": arguments.publish_rate, "subscribers": arguments.subscribers,
                 "server-pid": second.pid}
        bench = [program, "bench", "recover", "--json", "--url", f"ws://{from_address}/", "--return-to", to_address]
        bench += [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        report = json.loads(subprocess.run(bench, stdout=subprocess.PIPE, check=True).stdout)
        if report["errors"]:
            print(f"Errors: {report['errors']}", file=sys.stderr)
        recovery, live = report["recovery"], report["recovery"]["live_microseconds"]
        # The server's time is not that of the clients alone if others publish.
        cpu = report["server"].get("cpu_microseconds_per_client")
        others = report["messages"]["latency_microseconds"]
        return [program, f"{recovery['recovered']:,}", *(report["messages"][fault] for fault in ("lost", "duplicated", "out_of_order")),
                *(f"{live[part] / 1000:,.1f}" for part in ("p50", "p99", "max")),
                *(f"{others[part] / 1000:,.2f}" if others["count"] else "-" for part in ("p50", "p99")),
                f"{cpu:.1f}" if cpu else "-", f"{count_reads(to_api) - reads:,}"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("programs", nargs="*", default=["target/release/deeperhub-ws"])
    for name, default in [("clients", 10_000), ("topics", 1000), ("missed", 50), ("rate", 5000), ("rounds", 3),
                          ("publish-rate", 0), ("subscribers", 0)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--setup", choices=["redis", "nats"], default="redis")
    arguments = parser.parse_args()
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS))
    for _ in range(arguments.rounds):
        for program in arguments.programs:
            print("| " + " | ".join(map(str, measure(program, arguments))) + " |", flush=True)


if __name__ == "__main__":
    main()
