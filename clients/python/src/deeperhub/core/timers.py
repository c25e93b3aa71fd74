"""Deadlines by name."""

from __future__ import annotations

import heapq

TimerKey = tuple[str, int]


class Timers:
    """A set of deadlines; setting one again replaces it."""

    def __init__(self) -> None:
        self._deadlines: dict[TimerKey, float] = {}
        self._heap: list[tuple[float, TimerKey]] = []

    def set(self, name: str, when: float, number: int = 0) -> None:
        """Sets a deadline."""
        key = (name, number)
        self._deadlines[key] = when
        heapq.heappush(self._heap, (when, key))
        # Replaced deadlines stay in the heap until they are due, or until they are the most of it.
        if len(self._heap) > 64 + 4 * len(self._deadlines):
            self._heap = [(when, key) for key, when in self._deadlines.items()]
            heapq.heapify(self._heap)

    def cancel(self, name: str, number: int = 0) -> None:
        """Removes a deadline, if it is set."""
        self._deadlines.pop((name, number), None)

    def is_set(self, name: str, number: int = 0) -> bool:
        """Returns whether a deadline is set."""
        return (name, number) in self._deadlines

    def next(self) -> float | None:
        """Returns the earliest deadline."""
        while self._heap:
            when, key = self._heap[0]
            if self._deadlines.get(key) == when:
                return when
            heapq.heappop(self._heap)
        return None

    def pop_due(self, now: float) -> tuple[str, int, float] | None:
        """Removes and returns the earliest deadline that has passed: name, number and time."""
        when = self.next()
        if when is None or when > now:
            return None
        _, key = heapq.heappop(self._heap)
        del self._deadlines[key]
        return (*key, when)

    def clear(self) -> None:
        """Removes all deadlines."""
        self._deadlines.clear()
        self._heap.clear()
