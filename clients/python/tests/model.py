"""A hub in memory, with a network in virtual time that delays, repeats and loses what it carries."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from random import Random
from typing import Any

from deeperhub.core.actions import (
    CallToken,
    CloseSocket,
    OpenSocket,
    ReportError,
    ReportState,
    SavePosition,
    SendText,
)
from deeperhub.core.ending import Ending
from deeperhub.core.machine import Machine

Data = dict[str, Any]


@dataclass
class Stream:
    """Kept messages of one topic."""

    topic: str
    epoch: str = "e1"
    #: Offset of the newest message.
    newest: int = 0
    messages: dict[int, Data] = field(default_factory=dict)
    once: dict[str, int] = field(default_factory=dict)
    #: All that was ever published, for the oracle.
    record: dict[tuple[str, int], Any] = field(default_factory=dict)

    def add(self, message: Any, sender: str | None) -> Data:
        self.newest += 1
        data: Data = {"topic": self.topic, "message": message, "time": self.newest * 10}
        data |= {"epoch": self.epoch, "offset": self.newest}
        if sender is not None:
            data["from"] = sender
        self.messages[self.newest] = data
        self.record[self.epoch, self.newest] = message
        return data

    def position(self, offset: int) -> Data:
        return {"epoch": self.epoch, "offset": offset, "time": offset * 10}

    @property
    def oldest(self) -> int:
        return min(self.messages, default=self.newest + 1)

    def trim(self, keep: int) -> None:
        for offset in [offset for offset in self.messages if offset <= self.newest - keep]:
            del self.messages[offset]

    def reset(self) -> None:
        self.epoch = f"e{int(self.epoch[1:]) + 1}"
        self.newest = 0
        self.messages.clear()
        self.once.clear()

    def clear(self) -> None:
        """Begins an epoch in which offsets go on."""
        newest = self.newest
        self.reset()
        self.newest = newest


class Server:
    """The server's side of one client: what it answers, and in which order."""

    def __init__(self, random: Random, topics: list[str]) -> None:
        self.random = random
        self.streams = {topic: Stream(topic) for topic in topics}
        self.connections = 0
        #: Share of requests that get an error that passes.
        self.trouble = 0.0
        #: Share of histories that overtake deliveries.
        self.overtaking = 0.0
        self.client_id: str | None = None
        self.subscribed: set[str] = set()
        self.outbox: deque[tuple[float, str]] = deque()
        #: Answers to publishes that wait until the message is stored, while deliveries go on.
        self.late: list[tuple[Data, object]] = []
        self.now = 0.0

    def connect(self, now: float) -> None:
        self.connections += 1
        self.client_id = f"n1.0-{self.connections}"
        self.subscribed.clear()
        self.outbox.clear()
        self.late.clear()
        self.now = now
        limits = {"max_message_bytes": 65536, "ping_interval_ms": 25000}
        self.send("welcome", {"client_id": self.client_id, "server_time": 0, "limits": limits})

    def disconnect(self) -> None:
        self.client_id = None
        self.outbox.clear()
        self.late.clear()

    def answer_late(self) -> None:
        late, self.late = self.late, []
        for data, request in late:
            self.send("published", data, request)

    def send(self, kind: str, data: Data, request: object = None) -> None:
        if self.client_id is None:
            return
        envelope: Data = {"type": kind, "data": data}
        if request is not None:
            envelope["id"] = request
        earliest = self.outbox[-1][0] if self.outbox else self.now
        self.outbox.append((max(earliest, self.now) + self.random.random() * 0.02, json.dumps(envelope)))

    def overtake(self) -> None:
        """Moves the answer that was sent last before deliveries."""
        _, answer = self.outbox.pop()
        start = len(self.outbox)
        while start > 0 and json.loads(self.outbox[start - 1][1])["type"] in ("message", "gap"):
            start -= 1
        place = self.random.randrange(start, len(self.outbox) + 1)
        when = self.outbox[place][0] if place < len(self.outbox) else self.now
        self.outbox.insert(place, (when, answer))

    def publish(self, topic: str, message: Any, sender: str | None = None, exclude: bool = False) -> Data:
        data = self.streams[topic].add(message, sender)
        if topic in self.subscribed and not exclude:
            self.send("message", data)
            if self.random.random() < 0.05:
                self.send("message", data)
        return data

    def reset(self, topic: str) -> None:
        stream = self.streams[topic]
        stream.reset()
        if topic in self.subscribed:
            self.send("gap", {"topic": topic, "reason": "epoch", **stream.position(0)})

    def clear(self, topic: str) -> None:
        stream = self.streams[topic]
        stream.clear()
        if topic in self.subscribed:
            self.send("gap", {"topic": topic, "reason": "epoch", **stream.position(stream.newest)})

    def receive(self, text: str, now: float) -> None:
        self.now = now
        envelope = json.loads(text)
        kind, data, request = envelope["type"], envelope.get("data") or {}, envelope.get("id")
        fails = self.random.random() < self.trouble
        if kind == "ping":
            self.send("pong", {})
        elif kind == "unsubscribe":
            self.subscribed.discard(data["topic"])
            self.send("unsubscribed", {"topic": data["topic"]}, request)
        elif fails and kind == "subscribe" and "topics" not in data:
            self.send("error", {"code": "unavailable", "message": "x", "retry_after_ms": 30}, request)
        elif kind == "subscribe":
            self.subscribe(data, request)
        elif fails:
            code = self.random.choice(["unavailable", "rate_limited", "internal"])
            self.send("error", {"code": code, "message": "x", "retry_after_ms": 20}, request)
        elif kind == "publish":
            self.on_publish(data, request)
        elif kind == "history":
            stream = self.streams[data["topic"]]
            start = max(stream.newest + 1 + data["from"], stream.oldest)
            found = [stream.messages[offset] for offset in range(start, stream.newest + 1)][: data["limit"]]
            self.send(
                "history",
                {"topic": data["topic"], "messages": found, **stream.position(stream.newest)},
                request,
            )
            if self.random.random() < self.overtaking:
                self.overtake()

    def subscribe(self, data: Data, request: object) -> None:
        entries = data.get("topics") or [data]
        replies, replays = [], []
        for entry in entries:
            reply, replay = self.recover(entry)
            replies.append(reply)
            replays += replay
        self.send("subscribed", {"topics": replies} if "topics" in data else replies[0], request)
        for message in replays:
            self.send("message", message)

    def recover(self, entry: Data) -> tuple[Data, list[Data]]:
        stream = self.streams[entry["topic"]]
        recover = entry.get("recover")
        reply: Data = {"topic": stream.topic}
        start = max(stream.newest - entry.get("history", 0), stream.oldest - 1)
        if recover is not None:
            if recover["epoch"] != stream.epoch:
                reply |= {"recovered": False, "reason": "epoch"}
            elif recover["offset"] < stream.oldest - 1:
                reply |= {"recovered": False, "reason": "trimmed"}
            else:
                reply["recovered"] = True
                start = recover["offset"]
        if stream.topic in self.subscribed:
            # As the real hub: a second subscribe repeats the position, and recovers nothing.
            return {"topic": stream.topic, **stream.position(stream.newest)}, []
        self.subscribed.add(stream.topic)
        replay = [stream.messages[offset] for offset in range(start + 1, stream.newest + 1)]
        if replay:
            reply["replay"] = len(replay)
        return reply | stream.position(start), replay

    def on_publish(self, data: Data, request: object) -> None:
        stream = self.streams[data["topic"]]
        known = stream.once.get(data["once"])
        if known is None:
            self.publish(data["topic"], data["message"], self.client_id, data.get("exclude_self", False))
            known = stream.once[data["once"]] = stream.newest
        self.late.append(({"topic": stream.topic, "subscribers": 1, **stream.position(known)}, request))
        if self.random.random() < 0.7:
            self.answer_late()


class Network:
    """Drives a machine against a server in virtual time."""

    def __init__(self, machine: Machine, server: Server, random: Random) -> None:
        self.machine = machine
        self.server = server
        self.random = random
        self.now = 0.0
        self.is_connected = False
        #: When the handshake that was asked for is answered.
        self.handshake_at: float | None = None
        self.inbox: deque[tuple[float, str]] = deque()
        self.errors: list[str] = []
        self.states: list[str] = []
        self.storage: dict[str, str] = {}
        self.sent: list[Data] = []

    def act(self) -> None:
        while self.machine.actions:
            match self.machine.actions.popleft():
                case OpenSocket():
                    self.handshake_at = self.now + self.random.random() * 0.05
                case SendText(text):
                    self.sent.append(json.loads(text))
                    if self.is_connected:
                        earliest = self.inbox[-1][0] if self.inbox else self.now
                        self.inbox.append((max(earliest, self.now) + self.random.random() * 0.02, text))
                case CloseSocket():
                    self.drop()
                case CallToken(call):
                    self.machine.connection.on_token(call, "token", self.now)
                case ReportError(error):
                    self.errors.append(error.code)
                case ReportState(state):
                    self.states.append(state.state)
                case SavePosition(topic, saved):
                    if saved is None:
                        self.storage.pop(topic, None)
                    else:
                        self.storage[topic] = saved

    def drop(self) -> None:
        self.is_connected = False
        self.handshake_at = None
        self.inbox.clear()
        self.server.disconnect()

    def cut(self) -> None:
        """Ends the connection; what is under way in either direction is lost."""
        if self.is_connected:
            # A part of what the client sent may still have arrived.
            for _ in range(self.random.randrange(len(self.inbox) + 1)):
                self.server.receive(self.inbox.popleft()[1], self.now)
            self.drop()
            self.machine.on_ended(Ending("cut"), self.now)
            self.act()

    def run(self, until: float) -> None:
        """Lets time pass."""
        self.act()
        while True:
            times = [self.machine.deadline(), self.handshake_at]
            times += [queue[0][0] for queue in (self.inbox, self.server.outbox) if queue]
            due = min((time for time in times if time is not None), default=until)
            if due > until:
                break
            self.now = max(self.now, due)
            self.step()
        self.now = until
        if self.random.random() < 0.5:
            self.server.now = until
            self.server.answer_late()

    def step(self) -> None:
        if self.handshake_at is not None and self.handshake_at <= self.now:
            self.handshake_at = None
            self.is_connected = True
            self.machine.connection.on_socket_open(self.now)
            self.server.connect(self.now)
        elif self.server.outbox and self.server.outbox[0][0] <= self.now:
            text = self.server.outbox.popleft()[1]
            self.machine.connection.on_activity(self.now)
            self.machine.on_message(text, self.now)
        elif self.inbox and self.inbox[0][0] <= self.now:
            self.server.receive(self.inbox.popleft()[1], self.now)
        else:
            self.machine.on_time(self.now)
        self.act()
