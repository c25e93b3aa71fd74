"""Publishes: queued while there is no connection, in order on each topic, repeated until answered."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import HubError
from ..types import Position, Published
from .backoff import Backoff
from .timers import Timers
from .wire import RETRYABLE, Data, integer, position_of, text

#: Publishes that are unanswered at a time, over all topics.
MAX_UNANSWERED = 32

Settle = Callable[[Published | HubError], None]


@dataclass(eq=False, slots=True)
class Publish:
    """One call of `publish`."""

    id: int
    topic: str
    text: str
    size: int
    exclude_self: bool
    ordered: bool
    settle: Settle
    backoff: Backoff
    #: When it was first sent, unless an answer said since then that nothing was published.
    first_sent: float | None = None
    #: Whether a connection ended before the answer, so that it may have been published already.
    answer_lost: bool = False
    #: Whether it waits for its turn or for a connection.
    is_waiting: bool = True
    #: Whether the caller has left.
    is_cancelled: bool = False
    #: Whether an own message may come of it that the server does not deliver.
    may_fill_hole: bool = False


class PublishQueue:
    """All publishes that are not answered."""

    def __init__(self, max_pending_bytes: int, timeout: float, timers: Timers, hold: Backoff) -> None:
        self._max_pending_bytes = max_pending_bytes
        self._timeout = timeout
        self._timers = timers
        self._hold_backoff = hold
        self._publishes: dict[int, Publish] = {}
        #: Ordered publishes of each topic; only the first one may be sent.
        self._lanes: dict[str, deque[Publish]] = {}
        #: IDs of publishes whose turn it is. IDs grow, so the smallest was made first.
        self._turn: list[int] = []
        self._unanswered: set[int] = set()
        self._waiting_bytes = 0
        self._held_until: float | None = None
        self._filling: Counter[str] = Counter()
        #: Publishes that timed out and whose message may still be stored and answered.
        self._late: dict[int, Publish] = {}

    def may_fill_hole(self, topic: str) -> bool:
        """Returns whether an unanswered publish may be a message that is missing in the topic."""
        return self._filling[topic] > 0

    def add(self, publish: Publish, *, is_open: bool) -> None:
        """Adds a publish, or fails it if too many bytes wait."""
        lane = self._lanes.get(publish.topic) if publish.ordered else None
        waits = not is_open or bool(lane) or bool(self._turn) or self._is_full
        if waits and self._waiting_bytes + publish.size > self._max_pending_bytes:
            waiting = (
                f"{self._waiting_bytes} bytes wait to be published, at most {self._max_pending_bytes} may"
            )
            publish.settle(HubError("queue_full", f"{waiting}; publish less, or wait for answers"))
            return
        self._publishes[publish.id] = publish
        self._waiting_bytes += publish.size
        if publish.ordered:
            self._lanes.setdefault(publish.topic, deque()).append(publish)
        if not lane:
            heapq.heappush(self._turn, publish.id)

    def next_to_send(
        self, now: float, max_message_bytes: int | None, *, repeated: bool = False
    ) -> Publish | None:
        """Returns the next publish to send, if it is the turn of one; notes that it is sent.

        With `repeated`, returns only publishes that were sent on an earlier connection.
        """
        while self._turn and not self._is_full:
            publish = self._publishes.get(self._turn[0])
            if publish is None or publish.id in self._unanswered:
                heapq.heappop(self._turn)
                continue
            if repeated and not publish.answer_lost:
                return None
            heapq.heappop(self._turn)
            if max_message_bytes is not None and publish.size > max_message_bytes:
                self._settle(publish, too_large(publish.size, max_message_bytes))
                continue
            self._leave_queue(publish)
            self._unanswered.add(publish.id)
            self._start_filling(publish)
            if publish.first_sent is None:
                publish.first_sent = now
                self._timers.set("publish timeout", now + self._timeout, publish.id)
            return publish
        return None

    def on_published(self, request: int, data: Data) -> tuple[Publish, Position | None] | None:
        """Takes an answer. Returns the publish and the position of its message."""
        late = self._take_late(request)
        if late is not None:
            return late, position_of(data)
        publish = self._publishes.get(request)
        if publish is None or request not in self._unanswered:
            return None
        position = position_of(data)
        answer = Published(
            topic=publish.topic,
            subscribers=integer(data.get("subscribers")) or 0,
            epoch=position.epoch if position else None,
            offset=position.offset if position else None,
            time=position.time if position else None,
            cluster=text(data.get("cluster")),
        )
        self._hold_backoff.reset()
        self._settle(publish, answer)
        return publish, position

    def on_error(self, request: int, error: HubError, now: float) -> Publish | None:
        """Takes an error. Returns the publish that it belongs to."""
        late = self._take_late(request)
        if late is not None:
            return late
        publish = self._publishes.get(request)
        if publish is None or request not in self._unanswered:
            return None
        if error.code not in RETRYABLE or publish.is_cancelled:
            self._settle(publish, error)
            return publish
        self._enter_queue(publish)
        if not publish.answer_lost and error.code != "internal":
            # Nothing was done, so the server's memory of `once` matters only from the next time on.
            publish.first_sent = None
            self._timers.cancel("publish timeout", publish.id)
            self._stop_filling(publish)
        if error.code == "rate_limited":
            pause = self._hold_backoff.next() if error.retry_after is None else error.retry_after
            self._held_until = max(self._held_until or 0.0, now + pause)
            self._timers.set("publishes held", self._held_until)
            heapq.heappush(self._turn, publish.id)
        else:
            pause = publish.backoff.next() if error.retry_after is None else error.retry_after
            self._timers.set("publish again", now + pause, publish.id)
        return publish

    def on_retry_time(self, request: int) -> None:
        """Lets a publish be sent again."""
        if request in self._publishes and request not in self._unanswered:
            heapq.heappush(self._turn, request)

    def on_hold_end(self) -> None:
        """Lets publishes be sent again after `rate_limited`."""
        self._held_until = None

    def on_timeout(self, request: int) -> Publish | None:
        """Fails a publish that was not answered in time."""
        publish = self._publishes.get(request)
        if publish is not None:
            is_unanswered = request in self._unanswered
            message = f"no answer within {self._timeout:g} s; the message may have been published"
            self._settle(publish, HubError("timeout", message))
            if is_unanswered and publish.exclude_self:
                self._late[request] = publish
                self._start_filling(publish)
        return publish

    def cancel(self, publish: Publish) -> None:
        """Takes a publish back if it was not sent; otherwise its answer is awaited for the order."""
        publish.is_cancelled = True
        if publish.id in self._publishes and publish.id not in self._unanswered:
            self._settle(publish, HubError("closed", "the publish was cancelled"))

    def on_lost(self) -> None:
        """Notes that the connection ended: what is unanswered is sent again."""
        self.on_hold_end()
        self._timers.cancel("publishes held")
        for request in list(self._late):
            self._take_late(request)
        for request in sorted(self._unanswered):
            publish = self._publishes[request]
            publish.answer_lost = True
            if publish.is_cancelled:
                self._settle(publish, HubError("closed", "the publish was cancelled"))
                continue
            self._enter_queue(publish)
            heapq.heappush(self._turn, request)

    def fail_all(self, error: HubError) -> None:
        """Fails all publishes."""
        publishes = list(self._publishes.values())
        self._lanes.clear()
        for publish in publishes:
            self._settle(publish, error)

    @property
    def _is_full(self) -> bool:
        return self._held_until is not None or len(self._unanswered) >= MAX_UNANSWERED

    def _settle(self, publish: Publish, outcome: Published | HubError) -> None:
        del self._publishes[publish.id]
        self._leave_queue(publish)
        self._unanswered.discard(publish.id)
        self._stop_filling(publish)
        self._timers.cancel("publish timeout", publish.id)
        self._timers.cancel("publish again", publish.id)
        lane = self._lanes.get(publish.topic) if publish.ordered else None
        if lane:
            was_first = lane[0] is publish
            if was_first:
                lane.popleft()
            else:
                lane.remove(publish)
            if was_first and lane:
                heapq.heappush(self._turn, lane[0].id)
            if not lane:
                del self._lanes[publish.topic]
        publish.settle(outcome)

    def _leave_queue(self, publish: Publish) -> None:
        if publish.is_waiting:
            publish.is_waiting = False
            self._waiting_bytes -= publish.size

    def _enter_queue(self, publish: Publish) -> None:
        self._unanswered.discard(publish.id)
        if not publish.is_waiting:
            publish.is_waiting = True
            self._waiting_bytes += publish.size

    def _take_late(self, request: int) -> Publish | None:
        publish = self._late.pop(request, None)
        if publish is not None:
            self._stop_filling(publish)
        return publish

    def _start_filling(self, publish: Publish) -> None:
        if publish.exclude_self and not publish.may_fill_hole:
            publish.may_fill_hole = True
            self._filling[publish.topic] += 1

    def _stop_filling(self, publish: Publish) -> None:
        if publish.may_fill_hole:
            publish.may_fill_hole = False
            self._filling[publish.topic] -= 1
            if self._filling[publish.topic] == 0:
                del self._filling[publish.topic]


def too_large(size: int, limit: int) -> HubError:
    """Returns the error for a message that the server would not take."""
    return HubError("message_too_large", f"the message has {size} bytes, the server takes {limit}")
