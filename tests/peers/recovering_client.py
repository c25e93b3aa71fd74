"""A client on the package `websockets` that loses its connection again and again, and recovers:
recovering_client.py URL TOPIC COUNT [publish]. Exits with 0 if it got the numbers 1 to COUNT, each
once and in order. With `publish`, it publishes them itself."""

import asyncio
import json
import random
import sys

import websockets


async def publish(url, topic, count):
    async with websockets.connect(url) as hub:
        for number in range(1, count + 1):
            data = {"topic": topic, "message": {"number": number, "pad": "x" * 300}}
            await hub.send(json.dumps({"type": "publish", "data": data}))
            if number % 20 == 0:
                await asyncio.sleep(0.002)
        await hub.send(json.dumps({"type": "ping", "id": 1}))
        while json.loads(await hub.recv())["type"] != "pong":
            pass


async def read(url, topic, count):
    position, last, connections = None, 0, 0
    while last < count:
        connections += 1
        hub = await websockets.connect(url)
        welcome = json.loads(await hub.recv())
        assert "history" in welcome["data"]["features"], welcome
        data = {"topic": topic, "history": 1_000_000}
        if position:
            data["recover"] = position
        await hub.send(json.dumps({"type": "subscribe", "id": connections, "data": data}))
        reply = json.loads(await hub.recv())
        assert (reply["type"], reply["id"]) == ("subscribed", connections), reply
        if position:
            assert reply["data"]["recovered"], reply
            assert reply["data"]["offset"] == position["offset"], (reply, position)
        # The position before any message is good, too.
        position = {key: reply["data"][key] for key in ("epoch", "offset", "time")}
        if connections == 1:
            last = position["offset"]
            assert last == 0, "the history has the first message"
        # The last connection stays until the end.
        for _ in range(random.randrange(150) if connections < 50 else count):
            if last == count:
                break
            message = json.loads(await asyncio.wait_for(hub.recv(), 60))
            assert message["type"] == "message", message
            data = message["data"]
            last += 1
            assert (data["offset"], data["message"]["number"]) == (last, last), (data, last)
            position = {key: data[key] for key in ("epoch", "offset", "time")}
        # A close in good order would first wait for all that the server has queued.
        hub.transport.abort() if random.randrange(2) else hub.transport.close()
    print(f"{connections} connections")


async def main(url, topic, count, *options):
    tasks = [read(url, topic, int(count))]
    if options == ("publish",):
        tasks.append(publish(url, topic, int(count)))
    await asyncio.gather(*tasks)


asyncio.run(main(*sys.argv[1:]))
