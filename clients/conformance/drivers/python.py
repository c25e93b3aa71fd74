"""Driver of the conformance kit for the Python client; see the README beside the folder."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "python" / "src"))

from deeperhub import Gap, Hub, HubError, HubState, Message, SubscriptionState

#: Options of the kit in milliseconds, and those that have no unit.
TIMES = ("min_delay", "max_delay", "connect_timeout", "pong_timeout", "request_timeout", "publish_timeout")
SIZES = ("max_queue_bytes", "max_pending_bytes")


def write(event: str, **keys: Any) -> None:
    """Writes one event. Keys without a value are left out."""
    line = {key.rstrip("_"): value for key, value in keys.items() if value is not None}
    print(json.dumps({"event": event, **line}), flush=True)


class MemoryStorage(dict[str, str]):
    """A storage that a reload does not empty."""

    set = dict.__setitem__

    def delete(self, key: str) -> None:
        """Removes the key, if it is there."""
        self.pop(key, None)


class Handle:
    """The application's side of one subscription."""

    def __init__(self, name: str, fail: list[int], held: bool) -> None:
        self.name = name
        self.fail = fail
        self.permits: int | None = 0 if held else None
        self.changed = asyncio.Event()
        self.subscription: Any = None
        self.task: asyncio.Task[None] | None = None

    def release(self, messages: int | None) -> None:
        """Lets held calls of the handler return."""
        self.permits = None if messages is None or self.permits is None else self.permits + messages
        self.changed.set()

    async def on_message(self, message: Message) -> None:
        """Writes a message, and returns or fails as the kit said."""
        write(
            "message",
            as_=self.name,
            topic=message.topic,
            from_=message.from_,
            time=message.time,
            epoch=message.epoch,
            offset=message.offset,
            **{"message": message.message} if message.message is not None else {},
        )
        while self.permits == 0:
            self.changed.clear()
            await self.changed.wait()
        if self.permits is not None:
            self.permits -= 1
        if message.offset in self.fail or message.message in self.fail:
            raise ValueError("the handler fails as the scene says")

    def on_gap(self, gap: Gap) -> None:
        """Writes a gap."""
        write("gap", as_=self.name, reason=gap.reason, from_=gap.from_, to=gap.to)

    def on_state(self, state: SubscriptionState) -> None:
        """Writes a state."""
        keys = {"state": state.state, "recovered": state.recovered, "reason": state.reason}
        write("subscription", as_=self.name, **keys)


class Driver:
    """Does what the kit says."""

    def __init__(self) -> None:
        self.storage = MemoryStorage()
        self.tokens: list[str | None] = []
        self.handles: dict[str, Handle] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.hub: Any = None

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Does something beside the next commands."""
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def token(self) -> str:
        """Returns the next token, as the token function of the application."""
        write("token")
        token = self.tokens.pop(0) if len(self.tokens) > 1 else self.tokens[0]
        if token is None:
            raise RuntimeError("the token function fails as the scene says")
        return token

    def on_state(self, state: HubState) -> None:
        """Writes a state of the hub."""
        wait_ms = None
        if state.until is not None:
            wait_ms = max(state.until - asyncio.get_running_loop().time(), 0.0) * 1000
        write("state", state=state.state, reason=state.reason, wait_ms=wait_ms)

    def connect(self, url: str, options: dict[str, Any]) -> None:
        """Makes a hub."""
        self.tokens = options.get("tokens") or []
        limits = {name: options[f"{name}_ms"] / 1000 for name in TIMES if f"{name}_ms" in options}
        limits |= {name: options[name] for name in SIZES if name in options}
        self.hub = Hub(
            url,
            token=self.token if "tokens" in options else options.get("token"),
            storage=self.storage if options.get("storage") else None,
            on_state=self.on_state,
            on_error=lambda error: write("error", code=error.code, message=error.message),
            **limits,
        )
        self.hub.start()

    async def subscribe(self, handle: Handle, topic: str, history: int | None) -> None:
        """Subscribes and hands over messages until the end."""
        try:
            handle.subscription = await self.hub.subscribe(
                topic, history=history, on_gap=handle.on_gap, on_state=handle.on_state
            )
        except HubError as error:
            handle.on_state(SubscriptionState("ended", None, error.code))
            write("ready", as_=handle.name, error=error.code)
            return
        write("ready", as_=handle.name)
        # The state `ended` says the same as the error.
        with contextlib.suppress(HubError):
            await handle.subscription.consume(handle.on_message)

    async def call(self, name: str, work: Coroutine[Any, Any, Any]) -> None:
        """Writes the result of a call."""
        try:
            write("result", as_=name, value=await work)
        except HubError as error:
            write("result", as_=name, error={"code": error.code, "message": error.message})

    async def publish(self, topic: str, message: Any, **options: bool) -> dict[str, Any]:
        """Publishes."""
        answer = await self.hub.publish(topic, message, **options)
        keys = {key: getattr(answer, key) for key in ("topic", "subscribers", "epoch", "offset")}
        return {key: value for key, value in keys.items() if value is not None}

    async def history(self, topic: str, options: dict[str, Any]) -> dict[str, Any]:
        """Reads history."""
        answer = await self.hub.history(topic, **options)
        messages = [vars_of(message) for message in answer.messages]
        return {**vars_of(answer), "messages": messages}

    async def close(self) -> None:
        """Closes the hub."""
        await self.hub.close()
        write("closed")

    def do(self, command: dict[str, Any]) -> None:
        """Does one command."""
        name = command.get("as", "")
        match command["do"]:
            case "connect":
                self.connect(command["url"], command.get("options") or {})
            case "subscribe":
                handle = Handle(name, command.get("fail") or [], bool(command.get("hold")))
                self.handles[name] = handle
                work = self.subscribe(handle, command["topic"], command.get("history"))
                handle.task = self.spawn(work)
            case "release":
                self.handles[name].release(command.get("messages"))
            case "unsubscribe":
                self.spawn(self.unsubscribe(self.handles[name]))
            case "publish":
                options = {key: command[key] for key in ("exclude_self", "ordered") if key in command}
                self.spawn(self.call(name, self.publish(command["topic"], command["message"], **options)))
            case "echo":
                self.spawn(self.call(name, self.hub.echo(command["data"])))
            case "history":
                renamed = {"from": "from_", "limit": "limit", "order": "order"}
                keys = {renamed[key]: command[key] for key in renamed if key in command}
                self.spawn(self.call(name, self.history(command["topic"], keys)))
            case "token":
                self.tokens = command["tokens"]
            case "reload":
                self.reload()
            case "close":
                self.spawn(self.close())
            case other:
                write("unsupported", do=other)

    async def unsubscribe(self, handle: Handle) -> None:
        """Ends a handle."""
        handle.release(None)
        if handle.subscription is not None:
            await handle.subscription.unsubscribe()
        elif handle.task is not None:
            # An application that no longer waits for its subscribe cancels it.
            handle.task.cancel()
            handle.on_state(SubscriptionState("ended", None, "unsubscribed"))
            write("ready", as_=handle.name, error="unsubscribed")

    def reload(self) -> None:
        """Leaves the hub as a process that is killed."""
        for task in self.tasks:
            task.cancel()
        self.hub._driver.abandon()
        self.hub = None


def vars_of(value: Any) -> dict[str, Any]:
    """Returns a dataclass with the names of the protocol, without what is absent."""
    names = {name: getattr(value, name) for name in value.__slots__}
    return {name.rstrip("_"): part for name, part in names.items() if part is not None}


async def main() -> None:
    """Does the commands on standard input until its end."""
    loop, end, driver = asyncio.get_running_loop(), asyncio.Event(), Driver()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(driver.do, json.loads(line))
        loop.call_soon_threadsafe(end.set)

    threading.Thread(target=read, daemon=True).start()
    write("ready", client="python", skips=["page", "blind"])
    await end.wait()


asyncio.run(main())
