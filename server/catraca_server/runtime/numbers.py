"""The numbers of all workers, which the supervisor asks for when somebody reads the page, as one.

What a worker counted before it died stays in: counters never run backwards. Only what a crashed worker counted after it
was last asked is lost; one that drains tells it before it ends.
"""

import asyncio
import json
from collections.abc import Callable

from catraca_server.observe.numbers import Snapshot, merge, without_gauges

ASK = b"?"
"""What the supervisor writes to a worker for its numbers, which come back as one line of JSON."""

LINE_MAX_BYTES = 8 << 20

WAIT_SECONDS = 1.0
"""For workers to answer. Of one that does not, the numbers that it told last are taken."""


class WorkerNumbers:
    """What one worker has told."""

    def __init__(self, ask: Callable[[], None]) -> None:
        self.last: Snapshot = {}
        self._ask = ask
        self._told = asyncio.Event()

    def tell(self, line: bytes) -> None:
        """Takes a line of the worker's."""
        self.last = json.loads(line)
        self._told.set()

    async def asked(self) -> None:
        """Asks, and waits for the answer."""
        self._told.clear()
        self._ask()
        await self._told.wait()


class AllNumbers:
    """The numbers of all workers."""

    def __init__(self) -> None:
        self._past: Snapshot = {}
        self._workers: set[WorkerNumbers] = set()

    def add(self, worker: WorkerNumbers) -> None:
        """A worker has begun to serve."""
        self._workers.add(worker)

    def remove(self, worker: WorkerNumbers) -> None:
        """It has ended."""
        self._workers.discard(worker)
        self._past = merge([self._past, without_gauges(worker.last)])

    async def snapshot(self) -> Snapshot:
        """Returns the numbers as they are now."""
        if asking := [asyncio.create_task(worker.asked()) for worker in self._workers]:
            _, late = await asyncio.wait(asking, timeout=WAIT_SECONDS)
            for task in late:
                task.cancel()
        return merge([self._past, *(worker.last for worker in self._workers)])
