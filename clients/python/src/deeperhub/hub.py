"""The hub: the asyncio driver around the state machine."""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import secrets
from collections.abc import Callable
from ssl import SSLContext
from types import TracebackType
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from .core.actions import (
    Action,
    CallToken,
    CancelToken,
    CloseSocket,
    OpenSocket,
    ReportError,
    ReportMessage,
    ReportState,
    SavePosition,
    SendText,
)
from .core.ending import Ending
from .core.machine import Machine
from .core.options import Options
from .core.positions import parse_position
from .core.queue import HandleQueue
from .core.token import TokenKind
from .core.wire import data_of, integer, message_of, position_of
from .errors import HubError
from .subscription import Subscription
from .transport import Transport
from .types import (
    Gap,
    History,
    HubState,
    HubStateName,
    Position,
    Published,
    Storage,
    SubscriptionState,
    Token,
)

log = logging.getLogger("deeperhub")

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
        self._token = token
        self._ssl = ssl
        self._storage = storage
        fixed = _checked_token(token) if isinstance(token, str) else None
        kind = TokenKind.NONE if token is None else TokenKind.STRING if fixed else TokenKind.FUNCTION
        self._machine = Machine(
            options,
            kind,
            fixed,
            random.Random(secrets.randbits(64)),
            once_prefix=secrets.token_urlsafe(12),
            saves_positions=storage is not None,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._transport: Transport | None = None
        self._receiver: _SocketReceiver | None = None
        self._token_task: asyncio.Task[None] | None = None
        #: Tasks that end by themselves after the hub was closed.
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_acting = False

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
        if self._loop is not None:
            raise RuntimeError("the hub was started already; make a new one")
        self._loop = asyncio.get_running_loop()
        self._machine.start(self._loop.time())
        self._act()

    async def close(self) -> None:
        """Closes the connection and ends everything that waits. Returns when the socket is closed."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        self._machine.close(self._loop.time())
        self._act()
        # A token function may call this method, and must not wait for itself.
        tasks = self._tasks - {asyncio.current_task()}
        if tasks:
            await asyncio.wait(tasks)

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
        loop = self._running()
        if history is not None and history < 0:
            raise ValueError(f"history must not be negative: {history}")
        subscription = Subscription(self, topic)
        subscription.on_gap, subscription.on_state = on_gap, on_state
        queue = self._machine.subscribe(
            topic, history or None, self._load_position(topic), subscription._changed.set, loop.time()
        )
        subscription._queue = queue
        self._act()
        try:
            await subscription._wait_until_ready()
        except asyncio.CancelledError:
            self._unsubscribe(queue)
            raise
        return subscription

    async def publish(
        self, topic: str, message: Any, *, exclude_self: bool = False, ordered: bool = True
    ) -> Published:
        """Publishes JSON and returns the server's answer. A lost connection does not lose it.

        A cancelled call takes the message back if it was not sent. With `ordered=False`, the message
        does not wait for earlier ones on its topic.
        """
        loop = self._running()
        future: asyncio.Future[Published] = loop.create_future()
        publish = self._machine.publish(
            topic,
            message,
            exclude_self=exclude_self,
            ordered=ordered,
            settle=lambda outcome: _settle(future, outcome),
            now=loop.time(),
        )
        self._act()
        try:
            return await future
        except asyncio.CancelledError:
            self._machine.cancel_publish(publish, loop.time())
            self._act()
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
        loop = self._running()
        future: asyncio.Future[Any] = loop.create_future()
        request = self._machine.request(kind, data, lambda outcome: _settle(future, outcome), loop.time())
        self._act()
        try:
            return await future
        except asyncio.CancelledError:
            self._machine.cancel_request(request)
            raise

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise RuntimeError("the hub is not started; use `async with Hub(…) as hub`")
        return self._loop

    # Calls of subscriptions.

    def _unsubscribe(self, queue: HandleQueue) -> None:
        self._machine.unsubscribe(queue, self._running().time())
        self._act()

    def _taken(self, queue: HandleQueue) -> None:
        self._machine.on_taken(queue)
        self._act()

    def _handled(self, queue: HandleQueue, position: Position) -> None:
        self._machine.on_handled(queue, position, self._running().time())
        self._act()

    def _handler_failed(self, error: Exception) -> None:
        log.error("Handler of the application failed", exc_info=error)
        self._report_error(HubError("handler_failed", f"{type(error).__name__}: {error}"))

    # The machine's actions.

    def _act(self) -> None:
        """Does what the machine asks for, and sets its timer."""
        if self._is_acting:
            return
        self._is_acting = True
        try:
            while self._machine.actions:
                self._do(self._machine.actions.popleft())
        finally:
            self._is_acting = False
        self._set_timer()

    def _do(self, action: Action) -> None:
        match action:
            case SendText(text):
                if self._transport is not None:
                    self._transport.send(text)
            case OpenSocket(token):
                self._receiver = _SocketReceiver(self)
                self._transport = Transport(self.url, token, self._ssl, self._receiver)
                self._keep(self._transport.task)
            case CloseSocket(abort):
                if self._transport is not None:
                    self._transport.close(abort=abort)
                    self._transport = None
            case CallToken(call):
                self._token_task = asyncio.create_task(self._call_token(call), name="deeperhub token")
                self._keep(self._token_task)
            case CancelToken():
                if self._token_task is not None and self._token_task is not asyncio.current_task():
                    self._token_task.cancel()
            case ReportState(state):
                log.info("Connection is %s: %s", state.state, state.reason or "-")
                self._call(self.on_state, state)
            case ReportError(error):
                log.warning("Hub reported an error: %s", error.code)
                self._report_error(error)
            case ReportMessage(message):
                self._call(self.on_message, message)
            case SavePosition(topic, text):
                self._save_position(topic, text)

    def _set_timer(self) -> None:
        deadline = self._machine.deadline()
        if deadline is None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        elif self._timer is None or self._timer.when() > deadline:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._running().call_at(deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._machine.on_time(self._running().time())
        self._act()

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _call_token(self, call: int) -> None:
        function = self._token
        assert callable(function)
        try:
            token = function()
            if inspect.isawaitable(token):
                token = await token
            token = _checked_token(token)
        except Exception as error:
            self._machine.connection.on_token_failed(
                call, f"{type(error).__name__}: {error}", self._running().time()
            )
        else:
            self._machine.connection.on_token(call, token, self._running().time())
        self._act()

    def _report_error(self, error: HubError) -> None:
        try:
            if self.on_error is not None:
                self.on_error(error)
        except Exception:
            log.exception("Callback for errors failed")

    def _call(self, callback: Callable[[Any], object] | None, argument: object) -> None:
        if callback is None:
            return
        try:
            callback(argument)
        except Exception as error:
            self._handler_failed(error)

    # The storage.

    def _key(self, topic: str) -> str:
        return f"deeperhub:{self.url}:{topic}"

    def _load_position(self, topic: str) -> Position | None:
        if self._storage is None:
            return None
        try:
            return parse_position(self._storage.get(self._key(topic)))
        except Exception:
            log.exception("Position of %s was not loaded", topic)
            return None

    def _save_position(self, topic: str, text: str | None) -> None:
        if self._storage is None:
            return
        try:
            if text is None:
                self._storage.delete(self._key(topic))
            else:
                self._storage.set(self._key(topic), text)
        except Exception:
            log.exception("Position of %s was not saved", topic)


class _SocketReceiver:
    """Passes on what one connection reports."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._machine = hub._machine
        self._now = hub._running().time

    def on_socket_open(self) -> None:
        self._machine.connection.on_socket_open(self._now())

    def on_activity(self) -> None:
        self._machine.connection.on_activity(self._now())

    def on_message(self, raw: str) -> None:
        self._machine.on_message(raw, self._now())
        self._hub._act()

    def on_ended(self, ending: Ending) -> None:
        self._hub._transport = None
        self._machine.on_ended(ending, self._now())
        self._hub._act()


def _settle(future: asyncio.Future[_Result], outcome: _Result | HubError) -> None:
    if future.done():
        return
    if isinstance(outcome, HubError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _checked_token(token: object) -> str:
    """Returns the token without white space around it, as files and servers add it."""
    if not isinstance(token, str):
        raise TypeError(f"the token must be a string, not {type(token).__name__}")
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("the token is empty or has characters that no header can carry")
    return token
