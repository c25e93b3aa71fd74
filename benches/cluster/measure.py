#!/usr/bin/env python3
"""Measures the cost of a cluster: latency, throughput and CPU time per message from one node to another, over NATS and
over Redis, compared with a single node.

    cargo build --release
    benches/cluster/measure.py [--workers N] [--setups one,nats,redis] [--rounds N] [--history N] [PROGRAM...]

Needs nats-server and redis-server (`tests/peers/install nats-server redis-server`) and Python without packages. A
publisher has one connection, and each worker of the receiving node has a subscriber: 2000 publishes one at a time, then
100,000 at once, then bursts of 50. The setups and programs (target/release/deeperhub-ws) alternate for five rounds,
which takes about two minutes. Prints medians of the rounds; throughput also with its range. With --history, the topic has a
history of that many messages, which the broker keeps in a cluster: Redis, or NATS JetStream (`tests/peers/install
python`), in its files or with --storage memory, and on three servers with --replicas 3.
"""

import argparse
import os
import socket
import statistics
import subprocess
import threading
import time
from contextlib import ExitStack

from brokers import Broker, cpu_seconds, stop

ONE_BY_ONE = 2000
AT_ONCE = 100_000
BURSTS, BURST, BURST_INTERVAL = 400, 50, 0.005
PAYLOAD = "x" * 128


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

    def count_messages(self, wanted, on_counted=lambda messages: None):
        """Reads until `wanted` deliveries have arrived. Only counts their types, so that it is not the bottleneck."""
        seen, mark, rest = 0, b'"type":"message"', b""
        data = self.buffer
        self.buffer = b""
        while True:
            new = (rest + data).count(mark)
            on_counted(new)
            seen += new
            rest = (rest + data)[-(len(mark) - 1) :]
            if seen >= wanted:
                return
            data = self.socket.recv(1 << 18)
            if not data:
                raise ConnectionError("the hub closed the connection")


def sleeps(process):
    """Returns how often the workers of a node have waited."""
    tasks, count = f"/proc/{process.pid}/task", 0
    for task in os.listdir(tasks):
        with open(f"{tasks}/{task}/comm") as name, open(f"{tasks}/{task}/status") as status:
            if "worker" in name.read():
                lines = [line for line in status if line.startswith("voluntary_ctxt_switches")]
                count += sum(int(line.split()[1]) for line in lines)
    return count


def count_all(subscribers, wanted):
    """Waits until all subscribers have got as many deliveries."""
    threads = [threading.Thread(target=client.count_messages, args=(wanted,)) for client in subscribers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def start_node(program, workers, flags):
    command = [program, "--port", "0", "--api-listen", "off", "--rate-limit", "0", "--workers", str(workers)]
    command += ["--max-queue-bytes", "268435456", "--cluster-queue-bytes", "268435456"] + flags
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    host, port = process.stdout.readline().split("ws://")[1].split()[0].split(":")
    return process, (host, int(port))


def publish(number):
    return '{"type":"publish","data":{"topic":"bench","message":[%d,"%s"]}}' % (number, PAYLOAD)


def measure(program, arguments, engine):
    """Starts a broker and nodes, and runs one round."""
    history, replicas = arguments.history, arguments.replicas
    flags = ["--topic", f"bench: history={history}"] if history else []
    if engine == "nats" and history:
        flags += ["--history-storage", arguments.storage, "--history-replicas", str(replicas)]
    with ExitStack() as running:
        # The servers of a broker are one part.
        parts, names = [], [[]]
        if engine:
            broker = running.enter_context(Broker(engine, bool(history), replicas if engine == "nats" else 1))
            flags += ["--cluster", broker.url]
            parts, names = [broker.processes], [["--node-id", name] for name in "ab"]
        addresses = []
        for name in names:
            process, address = start_node(program, arguments.workers, flags + name)
            running.callback(stop, [process])
            parts.insert(len(addresses), [process])
            addresses.append(address)
        return run_loads(addresses, parts, arguments.workers)


def run_loads(addresses, parts, workers):
    """Returns latency percentiles in µs, messages per second, and twice, with all messages at once and in bursts, the CPU µs
    per message of each part and the sleeps of the receiving node's workers per 1000 messages.
    """
    receiver = parts[len(addresses) - 1][0]
    publisher = Client(addresses[0])
    # New connections go to the worker with the fewest.
    subscribers = [Client(addresses[-1]) for _ in range(workers)]
    for subscriber in subscribers:
        subscriber.send('{"type":"subscribe","data":{"topic":"bench"}}')
        subscriber.receive()
    time.sleep(1)

    times = []
    for number in range(ONE_BY_ONE):
        began = time.perf_counter()
        publisher.send(publish(number))
        for subscriber in subscribers:
            subscriber.receive()
        times.append((time.perf_counter() - began) * 1e6)
    times.sort()
    percentiles = [times[min(int(len(times) * part), len(times) - 1)] for part in (0.5, 0.9, 0.99, 0.999)]

    def send_and_count(send, messages):
        """Returns the time, the CPU µs per message of each part, and the sleeps per 1000 messages."""
        before = [sum(map(cpu_seconds, part)) for part in parts]
        sleeps_before = sleeps(receiver)
        began = time.perf_counter()
        if os.fork() == 0:
            send()
            os._exit(0)
        count_all(subscribers, messages)
        took = time.perf_counter() - began
        os.wait()
        cpu = [(sum(map(cpu_seconds, part)) - was) / messages * 1e6 for part, was in zip(parts, before)]
        return took, cpu, (sleeps(receiver) - sleeps_before) / messages * 1000

    def send_bursts():
        due = time.perf_counter()
        for _ in range(BURSTS):
            publisher.socket.sendall(burst)
            due += BURST_INTERVAL
            time.sleep(max(due - time.perf_counter(), 0))

    frames = b"".join(Client.frame(publish(number)) for number in range(AT_ONCE))
    burst = b"".join(Client.frame(publish(number)) for number in range(BURST))
    took, *at_once = send_and_count(lambda: publisher.socket.sendall(frames), AT_ONCE)
    _, *in_bursts = send_and_count(send_bursts, BURSTS * BURST)
    return percentiles, AT_ONCE / took, *at_once, *in_bursts


def median_and_range(values, digits):
    values = sorted(values)
    shown = [f"{value:,.{digits}f}" for value in (statistics.median(values), values[0], values[-1])]
    return f"{shown[0]} ({shown[1]}-{shown[2]})"


SETUPS = {"one": ("one node", None), "nats": ("two nodes, NATS", "nats"), "redis": ("two nodes, Redis", "redis")}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("programs", nargs="*", default=["target/release/deeperhub-ws"])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--setups", default=",".join(SETUPS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--history", type=int)
    parser.add_argument("--storage", choices=["file", "memory"], default="file")
    parser.add_argument("--replicas", type=int, default=1)
    arguments = parser.parse_args()
    runs = [(SETUPS[setup], program) for setup in arguments.setups.split(",") for program in arguments.programs]
    rounds = {run: [] for run in runs}
    for _ in range(arguments.rounds):
        for run in runs:
            (_, engine), program = run
            rounds[run].append(measure(program, arguments, engine))
    columns = ["setup", "latency µs: p50", "p90", "p99", "p99.9", "messages per second"]
    for load in ["at once", "in bursts"]:
        columns += [f"CPU µs per message {load}: sending node", "receiving node", "broker", "sleeps per 1000 messages"]
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for ((name, _), program), results in rounds.items():
        if len(arguments.programs) > 1:
            name += f", {program}"
        percentiles, rates, *costs = zip(*results)
        cells = [name] + [f"{statistics.median(column):.0f}" for column in zip(*percentiles)]
        cells.append(median_and_range(rates, 0))
        for cpu, slept in [costs[:2], costs[2:]]:
            medians = [f"{statistics.median(column):.2f}" for column in zip(*cpu)]
            cells += (medians + ["-", "-"])[:3] + [f"{statistics.median(slept):.1f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
