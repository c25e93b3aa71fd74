"""A subscriber on Python's `websockets`: subscriber.py URL TOPIC COUNT NAME.

First prints a line with the negotiated extensions. Publishes two messages after the first delivery.
Prints the text of each of COUNT deliveries as a line.
"""

import asyncio
import json
import sys

import websockets


async def main(url: str, topic: str, count: int, name: str) -> None:
    async with websockets.connect(url) as hub:
        await hub.recv()
        await hub.send(json.dumps({"type": "subscribe", "data": {"topic": topic}}))
        await hub.recv()
        answer = hub.response.headers.get("Sec-WebSocket-Extensions", "none")
        print(f"subscribed {answer}", flush=True)
        for number in range(count):
            print(await hub.recv(), flush=True)
            if number == 0:
                for turn in (1, 2):
                    message = {"from": name, "turn": turn, "rows": f"{name} says it again; é " * 200}
                    await hub.send(json.dumps({"type": "publish", "data": {"topic": topic, "message": message}}))


sys.stdout.reconfigure(encoding="utf-8")
asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]))
