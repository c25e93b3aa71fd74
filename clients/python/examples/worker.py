"""A worker: takes jobs from one topic and publishes their results to another.

    deeperhub-ws --topic 'jobs: history=1000 ttl=1h' --topic 'results: history=1000 ttl=1h'
    clients/python/examples/run worker.py
    curl -d '{"id": 1, "text": "to be or not to be"}' http://127.0.0.1:8081/v1/topics/jobs/messages

The worker counts the words of each job. It keeps its position in a file, so it continues with the
next job after a restart. A job whose result was published just before a crash is done again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

from deeperhub import Gap, Hub, Message


class FileStorage:
    """Keeps positions in a file, which always has the old or the new text as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, key: str) -> str | None:
        """Returns a saved position."""
        return self.values.get(key)

    def set(self, key: str, value: str) -> None:
        """Saves a position."""
        self.values[key] = value
        self.write()

    def delete(self, key: str) -> None:
        """Removes a position."""
        self.values.pop(key, None)
        self.write()

    def write(self) -> None:
        """Writes the file."""
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(self.values))
        os.replace(new, self.path)


def work(job: Any) -> dict[str, Any]:
    """Does one job."""
    words = Counter(job["text"].split())
    return {"job": job["id"], "words": words.total(), "most_frequent": words.most_common(1)}


async def run(url: str, jobs: str, results: str, positions: Path, stop: asyncio.Event) -> None:
    """Works until it is told to stop. The job in hand is finished first."""
    storage = FileStorage(positions)
    busy = asyncio.Lock()
    async with Hub(url, storage=storage, on_error=lambda error: print("Error:", error, flush=True)) as hub:

        def on_gap(gap: Gap) -> None:
            print(f"Jobs {gap.from_} to {gap.to} are lost: {gap.reason}", flush=True)

        async def on_job(message: Message) -> None:
            async with busy:
                result = work(message.message)
                await hub.publish(results, result)
                print(f"Job {result['job']} is done", flush=True)

        async def take_jobs() -> None:
            # The first time, all jobs that are kept; later, the ones after the saved position.
            todo = await hub.subscribe(jobs, history=1000, on_gap=on_gap)
            print(f"Waiting for jobs on {jobs!r}", flush=True)
            await todo.consume(on_job)

        working = asyncio.create_task(take_jobs())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        async with busy:
            working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working


async def main() -> None:
    """Reads the command line, and works until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(description="Take jobs from one topic, publish results to another.")
    parser.add_argument("--url", default="ws://localhost:8080", help="address of the hub")
    parser.add_argument("--jobs", default="jobs", help="topic of the jobs")
    parser.add_argument("--results", default="results", help="topic of the results")
    parser.add_argument("--positions", type=Path, default=Path("worker-positions.json"), help="file to keep")
    options = parser.parse_args()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await run(options.url, options.jobs, options.results, options.positions, stop)


if __name__ == "__main__":
    asyncio.run(main())
