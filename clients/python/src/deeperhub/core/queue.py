"""Events that wait for the application, one queue for each handle."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ..errors import HubError
from ..types import Gap, Message, Position, SubscriptionState

Item = Message | Gap | SubscriptionState

#: Gaps and states that wait at most. They take no part in the limit of bytes, but an application
#: that never asks for messages must not fill the memory with them.
MAX_NOTICES = 1000


class HandleQueue:
    """A subscription as one caller has it: its events in order, and how far they were taken."""

    def __init__(self, topic: str, max_bytes: int, notify: Callable[[], None]) -> None:
        self.topic = topic
        self.bytes = 0
        self.state = SubscriptionState("subscribing")
        #: Set once the subscription has ended with an error.
        self.error: HubError | None = None
        #: Whether the first `subscribed`, and the history of a later handle, have arrived.
        self.ready = False
        #: Position of the last message that the application has handled.
        self.handled: Position | None = None
        self._max_bytes = max_bytes
        self._notify = notify
        self._items: deque[tuple[Item, int]] = deque()
        self._notices = 0
        #: Live events that wait until the history of a later handle has arrived.
        self._backlog: list[tuple[Item, int]] | None = None
        #: Messages up to here were handed over with the history already.
        self._floor: Position | None = None

    @property
    def ended(self) -> bool:
        """Returns whether nothing more will be added."""
        return self.state.state == "ended"

    @property
    def is_awaiting_history(self) -> bool:
        """Returns whether events are held back until the history has arrived."""
        return self._backlog is not None

    @property
    def is_half_free(self) -> bool:
        """Returns whether at most half of the bytes are taken."""
        return self.bytes <= self._max_bytes // 2

    def has_room(self, size: int) -> bool:
        """Returns whether a message fits. An empty queue takes a message of any length."""
        return self.bytes == 0 or self.bytes + size <= self._max_bytes

    def push_message(self, message: Message, size: int) -> None:
        """Adds a message, unless it was part of the history of a later handle."""
        floor = self._floor
        if floor is not None and message.epoch == floor.epoch and (message.offset or 0) <= floor.offset:
            return
        self._push(message, size)

    def push_gap(self, gap: Gap) -> None:
        """Adds a gap. Gaps of unknown messages that follow each other become one."""
        if gap.reason == "dropped" and gap.to is None and self._last() == gap:
            return
        self._push(gap, 0)

    def set_state(self, state: SubscriptionState) -> None:
        """Changes the state and adds the change to the events."""
        if self.ended or self.state == state:
            return
        self.state = state
        self._push(state, 0)

    def make_ready(self) -> None:
        """Lets the caller of `subscribe` continue."""
        self.ready = True
        self._notify()

    def end(self, reason: str, error: HubError | None, *, keep: bool) -> None:
        """Ends the handle. Without `keep`, the application gets nothing of what waits."""
        if not keep:
            self._items.clear()
            self._notices = self.bytes = 0
        backlog, self._backlog = self._backlog, None
        for item, size in (backlog or ()) if keep else ():
            self.bytes -= size
            self._append(item, size)
        self.error = error
        self.set_state(SubscriptionState("ended", None, reason))
        self._notify()

    def await_history(self) -> None:
        """Holds events back until the history has arrived."""
        self._backlog = []

    def add_history(self, messages: list[tuple[Message, int]]) -> None:
        """Adds a part of the history before all events that were held back."""
        for message, size in messages:
            self._append(message, size)
            if message.epoch is not None and message.offset is not None:
                self._floor = Position(message.epoch, message.offset, message.time)
        self._notify()

    def finish_history(self) -> None:
        """Continues with the events that were held back."""
        backlog, self._backlog = self._backlog, None
        for item, size in backlog or ():
            self.bytes -= size
            if isinstance(item, Message):
                self.push_message(item, size)
            else:
                self._append(item, size)
        self.make_ready()

    def pop(self) -> Item | None:
        """Removes and returns the next event."""
        if not self._items:
            return None
        item, size = self._items.popleft()
        self.bytes -= size
        if not isinstance(item, Message):
            self._notices -= 1
        return item

    def _last(self) -> Item | None:
        items = self._items if self._backlog is None else self._backlog
        return items[-1][0] if items else None

    def _push(self, item: Item, size: int) -> None:
        if self._backlog is None:
            self._append(item, size)
            self._notify()
        else:
            self._backlog.append((item, size))
            self.bytes += size

    def _append(self, item: Item, size: int) -> None:
        if not isinstance(item, Message):
            if self._notices >= MAX_NOTICES and not self.ended:
                return
            self._notices += 1
        self._items.append((item, size))
        self.bytes += size
