"""The core's parts, each by itself and together, in virtual time."""

from __future__ import annotations

import base64
import json
from random import Random
from typing import Any

import pytest

from deeperhub import Gap, HubError, Message, Position, SubscriptionState
from deeperhub.core.actions import (
    CallToken,
    CancelToken,
    CloseSocket,
    OpenSocket,
    ReportError,
    ReportState,
    SavePosition,
    SendText,
)
from deeperhub.core.backoff import Backoff
from deeperhub.core.ending import Decision, Ending, Goodbye, Next, decide
from deeperhub.core.machine import Machine
from deeperhub.core.options import Options
from deeperhub.core.positions import earliest, parse_position, position_text
from deeperhub.core.queue import MAX_NOTICES, HandleQueue, Item
from deeperhub.core.timers import Timers
from deeperhub.core.token import TokenKind, expiry_of
from deeperhub.core.wire import matches

Data = dict[str, Any]


class Rig:
    """A machine whose server and clock are the test."""

    def __init__(self, kind: TokenKind = TokenKind.NONE, **limits: Any) -> None:
        self.now = 1000.0
        self.machine = Machine(
            Options(**limits), kind, "fixed", Random(1), once_prefix="p", saves_positions=True
        )
        self.sent: list[Data] = []
        self.states: list[str] = []
        self.errors: list[HubError] = []
        self.other: list[Any] = []
        self.outcomes: list[Any] = []
        self.machine.start(self.now)
        self.act()

    def act(self) -> None:
        while self.machine.actions:
            match self.machine.actions.popleft():
                case SendText(text):
                    self.sent.append(json.loads(text))
                case ReportState(state):
                    self.states.append(state.state)
                case ReportError(error):
                    self.errors.append(error)
                case action:
                    self.other.append(action)

    def open(self, **limits: Any) -> None:
        self.machine.connection.on_socket_open(self.now)
        limits = {"max_message_bytes": 65536, "ping_interval_ms": 20_000, **limits}
        self.message("welcome", {"client_id": "c1", "server_time": 5_000_000, "limits": limits})

    def message(self, kind: str, data: Any, request: Any = None) -> None:
        self.machine.connection.on_activity(self.now)
        self.machine.on_message(json.dumps({"type": kind, "data": data, "id": request}), self.now)
        self.act()

    def end(self, ending: Ending) -> None:
        self.machine.on_ended(ending, self.now)
        self.act()

    def pass_time(self, seconds: float) -> None:
        """Lets timers fire when they are due."""
        end = self.now + seconds
        while (due := self.machine.deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.machine.on_time(self.now)
            self.act()
        self.now = end

    def sleep(self, seconds: float) -> None:
        """Lets timers fire only at the end, as after a computer slept."""
        self.now += seconds
        self.machine.on_time(self.now)
        self.act()

    def take_sent(self, *kinds: str) -> list[Data]:
        sent, self.sent = self.sent, []
        assert [message["type"] for message in sent] == list(kinds)
        return sent

    def subscribe(self, topic: str = "chat", history: int | None = None) -> HandleQueue:
        handle = self.machine.subscribe(topic, history, None, lambda: None, self.now)
        self.act()
        return handle

    def publish(self, message: Any, topic: str = "chat", **keys: Any) -> Any:
        keys = {"exclude_self": False, "ordered": True, **keys}
        publish = self.machine.publish(topic, message, settle=self.outcomes.append, now=self.now, **keys)
        self.act()
        return publish

    def live(self, offset: int = 10, **limits: Any) -> HandleQueue:
        """Returns a handle on a topic with history that is live."""
        self.open(**limits)
        handle = self.subscribe()
        (request,) = self.take_sent("subscribe")
        self.message("subscribed", {"topic": "chat", **at(offset)}, request["id"])
        assert drain(handle) == [SubscriptionState("live")]
        return handle

    def deliver(self, offset: int, **keys: Any) -> None:
        self.message("message", {"topic": "chat", "message": offset, **at(offset), **keys})


def at(offset: int, epoch: str = "e1") -> Data:
    return {"epoch": epoch, "offset": offset, "time": offset}


def drain(handle: HandleQueue) -> list[Item]:
    items = []
    while (item := handle.pop()) is not None:
        items.append(item)
    return items


def offsets(items: list[Item]) -> list[Any]:
    return [item.offset for item in items if isinstance(item, Message)]


def token(expiry: float) -> str:
    claims = base64.urlsafe_b64encode(json.dumps({"exp": expiry}).encode()).decode().rstrip("=")
    return f"h.{claims}.s"


def test_backoff_stays_in_its_limits() -> None:
    for seed in range(200):
        backoff = Backoff(0.5, 20.0, Random(seed))
        for attempt in range(1, 2000):
            delay = backoff.next()
            lower = 0.0 if attempt == 1 else 0.5
            assert lower <= delay <= min(2.0 ** min(attempt - 1, 10), 20.0)
        backoff.reset()
        assert backoff.next() <= 1.0


@pytest.mark.parametrize(
    ("ending", "goodbye", "open_for", "expected"),
    [
        (Ending("x", code=1011), None, 5.0, Next.BACK_OFF),
        (Ending("x"), None, None, Next.BACK_OFF),
        (Ending("x", code=1000), None, 50.0, Next.BACK_OFF),
        (Ending("x", code=1009), None, 50.0, Next.CLOSE),
        (Ending("x", code=4003), None, 50.0, Next.CLOSE),
        (Ending("x", code=4100), None, 50.0, Next.BACK_OFF),
        (Ending("x", code=4200), None, 50.0, Next.AT_ONCE),
        (Ending("x", code=4299), None, 9.0, Next.BACK_OFF),
        (Ending("x", without_life=True), None, 10.0, Next.AT_ONCE),
        (Ending("x", code=4001), None, 1.0, Next.RENEW_TOKEN),
        (Ending("x", code=4001), Goodbye(4001, "r", False, None), 1.0, Next.RENEW_TOKEN),
        (Ending("x", status=401, retry_after=3), None, None, Next.REPLACE_TOKEN),
        (Ending("x", status=403), None, None, Next.CLOSE),
        (Ending("x", status=404, retry_after=3), None, None, Next.CLOSE),
        (Ending("x", status=503, retry_after=3), None, None, Next.WAIT),
        (Ending("x", status=503), None, None, Next.BACK_OFF),
        (Ending("x", status=200), None, None, Next.BACK_OFF),
        (Ending("x", code=1001), Goodbye(1001, "r", True, 7.5), 1.0, Next.WAIT),
        (Ending("x", code=1013), Goodbye(1013, "r", False, 7.5), 1.0, Next.CLOSE),
        (Ending("x"), Goodbye(4003, "r", True, None), 1.0, Next.CLOSE),
    ],
)
def test_what_follows_an_end(
    ending: Ending, goodbye: Goodbye | None, open_for: float | None, expected: Next
) -> None:
    decision = decide(ending, goodbye, open_for)
    assert decision.next is expected
    assert decision.reason == ("r" if goodbye else "x")
    if expected is Next.WAIT:
        assert decision == Decision(Next.WAIT, decision.reason, 7.5 if goodbye else 3)


def test_timers_replace_cancel_and_order() -> None:
    timers = Timers()
    for number in range(1000):
        timers.set("a", 5.0 - number / 1000)
    timers.set("b", 2.0, 1)
    timers.set("b", 3.0, 2)
    timers.cancel("b", 1)
    assert timers.next() == 3.0
    assert timers.pop_due(2.9) is None
    assert timers.pop_due(10.0) == ("b", 2, 3.0)
    assert timers.pop_due(10.0) == ("a", 0, 5.0 - 0.999)
    assert timers.next() is None


@pytest.mark.parametrize(
    ("pattern", "topic", "expected"),
    [
        ("sports.*", "sports.chess", True),
        ("sports.*", "sports.chess.live", False),
        ("sports.>", "sports.chess.live", True),
        ("sports.>", "sports", False),
        ("*.a", "b.a", True),
        ("*.a", "b.c", False),
        (">", "b", True),
        ("a.*.c", "a.b.c", True),
        ("a.*.c", "a.b", False),
    ],
)
def test_patterns(pattern: str, topic: str, expected: bool) -> None:
    assert matches(pattern, topic) is expected


def test_expiry_of_tokens() -> None:
    assert expiry_of(token(17.5)) == 17.5
    for broken in ("", "a.b", "a.b.c", "a.!!.c", token(True), "a.e30.c", "a.W10.c"):
        assert expiry_of(broken) is None


def test_saved_positions() -> None:
    position = Position("e1", 7, 9)
    assert position_text(position) == '{"epoch":"e1","offset":7,"time":9}'
    assert parse_position(position_text(position)) == position
    for damaged in (
        None,
        "",
        "{",
        "[]",
        "7",
        '{"epoch":"e"}',
        '{"epoch":"e","offset":-1}',
        '{"epoch":1,"offset":1}',
    ):
        assert parse_position(damaged) is None
    assert earliest([Position("e", 5), None, Position("e", 3), Position("f", 1)]) == Position("e", 3)
    assert earliest([None]) is None


def test_a_silent_server_is_asked_and_left() -> None:
    rig = Rig()
    rig.open()
    rig.pass_time(29.9)
    rig.take_sent()
    rig.pass_time(0.2)
    rig.take_sent("ping")
    rig.pass_time(9.0)
    assert rig.states == ["connecting", "open"]
    rig.pass_time(2.0)
    assert CloseSocket(abort=True) in rig.other
    # It was open for 10 s, so the next attempt is at once.
    assert rig.states == ["connecting", "open", "connecting"]


def test_each_sign_of_life_counts() -> None:
    rig = Rig()
    rig.open()
    for _ in range(50):
        rig.pass_time(25)
        rig.machine.connection.on_activity(rig.now)
    rig.take_sent()
    rig.pass_time(31)
    rig.take_sent("ping")
    rig.machine.connection.on_activity(rig.now)
    rig.pass_time(29)
    rig.take_sent()
    assert rig.states == ["connecting", "open"]


def test_a_server_without_pings_is_asked_after_25_seconds() -> None:
    rig = Rig()
    rig.open(ping_interval_ms=0)
    rig.pass_time(24.9)
    rig.take_sent()
    rig.pass_time(0.2)
    rig.take_sent("ping")


def test_after_sleep_the_server_gets_time_to_answer() -> None:
    rig = Rig()
    rig.open()
    rig.sleep(3600)
    rig.take_sent("ping")
    # It sleeps again while the answer is awaited.
    rig.sleep(3600)
    rig.take_sent("ping")
    rig.message("pong", None)
    rig.pass_time(15)
    assert rig.states == ["connecting", "open"]


def test_data_from_before_the_sleep_is_no_sign_of_life_after_it() -> None:
    rig = Rig()
    rig.open()
    rig.now += 3600
    rig.machine.connection.on_activity(rig.now)
    rig.machine.on_time(rig.now)
    rig.act()
    rig.take_sent("ping")


def test_a_token_is_renewed_at_80_percent_of_its_life() -> None:
    rig = Rig(TokenKind.FUNCTION)
    assert rig.other == [CallToken(1)]
    rig.machine.connection.on_token(1, token(5000 + 100), rig.now)
    rig.act()
    assert [action for action in rig.other if isinstance(action, OpenSocket)]
    rig.open()
    rig.pass_time(25)
    rig.message("pong", None)
    rig.pass_time(25)
    rig.message("pong", None)
    rig.pass_time(29.9)
    assert CallToken(2) not in rig.other
    rig.pass_time(0.2)
    assert rig.other[-1] == CallToken(2)
    rig.sent.clear()
    rig.machine.connection.on_token(2, "new", rig.now)
    rig.act()
    (request,) = rig.take_sent("authenticate")
    assert request["data"] == {"token": "new"}
    # It is refused: another one at once, then after a backoff; the connection stays.
    rig.message("error", {"code": "token_expired", "message": "x"}, request["id"])
    assert rig.other[-1] == CallToken(3)
    rig.machine.connection.on_token(3, "newer", rig.now)
    rig.act()
    (request,) = rig.take_sent("authenticate")
    rig.message("error", {"code": "token_expired", "message": "x"}, request["id"])
    assert rig.other[-1] == CallToken(3)
    assert [error.code for error in rig.errors] == ["token_expired"]
    rig.pass_time(1.0)
    assert rig.other[-1] == CallToken(4)
    rig.machine.connection.on_token_failed(4, "no route", rig.now)
    rig.act()
    assert [error.code for error in rig.errors] == ["token_expired", "token_failed"]
    rig.pass_time(3)
    assert rig.other[-1] == CallToken(5)
    assert rig.states == ["connecting", "open"]


def test_a_function_that_returns_the_same_token_is_not_called_without_end() -> None:
    rig = Rig(TokenKind.FUNCTION)
    rig.machine.connection.on_token(1, token(5010), rig.now)
    rig.open()
    for _ in range(100):
        rig.pass_time(0.1)
        calls = [action.call for action in rig.other if isinstance(action, CallToken)]
        rig.machine.connection.on_token(calls[-1], token(5010), rig.now)
        rig.act()
        for request in rig.sent:
            rig.message("authenticated", {"user": "ada", "expires_at": 5010}, request.get("id"))
        rig.sent.clear()
    assert len([action for action in rig.other if isinstance(action, CallToken)]) < 8


def test_close_code_4001_asks_for_a_token_once() -> None:
    rig = Rig(TokenKind.FUNCTION)
    rig.machine.connection.on_token(1, "a", rig.now)
    rig.open()
    rig.end(Ending("expired", code=4001))
    assert rig.other[-1] == CallToken(2)
    rig.machine.connection.on_token(2, "b", rig.now)
    rig.open()
    rig.end(Ending("expired", code=4001))
    assert rig.states[-1] == "waiting"
    fixed = Rig(TokenKind.STRING)
    fixed.open()
    fixed.end(Ending("expired", code=4001))
    assert fixed.states[-1] == "closed"


def test_a_token_function_that_hangs_fails_the_attempt() -> None:
    rig = Rig(TokenKind.FUNCTION)
    rig.pass_time(10.1)
    assert [error.code for error in rig.errors] == ["token_failed"]
    assert CancelToken() in rig.other
    rig.machine.connection.on_token(1, "late", rig.now)
    assert rig.states[-1] in ("waiting", "connecting")
    assert not any(isinstance(action, OpenSocket) for action in rig.other)


def test_the_slot_of_goodbye_is_kept_to_the_millisecond() -> None:
    rig = Rig()
    rig.open()
    rig.message("goodbye", {"code": 1001, "reason": "shutdown", "reconnect": True, "retry_after_ms": 12_345})
    rig.end(Ending("closed", code=1001))
    state = rig.machine.connection.state
    assert (state.state, state.reason, state.until) == ("waiting", "shutdown", rig.now + 12.345)
    # It belongs to one end; and the wait counts, so the next one is not the shortest.
    rig.pass_time(12.4)
    rig.open()
    rig.end(Ending("cut"))
    until = rig.machine.connection.state.until
    assert until is not None
    assert 0.5 <= until - rig.now <= 2.0


def test_holes_of_excluded_messages_wait_for_the_answer() -> None:
    rig = Rig()
    handle = rig.live()
    rig.publish("own", exclude_self=True)
    (request,) = rig.take_sent("publish")
    rig.deliver(12)
    rig.deliver(13)
    assert drain(handle) == []
    rig.message("published", {"topic": "chat", "subscribers": 1, **at(11)}, request["id"])
    assert offsets(drain(handle)) == [12, 13]
    assert rig.errors == []


def test_an_answer_before_the_message_that_it_follows() -> None:
    rig = Rig()
    handle = rig.live()
    rig.publish("own", exclude_self=True)
    (request,) = rig.take_sent("publish")
    rig.message("published", {"topic": "chat", "subscribers": 1, **at(12)}, request["id"])
    for offset in (11, 13, 14):
        rig.deliver(offset)
    assert offsets(drain(handle)) == [11, 13, 14]
    rig.take_sent()


def test_a_hole_is_reported_and_filled() -> None:
    rig = Rig()
    handle = rig.live()
    rig.deliver(11)
    rig.deliver(13)
    assert [error.code for error in rig.errors] == ["hole"]
    _, request = rig.take_sent("unsubscribe", "subscribe")
    assert request["data"] == {"topic": "chat", "recover": at(11)}
    rig.deliver(14)
    rig.message("subscribed", {"topic": "chat", "recovered": True, "replay": 3, **at(11)}, request["id"])
    for offset in (12, 13, 14, 15):
        rig.deliver(offset)
    items = drain(handle)
    assert offsets(items) == [11, 12, 13, 14, 15]
    assert SubscriptionState("recovering") in items
    # Live before 15, after the replay.
    assert items.index(SubscriptionState("live", True)) == len(items) - 2


def test_prev_bridges_offsets_that_were_not_sent() -> None:
    rig = Rig()
    handle = rig.live()
    rig.deliver(15, prev=10)
    rig.deliver(20, prev=15)
    rig.message("position", {"topic": "chat", **at(30)})
    rig.deliver(31)
    rig.message("gap", {"topic": "chat", "reason": "trimmed", "from": 32, "to": 40, **at(40)})
    rig.message("gap", {"topic": "chat", "reason": "trimmed", "from": 32, "to": 40, **at(40)})
    rig.deliver(41)
    items = drain(handle)
    assert offsets(items) == [15, 20, 31, 41]
    assert [item for item in items if isinstance(item, Gap)] == [Gap("chat", "trimmed", 32, 40)]
    assert rig.errors == []


@pytest.mark.parametrize("code", ["unavailable", "rate_limited", "too_many_topics", "internal"])
def test_a_subscribe_that_fails_for_a_while_keeps_its_position(code: str) -> None:
    rig = Rig()
    rig.live()
    rig.end(Ending("cut"))
    rig.pass_time(1)
    rig.open()
    (request,) = rig.take_sent("subscribe")
    rig.message("error", {"code": code, "message": "x", "retry_after_ms": 400}, request["id"])
    rig.pass_time(0.39)
    rig.take_sent()
    rig.pass_time(0.02)
    (again,) = rig.take_sent("subscribe")
    assert again["data"] == request["data"] == {"topic": "chat", "recover": at(10)}


def test_one_subscribe_for_all_topics_where_each_succeeds_or_fails_alone() -> None:
    rig = Rig()
    handles = [rig.subscribe(topic) for topic in ("a", "b.*", "c", "d")]
    rig.open()
    (request,) = rig.take_sent("subscribe")
    assert [entry["topic"] for entry in request["data"]["topics"]] == ["a", "c", "d", "b.*"]
    rig.message(
        "subscribed",
        {
            "topics": [
                {"topic": "a"},
                {"topic": "c", "error": {"code": "forbidden", "message": "x"}},
                {"topic": "d", "error": {"code": "unavailable", "message": "x", "retry_after_ms": 100}},
                {"topic": "b.*"},
            ]
        },
        request["id"],
    )
    assert [handle.state.state for handle in handles] == ["live", "live", "ended", "subscribing"]
    assert handles[2].error is not None
    assert handles[2].error.code == "forbidden"
    rig.message("message", {"topic": "b.1", "message": 1, **at(5)})
    rig.message("message", {"topic": "b.1", "message": 2, **at(9)})
    assert offsets(drain(handles[1])) == [5, 9]


def test_a_subscribe_is_divided_when_it_would_be_too_long() -> None:
    rig = Rig()
    for number in range(200):
        rig.subscribe(f"topic.{number}")
    rig.open(max_message_bytes=1000)
    asked = []
    for message in rig.sent:
        assert message["type"] == "subscribe"
        assert len(json.dumps(message, separators=(",", ":"))) <= 1000
        asked += [entry["topic"] for entry in message["data"]["topics"]]
    assert asked == [f"topic.{number}" for number in range(200)]
    assert len(rig.sent) < 20


def test_without_history_a_return_is_a_gap() -> None:
    rig = Rig()
    rig.open()
    handle = rig.subscribe()
    (request,) = rig.take_sent("subscribe")
    rig.message("subscribed", {"topic": "chat"}, request["id"])
    rig.end(Ending("cut"))
    rig.pass_time(1)
    rig.open()
    (request,) = rig.take_sent("subscribe")
    rig.message("subscribed", {"topic": "chat"}, request["id"])
    assert drain(handle) == [
        SubscriptionState("live"),
        SubscriptionState("recovering"),
        Gap("chat", "no_history"),
        SubscriptionState("live", False, "no_history"),
    ]


def test_without_history_a_full_queue_tells_what_was_dropped() -> None:
    rig = Rig(max_queue_bytes=300)
    rig.open()
    handle = rig.subscribe()
    (request,) = rig.take_sent("subscribe")
    rig.message("subscribed", {"topic": "chat"}, request["id"])
    for number in range(20):
        rig.message("message", {"topic": "chat", "message": number})
    first = drain(handle)
    assert first[-1] == Gap("chat", "dropped")
    assert first.count(Gap("chat", "dropped")) == 1
    rig.message("message", {"topic": "chat", "message": "later"})
    (last,) = drain(handle)
    assert isinstance(last, Message)
    rig.take_sent()


def test_with_history_a_full_queue_is_filled_again_from_its_last_message() -> None:
    rig = Rig(max_queue_bytes=500)
    handle = rig.live()
    for offset in range(11, 31):
        rig.deliver(offset)
    rig.take_sent()
    taken = [handle.pop()]
    rig.machine.on_taken(handle)
    rig.act()
    rig.take_sent()
    for _ in range(20):
        if not rig.sent:
            taken.append(handle.pop())
            rig.machine.on_taken(handle)
            rig.act()
    _, request = rig.take_sent("unsubscribe", "subscribe")
    taken += drain(handle)
    last = offsets([item for item in taken if item is not None])[-1]
    assert request["data"]["recover"] == at(last)


def test_an_application_that_never_asks_does_not_fill_the_memory_with_states() -> None:
    handle = HandleQueue("chat", 1000, lambda: None)
    for number in range(5 * MAX_NOTICES):
        handle.set_state(SubscriptionState("recovering" if number % 2 else "live"))
    handle.end("closed", HubError("closed", "x"), keep=True)
    items = drain(handle)
    assert len(items) == MAX_NOTICES + 1
    assert items[-1] == SubscriptionState("ended", None, "closed")


def test_publishes_keep_their_order_on_a_topic_and_not_across() -> None:
    rig = Rig()
    rig.open()
    rig.publish("a1", "a")
    rig.publish("a2", "a")
    rig.publish("b1", "b")
    rig.publish("a3", "a", ordered=False)
    first, other, free = rig.take_sent("publish", "publish", "publish")
    assert [message["data"]["message"] for message in (first, other, free)] == ["a1", "b1", "a3"]
    rig.message("error", {"code": "unavailable", "message": "x", "retry_after_ms": 100}, first["id"])
    rig.pass_time(0.05)
    rig.take_sent()
    rig.pass_time(0.1)
    (again,) = rig.take_sent("publish")
    assert again == first
    rig.message("published", {"topic": "a", "subscribers": 0}, first["id"])
    (second,) = rig.take_sent("publish")
    assert second["data"]["message"] == "a2"


def test_a_publish_that_is_taken_back_does_not_hurry_the_one_before_it() -> None:
    rig = Rig()
    rig.open()
    rig.publish(1)
    second = rig.publish(2)
    rig.publish(3)
    (first,) = rig.take_sent("publish")
    rig.message("error", {"code": "unavailable", "message": "x", "retry_after_ms": 500}, first["id"])
    rig.machine.cancel_publish(second, rig.now)
    rig.act()
    rig.take_sent()
    rig.pass_time(0.6)
    assert rig.take_sent("publish") == [first]
    rig.message("published", {"topic": "chat", "subscribers": 0}, first["id"])
    (third,) = rig.take_sent("publish")
    assert third["data"]["message"] == 3


def test_at_most_32_publishes_are_unanswered() -> None:
    rig = Rig()
    rig.open()
    for number in range(100):
        rig.publish(number, f"topic.{number}")
    sent = rig.take_sent(*["publish"] * 32)
    for message in sent[:10]:
        rig.message("published", {"topic": message["data"]["topic"], "subscribers": 0}, message["id"])
    rig.take_sent(*["publish"] * 10)


def test_rate_limited_holds_all_publishes_back() -> None:
    rig = Rig()
    rig.open()
    rig.publish(1, "a")
    (request,) = rig.take_sent("publish")
    rig.message("error", {"code": "rate_limited", "message": "x", "retry_after_ms": 500}, request["id"])
    rig.publish(2, "b")
    rig.pass_time(0.4)
    rig.take_sent()
    rig.pass_time(0.2)
    first, second = rig.take_sent("publish", "publish")
    assert [first["data"]["message"], second["data"]["message"]] == [1, 2]


def test_repeated_publishes_go_before_the_subscribe_with_the_same_once() -> None:
    rig = Rig()
    rig.live()
    for topic in ("b", "a", "chat"):
        rig.publish(topic, topic)
    first = rig.take_sent("publish", "publish", "publish")
    rig.publish("late", "b")
    rig.end(Ending("cut"))
    rig.pass_time(1)
    rig.open()
    again = rig.take_sent("publish", "publish", "publish", "subscribe")
    assert again[:3] == first


def test_a_publish_without_an_answer_times_out_even_without_a_connection() -> None:
    rig = Rig(max_pending_bytes=300)
    rig.open()
    rig.publish(1)
    rig.publish(2)
    rig.end(Ending("cut"))
    rig.pass_time(119)
    assert rig.outcomes == []
    rig.pass_time(2)
    assert [outcome.code for outcome in rig.outcomes] == ["timeout"]
    rig.publish("x" * 300)
    assert [outcome.code for outcome in rig.outcomes] == ["timeout", "queue_full"]


def test_unsubscribing_takes_back_what_was_asked_and_saved() -> None:
    rig = Rig()
    handle = rig.live()
    second = rig.subscribe()
    assert second.ready
    rig.deliver(11)
    rig.machine.unsubscribe(handle, rig.now)
    rig.act()
    rig.take_sent()
    assert offsets(drain(second)) == [11]
    rig.machine.unsubscribe(second, rig.now)
    rig.act()
    rig.take_sent("unsubscribe")
    assert rig.other[-1] == SavePosition("chat", None)
    rig.deliver(12)
    assert offsets(drain(second)) == []
    # Subscribing again is a new subscription, without the old position.
    third = rig.subscribe()
    (request,) = rig.take_sent("subscribe")
    assert request["data"] == {"topic": "chat"}
    assert not third.ready


def test_unsubscribing_while_recovering() -> None:
    rig = Rig()
    handle = rig.live()
    rig.end(Ending("cut"))
    rig.pass_time(1)
    rig.open()
    (request,) = rig.take_sent("subscribe")
    rig.machine.unsubscribe(handle, rig.now)
    rig.act()
    rig.take_sent("unsubscribe")
    rig.message("subscribed", {"topic": "chat", "recovered": True, "replay": 1, **at(10)}, request["id"])
    rig.deliver(11)
    assert drain(handle) == [SubscriptionState("ended", None, "unsubscribed")]


def trimmed(rig: Rig, start: int, end: int) -> None:
    rig.message("gap", {"topic": "chat", "reason": "trimmed", "from": start, "to": end, **at(end)})


def new_epoch(rig: Rig, epoch: str, offset: int) -> None:
    rig.message("gap", {"topic": "chat", "reason": "epoch", **at(offset, epoch)})


def answer_history(rig: Rig, request: Data, *kept: int, epoch: str = "e1", **keys: Any) -> None:
    messages = [{"topic": "chat", "message": offset, **at(offset, epoch)} for offset in kept]
    data = {"topic": "chat", "messages": messages, **at(kept[-1], epoch), **keys}
    rig.message("history", data, request["id"])


def answer_publish(rig: Rig, request: Data, offset: int, epoch: str = "e1") -> None:
    rig.message("published", {"topic": "chat", "subscribers": 1, **at(offset, epoch)}, request["id"])


def return_to(rig: Rig) -> Data:
    """Ends the connection, and returns the subscribe of the next one."""
    rig.end(Ending("cut"))
    rig.pass_time(1)
    rig.open()
    return rig.sent.pop()


@pytest.mark.parametrize(("end", "expected"), [(2, []), (4, [Gap("chat", "trimmed", 4, 4)])])
def test_a_gap_that_the_history_of_a_later_handle_covers_is_not_told(end: int, expected: list[Gap]) -> None:
    rig = Rig()
    rig.open()
    first = rig.subscribe(history=4)
    (request,) = rig.take_sent("subscribe")
    second, third = rig.subscribe(history=1), rig.subscribe()
    rig.message("subscribed", {"topic": "chat", "replay": 4, **at(0)}, request["id"])
    (history,) = rig.take_sent("history")
    trimmed(rig, 1, end)
    for offset in range(end + 1, 5):
        rig.deliver(offset)
    answer_history(rig, history, 3 if end == 4 else 4)
    rig.deliver(5)
    items = drain(first)
    # Handles that wait for the same answer get the same replay.
    assert drain(third) == items
    assert items[:2] == [SubscriptionState("recovering"), Gap("chat", "trimmed", 1, end)]
    assert items[-2] == SubscriptionState("live")
    items = drain(second)
    assert [item for item in items if isinstance(item, Gap)] == expected
    assert offsets(items) == [3 if end == 4 else 4, 5]


@pytest.mark.parametrize(
    ("gap", "last"),
    [
        ({"reason": "trimmed", "from": 11, "to": 11, **at(11)}, [12]),
        ({"reason": "epoch", **at(12, "e2")}, []),
    ],
)
def test_a_gap_in_a_recovery_is_missed(gap: Data, last: list[int]) -> None:
    rig = Rig()
    handle = rig.live()
    request = return_to(rig)
    data = {"topic": "chat", "recovered": True, "replay": 2, **at(10)}
    rig.message("subscribed", data, request["id"])
    rig.message("gap", {"topic": "chat", **gap})
    for offset in last:
        rig.deliver(offset)
    items = drain(handle)
    assert offsets(items) == last
    assert items[-1] == SubscriptionState("live", False, gap["reason"])


@pytest.mark.parametrize("end", ["stored", "refused", "lost"])
def test_a_late_answer_to_a_publish_fills_its_place(end: str) -> None:
    rig = Rig()
    handle = rig.live()
    rig.publish("own", exclude_self=True)
    (request,) = rig.take_sent("publish")
    # The computer sleeps with the message on its way.
    rig.sleep(200)
    assert [outcome.code for outcome in rig.outcomes] == ["timeout"]
    rig.take_sent("ping")
    rig.deliver(12)
    assert offsets(drain(handle)) == []
    if end == "stored":
        answer_publish(rig, request, 11)
        assert rig.errors == []
        assert offsets(drain(handle)) == [12]
        # Nothing is awaited any more.
        rig.deliver(14)
    elif end == "refused":
        rig.message("error", {"code": "unavailable", "message": "x"}, request["id"])
    else:
        request = return_to(rig)
        rig.message("subscribed", {"topic": "chat", "recovered": True, **at(10)}, request["id"])
        rig.deliver(12)
    assert [error.code for error in rig.errors] == ["hole"]


def joined(rig: Rig, history: int = 5) -> tuple[HandleQueue, HandleQueue, Data]:
    """Returns a live handle, and one that joins it with its request for the history."""
    first = rig.live()
    second = rig.subscribe(history=history)
    (request,) = rig.take_sent("history")
    return first, second, request


def test_gaps_before_the_epoch_of_the_history_do_not_lead_back() -> None:
    rig = Rig()
    _, handle, request = joined(rig)
    # The history was emptied twice, and the subscription is behind.
    rig.deliver(11)
    new_epoch(rig, "e2", 11)
    rig.message("message", {"topic": "chat", "message": 12, **at(12, "e2")})
    answer_history(rig, request, 15, epoch="e3")
    rig.message("message", {"topic": "chat", "message": 13, **at(13, "e2")})
    trimmed_data = {"topic": "chat", "reason": "trimmed", "from": 14, "to": 14}
    rig.message("gap", {**trimmed_data, **at(14, "e2")})
    new_epoch(rig, "e3", 14)
    for offset in (15, 16):
        rig.message("message", {"topic": "chat", "message": offset, **at(offset, "e3")})
    items = drain(handle)
    assert offsets(items) == [15, 16]
    assert not [item for item in items if isinstance(item, Gap)]
    assert rig.errors == []


@pytest.mark.parametrize("is_told_before", [True, False])
def test_a_handle_that_is_ahead_follows_the_subscription_to_a_later_epoch(is_told_before: bool) -> None:
    rig = Rig()
    _, handle, request = joined(rig)
    # The subscription never reaches the epoch of the history.
    if is_told_before:
        new_epoch(rig, "e4", 20)
    answer_history(rig, request, 15, epoch="e3")
    if not is_told_before:
        new_epoch(rig, "e4", 20)
    rig.message("message", {"topic": "chat", "message": 21, **at(21, "e4")})
    items = drain(handle)
    assert offsets(items) == [15, 21]
    assert [item for item in items if isinstance(item, Gap)] == [Gap("chat", "epoch")]


def test_a_joined_handle_follows_a_server_that_lost_its_offsets_meanwhile() -> None:
    rig = Rig()
    _, handle, request = joined(rig)
    new_epoch(rig, "e3", 14)
    answer_history(rig, request, 15, epoch="e3")
    new_epoch(rig, "e9", 2)
    rig.message("message", {"topic": "chat", "message": 3, **at(3, "e9")})
    items = drain(handle)
    assert offsets(items) == [15, 3]
    assert [item for item in items if isinstance(item, Gap)] == [Gap("chat", "epoch")]


def test_a_handle_that_is_ahead_follows_a_server_that_lost_its_offsets() -> None:
    rig = Rig()
    _, handle, request = joined(rig)
    answer_history(rig, request, 15, epoch="e3")
    request = return_to(rig)
    data = {"topic": "chat", "recovered": False, "reason": "epoch", **at(2, "e9")}
    rig.message("subscribed", data, request["id"])
    rig.message("message", {"topic": "chat", "message": 3, **at(3, "e9")})
    items = drain(handle)
    assert offsets(items) == [15, 3]
    assert [item for item in items if isinstance(item, Gap)] == [Gap("chat", "epoch")]


def test_a_joined_handle_follows_offsets_that_go_on_in_another_epoch() -> None:
    rig = Rig()
    _, handle, request = joined(rig)
    answer_history(rig, request, 9, 10)
    request = return_to(rig)
    data = {"topic": "chat", "recovered": True, "replay": 1, **at(10, "e2")}
    rig.message("subscribed", data, request["id"])
    rig.message("message", {"topic": "chat", "message": 11, **at(11, "e2")})
    assert offsets(drain(handle)) == [9, 10, 11]


def test_a_history_that_is_emptied_between_two_parts_ends_with_the_first() -> None:
    rig = Rig()
    _, handle, request = joined(rig, history=2000)
    answer_history(rig, request, 9, 10, next=11)
    (request,) = rig.take_sent("history")
    new_epoch(rig, "e2", 10)
    rig.message("message", {"topic": "chat", "message": 11, **at(11, "e2")})
    answer_history(rig, request, 11, epoch="e2")
    items = drain(handle)
    assert offsets(items) == [9, 10, 11]
    gaps = [index for index, item in enumerate(items) if isinstance(item, Gap)]
    assert gaps == [len(items) - 2]


def test_a_server_that_lost_its_offsets_between_two_parts_of_a_history() -> None:
    rig = Rig()
    _, handle, request = joined(rig, history=2000)
    answer_history(rig, request, 9, 10, next=11)
    rig.take_sent("history")
    rig.end(Ending("cut"))
    rig.pass_time(1)
    rig.open()
    request, history = rig.take_sent("subscribe", "history")
    data = {"topic": "chat", "recovered": False, "reason": "epoch", **at(2, "e9")}
    rig.message("subscribed", data, request["id"])
    rig.message("message", {"topic": "chat", "message": 3, **at(3, "e9")})
    rig.message("history", {"topic": "chat", "messages": [], **at(3, "e9")}, history["id"])
    items = drain(handle)
    assert offsets(items) == [9, 10, 3]
    assert [item for item in items if isinstance(item, Gap)] == [Gap("chat", "epoch")]


@pytest.mark.parametrize("epochs", [["e3"], ["e2", "e3"]])
def test_own_messages_of_an_epoch_to_come_are_remembered(epochs: list[str]) -> None:
    rig = Rig()
    handle = rig.live()
    rig.publish("own", exclude_self=True)
    (request,) = rig.take_sent("publish")
    answer_publish(rig, request, 15, "e3")
    for offset, epoch in enumerate(epochs, 13):
        new_epoch(rig, epoch, offset if epoch != "e3" else 14)
    rig.message("message", {"topic": "chat", "message": 16, **at(16, "e3")})
    assert rig.errors == []
    assert offsets(drain(handle)) == [16]


def test_own_messages_are_remembered_while_a_handle_joins() -> None:
    rig = Rig(max_queue_bytes=300)
    first, second, history = joined(rig)
    rig.publish("own", exclude_self=True)
    (request,) = rig.take_sent("publish")
    answer_publish(rig, request, 11)
    # The queue of the joined handle is full, so messages are asked for again.
    answer_history(rig, history, 8, 9, 10, 11)
    rig.deliver(12)
    drain(second)
    rig.machine.on_taken(second)
    rig.act()
    _, request = rig.take_sent("unsubscribe", "subscribe")
    assert request["data"]["recover"] == at(11)
    rig.message("subscribed", {"topic": "chat", "recovered": True, "replay": 1, **at(11)}, request["id"])
    rig.deliver(12)
    assert rig.errors == []
    assert offsets(drain(first)) == offsets(drain(second)) == [12]


def test_own_messages_are_remembered_while_the_queue_is_full_before_a_new_epoch() -> None:
    rig = Rig(max_queue_bytes=150)
    handle = rig.live()
    rig.publish("own", exclude_self=True)
    (request,) = rig.take_sent("publish")
    # The queue is full before the new epoch, so the subscription asks again from its start.
    rig.deliver(11)
    rig.deliver(12)
    new_epoch(rig, "e2", 12)
    answer_publish(rig, request, 13, "e2")
    taken = drain(handle)
    assert offsets(taken) == [11]
    assert [gap.reason for gap in taken if isinstance(gap, Gap)] == ["epoch"]
    rig.machine.on_taken(handle)
    rig.act()
    _, request = rig.take_sent("unsubscribe", "subscribe")
    assert request["data"]["recover"] == at(12, "e2")
    data = {"topic": "chat", "recovered": True, **at(12, "e2")}
    rig.message("subscribed", data, request["id"])
    rig.message("message", {"topic": "chat", "message": 14, **at(14, "e2")})
    assert rig.errors == []
    assert offsets(drain(handle)) == [14]


def test_messages_that_are_held_back_and_dropped_are_asked_for_again() -> None:
    rig = Rig(max_queue_bytes=500)
    handle = rig.live()
    rig.publish("own", exclude_self=True)
    (request,) = rig.take_sent("publish")
    for offset in range(12, 40):
        rig.deliver(offset)
    rig.take_sent()
    answer_publish(rig, request, 11)
    _, request = rig.take_sent("unsubscribe", "subscribe")
    assert request["data"]["recover"] == at(10)
    rig.message("subscribed", {"topic": "chat", "recovered": True, "replay": 2, **at(10)}, request["id"])
    for offset in (12, 13):
        rig.deliver(offset)
    assert rig.errors == []
    assert offsets(drain(handle)) == [12, 13]
