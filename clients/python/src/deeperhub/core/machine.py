"""The whole client without I/O: events and times in, actions out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

from ..errors import HubError
from ..types import Position
from .actions import Action, ReportError, ReportMessage, SavePosition, SendText
from .backoff import Backoff
from .connection import Connection
from .ending import Ending
from .options import Options
from .positions import SAVE_INTERVAL, UnsavedPositions
from .publish import Publish, PublishQueue, Settle, too_large
from .queue import HandleQueue
from .request import Request, Requests
from .subscriptions import Subscriptions
from .timers import Timers
from .token import TokenKind
from .wire import Data, data_of, decode, encode, error_of, integer, size_of, text

#: Types that the server uses for itself. Any other one comes from a backend.
OWN_TYPES = {
    "message",
    "gap",
    "position",
    "presence",
    "history",
    "welcome",
    "goodbye",
    "subscribed",
    "unsubscribed",
    "published",
    "authenticated",
    "echo",
    "pong",
    "error",
}


class Machine:
    """State of one hub. Every method takes the time on a monotonic clock."""

    def __init__(
        self,
        options: Options,
        kind: TokenKind,
        token: str | None,
        random: Random,
        *,
        once_prefix: str,
        saves_positions: bool = False,
    ) -> None:
        #: What the driver has to do, in order. It removes what it has done.
        self.actions: deque[Action] = deque()
        self._options = options
        self._random = random
        self._once_prefix = once_prefix
        self._saves_positions = saves_positions
        self._last_id = 0
        self._timers = Timers()
        self._unsaved = UnsavedPositions()
        self._publishes = PublishQueue(
            options.max_pending_bytes, options.publish_timeout, self._timers, self._new_backoff()
        )
        self._requests = Requests(options.request_timeout, self._timers)
        self._connection = Connection(
            options, kind, token, random, self._timers, self.actions.append, self._next_id, self
        )
        self._subscriptions = Subscriptions(
            options.max_queue_bytes,
            self._connection,
            self._publishes,
            self._requests,
            self._timers,
            self.actions.append,
            self._next_id,
            self._new_backoff,
        )

    @property
    def connection(self) -> Connection:
        """Returns the connection."""
        return self._connection

    def deadline(self) -> float | None:
        """Returns when `on_time` must be called at the latest."""
        return self._timers.next()

    def start(self, now: float) -> None:
        """Makes the first attempt."""
        self._connection.start(now)

    def close(self, now: float) -> None:
        """Ends everything."""
        self._connection.close(now)

    def on_time(self, now: float) -> None:
        """Does what is due."""
        publishes_due = False
        while (due := self._timers.pop_due(now)) is not None:
            name, number, when = due
            match name:
                case "publish again":
                    self._publishes.on_retry_time(number)
                    publishes_due = True
                case "publishes held":
                    self._publishes.on_hold_end()
                    publishes_due = True
                case "publish timeout":
                    self._after_publish(self._publishes.on_timeout(number), now)
                case "request timeout":
                    self._requests.on_timeout(number)
                case "subscribe again":
                    self._subscriptions.on_retry_time(number)
                case "history again":
                    self._subscriptions.on_history_time(number, now)
                case "save":
                    self._save_positions()
                case _:
                    self._connection.on_timer(name, when, now)
        if publishes_due:
            self._send_publishes(now)
        self._subscriptions.subscribe_wanted()

    def on_message(self, raw: str, now: float) -> None:
        """Takes a text message of the server."""
        envelope = decode(raw)
        if envelope is None:
            return
        kind, request, data = envelope["type"], envelope.get("id"), data_of(envelope)
        number = integer(request) or -1
        match kind:
            case "welcome":
                self._connection.on_welcome(data, now)
            case _ if not self._connection.is_open:
                # An answer to a token that the handshake did not carry, or a goodbye.
                if kind == "goodbye":
                    self._connection.on_goodbye(data)
            case "message" | "gap" | "position":
                self._subscriptions.on_delivery(kind, data, size_of(raw))
            case "subscribed":
                self._subscriptions.on_subscribed(number, data, now)
            case "unsubscribed":
                if request is None:
                    self._subscriptions.on_unsubscribed(text(data.get("topic")))
            case "published":
                published = self._publishes.on_published(number, data)
                if published is not None:
                    publish, position = published
                    if publish.exclude_self and position is not None:
                        self._subscriptions.on_own(publish.topic, position)
                    self._after_publish(publish, now)
            case "echo":
                self._requests.on_answer(number, envelope.get("data"))
            case "history":
                self._requests.on_answer(number, data)
            case "authenticated":
                self._connection.on_authenticated(request, data, now)
            case "goodbye":
                self._connection.on_goodbye(data)
            case "error":
                self._on_error(number, data, now)
            case _ if kind not in OWN_TYPES:
                self.actions.append(ReportMessage(envelope))

    def on_ended(self, ending: Ending, now: float) -> None:
        """Notes that the connection ended, or that the attempt failed."""
        self._connection.on_ended(ending, now)

    def subscribe(
        self, topic: str, history: int | None, saved: Position | None, notify: Callable[[], None], now: float
    ) -> HandleQueue:
        """Adds a handle on a topic."""
        handle = HandleQueue(topic, self._options.max_queue_bytes, notify)
        if self._connection.is_closed:
            handle.end("closed", self._closed_error(), keep=False)
        else:
            self._subscriptions.add(handle, history, saved, now)
        return handle

    def unsubscribe(self, handle: HandleQueue, now: float) -> None:
        """Ends a handle, and the subscription with its last handle."""
        if not handle.ended:
            self._subscriptions.remove(handle)
            if self._saves_positions:
                self._unsaved.discard(handle.topic)
                self.actions.append(SavePosition(handle.topic, None))

    def on_taken(self, handle: HandleQueue) -> None:
        """Notes that the application took an event out of a queue."""
        self._subscriptions.on_taken(handle)

    def on_handled(self, handle: HandleQueue, position: Position, now: float) -> None:
        """Notes that the application has handled a message."""
        handle.handled = position
        if not self._saves_positions:
            return
        earliest = self._subscriptions.earliest_handled(handle)
        if earliest is not None and self._unsaved.add(handle.topic, earliest):
            self._timers.set("save", now + SAVE_INTERVAL)

    def publish(
        self, topic: str, message: Any, *, exclude_self: bool, ordered: bool, settle: Settle, now: float
    ) -> Publish:
        """Publishes a message."""
        request = self._next_id()
        data: Data = {"topic": topic, "message": message, "once": f"{self._once_prefix}-{request}"}
        if exclude_self:
            data["exclude_self"] = True
        wire = encode("publish", data, request)
        publish = Publish(
            request, topic, wire, size_of(wire), exclude_self, ordered, settle, self._new_backoff()
        )
        limit = self._connection.max_message_bytes
        if self._connection.is_closed:
            settle(self._closed_error())
        elif limit is not None and publish.size > limit:
            settle(too_large(publish.size, limit))
        else:
            self._publishes.add(publish, is_open=self._connection.is_open)
            self._send_publishes(now)
        return publish

    def cancel_publish(self, publish: Publish, now: float) -> None:
        """Notes that the caller no longer waits for a publish."""
        self._publishes.cancel(publish)
        self._send_publishes(now)

    def request(self, kind: str, data: Any, settle: Callable[[Any], None], now: float) -> Request:
        """Asks the server for something."""
        number = self._next_id()
        wire = encode(kind, data, number)
        request = Request(number, wire, size_of(wire), settle)
        if self._connection.is_closed:
            settle(self._closed_error())
            return request
        self._requests.add(request, now)
        if self._connection.is_open:
            self._send_requests(request)
        return request

    def cancel_request(self, request: Request) -> None:
        """Notes that the caller no longer waits for an answer."""
        self._requests.cancel(request)

    # Events of the connection.

    def on_open(self, now: float) -> None:
        """Sends what waits: repeated publishes, one subscribe, and everything else."""
        self._send_publishes(now, repeated=True)
        self._subscriptions.subscribe_wanted()
        self._send_requests(None)
        self._send_publishes(now)

    def on_lost(self, now: float) -> None:
        """Notes that nothing is known to the server any more."""
        self._publishes.on_lost()
        self._subscriptions.on_lost()

    def on_closed(self, reason: str, now: float) -> None:
        """Fails everything that waits."""
        error = self._closed_error(reason)
        self._publishes.fail_all(error)
        self._subscriptions.close(None if reason == Connection.CLOSED_BY_APPLICATION else error)
        self._requests.fail_all(error)
        self._save_positions()
        self._timers.clear()

    def _on_error(self, request: int, data: Data, now: float) -> None:
        error = error_of(data)
        publish = self._publishes.on_error(request, error, now)
        if publish is not None:
            self._after_publish(publish, now)
            return
        if self._subscriptions.on_error(request, error, now) or self._requests.on_error(request, data):
            return
        if not self._connection.on_authenticate_error(request, error, now):
            self.actions.append(ReportError(error))

    def _after_publish(self, publish: Publish | None, now: float) -> None:
        if publish is not None:
            if publish.exclude_self:
                self._subscriptions.release_held(publish.topic)
            self._send_publishes(now)

    def _send_publishes(self, now: float, *, repeated: bool = False) -> None:
        limit = self._connection.max_message_bytes
        while self._connection.is_open:
            publish = self._publishes.next_to_send(now, limit, repeated=repeated)
            if publish is None:
                break
            self.actions.append(SendText(publish.text))

    def _send_requests(self, only: Request | None) -> None:
        limit = self._connection.max_message_bytes
        for wire in self._requests.texts_to_send(limit, only):
            self.actions.append(SendText(wire))

    def _save_positions(self) -> None:
        for topic, saved in self._unsaved.take():
            self.actions.append(SavePosition(topic, saved))

    def _closed_error(self, reason: str | None = None) -> HubError:
        return HubError("closed", reason or self._connection.state.reason or "the hub is closed")

    def _new_backoff(self) -> Backoff:
        return Backoff(self._options.min_delay, self._options.max_delay, self._random)

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id
