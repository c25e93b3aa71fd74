"""The client against the real hub."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from support import SHORT, CuttingProxy, RealHub, asynchronous, until

from deeperhub import Gap, Hub, HubError, Message

CUTS = 100


@asynchronous
async def test_quickstart() -> None:
    with RealHub("--topic", "chat.>: history=100 ttl=10m") as real:
        async with Hub(real.url) as hub:
            chat = await hub.subscribe("chat.42", history=50)
            assert chat.state == "live"
            assert hub.state == "open"
            published = await hub.publish("chat.42", {"text": "hi"})
            assert published.offset == 1
            assert published.subscribers == 1
            async for message in chat:
                assert message.message == {"text": "hi"}
                assert (message.topic, message.offset) == ("chat.42", 1)
                assert message.epoch == published.epoch
                assert message.from_ is not None
                break
            assert await hub.echo({"any": [1, None, "ü"]}) == {"any": [1, None, "ü"]}
            history = await hub.history("chat.42", from_=-10)
            assert [message.message for message in history.messages] == [{"text": "hi"}]
            with pytest.raises(HubError) as raised:
                await hub.subscribe("a..b")
            assert raised.value.code == "invalid_topic"
        assert chat.reason == "closed"
        assert [message async for message in chat] == []


@asynchronous
async def test_a_hundred_cuts_lose_and_repeat_nothing() -> None:
    rule = "journal.>: history=100000 history_bytes=64MiB ttl=10m"
    with RealHub("--topic", rule, "--max-connections-per-ip", "0") as real:
        await cut_while_publishing(real)


async def cut_while_publishing(real: RealHub) -> None:
    topic = "journal.a"
    received: list[Message] = []
    gaps: list[Gap] = []
    errors: list[HubError] = []
    stop = asyncio.Event()
    sent: dict[str, list[int]] = {"own": [], "other": []}
    async with CuttingProxy(real.port) as proxy:
        url = f"ws://127.0.0.1:{proxy.port}/"
        reader = Hub(url, on_error=errors.append, **SHORT)
        writer = Hub(url, on_error=errors.append, **SHORT)
        async with reader, writer:
            chat = await reader.subscribe(topic, on_gap=gaps.append)

            async def read() -> None:
                async for message in chat:
                    received.append(message)

            async def publish(hub: Hub, name: str) -> None:
                number = 0
                while not stop.is_set():
                    number += 1
                    sent[name].append(number)
                    await hub.publish(topic, [name, number])

            tasks = [
                asyncio.create_task(read()),
                asyncio.create_task(publish(reader, "own")),
                asyncio.create_task(publish(writer, "other")),
            ]
            choose = random.Random(18)
            for _ in range(CUTS):
                before = len(received)
                await until(lambda before=before: len(received) > before)  # type: ignore[misc]
                await asyncio.sleep(choose.random() * 0.03)
                proxy.cut()
            stop.set()
            await asyncio.gather(*tasks[1:])
            total = len(sent["own"]) + len(sent["other"])
            await until(lambda: len(received) >= total)
            await asyncio.sleep(0.1)
            tasks[0].cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await tasks[0]
        assert proxy.connections > CUTS
    assert not errors
    assert not gaps
    assert [message.offset for message in received] == list(range(1, total + 1))
    for name, numbers in sent.items():
        assert [message.message[1] for message in received if message.message[0] == name] == numbers


@asynchronous
async def test_a_killed_hub_is_a_gap_and_nothing_stands_still() -> None:
    rule = ("--topic", "chat.>: history=100 ttl=10m")
    real = RealHub(*rule)
    gaps: list[Gap] = []
    received: list[Any] = []
    try:
        async with Hub(real.url, **SHORT) as hub:
            chat = await hub.subscribe("chat.1", on_gap=gaps.append)

            async def read() -> None:
                async for message in chat:
                    received.append(message.message)

            task = asyncio.create_task(read())
            await hub.publish("chat.1", 1)
            await until(lambda: received == [1])
            real.stop()
            await until(lambda: hub.state == "waiting")
            late = asyncio.create_task(hub.publish("chat.1", 2))
            real = RealHub(*rule, port=real.port)
            await late
            await until(lambda: chat.state == "live" and chat.recovered is False)
            assert chat.reason == "epoch"
            # Whether message 2 comes too depends on what was first, the publish or the subscribe.
            await hub.publish("chat.1", 3)
            await until(lambda: 3 in received)
            assert [gap.reason for gap in gaps] == ["epoch"]
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
    finally:
        real.stop()


@asynchronous
async def test_a_slow_application_gets_all_that_is_kept() -> None:
    with RealHub("--topic", "feed: history=10000 ttl=10m") as real:
        async with Hub(real.url, max_queue_bytes=20_000, **SHORT) as hub, Hub(real.url, **SHORT) as other:
            feed = await hub.subscribe("feed")
            await asyncio.gather(*(other.publish("feed", [number, "x" * 100]) for number in range(2000)))
            numbers = []
            async for message in feed:
                numbers.append(message.message[0])
                if len(numbers) == 2000:
                    break
            assert numbers == list(range(2000))


@asynchronous
async def test_thousands_of_subscriptions_come_back_in_one_message() -> None:
    with RealHub("--max-subscriptions", "3000", "--max-message-bytes", "1048576") as real:
        async with CuttingProxy(real.port) as proxy, Hub(f"ws://127.0.0.1:{proxy.port}", **SHORT) as hub:
            topics = [f"room.{number}" for number in range(2000)]
            rooms = await asyncio.gather(*(hub.subscribe(topic) for topic in topics))
            assert all(room.state == "live" for room in rooms)
            proxy.cut()
            await until(lambda: all(room.state == "recovering" for room in rooms))
            await until(lambda: all(room.state == "live" for room in rooms))
            published = await hub.publish("room.1999", "hello")
            assert published.subscribers == 1


@asynchronous
async def test_the_worker_does_each_job_also_over_a_restart(tmp_path: Path) -> None:
    rules = ("--topic", "jobs: history=1000 ttl=1h", "--topic", "results: history=1000 ttl=1h")
    with RealHub(*rules) as real:
        async with Hub(real.url, **SHORT) as hub:
            results = await hub.subscribe("results")
            await hub.publish("jobs", {"id": 1, "text": "to be or not to be"})
            for number in (1, 2):
                worker = await start_worker(real.url, tmp_path)
                result = (await results.__anext__()).message
                assert result == {"job": number, "words": 6, "most_frequent": [["to", 2]]}
                if number == 1:
                    # A job that no worker can do costs only itself.
                    await hub.publish("jobs", {"text": "no id"})
                    await hub.publish("jobs", {"id": 7, "text": "a a"})
                    assert (await results.__anext__()).message["job"] == 7
                worker.send_signal(signal.SIGTERM)
                assert await worker.wait() == 0
                await hub.publish("jobs", {"id": 2, "text": "to be or not to be"})


async def start_worker(url: str, folder: Path) -> asyncio.subprocess.Process:
    script = Path(__file__).parents[1] / "examples" / "worker.py"
    keep = str(folder / "positions.json")
    return await asyncio.create_subprocess_exec(
        sys.executable, script, "--url", url, "--positions", keep, stdout=asyncio.subprocess.DEVNULL
    )


@asynchronous
async def test_a_backend_reaches_the_client() -> None:
    with RealHub() as real:
        seen: list[dict[str, Any]] = []
        async with Hub(real.url, on_message=seen.append, **SHORT) as hub:
            await hub.echo(1)
            real.post("/v1/broadcast", {"type": "notice", "text": "hello"})
            await until(lambda: bool(seen))
        assert json.loads(json.dumps(seen[0]))["text"] == "hello"
