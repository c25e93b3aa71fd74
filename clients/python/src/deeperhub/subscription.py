"""A subscription as the application has it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from .core.queue import HandleQueue
from .errors import HubError
from .types import Gap, Message, Position, SubscriptionState, SubscriptionStateName

if TYPE_CHECKING:
    from .driver import Driver

#: A function of the application; what it returns is awaited if that is possible.
Handler = Callable[[Any], Awaitable[object] | object]


class Subscription:
    """Messages of a topic, exactly once and in order. Made by `Hub.subscribe`.

    Iterate over it with `async for`. The iteration ends after `unsubscribe` and after the hub was
    closed, and raises `HubError` if the server ended the subscription.
    """

    def __init__(self, driver: Driver, topic: str) -> None:
        self._driver = driver
        self._topic = topic
        self._queue: HandleQueue
        self._changed = asyncio.Event()
        self._current: Message | None = None
        #: Gets each `Gap`, in its place among the messages, while the application iterates.
        self.on_gap: Callable[[Gap], Awaitable[object] | object] | None = None
        #: Gets each `SubscriptionState`, in its place among the messages.
        self.on_state: Callable[[SubscriptionState], Awaitable[object] | object] | None = None

    @property
    def topic(self) -> str:
        """Returns the topic or pattern."""
        return self._topic

    @property
    def state(self) -> SubscriptionStateName:
        """Returns the state: `subscribing`, `live`, `recovering` or `ended`."""
        return self._queue.state.state

    @property
    def recovered(self) -> bool | None:
        """Returns `False` if messages were missed since the last live time, while `live`."""
        return self._queue.state.recovered

    @property
    def reason(self) -> str | None:
        """Returns why messages were missed, or why the subscription ended."""
        return self._queue.state.reason

    async def unsubscribe(self) -> None:
        """Ends the subscription. Messages that wait are dropped, and so is a saved position."""
        self._driver.unsubscribe(self._queue)

    async def consume(self, handler: Callable[[Message], Awaitable[object] | object]) -> None:
        """Calls a function for each message until the subscription ends.

        A call that fails is reported to the hub's `on_error` as `handler_failed`; the next message
        is handed over all the same.
        """
        async for message in self:
            await self._call(handler, message)

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Message:
        self._finish_current()
        while True:
            item = self._queue.pop()
            if item is None:
                if self._queue.ended:
                    self._raise_end()
                self._changed.clear()
                await self._changed.wait()
                continue
            self._driver.taken(self._queue)
            if isinstance(item, Message):
                self._current = item
                return item
            handler: Handler | None = self.on_gap if isinstance(item, Gap) else self.on_state
            if handler is not None:
                await self._call(handler, item)

    async def _wait_until_ready(self) -> None:
        while not self._queue.ready:
            if self._queue.ended:
                raise self._end_error()
            self._changed.clear()
            await self._changed.wait()

    def _finish_current(self) -> None:
        """Moves the position, because the application asks for what follows the last message."""
        current, self._current = self._current, None
        if current is not None and current.epoch is not None and current.offset is not None:
            position = Position(current.epoch, current.offset, current.time)
            self._driver.handled(self._queue, position)

    async def _call(self, handler: Handler, argument: object) -> None:
        try:
            result = handler(argument)
            if inspect.isawaitable(result):
                await result
        except Exception as error:
            self._driver.handler_failed(error)

    def _end_error(self) -> HubError:
        error = self._queue.error
        if error is None:
            reason = self._queue.state.reason or "closed"
            return HubError(reason, f"the subscription to {self._topic!r} has ended")
        return HubError(error.code, error.message, retry_after=error.retry_after)

    def _raise_end(self) -> None:
        if self._queue.error is None:
            raise StopAsyncIteration
        raise self._end_error()
