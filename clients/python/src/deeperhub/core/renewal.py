"""Renewal of the token on an open connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..errors import HubError
from .backoff import Backoff
from .timers import Timers
from .token import RENEW_AT, RefusalLimit, ServerClock, expiry_of
from .wire import Data

#: Seconds between two renewals at least, so that a function that returns the same token again and
#: again is not called more and more often as its end comes near.
MIN_INTERVAL = 1.0


class Requester(Protocol):
    """Asks for tokens and sends messages."""

    def call_token(self) -> None:
        """Asks the application for a token."""

    def send(self, kind: str, data: object = None, request: int | None = None) -> None:
        """Sends a message."""

    def report(self, error: HubError) -> None:
        """Tells the application an error."""


class Renewal:
    """Asks for a new token before the old one expires, and sends it."""

    def __init__(
        self, backoff: Backoff, timers: Timers, requester: Requester, next_id: Callable[[], int]
    ) -> None:
        self._backoff = backoff
        self._timers = timers
        self._requester = requester
        self._next_id = next_id
        self._clock: ServerClock | None = None
        self._refused = RefusalLimit()
        self._request: int | None = None

    def on_open(self, clock: ServerClock | None, token: str | None, now: float) -> None:
        """Plans the renewal of the token that the connection was opened with."""
        self._clock, self._request = clock, None
        self._backoff.reset()
        self._refused.reset()
        if token is not None:
            self._plan(expiry_of(token), now, 0.0)

    def on_lost(self) -> None:
        """Forgets what belongs to the connection."""
        self._request = None

    def on_time(self, now: float) -> None:
        """Asks for a token."""
        self._requester.call_token()

    def on_token(self, token: str | None, now: float) -> None:
        """Sends a new token."""
        if token is None:
            self.try_later(None, now)
            return
        self._request = self._next_id()
        self._requester.send("authenticate", {"token": token}, self._request)

    def on_authenticated(self, request: object, data: Data, now: float) -> None:
        """Plans the next renewal."""
        if request != self._request:
            return
        self._request = None
        self._backoff.reset()
        self._refused.reset()
        expires_at = data.get("expires_at")
        if isinstance(expires_at, int | float) and not isinstance(expires_at, bool):
            self._plan(expires_at, now, MIN_INTERVAL)

    def on_error(self, request: object, error: HubError, now: float) -> bool:
        """Takes an error. Returns whether it belongs to the new token."""
        if self._request is None or request != self._request:
            return False
        self._request = None
        if error.code in ("token_invalid", "token_expired") and self._refused.may_retry_at_once():
            self._requester.call_token()
        else:
            self._requester.report(error)
            self.try_later(error.retry_after, now)
        return True

    def try_later(self, delay: float | None, now: float) -> None:
        """Plans another try after a failure."""
        self._timers.set("renew", now + (self._backoff.next() if delay is None else delay))

    def _plan(self, expiry: float | None, now: float, least: float) -> None:
        if expiry is None or self._clock is None:
            return
        life = self._clock.until(expiry, now)
        if life > 0:
            self._timers.set("renew", now + max(RENEW_AT * life, least))
