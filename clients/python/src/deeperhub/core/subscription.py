"""A topic on the wire: states, positions, and the check that no message is missing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ..errors import HubError
from ..types import Gap, Position, SubscriptionState
from .backoff import Backoff
from .queue import HandleQueue
from .wire import Data, is_pattern, message_of, position_of, recover_of, text

#: Own messages that are remembered of each epoch until the position has passed them.
MAX_OWN = 1000
#: Epochs of a topic whose own messages are remembered.
MAX_OWN_EPOCHS = 4
#: Reasons of gaps that a replay does not count: the server announces only what it sends.
SKIPPING = frozenset({"dropped", "conflated"})


class Wire(Enum):
    """What the server knows of the subscription."""

    #: Nothing; the next subscribe asks for it.
    ABSENT = "absent"
    #: A subscribe waits for its answer.
    PENDING = "pending"
    ACTIVE = "active"


class Outcome(Enum):
    """What a delivery leads to."""

    DONE = "done"
    #: A message is missing and nobody told.
    HOLE = "hole"


@dataclass(frozen=True, slots=True)
class Delivery:
    """A `message`, `gap` or `position` of the server."""

    kind: str
    data: Data
    size: int


class Subscription:
    """One topic, shared by all handles on it."""

    def __init__(self, topic: str, history: int | None, position: Position | None, backoff: Backoff) -> None:
        self.topic = topic
        self.is_pattern = is_pattern(topic)
        self.history = history
        self.handles: list[HandleQueue] = []
        #: Position up to which messages were received.
        self.position = position
        self.wire = Wire.ABSENT
        #: ID of the subscribe that waits for its answer.
        self.request: int | None = None
        self.backoff = backoff
        self.state = SubscriptionState("subscribing")
        #: Whether a handle's queue was full, so that messages were left out.
        self.is_overflowing = False
        self._subscribed_before = False
        self._replay = 0
        #: Offset after which the replay began.
        self._replay_start = 0
        self._live = SubscriptionState("live")
        #: Positions of own messages that the application must not get, by epoch and offset. Those
        #: of another epoch may be needed soon: the answer to a publish can come before the
        #: `subscribed` or the gaps that lead to its epoch.
        self._own: dict[str, dict[int, Position]] = {}
        #: Deliveries after a hole that the answer to an own publish may fill.
        self._held: list[Delivery] = []

    def entry(self) -> Data:
        """Returns the entry of a subscribe."""
        entry: Data = {"topic": self.topic}
        if self.position is not None and not self.is_pattern:
            entry["recover"] = recover_of(self.position)
        if self.history is not None:
            entry["history"] = self.history
        return entry

    def set_state(self, state: SubscriptionState) -> None:
        """Changes the state of the subscription and its handles."""
        self.state = state
        for handle in self.handles:
            handle.set_state(state)

    def on_lost(self) -> None:
        """Notes that the server no longer delivers: the connection ended, or it was unsubscribed."""
        self.wire, self.request = Wire.ABSENT, None
        self._replay = 0
        self._held.clear()
        if self.state.state == "live":
            self.set_state(SubscriptionState("recovering"))

    def on_subscribed(self, reply: Data) -> None:
        """Takes the answer to a subscribe."""
        self.wire, self.request = Wire.ACTIVE, None
        self.is_overflowing = False
        self._held.clear()
        self.backoff.reset()
        position, recovered = position_of(reply), reply.get("recovered")
        self._live = SubscriptionState("live")
        if recovered is True:
            self._live = SubscriptionState("live", True)
            known = self.position
            if known is not None and position is not None and known.epoch != position.epoch:
                for handle in self.handles:
                    handle.continue_in_epoch(known.epoch, position.epoch)
            self._move(position or known)
        elif recovered is False or self._subscribed_before:
            reason = text(reply.get("reason")) or "no_history"
            self._live = SubscriptionState("live", False, reason)
            self._push_gap(self._missed(reason, position), position, is_current=True)
            self._move(position)
        else:
            self._move(position)
        self._subscribed_before = True
        replay = reply.get("replay")
        self._replay = replay if isinstance(replay, int) else 0
        self._replay_start = self.position.offset if self.position is not None else 0
        if self._replay <= 0:
            self.set_state(self._live)
        else:
            self.set_state(SubscriptionState("recovering"))
        for handle in self.handles:
            if not handle.ready:
                handle.make_ready()

    def on_delivery(self, delivery: Delivery, *, awaits_own: bool, own_clients: tuple[str, ...]) -> Outcome:
        """Takes a delivery. `awaits_own` says whether an own publish may fill a hole."""
        # Messages left out before a new epoch never come again, so its gap is told at once.
        is_left_out = self.is_overflowing and not is_new_epoch(delivery)
        if self.wire is not Wire.ACTIVE or is_left_out:
            return Outcome.DONE
        if self._held:
            return self._hold(delivery)
        return self._take(delivery, awaits_own, own_clients)

    def on_own(self, position: Position) -> None:
        """Notes the position of an own message that the server does not deliver."""
        known = self.position
        if known is None or known.epoch != position.epoch or known.offset < position.offset:
            own = self._own.setdefault(position.epoch, {})
            own[position.offset] = position
            if len(own) > MAX_OWN:
                del own[next(iter(own))]
            if len(self._own) > MAX_OWN_EPOCHS:
                del self._own[next(iter(self._own))]
            if known is not None and self.wire is Wire.ACTIVE and not self.is_overflowing:
                # The position that a reconnect gives back is behind the own message then.
                self._fill_own(known, position.offset)

    def release_held(self, *, awaits_own: bool, own_clients: tuple[str, ...]) -> Outcome:
        """Looks at held deliveries again, since an own publish was answered."""
        held, self._held = self._held, []
        for index, delivery in enumerate(held):
            if self.is_overflowing:
                break
            if self._take(delivery, awaits_own, own_clients) is Outcome.HOLE:
                return Outcome.HOLE
            if self._held:
                self._held.extend(held[index + 1 :])
                break
        return Outcome.DONE

    @property
    def was_subscribed(self) -> bool:
        """Returns whether the server has accepted the subscription at some time."""
        return self._subscribed_before

    @property
    def may_continue(self) -> bool:
        """Returns whether messages were left out and there is room for them now."""
        return self.is_overflowing and all(handle.is_half_free for handle in self.handles)

    def end(self, reason: str, error: HubError | None, *, keep: bool) -> None:
        """Ends the subscription and its handles."""
        self.state = SubscriptionState("ended", None, reason)
        self.wire, self.request = Wire.ABSENT, None
        self._held.clear()
        for handle in self.handles:
            handle.end(reason, error, keep=keep)

    def _take(self, delivery: Delivery, awaits_own: bool, own_clients: tuple[str, ...]) -> Outcome:
        if delivery.kind == "message":
            return self._take_message(delivery, awaits_own, own_clients)
        position, known = position_of(delivery.data), self.position
        if (
            position is not None
            and known is not None
            and known.epoch == position.epoch
            and known.offset >= position.offset
        ):
            return Outcome.DONE
        if delivery.kind == "gap":
            reason = text(delivery.data.get("reason")) or "lost"
            start, end = delivery.data.get("from"), delivery.data.get("to")
            gap = Gap(
                self.topic,
                reason,
                start if isinstance(start, int) else None,
                end if isinstance(end, int) else None,
            )
            self._push_gap(gap, position)
            self._count_gap(gap)
        if position is not None:
            self._move(position)
        return Outcome.DONE

    def _take_message(self, delivery: Delivery, awaits_own: bool, own_clients: tuple[str, ...]) -> Outcome:
        position, known = position_of(delivery.data), self.position
        if position is None or known is None or self.is_pattern:
            self._hand_over(delivery, position)
            return Outcome.DONE
        if position.epoch != known.epoch:
            return Outcome.HOLE
        if position.offset <= known.offset:
            if position.offset > self._replay_start:
                self._count_replay()
            return Outcome.DONE
        previous = delivery.data.get("prev")
        if not isinstance(previous, int):
            previous = position.offset - 1
        if previous > known.offset:
            known = self._fill_own(known, previous)
        if previous > known.offset:
            return self._hold(delivery) if awaits_own else Outcome.HOLE
        if position.offset in self._own.get(position.epoch, ()):
            self._move(position)
            self._count_replay()
            return Outcome.DONE
        if awaits_own and self._replay > 0 and delivery.data.get("from") in own_clients:
            # It may be the message whose answer is awaited, which the application must not see.
            return self._hold(delivery)
        self._hand_over(delivery, position)
        return Outcome.DONE

    def _hand_over(self, delivery: Delivery, position: Position | None) -> None:
        message, size = message_of(delivery.data), delivery.size
        if position is not None and not self.is_pattern:
            if not all(handle.has_room(size) for handle in self.handles):
                self.is_overflowing = True
                return
            self._move(position)
        for handle in self.handles:
            if handle.has_room(size):
                handle.push_message(message, size)
            else:
                handle.push_gap(Gap(self.topic, "dropped"))
        self._count_replay()

    def _hold(self, delivery: Delivery) -> Outcome:
        self._held.append(delivery)
        held = sum(delivery.size for delivery in self._held)
        # One message of any length may wait, as in an empty queue.
        if len(self._held) > 1 and any(handle.exceeds(held) for handle in self.handles):
            self._held.clear()
            self.is_overflowing = True
        return Outcome.DONE

    def _count_replay(self, messages: int = 1) -> None:
        if self._replay > 0:
            self._replay = max(self._replay - messages, 0)
            if self._replay == 0:
                self.set_state(self._live)

    def _count_gap(self, gap: Gap) -> None:
        """Takes the messages of a gap off the replay, which then no longer recovers all.

        A delivery policy replays as many messages as it announced, and the position was good.
        """
        if self._replay > 0 and self._live.recovered and gap.reason not in SKIPPING:
            self._live = SubscriptionState("live", False, gap.reason)
        if gap.reason == "epoch":
            self._count_replay(self._replay)
        elif gap.reason not in SKIPPING and gap.from_ is not None and gap.to is not None:
            self._count_replay(gap.to - gap.from_ + 1)

    def _move(self, position: Position | None) -> None:
        known, self.position = self.position, position
        if position is None or not self._own:
            return
        if known is not None and known.epoch != position.epoch:
            self._own.pop(known.epoch, None)
        own = self._own.pop(position.epoch, {})
        left = {offset: at for offset, at in own.items() if offset > position.offset}
        if left:
            self._own[position.epoch] = left

    def _fill_own(self, known: Position, end: int) -> Position:
        """Moves over own messages, at most to the offset `end`. Returns the position."""
        while known.offset < end and (own := self._own_after(known)) is not None:
            known = own
            self._move(known)
        return known

    def _own_after(self, position: Position) -> Position | None:
        """Returns the position of the own message that comes next, if it is one."""
        return self._own.get(position.epoch, {}).get(position.offset + 1)

    def _push_gap(self, gap: Gap, position: Position | None, *, is_current: bool = False) -> None:
        """Tells a gap that leads from the present position to another one."""
        epoch = self.position.epoch if self.position is not None else None
        for handle in self.handles:
            handle.push_gap(gap, position, epoch, is_current=is_current)

    def _missed(self, reason: str, position: Position | None) -> Gap:
        known = self.position
        if known is None or position is None or known.epoch != position.epoch:
            return Gap(self.topic, reason)
        if known.offset >= position.offset:
            return Gap(self.topic, reason)
        return Gap(self.topic, reason, known.offset + 1, position.offset)


def is_new_epoch(delivery: Delivery) -> bool:
    """Returns whether a delivery leads to a new epoch."""
    return delivery.kind == "gap" and delivery.data.get("reason") == "epoch"
