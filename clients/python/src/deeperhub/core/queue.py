"""Events that wait for the application, one queue for each handle."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

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
        #: Live events that wait until the history of a later handle has arrived. Gaps have the
        #: positions that they lead to, and the epochs before them.
        self._backlog: list[tuple[Item, int, Position | None, str | None]] | None = None
        #: Messages up to here were handed over with the history already. Its epoch may be one that
        #: the subscription has not reached. `None` once the handle has passed it.
        self._floor: Position | None = None
        #: Epoch of the topic if its history was emptied before all parts of it had arrived.
        self._next_epoch: str | None = None

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

    def exceeds(self, size: int) -> bool:
        """Returns whether a message of this size would exceed the limit, even in an empty queue."""
        return self.bytes + size > self._max_bytes

    def push_message(self, message: Message, size: int) -> None:
        """Adds a message, unless the history of a later handle has it or is newer."""
        if self._backlog is None and self._floor is not None:
            if is_before(message, self._floor):
                return
            self._floor = None
        self._push(message, size)

    def push_gap(
        self,
        gap: Gap,
        position: Position | None = None,
        epoch: str | None = None,
        *,
        is_current: bool = False,
    ) -> None:
        """Adds a gap that leads to a position, unless the history of a later handle covers it.

        Gaps of unknown messages that follow each other become one. `epoch` is that of the
        subscription before the gap. With `is_current`, the gap is newer than a history that has
        arrived.
        """
        if gap.reason == "dropped" and gap.to is None and self._last() == gap:
            return
        if self._backlog is None and self._floor is not None:
            rest = gap_after(gap, position, self._floor, None if is_current else epoch)
            if rest is None:
                return
            gap, self._floor = rest, None
        self._push(gap, 0, position, epoch)

    def continue_in_epoch(self, old: str, new: str) -> None:
        """Notes that the offsets of an epoch go on in another one."""
        if self._floor is not None and self._floor.epoch == old:
            self._floor = replace(self._floor, epoch=new)

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
        for item, size, *_ in (backlog or ()) if keep else ():
            self.bytes -= size
            self._append(item, size)
        self.error = error
        self.set_state(SubscriptionState("ended", None, reason))
        self._notify()

    def await_history(self) -> None:
        """Holds events back until the history has arrived."""
        self._backlog = []

    def add_history(self, messages: list[tuple[Message, int]], newest: Position | None) -> bool:
        """Adds a part of the history before all events that were held back.

        `newest` is the position of the topic. Returns `False` if the history was emptied since the
        part before; then a gap leads to the new epoch.
        """
        if self._floor is not None and newest is not None and newest.epoch != self._floor.epoch:
            self._next_epoch = newest.epoch
            return False
        for message, size in messages:
            self._append(message, size)
            if message.epoch is not None and message.offset is not None:
                self._floor = Position(message.epoch, message.offset, message.time)
        self._notify()
        return True

    def finish_history(self) -> None:
        """Continues with the events that were held back."""
        backlog, self._backlog = self._backlog, None
        for item, size, position, epoch in backlog or ():
            self.bytes -= size
            if isinstance(item, Message):
                self.push_message(item, size)
            elif isinstance(item, Gap):
                is_current = position is not None and position.epoch == self._next_epoch
                self.push_gap(item, position, epoch, is_current=is_current)
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
        if self._backlog is not None:
            return self._backlog[-1][0] if self._backlog else None
        return self._items[-1][0] if self._items else None

    def _push(
        self, item: Item, size: int, position: Position | None = None, epoch: str | None = None
    ) -> None:
        if self._backlog is None:
            self._append(item, size)
            self._notify()
        else:
            self._backlog.append((item, size, position, epoch))
            self.bytes += size

    def _append(self, item: Item, size: int) -> None:
        if not isinstance(item, Message):
            if self._notices >= MAX_NOTICES and not self.ended:
                return
            self._notices += 1
        self._items.append((item, size))
        self.bytes += size


def is_before(message: Message, floor: Position) -> bool:
    """Returns whether a message is part of a history up to a position, or older."""
    if message.epoch is None:
        return False
    # A gap leads to each later epoch, so a message of another epoch is older.
    return message.epoch != floor.epoch or (message.offset or 0) <= floor.offset


def gap_after(gap: Gap, position: Position | None, floor: Position, epoch: str | None) -> Gap | None:
    """Returns the part of a gap that comes after a history up to `floor`, if there is one.

    `epoch` is that of the subscription before the gap.
    """
    if position is None:
        return gap
    if position.epoch == floor.epoch:
        if position.offset <= floor.offset:
            return None
        return gap if gap.from_ is None else replace(gap, from_=max(gap.from_, floor.offset + 1))
    # The history may be ahead of the subscription. Offsets go on when it is emptied, so lower ones
    # are of an earlier epoch then.
    is_ahead = epoch is not None and epoch != floor.epoch
    is_older = is_ahead and (gap.from_ is not None or position.offset < floor.offset)
    return None if is_older else gap
