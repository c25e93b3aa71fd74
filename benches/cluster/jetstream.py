#!/usr/bin/env python3
"""Measures appends to a stream of NATS JetStream without a node, as the bound of what nodes reach with it: a stream with
the settings that nodes use, and messages with the headers that they send.

    benches/cluster/jetstream.py [--rounds N] [--in-flight N]

Needs `tests/peers/install python`. A client appends 3000 messages one at a time, then 100,000 with N (1024) in flight, to a
new server each time. Prints medians of the rounds (3). The CPU time is that of the server, and the latency is that of the
acknowledgement.
"""

import argparse
import json
import socket
import statistics
import time

from brokers import Broker, cpu_seconds

ONE_BY_ONE = 3000
AT_ONCE = 100_000
PAYLOAD = b"x" * 200
SETTINGS = {
    "name": "bench", "subjects": ["in.>"], "retention": "limits", "discard": "old", "max_msgs_per_subject": 1000,
    "max_age": 600 * 10**9, "duplicate_window": 120 * 10**9, "allow_direct": True, "allow_msg_ttl": True,
    "allow_rollup_hdrs": True,
}
REPUBLISHED = {"republish": {"src": "in.>", "dest": "out.>"}}


class Client:
    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(60)
        self.socket.sendall(b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\nSUB answer 1\r\nPING\r\n')
        self.mark, self.rest = b"PONG", b""
        self.seen = 0
        self.wait_for(1)

    def count(self, mark):
        self.mark, self.rest, self.seen = mark, b"", 0

    def wait_for(self, total):
        """Reads until so many marks have arrived since the count began."""
        while self.seen < total:
            data = self.rest + self.socket.recv(1 << 18)
            self.seen += data.count(self.mark)
            # A mark may be cut, but is not counted twice.
            self.rest = data[max(data.rfind(self.mark) + len(self.mark), len(data) - len(self.mark) + 1) :]

    def create(self, settings):
        payload = json.dumps(settings).encode()
        self.count(b'"created"')
        self.socket.sendall(b"PUB $JS.API.STREAM.CREATE.bench answer %d\r\n%s\r\n" % (len(payload), payload))
        self.wait_for(1)


def append(number, topics, has_identity):
    headers = b"NATS/1.0\r\nNats-Expected-Stream: bench\r\n"
    if has_identity:
        headers += b"Nats-Msg-Id: 19f0c0ffee0.%x\r\n" % number
    headers += b"\r\n"
    sizes = (len(headers), len(headers) + len(PAYLOAD))
    return b"HPUB in.%d answer %d %d\r\n" % (number % topics, *sizes) + headers + PAYLOAD + b"\r\n"


def measure(settings, topics, has_identity, in_flight, servers=1):
    """Returns the latency's median in µs, messages per second, and the server's CPU µs per message."""
    with Broker("nats", True, servers) as broker:
        client = Client(broker.port)
        client.create(settings)
        client.count(b'"seq":')
        times = []
        for number in range(ONE_BY_ONE):
            began = time.perf_counter()
            client.socket.sendall(append(number, topics, has_identity))
            client.wait_for(number + 1)
            times.append((time.perf_counter() - began) * 1e6)
        messages = [append(ONE_BY_ONE + number, topics, has_identity) for number in range(AT_ONCE)]
        part = in_flight // 4
        parts = [b"".join(messages[at : at + part]) for at in range(0, AT_ONCE, part)]
        cpu, began = sum(map(cpu_seconds, broker.processes)), time.perf_counter()
        for sent, messages in enumerate(parts):
            client.wait_for(ONE_BY_ONE + max(sent - 3, 0) * part)
            client.socket.sendall(messages)
        client.wait_for(ONE_BY_ONE + AT_ONCE)
        took = time.perf_counter() - began
        cpu = sum(map(cpu_seconds, broker.processes)) - cpu
        return statistics.median(times), AT_ONCE / took, cpu / AT_ONCE * 1e6


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--in-flight", type=int, default=1024)
    arguments = parser.parse_args()
    full = SETTINGS | REPUBLISHED
    runs = {
        "in files": (full | {"storage": "file"}, 1, True),
        "in files, 1,000 topics": (full | {"storage": "file"}, 1000, True),
        "in memory": (full | {"storage": "memory"}, 1, True),
        "in memory, no identity": (full | {"storage": "memory"}, 1, False),
        "in memory, not republished": (SETTINGS | {"storage": "memory"}, 1, True),
        "in files of three servers": (full | {"storage": "file", "num_replicas": 3}, 1, True, 3),
    }
    print("| stream | latency µs: p50 | appends per second | CPU µs of the server |")
    print("|---|---|---|---|")
    for name, (settings, topics, has_identity, *servers) in runs.items():
        results = [measure(settings, topics, has_identity, arguments.in_flight, *servers) for _ in range(arguments.rounds)]
        latency, rate, cpu = (statistics.median(column) for column in zip(*results))
        print(f"| {name} | {latency:.0f} | {rate:,.0f} | {cpu:.2f} |", flush=True)


if __name__ == "__main__":
    main()
