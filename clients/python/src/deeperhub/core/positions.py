"""Positions that are saved for the next process."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ..types import Position
from .wire import Data, integer, recover_of, text

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Seconds between two saves.
SAVE_INTERVAL = 0.25


def position_text(position: Position) -> str:
    """Returns the text under which a position is saved."""
    return json.dumps(recover_of(position), separators=(",", ":"))


def parse_position(saved: str | None) -> Position | None:
    """Returns a saved position, or `None` if there is none or the text is damaged."""
    if saved is None:
        return None
    try:
        data: Data = json.loads(saved)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict):
        return None
    epoch, offset = text(data.get("epoch")), integer(data.get("offset"))
    if epoch is None or offset is None or offset < 0:
        return None
    return Position(epoch, offset, integer(data.get("time")))


def earliest(positions: Iterable[Position | None]) -> Position | None:
    """Returns the position that loses no message for any of several handles on one topic.

    The first epoch counts, because positions of different epochs have no order.
    """
    known = [position for position in positions if position is not None]
    same = [position for position in known if position.epoch == known[0].epoch]
    return min(same, key=lambda position: position.offset, default=None)


class UnsavedPositions:
    """Positions that were handled and wait to be saved."""

    def __init__(self) -> None:
        self._positions: dict[str, Position] = {}

    def add(self, topic: str, position: Position) -> bool:
        """Adds a position. Returns whether it is the first one that waits."""
        is_first = not self._positions
        self._positions[topic] = position
        return is_first

    def discard(self, topic: str) -> None:
        """Forgets the position of a topic."""
        self._positions.pop(topic, None)

    def take(self) -> list[tuple[str, str]]:
        """Removes and returns topics with the texts to save."""
        taken = [(topic, position_text(position)) for topic, position in self._positions.items()]
        self._positions.clear()
        return taken
