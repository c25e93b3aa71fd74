"""History of handles that join a subscription which is live already."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import HubError
from .actions import Action, ReportError, SendText
from .backoff import Backoff
from .connection import Connection
from .queue import HandleQueue
from .request import Request, Requests
from .timers import Timers
from .wire import RETRYABLE, Data, data_of, encode, integer, message_of, position_of, size_of, text

#: Messages that one request asks for at most.
MAX_LIMIT = 1000


class Histories:
    """Requests for the history of later handles."""

    def __init__(
        self,
        requests: Requests,
        timers: Timers,
        connection: Connection,
        act: Callable[[Action], None],
        next_id: Callable[[], int],
        new_backoff: Callable[[], Backoff],
        on_failed: Callable[[HandleQueue, HubError], None],
    ) -> None:
        self._requests = requests
        self._timers = timers
        self._connection = connection
        self._act = act
        self._next_id = next_id
        self._new_backoff = new_backoff
        self._on_failed = on_failed
        #: What is still to be asked for each handle, until its history is complete.
        self._data: dict[HandleQueue, Data] = {}
        self._sent: dict[HandleQueue, Request] = {}
        self._retries: dict[int, HandleQueue] = {}
        self._backoffs: dict[HandleQueue, Backoff] = {}

    def add(self, handle: HandleQueue, history: int, now: float, *, asks_now: bool) -> None:
        """Asks for the last messages, at once or after the next `subscribed`."""
        handle.await_history()
        self._data[handle] = {"topic": handle.topic, "from": -history, "limit": min(history, MAX_LIMIT)}
        self._backoffs[handle] = self._new_backoff()
        if asks_now:
            self.ask_if_due(handle, now)

    def ask_if_due(self, handle: HandleQueue, now: float) -> None:
        """Asks for what a handle still waits for, unless that is under way."""
        data = self._data.get(handle)
        if data is None or handle in self._sent or handle in self._retries.values():
            return
        number = self._next_id()
        wire = encode("history", data, number)
        request = Request(number, wire, size_of(wire), lambda answer: self._settle(handle, answer, now))
        self._sent[handle] = request
        self._requests.add(request, now)
        if self._connection.is_open:
            for message in self._requests.texts_to_send(self._connection.max_message_bytes, request):
                self._act(SendText(message))

    def on_retry_time(self, number: int, now: float) -> None:
        """Asks again after an error."""
        handle = self._retries.pop(number, None)
        if handle is not None and self._connection.is_open:
            self.ask_if_due(handle, now)

    def forget(self, handle: HandleQueue) -> None:
        """Forgets a handle that has ended."""
        self._data.pop(handle, None)
        self._backoffs.pop(handle, None)
        request = self._sent.pop(handle, None)
        if request is not None:
            self._requests.cancel(request)

    def clear(self) -> None:
        """Forgets all handles."""
        for handle in list(self._data):
            self.forget(handle)
        self._retries.clear()

    def _settle(self, handle: HandleQueue, answer: Any, now: float) -> None:
        self._sent.pop(handle, None)
        if not isinstance(answer, HubError):
            self._on_answer(handle, data_of({"data": answer}), now)
        elif answer.code in RETRYABLE:
            delay = self._backoffs[handle].next() if answer.retry_after is None else answer.retry_after
            number = self._next_id()
            self._retries[number] = handle
            self._timers.set("history again", now + delay, number)
        elif answer.code != "timeout":
            self.forget(handle)
            self._on_failed(handle, answer)
        elif self._connection.is_open:
            self._act(ReportError(answer))
            self.forget(handle)
            handle.finish_history()

    def _on_answer(self, handle: HandleQueue, answer: Data, now: float) -> None:
        entries = answer.get("messages")
        messages = [
            (message_of(entry), size_of(encode("message", entry)))
            for entry in (entries if isinstance(entries, list) else [])
            if isinstance(entry, dict) and text(entry.get("topic")) is not None
        ]
        continues = handle.add_history(messages, position_of(answer))
        start = integer(answer.get("next"))
        if start is None or not messages or not continues:
            self.forget(handle)
            handle.finish_history()
        else:
            self._data[handle] = {"topic": handle.topic, "from": start, "limit": MAX_LIMIT}
            self.ask_if_due(handle, now)
