"""A client on the package `websockets`: python_client.py URL. Exits with 0 on success."""

import asyncio
import json
import sys

import websockets
from websockets.exceptions import ConnectionClosedError


async def ask(hub, **message):
    await hub.send(json.dumps(message))
    return json.loads(await hub.recv())


async def main(url):
    async with websockets.connect(url, subprotocols=["deeperhub.v1.json"]) as hub, websockets.connect(url) as other:
        assert hub.subprotocol == "deeperhub.v1.json", hub.subprotocol
        assert other.subprotocol is None, other.subprotocol
        assert "permessage-deflate" in hub.response.headers["Sec-WebSocket-Extensions"], hub.response.headers
        welcome = json.loads(await hub.recv())
        assert welcome["type"] == "welcome", welcome
        own = json.loads(await other.recv())["data"]["client_id"]
        assert own != welcome["data"]["client_id"]

        data = {"text": "grüße \N{WAVING HAND SIGN}", "large": "x" * 20_000, "number": 2**53 + 1}
        assert await ask(hub, type="echo", id="é", data=data) == {"type": "echo", "id": "é", "data": data}

        reply = await ask(hub, type="subscribe", id=1, data={"topic": "sports.*"})
        assert reply == {"type": "subscribed", "id": 1, "data": {"topic": "sports.*"}}, reply
        reply = await ask(other, type="publish", id=2, data={"topic": "sports.chess", "message": data})
        assert reply == {"type": "published", "id": 2, "data": {"topic": "sports.chess", "subscribers": 1}}, reply
        delivery = json.loads(await hub.recv())
        expected = {"topic": "sports.chess", "message": data, "from": own}
        assert delivery == {"type": "message", "data": expected}, delivery

        # In fragments, with a ping between them.
        async def fragments():
            yield '{"type":"echo",'
            await (await hub.ping())
            yield '"data":[]}'

        await hub.send(fragments())
        assert json.loads(await hub.recv()) == {"type": "echo", "data": []}

        reply = await ask(hub, type="subscribe", data={"topic": "a b"})
        assert (reply["type"], reply["data"]["code"]) == ("error", "invalid_topic"), reply
        reply = await ask(hub, type="unsubscribe", data={"topic": "sports.*"})
        assert reply["type"] == "unsubscribed", reply
        await hub.close(4321, "done")
        assert hub.close_code == 4321, hub.close_code

        await other.send("x" * 100_000)
        try:
            await other.recv()
        except ConnectionClosedError as error:
            assert error.rcvd.code == 1009, error
        else:
            raise AssertionError("a message over the limit was taken")


asyncio.run(asyncio.wait_for(main(sys.argv[1]), 60))
print("as it should be")
