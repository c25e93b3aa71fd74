"""All subscriptions of a hub: what is asked of the server, and where deliveries go."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import HubError
from ..types import Position, SubscriptionState
from .actions import Action, ReportError, SendText
from .backoff import Backoff
from .connection import Connection
from .histories import Histories
from .positions import earliest
from .publish import PublishQueue
from .queue import HandleQueue
from .request import Requests
from .subscription import Delivery, Outcome, Subscription, Wire
from .timers import Timers
from .wire import RETRYABLE, Data, encode, error_of, matches, size_of, text


class Subscriptions:
    """Subscriptions by topic."""

    def __init__(
        self,
        max_queue_bytes: int,
        connection: Connection,
        publishes: PublishQueue,
        requests: Requests,
        timers: Timers,
        act: Callable[[Action], None],
        next_id: Callable[[], int],
        new_backoff: Callable[[], Backoff],
    ) -> None:
        self._connection = connection
        self._publishes = publishes
        self._requests = requests
        self._timers = timers
        self._act = act
        self._next_id = next_id
        self._new_backoff = new_backoff
        self._by_topic: dict[str, Subscription] = {}
        self._patterns: dict[str, Subscription] = {}
        #: Topics that the next subscribe asks for.
        self._wanted: dict[str, None] = {}
        #: Topics whose subscribe failed for a while, by the number of their timer.
        self._retries: dict[int, str] = {}
        #: Topics in the order of a subscribe that waits for its answer.
        self._pending: dict[int, list[str]] = {}
        self._histories = Histories(
            requests, timers, connection, act, next_id, new_backoff, self._on_history_failed
        )

    def add(self, handle: HandleQueue, history: int | None, saved: Position | None, now: float) -> None:
        """Adds a handle, on the subscription of its topic if there is one."""
        subscription = self._by_topic.get(handle.topic)
        if subscription is None:
            subscription = Subscription(handle.topic, history, saved, self._new_backoff())
            subscription.handles.append(handle)
            self._by_topic[handle.topic] = subscription
            if subscription.is_pattern:
                self._patterns[handle.topic] = subscription
            self._wanted[handle.topic] = None
            self.subscribe_wanted()
            return
        subscription.handles.append(handle)
        if history is not None and not subscription.is_pattern:
            self._histories.add(handle, history, now, asks_now=subscription.wire is Wire.ACTIVE)
        if subscription.was_subscribed:
            handle.set_state(SubscriptionState(subscription.state.state))
            if not handle.is_awaiting_history:
                handle.make_ready()

    def remove(self, handle: HandleQueue) -> None:
        """Ends a handle, and its subscription if it was the last one."""
        self._histories.forget(handle)
        subscription = self._by_topic[handle.topic]
        subscription.handles.remove(handle)
        handle.end("unsubscribed", None, keep=False)
        if not subscription.handles:
            if subscription.wire is not Wire.ABSENT and self._connection.is_open:
                self._send("unsubscribe", {"topic": handle.topic}, self._next_id())
            self._end(subscription, "unsubscribed", None)
        else:
            self.on_taken(subscription.handles[0])

    def earliest_handled(self, handle: HandleQueue) -> Position | None:
        """Returns the position from which no handle of the topic would miss a message."""
        subscription = self._by_topic.get(handle.topic)
        if subscription is None or subscription.is_pattern:
            return None
        return earliest(other.handled for other in subscription.handles)

    def subscribe_wanted(self) -> None:
        """Asks for all topics that the server does not know, in one message if it is not too long."""
        if not self._wanted or not self._connection.is_open:
            return
        wanted = [self._by_topic[topic] for topic in self._wanted if self._is_absent(topic)]
        self._wanted.clear()
        # A pattern that comes first would keep its topics from recovering.
        wanted.sort(key=lambda subscription: subscription.is_pattern)
        limit = self._connection.max_message_bytes
        part: list[Subscription] = []
        size = overhead = size_of(encode("subscribe", {"topics": []}, self._next_id())) + 2
        for subscription in wanted:
            length = size_of(encode("subscribe", subscription.entry()))
            if part and limit is not None and size + length > limit:
                self._subscribe(part)
                part, size = [], overhead
            part.append(subscription)
            size += length
        if part:
            self._subscribe(part)

    def on_lost(self) -> None:
        """Notes that the connection ended."""
        self._pending.clear()
        for number in self._retries:
            self._timers.cancel("subscribe again", number)
        self._retries.clear()
        for subscription in self._by_topic.values():
            subscription.on_lost()
            self._wanted[subscription.topic] = None

    def close(self, error: HubError | None) -> None:
        """Ends all subscriptions. With an error, what waits in queues is still handed over."""
        self._histories.clear()
        for subscription in list(self._by_topic.values()):
            subscription.end("closed", error, keep=error is not None)
        self._by_topic.clear()
        self._patterns.clear()
        self._wanted.clear()

    def on_subscribed(self, request: int, data: Data, now: float) -> None:
        """Takes the answer to a subscribe."""
        topics = self._pending.pop(request, None)
        if topics is None:
            return
        replies = data.get("topics")
        if not isinstance(replies, list):
            replies = [data]
        for topic, reply in zip(topics, replies, strict=False):
            subscription = self._by_topic.get(topic)
            if subscription is None or subscription.request != request or not isinstance(reply, dict):
                continue
            error = reply.get("error")
            if isinstance(error, dict):
                self._on_refused(subscription, error_of(error), now)
            else:
                subscription.on_subscribed(reply)
                for handle in subscription.handles:
                    self._histories.ask_if_due(handle, now)

    def on_error(self, request: int, error: HubError, now: float) -> bool:
        """Takes an error. Returns whether it belongs to a subscribe."""
        topics = self._pending.pop(request, None)
        for topic in topics or ():
            subscription = self._by_topic.get(topic)
            if subscription is not None and subscription.request == request:
                self._on_refused(subscription, error, now)
        return topics is not None

    def on_retry_time(self, number: int) -> None:
        """Asks again for a topic."""
        topic = self._retries.pop(number, None)
        if topic in self._by_topic:
            self._wanted[topic] = None

    def on_unsubscribed(self, topic: str | None) -> None:
        """Notes that the server ended a subscription by itself."""
        subscription = self._by_topic.get(topic or "")
        if subscription is not None and subscription.wire is Wire.ACTIVE:
            message = f"the token no longer allows {subscription.topic!r}"
            self._end(subscription, "forbidden", HubError("forbidden", message))

    def on_delivery(self, kind: str, data: Data, size: int) -> None:
        """Hands a `message`, `gap` or `position` to the subscriptions that it belongs to."""
        topic = text(data.get("topic"))
        if topic is None:
            return
        delivery = Delivery(kind, data, size)
        subscription = self._by_topic.get(topic)
        if subscription is not None:
            self._take(subscription, delivery)
        if kind == "message" and self._patterns:
            for pattern in list(self._patterns.values()):
                if pattern is not subscription and matches(pattern.topic, topic):
                    self._take(pattern, delivery)

    def on_own(self, topic: str, position: Position) -> None:
        """Notes the position of an own message that the server does not deliver."""
        subscription = self._by_topic.get(topic)
        if subscription is not None:
            subscription.on_own(position)

    def release_held(self, topic: str) -> None:
        """Looks at held deliveries of a topic again."""
        subscription = self._by_topic.get(topic)
        if subscription is not None:
            awaits_own = self._publishes.may_fill_hole(topic)
            outcome = subscription.release_held(
                awaits_own=awaits_own, own_clients=self._connection.client_ids
            )
            self._after(subscription, outcome)
            if subscription.may_continue:
                self._subscribe_anew(subscription)

    def on_taken(self, handle: HandleQueue) -> None:
        """Asks for what was left out, if there is room for it now."""
        subscription = self._by_topic.get(handle.topic)
        if subscription is not None and subscription.may_continue:
            self._subscribe_anew(subscription)

    def on_history_time(self, number: int, now: float) -> None:
        """Asks again for the history of a later handle."""
        self._histories.on_retry_time(number, now)

    def _is_absent(self, topic: str) -> bool:
        subscription = self._by_topic.get(topic)
        return subscription is not None and subscription.wire is Wire.ABSENT

    def _send(self, kind: str, data: Data, request: int) -> None:
        self._act(SendText(encode(kind, data, request)))

    def _subscribe(self, subscriptions: list[Subscription]) -> None:
        request = self._next_id()
        for subscription in subscriptions:
            subscription.wire, subscription.request = Wire.PENDING, request
        self._pending[request] = [subscription.topic for subscription in subscriptions]
        entries = [subscription.entry() for subscription in subscriptions]
        self._send("subscribe", entries[0] if len(entries) == 1 else {"topics": entries}, request)

    def _subscribe_anew(self, subscription: Subscription) -> None:
        """Subscribes from the position again. A second subscribe alone would not recover."""
        if not self._connection.is_open or subscription.wire is not Wire.ACTIVE:
            return
        self._send("unsubscribe", {"topic": subscription.topic}, self._next_id())
        subscription.on_lost()
        self._subscribe([subscription])

    def _take(self, subscription: Subscription, delivery: Delivery) -> None:
        awaits_own = self._publishes.may_fill_hole(subscription.topic)
        outcome = subscription.on_delivery(
            delivery, awaits_own=awaits_own, own_clients=self._connection.client_ids
        )
        self._after(subscription, outcome)

    def _after(self, subscription: Subscription, outcome: Outcome) -> None:
        if outcome is Outcome.HOLE:
            position = subscription.position
            message = f"a message of {subscription.topic!r} after {position} was missing; please report it"
            self._act(ReportError(HubError("hole", message)))
            self._subscribe_anew(subscription)

    def _on_refused(self, subscription: Subscription, error: HubError, now: float) -> None:
        subscription.wire, subscription.request = Wire.ABSENT, None
        if error.code not in RETRYABLE:
            self._end(subscription, error.code, error)
            return
        delay = subscription.backoff.next() if error.retry_after is None else error.retry_after
        number = self._next_id()
        self._retries[number] = subscription.topic
        self._timers.set("subscribe again", now + delay, number)

    def _end(self, subscription: Subscription, reason: str, error: HubError | None) -> None:
        for handle in subscription.handles:
            self._histories.forget(handle)
        del self._by_topic[subscription.topic]
        self._patterns.pop(subscription.topic, None)
        self._wanted.pop(subscription.topic, None)
        subscription.end(reason, error, keep=True)

    def _on_history_failed(self, handle: HandleQueue, error: HubError) -> None:
        """Ends a later handle that may not have the history it asked for."""
        subscription = self._by_topic[handle.topic]
        handle.end(error.code, error, keep=True)
        subscription.handles.remove(handle)
        if not subscription.handles:
            self._send("unsubscribe", {"topic": handle.topic}, self._next_id())
            self._end(subscription, error.code, error)
