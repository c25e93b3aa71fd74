"""The client over real sockets, against servers that misbehave."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support import SHORT, Peer, answering, asynchronous, scripted, until
from websockets.asyncio.server import serve

from deeperhub import Gap, Hub, HubError, HubState, Message, SubscriptionState
from deeperhub.core.ending import Ending
from deeperhub.transport import Transport

OK_HTML = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 20\r\n\r\n<html>Sign in</html>"


def refusal(status: str, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", "Content-Length: 2", "Connection: close", *headers, "", "{}"]
    return "\r\n".join(lines).encode()


@asynchronous
async def test_a_cut_in_the_middle_of_a_replay() -> None:
    cuts = 0

    async def script(peer: Peer) -> None:
        nonlocal cuts
        await peer.welcome()
        request = await peer.receive("subscribe")
        start = request["data"].get("recover", {"offset": 10})["offset"]
        keys = {"recovered": True, "replay": 20} if cuts else {"replay": 20}
        position = {"epoch": "e1", "offset": start, "time": start}
        await peer.reply(request, "subscribed", {"topic": "chat", **position, **keys})
        for offset in range(start + 1, start + 4):
            await peer.deliver("chat", offset)
        cuts += 1
        # The close frame takes care that the messages before it are read.
        await peer.connection.close(1011)

    async with scripted(script) as url, Hub(url, **SHORT) as hub:
        chat = await hub.subscribe("chat", history=20)
        offsets = []
        async for message in chat:
            offsets.append(message.offset)
            if len(offsets) == 12:
                break
        assert offsets == list(range(11, 23))
        assert cuts >= 4


@asynchronous
async def test_a_full_server_says_when_to_come_back() -> None:
    states: list[HubState] = []
    start = asyncio.get_running_loop().time()
    async with answering([refusal("503 Service Unavailable", "Retry-After: 7")]) as (url, requests):
        async with Hub(url, on_state=states.append, **SHORT) as hub:
            await until(lambda: hub.state == "waiting")
            assert states[-1].until is not None
            assert states[-1].until >= start + 7
            assert hub.reason == "the handshake was answered with status 503"
        assert hub.state == "closed"
        assert len(requests) == 1


@asynchronous
async def test_a_refused_token_that_is_a_string_ends_the_hub() -> None:
    async with answering([refusal("401 Unauthorized")]) as (url, requests), Hub(url, token="secret") as hub:
        with pytest.raises(HubError) as raised:
            await hub.subscribe("chat")
        assert raised.value.code == "closed"
        with pytest.raises(HubError):
            await hub.publish("chat", 1)
        assert hub.state == "closed"
        assert len(requests) == 1
        assert b"Authorization: Bearer secret\r\n" in requests[0]


@asynchronous
async def test_a_refused_token_is_asked_for_again_once_then_after_a_backoff() -> None:
    calls = 0

    async def token() -> str:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        return f"token-{calls}\n"

    states: list[str] = []
    async with (
        answering([refusal("401 Unauthorized")]) as (url, requests),
        Hub(url, token=token, on_state=lambda state: states.append(state.state), **SHORT),
    ):
        await until(lambda: len(requests) >= 3)
    assert states[:3] == ["connecting", "waiting", "connecting"]
    assert b"Bearer token-1\r\n" in requests[0]
    assert b"Bearer token-2\r\n" in requests[1]


@asynchronous
async def test_a_token_function_that_fails_is_told_and_tried_again() -> None:
    errors: list[HubError] = []
    calls = 0

    def token() -> str:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise OSError("no route")
        return "good"

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.connection.wait_closed()

    async with scripted(script) as url, Hub(url, token=token, on_error=errors.append, **SHORT) as hub:
        await until(lambda: hub.state == "open")
    assert [error.code for error in errors] == ["token_failed", "token_failed"]
    assert errors[0].message == "OSError: no route"


@asynchronous
async def test_a_page_instead_of_a_handshake_is_tried_again() -> None:
    async with answering([OK_HTML]) as (url, requests), Hub(url, **SHORT):
        await until(lambda: len(requests) >= 3)


@asynchronous
async def test_a_redirect_is_not_followed_so_that_a_token_stays() -> None:
    async with answering([refusal("200 OK")]) as (elsewhere, strangers):
        moved = refusal("302 Found", f"Location: {elsewhere}")
        async with answering([moved]) as (url, requests), Hub(url, token="secret", **SHORT) as hub:
            await until(lambda: len(requests) >= 2)
            assert hub.state != "open"
        assert strangers == []


@asynchronous
async def test_a_server_without_life_is_left() -> None:
    """Half-open: the socket stays, but nothing comes any more."""
    silent = asyncio.Event()
    pings = connections = 0

    async def script(peer: Peer) -> None:
        nonlocal pings, connections
        connections += 1
        await peer.welcome(ping_interval_ms=20)
        if connections == 1:
            await peer.receive("ping")
            pings += 1
            await silent.wait()
        else:
            with contextlib.suppress(Exception):
                while True:
                    await peer.receive("ping")
                    await peer.send("pong")

    states: list[HubState] = []
    async with scripted(script) as url:
        async with Hub(url, pong_timeout=0.05, on_state=states.append, **SHORT) as hub:
            await until(lambda: connections >= 2 and hub.state == "open")
            reasons = [state.reason for state in states if state.state == "waiting"]
            assert reasons[0] == "the server showed no life"
            assert pings == 1
        silent.set()


@asynchronous
async def test_pings_of_the_protocol_are_signs_of_life() -> None:
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await go.wait()
        await peer.connection.ping()
        await peer.connection.wait_closed()

    class Receiver:
        activity = 0
        messages = 0

        def on_socket_open(self) -> None:
            pass

        def on_activity(self) -> None:
            self.activity += 1

        def on_message(self, raw: str) -> None:
            self.messages += 1

        def on_ended(self, ending: Ending) -> None:
            pass

    receiver = Receiver()
    async with scripted(script) as url:
        transport = Transport(url, None, None, receiver)
        await until(lambda: receiver.messages == 1)
        before = receiver.activity
        go.set()
        await until(lambda: receiver.activity > before)
        assert receiver.messages == 1
        transport.close(abort=False)
        await asyncio.wait([transport.task])


@asynchronous
async def test_a_message_that_is_too_large_is_not_sent() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome(max_message_bytes=200)
        request = await peer.receive("publish")
        assert request["data"]["message"] == "short"
        await peer.reply(request, "published", {"topic": "chat", "subscribers": 0})
        await peer.connection.wait_closed()

    async with scripted(script) as url, Hub(url, **SHORT) as hub:
        early = asyncio.create_task(hub.publish("chat", "y" * 200))
        with pytest.raises(HubError) as raised:
            await early
        assert raised.value.code == "message_too_large"
        for call in (hub.publish("chat", "ü" * 100), hub.echo("x" * 200)):
            with pytest.raises(HubError) as raised:
                await call
            assert raised.value.code == "message_too_large"
        assert (await hub.publish("chat", "short")).subscribers == 0


@asynchronous
async def test_close_while_connecting() -> None:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"ws://127.0.0.1:{listener.getsockname()[1]}"
        hub = Hub(url, **SHORT)
        async with hub:
            waiting = [
                asyncio.create_task(hub.subscribe("chat")),
                asyncio.create_task(hub.publish("chat", 1)),
                asyncio.create_task(hub.echo(1)),
                asyncio.create_task(hub.history("chat")),
            ]
            await asyncio.sleep(0.05)
            assert hub.state == "connecting"
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [getattr(outcome, "code", None) for outcome in outcomes] == ["closed"] * 4
        await hub.close()


@asynchronous
async def test_a_server_that_never_answers_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        states: list[HubState] = []
        url = f"ws://127.0.0.1:{listener.getsockname()[1]}"
        async with Hub(url, connect_timeout=0.05, on_state=states.append, **SHORT):
            await until(lambda: len(states) >= 4)
        assert states[1].reason == "no connection within 0.05 s"


@asynchronous
async def test_a_cancelled_publish_that_was_not_sent_is_taken_back() -> None:
    go = asyncio.Event()
    seen: list[Any] = []

    async def script(peer: Peer) -> None:
        await go.wait()
        await peer.welcome()
        with contextlib.suppress(Exception):
            while True:
                request = await peer.receive("publish")
                seen.append(request["data"]["message"])
                await peer.reply(request, "published", {"topic": "chat", "subscribers": 0})

    async with scripted(script) as url, Hub(url, **SHORT) as hub:
        calls = [asyncio.create_task(hub.publish("chat", number)) for number in range(4)]
        await asyncio.sleep(0)
        calls[0].cancel()
        calls[2].cancel()
        await asyncio.sleep(0)
        go.set()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert seen == [1, 3]
        assert [isinstance(outcome, asyncio.CancelledError) for outcome in outcomes] == [
            True,
            False,
            True,
            False,
        ]


@asynchronous
async def test_a_cancelled_publish_that_was_sent_keeps_the_order() -> None:
    go = asyncio.Event()
    seen: list[Any] = []

    async def script(peer: Peer) -> None:
        await peer.welcome()
        first = await peer.receive("publish")
        seen.append(first["data"]["message"])
        await go.wait()
        await peer.reply(first, "published", {"topic": "chat", "subscribers": 0})
        second = await peer.receive("publish")
        seen.append(second["data"]["message"])
        await peer.reply(second, "published", {"topic": "chat", "subscribers": 0})
        await peer.connection.wait_closed()

    async with scripted(script) as url, Hub(url, **SHORT) as hub:
        first = asyncio.create_task(hub.publish("chat", 1))
        second = asyncio.create_task(hub.publish("chat", 2))
        await until(lambda: seen == [1])
        first.cancel()
        await asyncio.wait([first])
        await asyncio.sleep(0.05)
        assert not second.done()
        go.set()
        await second
        assert seen == [1, 2]


@asynchronous
async def test_a_cancelled_iteration_loses_nothing() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.serve_subscribe("chat", 0)
        for offset in range(1, 101):
            await peer.deliver("chat", offset)
            await asyncio.sleep(0.001)
        await peer.connection.wait_closed()

    async with scripted(script) as url, Hub(url, **SHORT) as hub:
        chat = await hub.subscribe("chat")
        offsets: list[Any] = []
        while len(offsets) < 100:
            with contextlib.suppress(asyncio.TimeoutError):
                offsets.append((await asyncio.wait_for(chat.__anext__(), 0.0015)).offset)
        assert offsets == list(range(1, 101))


@asynchronous
async def test_a_cancelled_subscribe_leaves_no_subscription() -> None:
    unsubscribed = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.receive("subscribe")
        await peer.receive("unsubscribe")
        unsubscribed.set()
        await peer.connection.wait_closed()

    async with scripted(script) as url, Hub(url, **SHORT) as hub:
        await until(lambda: hub.state == "open")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(hub.subscribe("chat"), 0.1)
        await unsubscribed.wait()


@asynchronous
async def test_handlers_that_fail_cost_only_their_call() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.serve_subscribe("chat", 0)
        await peer.deliver("chat", 1)
        await peer.send(
            "gap", {"topic": "chat", "epoch": "e1", "offset": 5, "from": 2, "to": 5, "reason": "trimmed"}
        )
        await peer.deliver("chat", 6)
        await peer.connection.wait_closed()

    errors: list[str] = []
    seen: list[Any] = []

    async def on_gap(gap: Gap) -> None:
        seen.append((gap.from_, gap.to, gap.reason))
        raise RuntimeError("no reload")

    def on_message(message: Message) -> None:
        seen.append(message.offset)
        if message.offset == 6:
            task.cancel()
        raise ValueError("no display")

    async with (
        scripted(script) as url,
        Hub(url, on_error=lambda error: errors.append(error.code), **SHORT) as hub,
    ):
        chat = await hub.subscribe("chat", on_gap=on_gap)
        task = asyncio.create_task(chat.consume(on_message))
        await asyncio.wait([task])
    assert seen == [1, (2, 5, "trimmed"), 6]
    assert errors == ["handler_failed"] * 3


@asynchronous
async def test_callbacks_of_the_hub_may_fail_and_call_it() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.serve_subscribe("chat", 0)
        await peer.connection.wait_closed()

    tasks: list[asyncio.Task[Any]] = []

    def on_state(state: HubState) -> None:
        if state.state == "open":
            tasks.append(asyncio.create_task(hub.subscribe("chat")))
        raise RuntimeError("no display")

    def on_error(error: HubError) -> None:
        raise RuntimeError("nor this")

    async with scripted(script) as url, Hub(url, on_state=on_state, on_error=on_error, **SHORT) as hub:
        await until(lambda: bool(tasks))
        assert (await tasks[0]).state == "live"


@asynchronous
async def test_a_subscription_that_the_server_ends_raises() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.serve_subscribe("chat", 0)
        await peer.deliver("chat", 1)
        await peer.send("unsubscribed", {"topic": "chat"})
        await peer.connection.wait_closed()

    states: list[SubscriptionState] = []
    async with scripted(script) as url, Hub(url, **SHORT) as hub:
        chat = await hub.subscribe("chat", on_state=states.append)
        assert (await chat.__anext__()).offset == 1
        with pytest.raises(HubError) as raised:
            await chat.__anext__()
        assert raised.value.code == "forbidden"
        assert chat.state == "ended"
        assert [state.state for state in states] == ["live", "ended"]


@asynchronous
async def test_the_position_moves_when_the_next_message_is_asked_for() -> None:
    saved: dict[str, str] = {}

    class Storage:
        def get(self, key: str) -> str | None:
            return saved.get(key)

        def set(self, key: str, value: str) -> None:
            saved[key] = value

        def delete(self, key: str) -> None:
            del saved[key]

    starts: list[Any] = []

    async def script(peer: Peer) -> None:
        await peer.welcome()
        request = await peer.receive("subscribe")
        recover = request["data"].get("recover")
        starts.append(recover)
        keys: dict[str, Any] = {"epoch": "e1", "offset": recover["offset"] if recover else 0, "time": 0}
        keys |= {"recovered": True} if recover else {}
        await peer.reply(request, "subscribed", {"topic": "chat", **keys})
        for offset in range(keys["offset"] + 1, 6):
            await peer.deliver("chat", offset)
        with contextlib.suppress(Exception):
            await peer.receive("unsubscribe")

    async with scripted(script) as url:
        key = f"deeperhub:{url}:chat"
        async with Hub(url, storage=Storage(), **SHORT) as hub:
            chat = await hub.subscribe("chat")
            for _ in range(3):
                message = await chat.__anext__()
            assert message.offset == 3
        assert json.loads(saved[key]) == {"epoch": "e1", "offset": 2, "time": 2}
        async with Hub(url, storage=Storage(), **SHORT) as hub:
            chat = await hub.subscribe("chat")
            assert (await chat.__anext__()).offset == 3
            await chat.unsubscribe()
            assert [message async for message in chat] == []
        assert saved == {}
    assert starts == [None, {"epoch": "e1", "offset": 2, "time": 2}]


@asynchronous
async def test_tokens_are_renewed_on_the_open_connection_and_stand_in_no_log() -> None:
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # The server of this test runs in the same process and logs what it receives.
            if record.name != "websockets.server":
                lines.append(f"{record.name} {self.format(record)}")

    handler, root = Lines(), logging.getLogger()
    root.addHandler(handler)
    level = root.level
    root.setLevel(logging.DEBUG)
    renewed = asyncio.Event()

    def jwt(seconds: float, number: int) -> str:
        claims = json.dumps({"sub": "ada", "exp": 1_796_000_000 + seconds, "n": number}).encode()
        return f"secret.{base64.urlsafe_b64encode(claims).decode().rstrip('=')}.signature"

    tokens = [jwt(0.5, 1), jwt(3600, 2)]
    used: list[str] = []

    def token() -> str:
        used.append(tokens[min(len(used), 1)])
        return used[-1]

    async def script(peer: Peer) -> None:
        assert peer.connection.request is not None
        assert peer.connection.request.headers["Authorization"] == f"Bearer {tokens[0]}"
        await peer.welcome()
        request = await peer.receive("authenticate")
        assert request["data"] == {"token": tokens[1]}
        await peer.reply(request, "authenticated", {"user": "ada", "expires_at": 1_796_003_600})
        renewed.set()
        await peer.connection.wait_closed()

    try:
        async with scripted(script) as url, Hub(url, token=token, **SHORT) as hub:
            await renewed.wait()
            await asyncio.sleep(0.05)
            assert hub.state == "open"
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    assert any(line.startswith("deeperhub ") for line in lines)
    assert not [line for line in lines if "secret" in line]


@asynchronous
async def test_tls_with_a_context_of_the_application(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, "-out", certificate, "-keyout", key], check=True, capture_output=True)
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(certificate, key)

    async def handler(connection: Any) -> None:
        await Peer(connection).welcome()
        await connection.wait_closed()

    async with serve(handler, "localhost", 0, ssl=server_side) as server:
        url = f"wss://localhost:{server.sockets[0].getsockname()[1]}"
        async with Hub(url, **SHORT) as stranger:
            await until(lambda: stranger.state == "waiting")
        async with Hub(url, ssl=ssl.create_default_context(cafile=str(certificate)), **SHORT) as hub:
            await until(lambda: hub.state == "open")


@asynchronous
async def test_an_iterator_in_a_task_group_ends_with_it() -> None:
    if not hasattr(asyncio, "TaskGroup"):
        pytest.skip("TaskGroup came with Python 3.11")

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.serve_subscribe("chat", 0)
        await peer.connection.wait_closed()

    async def read(hub: Hub) -> None:
        async for _ in await hub.subscribe("chat"):
            pass

    async with scripted(script) as url:
        with pytest.raises(BaseException) as raised:  # noqa: PT011
            async with Hub(url, **SHORT) as hub, asyncio.TaskGroup() as group:
                group.create_task(read(hub))
                await until(lambda: hub.state == "open")
                raise KeyError("the application")
        assert "KeyError" in repr(raised.value)
        assert hub.state == "closed"


@asynchronous
async def test_wrong_arguments_are_told_at_once() -> None:
    with pytest.raises(ValueError, match="ws://"):
        Hub("https://hub.example")
    with pytest.raises(ValueError, match="wss://"):
        Hub("ws://hub.example", ssl=ssl.create_default_context())
    with pytest.raises(ValueError, match="token"):
        Hub("ws://hub.example", token="two words")
    with pytest.raises(ValueError, match="max_delay"):
        Hub("ws://hub.example", min_delay=3, max_delay=2)
    hub = Hub("ws://127.0.0.1:9")
    with pytest.raises(RuntimeError, match="async with"):
        await hub.publish("chat", 1)
    async with hub:
        with pytest.raises(ValueError, match="JSON"):
            await hub.publish("chat", float("nan"))
        with pytest.raises(TypeError):
            await hub.publish("chat", {1, 2})
        with pytest.raises(RuntimeError, match="started"):
            hub.start()
