#!/usr/bin/env python3
"""Measures each half of a cluster over NATS alone: a node that publishes to the broker, and one that receives from it.

    cargo build --release
    benches/cluster/halves.py [--rounds N] [--messages N] [--workers N] [PROGRAM...]

The node under test has the first core, and everything else the second one. There, this script takes the broker's place
and speaks just enough NATS. For the sending half, a client publishes, and the script counts the messages that the node
passes on, and confirms them. For the receiving half, it sends a node what the sending one passed on, and counts what a
subscriber of the node gets. At most --window messages are under way, since the node would otherwise spend its time on
memory for queues that grow. So the rate is that of one core of a node, unless the script is slower: a node that used less
than the whole core waited for it. The programs (target/release/deeperhub-ws) alternate; prints medians, with ranges.
"""

import argparse
import contextlib
import os
import re
import socket
import statistics
import subprocess
import threading
import time

from measure import Client, cpu_seconds, publish

NODE_CORE, OWN_CORE = 0, 1
INFO = b'INFO {"server_id":"peer","version":"2.10.0","proto":1,"headers":true,"max_payload":1048576}\r\n'
PUBLISH = re.compile(rb"PUB (\S+) (\d+)\r\n")
REQUEST = re.compile(rb"PUB \S+ (\S+) 0\r\n")
INBOXES = re.compile(rb"SUB (\S+\.)\* (\d+)\r\n")
NO_RESPONDERS = b"NATS/1.0 503\r\n\r\n"
SUBJECT = b"deeperhub.t.bench"

# Messages that are sent at once.
PART = 1024


class Progress:
    """A number of messages that others wait for."""

    def __init__(self):
        self.count, self.changed = 0, threading.Condition()

    def add(self, messages):
        with self.changed:
            self.count += messages
            self.changed.notify_all()

    def wait_until(self, holds):
        with self.changed:
            if not self.changed.wait_for(holds, timeout=60):
                raise TimeoutError("the node did not do what was expected")

    def send(self, parts, send, window):
        """Sends parts of messages, of which at most `window` are under way."""
        for number, part in enumerate(parts, 1):
            self.wait_until(lambda allowed=number * PART - window: self.count >= allowed)
            send(part)


class Peer(Progress):
    """The broker of one node. A thread answers the node, and counts the messages on the topic."""

    def __init__(self):
        super().__init__()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"nats://127.0.0.1:{self.listener.getsockname()[1]}"
        self.sid, self.recorded, self.sending = None, None, threading.Lock()
        self.inboxes, self.answered = {}, set()
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        self.socket, _ = self.listener.accept()
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(INFO)
        with contextlib.suppress(ConnectionResetError):  # The node is killed in the end.
            self.count_messages()

    def count_messages(self):
        mark, rest, buffer = b"PUB %s " % SUBJECT, b"", bytearray(1 << 20)
        while length := self.socket.recv_into(buffer):
            # An operation may be in two reads. What is searched for does not occur in payloads.
            data = rest + memoryview(buffer)[:length]
            pings, messages = data.count(b"PING\r\n"), data.count(mark)
            pings -= rest.count(b"PING\r\n")
            messages -= rest.count(mark)
            rest = data[-(len(mark) - 1) :]
            if self.recorded is not None:
                self.recorded.append(bytes(buffer[:length]))
            self.answer_requests(data)
            if pings:
                self.write(b"PONG\r\n" * pings)
            if subscribed := re.search(rb"SUB %s (\d+)\r\n" % re.escape(SUBJECT), data):
                self.sid = subscribed[1]
            self.add(messages)

    def answer_requests(self, data):
        """Says that nobody answers requests, which older versions send to find out what the broker has done."""
        for prefix, sid in INBOXES.findall(data):
            self.inboxes[prefix] = sid
        for inbox in REQUEST.findall(data) if self.inboxes else []:
            sid = self.inboxes.get(inbox.rpartition(b".")[0] + b".")
            if sid and inbox not in self.answered:
                self.answered.add(inbox)
                self.write(b"HMSG %s %s %d %d\r\n%s\r\n" % (inbox, sid, *[len(NO_RESPONDERS)] * 2, NO_RESPONDERS))

    def write(self, data):
        with self.sending:
            self.socket.sendall(data)


def in_parts(messages):
    return [b"".join(messages[at : at + PART]) for at in range(0, len(messages), PART)]


def as_received(recorded, sid):
    """Returns the recorded messages on the topic as a broker sends them to a subscription."""
    at, sent = 0, []
    while found := PUBLISH.search(recorded, at):
        at = found.end() + int(found[2]) + 2
        if found[1] == SUBJECT:
            sent.append(b"MSG %s %s %s\r\n" % (SUBJECT, sid, found[2]) + recorded[found.end() : at])
    return sent


def start_node(program, peer, workers):
    command = [program, "--port", "0", "--api-listen", "off", "--rate-limit", "0", "--workers", str(workers)]
    command += ["--max-queue-bytes", "1073741824", "--cluster-queue-bytes", "1073741824", "--cluster", peer.url]
    pinned = ["taskset", "-c", str(NODE_CORE)] + command
    process = subprocess.Popen(pinned, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    host, port = process.stdout.readline().split("ws://")[1].split()[0].split(":")
    return process, (host, int(port))


def measure(process, messages, act):
    """Returns messages a second, the node's CPU µs per message, and the part of the core that the node used."""
    before, began = cpu_seconds(process), time.perf_counter()
    act()
    took, cpu = time.perf_counter() - began, cpu_seconds(process) - before
    return messages / took, cpu / messages * 1e6, cpu / took * 100


def send_half(program, messages, workers, window, record):
    """Returns the figures of the node that publishes, and what it passed on if `record` is true."""
    peer = Peer()
    process, address = start_node(program, peer, workers)
    try:
        publisher = Client(address)
        parts = in_parts([Client.frame(publish(number)) for number in range(messages)])
        peer.recorded = [] if record else None

        def act():
            threading.Thread(target=peer.send, args=(parts, publisher.socket.sendall, window)).start()
            peer.wait_until(lambda: peer.count >= messages)

        return measure(process, messages, act), b"".join(peer.recorded or [])
    finally:
        process.kill()
        process.wait()


def receive_half(program, recorded, messages, workers, window):
    """Returns the figures of the node that gets the recorded messages."""
    peer = Peer()
    process, address = start_node(program, peer, workers)
    try:
        subscriber = Client(address)
        subscriber.send('{"type":"subscribe","data":{"topic":"bench"}}')
        subscriber.receive()
        peer.wait_until(lambda: peer.sid is not None)
        parts, delivered = in_parts(as_received(recorded, peer.sid)), Progress()

        def act():
            threading.Thread(target=delivered.send, args=(parts, peer.write, window)).start()
            subscriber.count_messages(messages, delivered.add)

        return measure(process, messages, act)
    finally:
        process.kill()
        process.wait()


def median_and_range(values, digits):
    values = sorted(values)
    shown = [f"{value:,.{digits}f}" for value in (statistics.median(values), values[0], values[-1])]
    return f"{shown[0]} ({shown[1]}-{shown[2]})"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("programs", nargs="*", default=["target/release/deeperhub-ws"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=500_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--window", type=int, default=16_384)
    parser.add_argument("--halves", default="sending,receiving")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {OWN_CORE})
    load = arguments.messages, arguments.workers, arguments.window
    # Versions can differ in what they pass on.
    recorded = {program: send_half(program, *load, record=True)[1] for program in arguments.programs}
    rounds = {(half, program): [] for half in arguments.halves.split(",") for program in arguments.programs}
    for _ in range(arguments.rounds):
        for half, program in rounds:
            if half == "sending":
                figures, _ = send_half(program, *load, record=False)
            else:
                figures = receive_half(program, recorded[program], *load)
            rounds[half, program].append(figures)
    print("| node | messages a second | CPU µs per message | % of its core |\n|---|---|---|---|")
    for (half, program), figures in rounds.items():
        name = f"{half}, {program}" if len(arguments.programs) > 1 else half
        cells = [median_and_range(values, digits) for values, digits in zip(zip(*figures), (0, 3, 0))]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    for half in arguments.halves.split(","):
        first = [figures[1] for figures in rounds[half, arguments.programs[0]]]
        for program in arguments.programs[1:]:
            ratios = [figures[1] / other for figures, other in zip(rounds[half, program], first)]
            print(f"{half}: CPU time, ratio to the first program: {median_and_range(ratios, 3)}", flush=True)


if __name__ == "__main__":
    main()
