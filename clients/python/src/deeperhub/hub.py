"""The hub: the asyncio driver around the state machine."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable
from ssl import SSLContext
from types import TracebackType
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from .core.machine import Machine
from .core.options import Options
from .core.token import TokenKind
from .core.wire import data_of, integer, message_of, position_of
from .driver import Driver, checked_token
from .errors import HubError
from .subscription import Subscription
from .types import (
    Gap,
    History,
    HubState,
    HubStateName,
    Published,
    Storage,
    SubscriptionState,
    Token,
)

_Result = TypeVar("_Result")


class Hub:
    """A connection to a deeperhub server that is opened again whenever it ends.

    Use it with `async with`, in the event loop in which its methods are called.
    """

    def __init__(
        self,
        url: str,
        *,
        token: Token | None = None,
        ssl: SSLContext | None = None,
        storage: Storage | None = None,
        on_state: Callable[[HubState], object] | None = None,
        on_error: Callable[[HubError], object] | None = None,
        on_message: Callable[[dict[str, Any]], object] | None = None,
        min_delay: float = Options.min_delay,
        max_delay: float = Options.max_delay,
        connect_timeout: float = Options.connect_timeout,
        pong_timeout: float = Options.pong_timeout,
        max_queue_bytes: int = Options.max_queue_bytes,
        max_pending_bytes: int = Options.max_pending_bytes,
        request_timeout: float = Options.request_timeout,
        publish_timeout: float = Options.publish_timeout,
    ) -> None:
        scheme = urlsplit(url).scheme
        if scheme not in ("ws", "wss"):
            raise ValueError(f"the URL must begin with ws:// or wss://, not {url!r}")
        if ssl is not None and scheme == "ws":
            raise ValueError("ssl needs a URL that begins with wss://")
        options = Options(
            min_delay=min_delay,
            max_delay=max_delay,
            connect_timeout=connect_timeout,
            pong_timeout=pong_timeout,
            max_queue_bytes=max_queue_bytes,
            max_pending_bytes=max_pending_bytes,
            request_timeout=request_timeout,
            publish_timeout=publish_timeout,
        )
        self.url = url
        #: Gets each `HubState`.
        self.on_state = on_state
        #: Gets each `HubError` that belongs to no call.
        self.on_error = on_error
        #: Gets each message that a backend sent to this client, to its user or to everyone.
        self.on_message = on_message
        fixed = checked_token(token) if isinstance(token, str) else None
        kind = TokenKind.NONE if token is None else TokenKind.STRING if fixed else TokenKind.FUNCTION
        self._machine = Machine(
            options,
            kind,
            fixed,
            random.Random(secrets.randbits(64)),
            once_prefix=secrets.token_urlsafe(12),
            saves_positions=storage is not None,
        )
        self._driver = Driver(url, token, ssl, storage, self._machine, self)

    @property
    def state(self) -> HubStateName:
        """Returns the state: `connecting`, `open`, `waiting` or `closed`."""
        return self._machine.connection.state.state

    @property
    def reason(self) -> str | None:
        """Returns why the last connection ended, while `waiting` or `closed`."""
        return self._machine.connection.state.reason

    async def __aenter__(self) -> Hub:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def start(self) -> None:
        """Starts to connect, if the hub is used without `async with`."""
        self._driver.start()

    async def close(self) -> None:
        """Closes the connection and ends everything that waits. Returns when the socket is closed."""
        await self._driver.close()

    async def subscribe(
        self,
        topic: str,
        *,
        history: int | None = None,
        on_gap: Callable[[Gap], object] | None = None,
        on_state: Callable[[SubscriptionState], object] | None = None,
    ) -> Subscription:
        """Subscribes to a topic or pattern, and waits until the server has accepted that.

        `history` asks for the last messages first. Raises `HubError` if the server refuses.
        """
        loop = self._driver.loop
        if history is not None and history < 0:
            raise ValueError(f"history must not be negative: {history}")
        subscription = Subscription(self._driver, topic)
        subscription.on_gap, subscription.on_state = on_gap, on_state
        queue = self._machine.subscribe(
            topic, history or None, self._driver.load_position(topic), subscription._changed.set, loop.time()
        )
        subscription._queue = queue
        self._driver.act()
        try:
            await subscription._wait_until_ready()
        except asyncio.CancelledError:
            self._driver.unsubscribe(queue)
            raise
        return subscription

    async def publish(
        self, topic: str, message: Any, *, exclude_self: bool = False, ordered: bool = True
    ) -> Published:
        """Publishes JSON and returns the server's answer. A lost connection does not lose it.

        A cancelled call takes the message back if it was not sent. With `ordered=False`, the message
        does not wait for earlier ones on its topic.
        """
        loop = self._driver.loop
        future: asyncio.Future[Published] = loop.create_future()
        publish = self._machine.publish(
            topic,
            message,
            exclude_self=exclude_self,
            ordered=ordered,
            settle=lambda outcome: _settle(future, outcome),
            now=loop.time(),
        )
        self._driver.act()
        try:
            return await future
        except asyncio.CancelledError:
            self._machine.cancel_publish(publish, loop.time())
            self._driver.act()
            raise

    async def echo(self, data: Any) -> Any:
        """Sends JSON to the server and returns what comes back."""
        return await self._request("echo", data)

    async def history(
        self,
        topic: str,
        *,
        from_: int | None = None,
        limit: int | None = None,
        order: Literal["asc", "desc"] | None = None,
    ) -> History:
        """Reads kept messages. A negative `from_` counts from the newest message, which is -1."""
        keys = {"topic": topic, "from": from_, "limit": limit, "order": order}
        answer = await self._request(
            "history", {key: value for key, value in keys.items() if value is not None}
        )
        data = data_of({"data": answer})
        position = position_of(data)
        entries = data.get("messages")
        return History(
            topic=topic,
            messages=[
                message_of({"topic": topic, **entry})
                for entry in (entries if isinstance(entries, list) else [])
                if isinstance(entry, dict)
            ],
            epoch=position.epoch if position else None,
            offset=position.offset if position else None,
            time=position.time if position else None,
            next=integer(data.get("next")),
        )

    async def _request(self, kind: str, data: Any) -> Any:
        loop = self._driver.loop
        future: asyncio.Future[Any] = loop.create_future()
        request = self._machine.request(kind, data, lambda outcome: _settle(future, outcome), loop.time())
        self._driver.act()
        try:
            return await future
        except asyncio.CancelledError:
            self._machine.cancel_request(request)
            raise


def _settle(future: asyncio.Future[_Result], outcome: _Result | HubError) -> None:
    if future.done():
        return
    if isinstance(outcome, HubError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
