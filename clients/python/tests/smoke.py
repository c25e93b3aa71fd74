"""Uses the installed package in an empty environment, against a server of a few lines."""

import asyncio
import importlib.metadata
import json
import pathlib

from websockets.asyncio.server import ServerConnection, serve

import deeperhub


async def hub(connection: ServerConnection) -> None:
    """Answers as the hub does, for one topic."""
    limits = {"max_message_bytes": 65536, "ping_interval_ms": 25000}
    await connection.send(json.dumps({"type": "welcome", "data": {"client_id": "c", "limits": limits}}))
    async for text in connection:
        request = json.loads(text)
        position = {"topic": "chat.42", "epoch": "e", "offset": 0, "time": 0}
        if request["type"] == "subscribe":
            await connection.send(json.dumps({"type": "subscribed", "id": request["id"], "data": position}))
        elif request["type"] == "publish":
            position |= {"offset": 1, "subscribers": 1}
            delivery = position | {"message": request["data"]["message"]}
            await connection.send(json.dumps({"type": "message", "data": delivery}))
            await connection.send(json.dumps({"type": "published", "id": request["id"], "data": position}))


async def main() -> None:
    """Subscribes, publishes and receives."""
    async with serve(hub, "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        async with deeperhub.Hub(url) as client:
            chat = await client.subscribe("chat.42")
            published = await client.publish("chat.42", {"text": "hi"})
            assert (published.offset, published.subscribers) == (1, 1)
            async for message in chat:
                assert message.message == {"text": "hi"}
                break
    folder = pathlib.Path(deeperhub.__file__).parent
    assert "site-packages" in folder.parts
    assert (folder / "py.typed").exists()
    print("The installed package works:", importlib.metadata.version("deeperhub"))


asyncio.run(asyncio.wait_for(main(), 60))
