"""Random times between attempts."""

from __future__ import annotations

from random import Random


class Backoff:
    """Times that grow with each attempt, at random, so that clients do not return together."""

    def __init__(self, minimum: float, maximum: float, random: Random) -> None:
        self._minimum = minimum
        self._maximum = maximum
        self._random = random
        self._attempts = 0

    def next(self) -> float:
        """Returns the time before the next attempt."""
        # The exponent is bounded because 2.0**1024 overflows.
        upper = min(2 * self._minimum * 2.0 ** min(self._attempts, 64), self._maximum)
        lower = 0.0 if self._attempts == 0 else self._minimum
        self._attempts += 1
        return self._random.uniform(lower, max(lower, upper))

    def skip(self) -> None:
        """Counts an attempt whose time came from the server."""
        self._attempts += 1

    def reset(self) -> None:
        """Starts again at the shortest times."""
        self._attempts = 0
