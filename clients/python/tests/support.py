"""Parts that tests share: a scripted server, a proxy that cuts, and the real hub."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import re
import subprocess
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ParamSpec

import pytest
from websockets.asyncio.server import ServerConnection, serve

P = ParamSpec("P")

#: Longest time of a test; a bound, not a measure.
LIMIT = 120.0
#: Limits of hubs in tests: short, so that tests are.
SHORT: dict[str, Any] = {"min_delay": 0.01, "max_delay": 0.1}

ROOT = Path(__file__).parents[3]


def asynchronous(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Runs a test in an event loop, and fails if it leaves a task behind."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def body() -> None:
            await asyncio.wait_for(test(*args, **kwargs), LIMIT)
            # Callbacks of tasks that have just ended.
            await asyncio.sleep(0)
            left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            assert not left, f"tasks were left behind: {left}"

        asyncio.run(body())

    return run


async def until(condition: Callable[[], bool]) -> None:
    """Waits until a condition holds."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


class Peer:
    """The server's side of one connection."""

    def __init__(self, connection: ServerConnection) -> None:
        self.connection = connection

    async def welcome(self, **limits: Any) -> None:
        limits = {"max_message_bytes": 65536, "ping_interval_ms": 25000, **limits}
        await self.send(
            "welcome", {"client_id": "n1.0-1", "server_time": 1_796_000_000_000, "limits": limits}
        )

    async def send(self, kind: str, data: Any = None, request: Any = None) -> None:
        envelope = {"type": kind, "id": request, "data": data}
        await self.connection.send(
            json.dumps({key: value for key, value in envelope.items() if value is not None})
        )

    async def receive(self, kind: str | None = None) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(await self.connection.recv())
        if kind is not None:
            assert message["type"] == kind, message
        return message

    async def reply(self, request: dict[str, Any], kind: str, data: Any) -> None:
        await self.send(kind, data, request["id"])

    async def deliver(self, topic: str, offset: int) -> None:
        position = {"epoch": "e1", "offset": offset, "time": offset}
        await self.send("message", {"topic": topic, "message": offset, **position})

    async def serve_subscribe(self, topic: str, offset: int, **keys: Any) -> dict[str, Any]:
        request = await self.receive("subscribe")
        assert request["data"]["topic"] == topic
        position = {"epoch": "e1", "offset": offset, "time": offset}
        await self.reply(request, "subscribed", {"topic": topic, **position, **keys})
        return request

    def cut(self) -> None:
        self.connection.transport.abort()


@asynccontextmanager
async def scripted(script: Callable[[Peer], Awaitable[None]]) -> AsyncIterator[str]:
    """Serves each connection with a script, and yields the URL. A script that fails, fails the test."""
    failures: list[BaseException] = []

    async def handler(connection: ServerConnection) -> None:
        try:
            await script(Peer(connection))
        except AssertionError as failure:
            failures.append(failure)
            connection.transport.abort()

    async with serve(handler, "127.0.0.1", 0, close_timeout=0.5) as server:
        port = server.sockets[0].getsockname()[1]
        yield f"ws://127.0.0.1:{port}/"
    if failures:
        raise failures[0]


@asynccontextmanager
async def answering(answers: list[bytes]) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Answers each HTTP request with the next bytes, then refuses; yields the URL and the requests."""
    requests: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            requests.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answers[min(len(requests), len(answers)) - 1])
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    async with server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/", requests


class CuttingProxy:
    """Passes bytes on to a server until it cuts its connections in the middle of what they carry."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = 0
        self.connections = 0
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> CuttingProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        await asyncio.sleep(0.05)

    def cut(self) -> None:
        """Resets all connections."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            upstream, to_server = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, to_server}
        try:
            await asyncio.gather(self._pump(reader, to_server), self._pump(upstream, writer))
        finally:
            self._writers -= {writer, to_server}

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(4096):
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.transport.abort()


def find_hub() -> Path | None:
    """Returns the hub's program: the one of the environment, or the latest that was built in the clone."""
    named = os.environ.get("DEEPERHUB_WS")
    if named:
        return Path(named)
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    built = [target / profile / "deeperhub-ws" for profile in ("release", "debug")]
    return max((path for path in built if path.exists()), key=lambda path: path.stat().st_mtime, default=None)


class RealHub:
    """The real hub as a process of its own."""

    def __init__(self, *arguments: str, port: int = 0, api_port: int = 0) -> None:
        program = find_hub()
        if program is None:
            skipped = os.environ.get("DEEPERHUB_TESTS_SKIPPED")
            if skipped:
                with Path(skipped).open("a") as file:
                    file.write("Python client against the real hub: deeperhub-ws is not built\n")
            pytest.skip("deeperhub-ws is not built; set DEEPERHUB_WS to its path")
        ports = ["--host", "127.0.0.1", "--port", str(port), "--api-listen", f"127.0.0.1:{api_port}"]
        command: list[str | Path] = [program, *ports, "--rate-limit", "0", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"ws://127\.0\.0\.1:(\d+).*http://127\.0\.0\.1:(\d+)", line)
        assert found is not None, f"the hub's first line is {line!r}"
        self.port, self.api_port = int(found[1]), int(found[2])
        self.url = f"ws://127.0.0.1:{self.port}"

    def __enter__(self) -> RealHub:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Kills the process."""
        self.process.kill()
        self.process.communicate()

    def post(self, path: str, body: Any) -> Any:
        """Calls the server API."""
        url = f"http://127.0.0.1:{self.api_port}{path}"
        request = urllib.request.Request(url, json.dumps(body).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or b"null")
