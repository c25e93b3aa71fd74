"""Requests that are answered by one message: `echo` and `history`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import HubError
from .publish import too_large
from .timers import Timers
from .wire import Data, error_of


@dataclass(eq=False, slots=True)
class Request:
    """One request."""

    id: int
    text: str
    size: int
    #: Gets the `data` of the answer, or the error.
    settle: Callable[[Any | HubError], None]


class Requests:
    """All requests that are not answered."""

    def __init__(self, timeout: float, timers: Timers) -> None:
        self._timeout = timeout
        self._timers = timers
        self._requests: dict[int, Request] = {}

    def add(self, request: Request, now: float) -> None:
        """Adds a request."""
        self._requests[request.id] = request
        self._timers.set("request timeout", now + self._timeout, request.id)

    def texts_to_send(self, max_message_bytes: int | None, only: Request | None = None) -> list[str]:
        """Returns the texts of all requests, or of one; fails those that are too long."""
        texts = []
        for request in list(self._requests.values()) if only is None else [only]:
            if max_message_bytes is not None and request.size > max_message_bytes:
                self._settle(request, too_large(request.size, max_message_bytes))
            else:
                texts.append(request.text)
        return texts

    def on_answer(self, request: int, data: Any) -> bool:
        """Takes an answer. Returns whether a request waited for it."""
        return self._settle(self._requests.get(request), data)

    def on_error(self, request: int, data: Data) -> bool:
        """Takes an error. Returns whether a request waited for it."""
        return self._settle(self._requests.get(request), error_of(data))

    def on_timeout(self, request: int) -> None:
        """Fails a request that was not answered in time."""
        error = HubError("timeout", f"no answer within {self._timeout:g} s")
        self._settle(self._requests.get(request), error)

    def cancel(self, request: Request) -> None:
        """Forgets a request whose caller has left."""
        if self._requests.pop(request.id, None) is not None:
            self._timers.cancel("request timeout", request.id)

    def fail_all(self, error: HubError) -> None:
        """Fails all requests."""
        for request in list(self._requests.values()):
            self._settle(request, error)

    def _settle(self, request: Request | None, outcome: Any | HubError) -> bool:
        if request is None:
            return False
        self.cancel(request)
        request.settle(outcome)
        return True
