#!/usr/bin/env python3
"""Measures the cost of a cluster: latency, throughput and CPU time per message from one node to another, over NATS and
over Redis, compared with a single node.

    cargo build --release && benches/cluster/measure.py [target/release/deeperhub-ws]

Needs nats-server and redis-server (`tests/peers/install nats-server redis-server`) and Python without packages. A
publisher and a subscriber have one connection each: 2000 publishes one at a time, then 100,000 at once. The three setups
alternate for five rounds, which takes about two minutes. Prints medians of the rounds; throughput also with its range.
"""

import os
import socket
import statistics
import subprocess
import sys
import time

ONE_BY_ONE = 2000
AT_ONCE = 100_000
ROUNDS = 5
PAYLOAD = "x" * 128
TICKS = os.sysconf("SC_CLK_TCK")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def cpu_seconds(process):
    with open(f"/proc/{process.pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Client:
    """A minimal WebSocket client."""

    def __init__(self, address):
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(60)
        self.socket.sendall(
            b"GET / HTTP/1.1\r\nHost: hub\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        self.buffer = b""
        while b"\r\n\r\n" not in self.buffer:
            self.buffer += self.socket.recv(65536)
        self.buffer = self.buffer.split(b"\r\n\r\n", 1)[1]
        self.receive()

    @staticmethod
    def frame(text):
        payload = text.encode()
        length = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2, "big")
        return b"\x81" + length + b"\0\0\0\0" + payload

    def send(self, text):
        self.socket.sendall(self.frame(text))

    def need(self, length):
        while len(self.buffer) < length:
            read = self.socket.recv(1 << 18)
            if not read:
                raise ConnectionError("the hub closed the connection")
            self.buffer += read

    def receive(self):
        self.need(2)
        head, length = 2, self.buffer[1]
        if length == 126:
            self.need(4)
            head, length = 4, int.from_bytes(self.buffer[2:4], "big")
        self.need(head + length)
        payload, self.buffer = self.buffer[head : head + length], self.buffer[head + length :]
        return payload

    def count_messages(self, wanted):
        """Reads until `wanted` deliveries have arrived. Only counts their types, so that it is not the bottleneck."""
        seen, mark, rest = 0, b'"type":"message"', b""
        data = self.buffer
        self.buffer = b""
        while True:
            seen += (rest + data).count(mark)
            rest = (rest + data)[-(len(mark) - 1) :]
            if seen >= wanted:
                return
            data = self.socket.recv(1 << 18)
            if not data:
                raise ConnectionError("the hub closed the connection")


def start_node(program, flags):
    command = [program, "--port", "0", "--api-listen", "off", "--rate-limit", "0", "--workers", "1"]
    command += ["--max-queue-bytes", "268435456", "--cluster-queue-bytes", "268435456"] + flags
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    host, port = process.stdout.readline().split("ws://")[1].split()[0].split(":")
    return process, (host, int(port))


def publish(number):
    return '{"type":"publish","data":{"topic":"bench","message":[%d,"%s"]}}' % (number, PAYLOAD)


def measure(program, broker):
    """Runs one round. Returns latency percentiles in µs, messages per second, and CPU µs per message of each process."""
    processes, nodes = [], []
    try:
        if broker is None:
            nodes = [start_node(program, [])]
        else:
            port = free_port()
            command = {
                "nats": ["nats-server", "-a", "127.0.0.1", "-p", str(port)],
                "redis": ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", ""],
            }[broker]
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            processes.append(subprocess.Popen(command, **quiet))
            time.sleep(1)
            url = f"{broker}://127.0.0.1:{port}"
            nodes = [start_node(program, ["--cluster", url, "--node-id", node]) for node in "ab"]
        measured = [process for process, _ in nodes] + processes
        processes += [process for process, _ in nodes]
        publisher, subscriber = Client(nodes[0][1]), Client(nodes[-1][1])
        subscriber.send('{"type":"subscribe","data":{"topic":"bench"}}')
        subscriber.receive()
        time.sleep(1)

        times = []
        for number in range(ONE_BY_ONE):
            began = time.perf_counter()
            publisher.send(publish(number))
            subscriber.receive()
            times.append((time.perf_counter() - began) * 1e6)
        times.sort()
        percentiles = [times[min(int(len(times) * part), len(times) - 1)] for part in (0.5, 0.9, 0.99, 0.999)]

        before = [cpu_seconds(process) for process in measured]
        frames = b"".join(Client.frame(publish(number)) for number in range(AT_ONCE))
        began = time.perf_counter()
        if os.fork() == 0:
            publisher.socket.sendall(frames)
            os._exit(0)
        subscriber.count_messages(AT_ONCE)
        took = time.perf_counter() - began
        os.wait()
        cpu = [(cpu_seconds(process) - was) / AT_ONCE * 1e6 for process, was in zip(measured, before)]
        return percentiles, AT_ONCE / took, cpu
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()


def median_and_range(values, digits):
    values = sorted(values)
    shown = [f"{value:,.{digits}f}" for value in (statistics.median(values), values[0], values[-1])]
    return f"{shown[0]} ({shown[1]}-{shown[2]})"


def main():
    program = sys.argv[1] if len(sys.argv) > 1 else "target/release/deeperhub-ws"
    os.environ["PATH"] += ":/usr/sbin"
    setups = {"one node": None, "two nodes, NATS": "nats", "two nodes, Redis": "redis"}
    rounds = {name: [] for name in setups}
    for _ in range(ROUNDS):
        for name, broker in setups.items():
            rounds[name].append(measure(program, broker))
    print("| setup | latency µs: p50 | p90 | p99 | p99.9 | messages per second | CPU µs per message: sending node | receiving node | broker |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, results in rounds.items():
        latencies = [f"{statistics.median(column):.0f}" for column in zip(*(percentiles for percentiles, _, _ in results))]
        throughput = median_and_range([rate for _, rate, _ in results], 0)
        cpu = [f"{statistics.median(column):.2f}" for column in zip(*(cpu for _, _, cpu in results))]
        cells = [name, *latencies, throughput, *(cpu + ["-", "-"])[:3]]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
