"""One WebSocket connection, from the handshake to its end."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from ssl import SSLContext
from typing import Any, Protocol

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from .core.ending import Ending
from .core.wire import MAX_WAIT

SUBPROTOCOL = Subprotocol("deeperhub.v1.json")
#: Longest message that is taken. The server's own limit is known only after the handshake.
MAX_MESSAGE_BYTES = 64 << 20
#: Seconds that the server has to answer a close frame.
CLOSE_TIMEOUT = 2.0

# It would write tokens with the level DEBUG, as part of the handshake.
_websocket_log = logging.getLogger("deeperhub.websocket")
_websocket_log.setLevel(logging.INFO)


class Receiver(Protocol):
    """Gets what a connection reports."""

    def on_socket_open(self) -> None:
        """The handshake succeeded."""

    def on_activity(self) -> None:
        """Bytes arrived."""

    def on_message(self, raw: str) -> None:
        """A text message arrived."""

    def on_ended(self, ending: Ending) -> None:
        """The connection ended, or the handshake failed."""


class _Connection(ClientConnection):
    """A connection that tells of each sign of life, also of pings."""

    on_activity: Callable[[], None] | None = None

    def data_received(self, data: bytes) -> None:
        if self.on_activity is not None:
            self.on_activity()
        super().data_received(data)


class _Connect(connect):
    """A handshake that follows no redirects, so that a token goes to no other host."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class Transport:
    """A connection that is being opened, open or closing. It runs in one task of its own."""

    def __init__(self, url: str, token: str | None, ssl: SSLContext | None, receiver: Receiver) -> None:
        self._url = url
        self._token = token
        self._ssl = ssl
        self._receiver: Receiver | None = receiver
        self._connection: ClientConnection | None = None
        self._outgoing: deque[str] = deque()
        self._wakeup = asyncio.Event()
        self._must_abort = False
        #: Ends when the socket is closed.
        self.task = asyncio.create_task(self._run(), name="deeperhub connection")

    def send(self, text: str) -> None:
        """Sends a message after those before it."""
        self._outgoing.append(text)
        self._wakeup.set()

    def close(self, *, abort: bool) -> None:
        """Closes the connection. It reports nothing from now on."""
        self._receiver = None
        self._must_abort = abort
        self.task.cancel()

    async def _run(self) -> None:
        ending: Ending | None = None
        try:
            await self._open()
            await self._receive()
        except ConnectionClosed as closed:
            ending = _ending_of(closed)
        except InvalidStatus as refused:
            ending = _ending_of_status(refused)
        except asyncio.CancelledError:
            if self._receiver is not None:
                # The event loop is ending; there is no time for a closing handshake.
                self._must_abort = True
                raise
        except Exception as error:
            ending = Ending(f"no connection: {error or type(error).__name__}")
        finally:
            await self._shut()
        if self._receiver is not None and ending is not None:
            self._receiver.on_ended(ending)

    async def _open(self) -> None:
        options: dict[str, Any] = {} if self._ssl is None else {"ssl": self._ssl}
        if self._token is not None:
            options["additional_headers"] = {"Authorization": f"Bearer {self._token}"}
        connection = await _Connect(
            self._url,
            subprotocols=[SUBPROTOCOL],
            open_timeout=None,
            ping_interval=None,
            close_timeout=CLOSE_TIMEOUT,
            max_size=MAX_MESSAGE_BYTES,
            logger=_websocket_log,
            create_connection=_Connection,
            **options,
        )
        self._connection = connection
        if self._receiver is not None:
            if isinstance(connection, _Connection):
                connection.on_activity = self._receiver.on_activity
            self._receiver.on_socket_open()

    async def _receive(self) -> None:
        connection = self._connection
        assert connection is not None
        writer = asyncio.create_task(self._write(connection), name="deeperhub writer")
        try:
            while self._receiver is not None:
                message = await connection.recv()
                if isinstance(message, str) and self._receiver is not None:
                    self._receiver.on_message(message)
        finally:
            writer.cancel()
            await asyncio.wait([writer])

    async def _write(self, connection: ClientConnection) -> None:
        try:
            while True:
                while self._outgoing:
                    await connection.send(self._outgoing.popleft())
                self._wakeup.clear()
                await self._wakeup.wait()
        except ConnectionClosed:
            # The reader finds the same and reports it.
            pass

    async def _shut(self) -> None:
        connection = self._connection
        if connection is None:
            return
        if isinstance(connection, _Connection):
            connection.on_activity = None
        if self._must_abort:
            connection.transport.abort()
        else:
            await connection.close()


def _ending_of(closed: ConnectionClosed) -> Ending:
    frame = closed.rcvd
    if frame is None:
        return Ending("the connection was cut")
    if not closed.rcvd_then_sent:
        # The server repeats the code with which this side closed.
        return Ending(f"the client closed with code {frame.code}")
    return Ending(frame.reason or f"the server closed with code {frame.code}", code=int(frame.code))


def _ending_of_status(refused: InvalidStatus) -> Ending:
    status = refused.response.status_code
    value = refused.response.headers.get("Retry-After", "")
    retry_after = min(float(value), MAX_WAIT) if value.isascii() and value.isdigit() else None
    return Ending(f"the handshake was answered with status {status}", status=status, retry_after=retry_after)
