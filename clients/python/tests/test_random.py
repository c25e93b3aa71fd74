"""Random histories of the client's core against a model of the hub, with an oracle."""

from __future__ import annotations

import os
from random import Random
from typing import Any

import pytest
from model import Network, Server

from deeperhub import Gap, HubError, Message, Position, Published
from deeperhub.core.machine import Machine
from deeperhub.core.options import Options
from deeperhub.core.publish import Settle
from deeperhub.core.queue import HandleQueue
from deeperhub.core.token import TokenKind

SEEDS = int(os.environ.get("DEEPERHUB_SEEDS", "150"))
TOPICS = ["chat.1", "chat.2", "chat.3"]


class Application:
    """An application that takes messages at its own pace, and checks what it gets."""

    def __init__(self, network: Network, topic: str, history: int | None) -> None:
        self.network = network
        self.topic = topic
        self.history = history
        self.excluded: set[Any] = set()
        self.handle: HandleQueue = network.machine.subscribe(topic, history, None, lambda: None, network.now)
        self.position: Position | None = None
        self.received = 0
        self.gaps: list[Gap] = []
        self.seen: set[Any] = set()

    def take(self, limit: int) -> None:
        """Takes events and checks them."""
        for _ in range(limit):
            item = self.handle.pop()
            if item is None:
                return
            self.network.machine.on_taken(self.handle)
            if isinstance(item, Message):
                self.on_message(item)
            elif isinstance(item, Gap):
                self.on_gap(item)

    def on_message(self, message: Message) -> None:
        stream = self.network.server.streams[self.topic]
        assert message.epoch is not None
        assert message.offset is not None
        assert stream.record[message.epoch, message.offset] == message.message
        assert message.message not in self.excluded, "an own message with exclude_self was handed over"
        assert message.message not in self.seen, "a message was handed over twice"
        self.seen.add(message.message)
        known = self.position
        if known is not None and known.epoch == message.epoch:
            missing = range(known.offset + 1, message.offset)
            untold = [
                offset for offset in missing if stream.record[message.epoch, offset] not in self.excluded
            ]
            assert message.offset > known.offset
            assert not untold, f"offsets {untold} were skipped and nobody told"
        elif known is not None:
            assert self.gaps, "the epoch changed and nobody told"
            assert self.gaps[-1].reason == "epoch"
        self.position = Position(message.epoch, message.offset)
        self.received += 1
        self.network.machine.on_handled(self.handle, self.position, self.network.now)

    def on_gap(self, gap: Gap) -> None:
        self.gaps.append(gap)
        known = self.position
        if known is None:
            return
        if gap.to is None:
            self.position = None
        else:
            assert gap.from_ is not None
            told = range(known.offset + 1, gap.from_)
            stream = self.network.server.streams[self.topic]
            assert all(stream.record[known.epoch, offset] in self.excluded for offset in told)
            self.position = Position(known.epoch, gap.to)


def make(seed: int, **limits: Any) -> tuple[Random, Network]:
    random = Random(seed)
    options = Options(min_delay=0.02, max_delay=0.2, **limits)
    machine = Machine(options, TokenKind.NONE, None, Random(seed + 1), once_prefix="p", saves_positions=True)
    network = Network(machine, Server(random, TOPICS), random)
    machine.start(0.0)
    return random, network


@pytest.mark.parametrize("seed", range(SEEDS))
def test_each_message_comes_once_and_in_order(seed: int) -> None:
    random, network = make(seed, max_queue_bytes=random_queue(seed))
    server, machine = network.server, network.machine
    server.trouble = random.choice([0.0, 0.0, 0.1])
    applications = [Application(network, topic, random.choice([None, 3])) for topic in TOPICS]
    outcomes: dict[str, list[Any]] = {topic: [] for topic in TOPICS}
    published: dict[str, list[Any]] = {topic: [] for topic in TOPICS}

    def settle(topic: str, message: str) -> Settle:
        return lambda outcome: outcomes[topic].append((message, outcome))

    for count in range(random.randrange(100, 300)):
        topic = random.choice(TOPICS)
        dice = random.random()
        if dice < 0.45:
            server.now = network.now
            server.publish(topic, f"other {count}")
        elif dice < 0.6:
            message = f"own {count}"
            excludes = random.random() < 0.5
            if excludes:
                for application in applications:
                    application.excluded |= {message} if application.topic == topic else set()
            published[topic].append(message)
            machine.publish(
                topic,
                message,
                exclude_self=excludes,
                ordered=True,
                settle=settle(topic, message),
                now=network.now,
            )
        elif dice < 0.66:
            network.cut()
        elif dice < 0.68:
            server.streams[topic].trim(random.randrange(8))
        elif dice < 0.69:
            # The memory of `once` is lost with the epoch, so nothing may be unanswered.
            network.run(network.now + 5)
            while server.late:
                network.run(network.now + 1)
            network.run(network.now + 1)
            server.now = network.now
            server.reset(topic)
        elif dice < 0.9:
            random.choice(applications).take(random.randrange(6))
        network.run(network.now + random.random() * 0.1)
    server.trouble = 0.0
    for _ in range(20):
        network.run(network.now + 3)
        for application in applications:
            application.take(10_000)
    assert "hole" not in network.errors
    for application in applications:
        stream = server.streams[application.topic]
        assert application.handle.state.state == "live"
        topic = application.topic
        assert [message for message, _ in outcomes[topic]] == published[topic]
        assert all(isinstance(outcome, Published) for _, outcome in outcomes[topic])
        stored = list(stream.record.values())
        own = [message for message in stored if message.startswith("own")]
        assert own == published[topic], "a publish was lost, repeated or overtaken"
        reached = application.position
        if stream.newest and reached is not None and reached.epoch == stream.epoch:
            rest = [
                stream.record[stream.epoch, offset] for offset in range(reached.offset + 1, stream.newest + 1)
            ]
            assert all(message in application.excluded for message in rest)


def random_queue(seed: int) -> int:
    """Returns a limit of the queue: small in a third of the runs, so that it is often full."""
    return 400 if seed % 3 == 0 else 1 << 20


@pytest.mark.parametrize("seed", range(SEEDS // 3))
def test_a_later_handle_gets_history_and_live_messages_without_a_seam(seed: int) -> None:
    random, network = make(seed)
    server, machine = network.server, network.machine
    first = Application(network, "chat.1", None)
    network.run(1.0)
    later: list[Application] = []
    for number in range(80):
        server.now = network.now
        server.publish("chat.1", f"other {number}")
        if random.random() < 0.05:
            network.cut()
        if random.random() < 0.1:
            later.append(Application(network, "chat.1", random.randrange(1, 30)))
        network.run(network.now + random.random() * 0.05)
    network.run(network.now + 10)
    for application in [first, *later]:
        application.take(10_000)
        assert application.position == Position("e1", 80)
        assert not application.gaps
        assert application.history is None or application.received >= min(application.history, 1)
    for application in later:
        machine.unsubscribe(application.handle, network.now)
    machine.unsubscribe(first.handle, network.now)
    network.run(network.now + 1)
    assert server.subscribed == set()
    assert machine.deadline() is not None


@pytest.mark.parametrize("seed", range(SEEDS // 3))
def test_later_handles_follow_a_topic_that_is_cleared(seed: int) -> None:
    random, network = make(seed)
    server = network.server
    server.overtaking = 0.7
    applications = [Application(network, "chat.1", None)]
    network.run(1.0)
    for number in range(80):
        server.now = network.now
        if random.random() < 0.6:
            server.publish("chat.1", f"other {number}")
        elif random.random() < 0.3:
            server.clear("chat.1")
        if random.random() < 0.03 and seed % 2:
            network.cut()
        if random.random() < 0.15:
            applications.append(Application(network, "chat.1", random.randrange(1, 30)))
        if random.random() < 0.5:
            network.run(network.now + random.random() * 0.03)
    network.run(network.now + 10)
    server.now = network.now
    server.publish("chat.1", "last")
    network.run(network.now + 10)
    stream = server.streams["chat.1"]
    for application in applications:
        application.take(10_000)
        assert application.position == Position(stream.epoch, stream.newest)
    assert not network.errors


@pytest.mark.parametrize("seed", range(SEEDS // 3))
def test_a_new_process_continues_where_the_last_one_was(seed: int) -> None:
    random, network = make(seed)
    server = network.server
    application = Application(network, "chat.1", None)
    network.run(1.0)
    for number in range(100):
        server.now = network.now
        server.publish("chat.1", f"other {number}")
        network.run(network.now + random.random() * 0.1)
        application.take(random.randrange(4))
    network.run(network.now + 1)
    # The position of the last message is not saved before the next one is asked for.
    assert application.position is not None
    saved = network.storage["chat.1"]
    assert f'"offset":{application.position.offset}' in saved


def test_everything_fails_when_the_hub_is_closed() -> None:
    _, network = make(1)
    application = Application(network, "chat.1", None)
    outcomes: list[Any] = []
    network.machine.publish(
        "chat.1", 1, exclude_self=False, ordered=True, settle=outcomes.append, now=network.now
    )
    network.machine.request("echo", 1, outcomes.append, network.now)
    network.machine.close(network.now)
    network.act()
    assert [outcome.code for outcome in outcomes if isinstance(outcome, HubError)] == ["closed", "closed"]
    assert application.handle.state.state == "ended"
    assert network.machine.deadline() is None
