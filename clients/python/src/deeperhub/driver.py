"""The asyncio driver: does what the state machine asks for, and tells it what happens."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from ssl import SSLContext
from typing import Any, Protocol

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
from .core.positions import parse_position
from .core.queue import HandleQueue
from .errors import HubError
from .transport import Transport
from .types import HubState, Position, Storage, Token

log = logging.getLogger("deeperhub")


class Callbacks(Protocol):
    """Functions of the application, which it may replace at any time."""

    on_state: Callable[[HubState], object] | None
    on_error: Callable[[HubError], object] | None
    on_message: Callable[[dict[str, Any]], object] | None


class Driver:
    """Sockets, timers and tasks of one hub."""

    def __init__(
        self,
        url: str,
        token: Token | None,
        ssl: SSLContext | None,
        storage: Storage | None,
        machine: Machine,
        callbacks: Callbacks,
    ) -> None:
        self.machine = machine
        self._url = url
        self._token = token
        self._ssl = ssl
        self._storage = storage
        self._callbacks = callbacks
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._transport: Transport | None = None
        self._token_task: asyncio.Task[None] | None = None
        #: Tasks that end by themselves after the hub was closed.
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_acting = False

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Returns the event loop in which the hub was started."""
        if self._loop is None:
            raise RuntimeError("the hub is not started; use `async with Hub(…) as hub`")
        return self._loop

    def now(self) -> float:
        """Returns the time on the monotonic clock of the event loop."""
        return self.loop.time()

    def start(self) -> None:
        """Starts to connect."""
        if self._loop is not None:
            raise RuntimeError("the hub was started already; make a new one")
        self._loop = asyncio.get_running_loop()
        self.machine.start(self.now())
        self.act()

    async def close(self) -> None:
        """Closes the connection. Returns when the socket is closed."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        self.machine.close(self.now())
        self.act()
        # A token function may close the hub, and must not wait for itself.
        tasks = self._tasks - {asyncio.current_task()}
        if tasks:
            await asyncio.wait(tasks)

    def abandon(self) -> None:
        """Leaves without a word to the server or the application, as a process that is killed."""
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()

    def unsubscribe(self, queue: HandleQueue) -> None:
        """Ends a handle."""
        self.machine.unsubscribe(queue, self.now())
        self.act()

    def taken(self, queue: HandleQueue) -> None:
        """Notes that the application took an event out of a queue."""
        self.machine.on_taken(queue)
        self.act()

    def handled(self, queue: HandleQueue, position: Position) -> None:
        """Notes that the application has handled a message."""
        self.machine.on_handled(queue, position, self.now())
        self.act()

    def handler_failed(self, error: Exception) -> None:
        """Reports the failure of a function of the application."""
        log.error("Handler of the application failed", exc_info=error)
        self._report_error(HubError("handler_failed", f"{type(error).__name__}: {error}"))

    def load_position(self, topic: str) -> Position | None:
        """Returns the position that an earlier process has saved."""
        if self._storage is None:
            return None
        try:
            return parse_position(self._storage.get(self._key(topic)))
        except Exception:
            log.exception("Position of %s was not loaded", topic)
            return None

    def act(self) -> None:
        """Does what the machine asks for, and sets its timer."""
        if self._is_acting:
            return
        self._is_acting = True
        try:
            while self.machine.actions:
                self._do(self.machine.actions.popleft())
        finally:
            self._is_acting = False
        self._set_timer()

    def _do(self, action: Action) -> None:
        match action:
            case SendText(text):
                if self._transport is not None:
                    self._transport.send(text)
            case OpenSocket(token):
                self._transport = Transport(self._url, token, self._ssl, self)
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
                self._call(self._callbacks.on_state, state)
            case ReportError(error):
                log.warning("Hub reported an error: %s", error.code)
                self._report_error(error)
            case ReportMessage(message):
                self._call(self._callbacks.on_message, message)
            case SavePosition(topic, text):
                self._save_position(topic, text)

    def _set_timer(self) -> None:
        deadline = self.machine.deadline()
        if deadline is None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        elif self._timer is None or self._timer.when() > deadline:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self.loop.call_at(deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.machine.on_time(self.now())
        self.act()

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
            token = checked_token(token)
        except Exception as error:
            self.machine.connection.on_token_failed(call, f"{type(error).__name__}: {error}", self.now())
        else:
            self.machine.connection.on_token(call, token, self.now())
        self.act()

    def _report_error(self, error: HubError) -> None:
        try:
            if self._callbacks.on_error is not None:
                self._callbacks.on_error(error)
        except Exception:
            log.exception("Callback for errors failed")

    def _call(self, callback: Callable[[Any], object] | None, argument: object) -> None:
        if callback is None:
            return
        try:
            callback(argument)
        except Exception as error:
            self.handler_failed(error)

    def _key(self, topic: str) -> str:
        return f"deeperhub:{self._url}:{topic}"

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

    # Events of the connection.

    def on_socket_open(self) -> None:
        """Passes on that the handshake succeeded."""
        self.machine.connection.on_socket_open(self.now())

    def on_activity(self) -> None:
        """Passes on a sign of life."""
        self.machine.connection.on_activity(self.now())

    def on_message(self, raw: str) -> None:
        """Passes on a text message."""
        self.machine.on_message(raw, self.now())
        self.act()

    def on_ended(self, ending: Ending) -> None:
        """Passes on the end of the connection."""
        self._transport = None
        self.machine.on_ended(ending, self.now())
        self.act()


def checked_token(token: object) -> str:
    """Returns the token without white space around it, as files and servers add it."""
    if not isinstance(token, str):
        raise TypeError(f"the token must be a string, not {type(token).__name__}")
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("the token is empty or has characters that no header can carry")
    return token
