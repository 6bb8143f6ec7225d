"""The numbers of all workers as one. The supervisor asks for them when the page is read.

What a worker counted stays in the numbers after it ends, so counters never run backwards. Only what a crashed worker
counted after it was last asked is lost; a draining worker sends its last numbers before it ends.
"""

import asyncio
import json
from collections.abc import Callable

from catraca_server.observe.numbers import Snapshot, merge, without_gauges

ASK = b"?"
"""What the supervisor writes to a worker for its numbers, which come back as one line of JSON."""

LINE_MAX_BYTES = 8 << 20

WAIT_SECONDS = 1.0
"""How long workers have to answer. For one that does not, the numbers that it sent last are used."""


class WorkerNumbers:
    """The numbers that one worker sent last."""

    def __init__(self, ask: Callable[[], None]) -> None:
        self.last: Snapshot = {}
        self._ask = ask
        self._told = asyncio.Event()

    def tell(self, line: bytes) -> None:
        """Takes a line from the worker."""
        self.last = json.loads(line)
        self._told.set()

    async def asked(self) -> None:
        """Asks the worker, and waits for its answer."""
        self._told.clear()
        self._ask()
        await self._told.wait()


class AllNumbers:
    """The numbers of all workers."""

    def __init__(self) -> None:
        self._past: Snapshot = {}
        self._workers: set[WorkerNumbers] = set()

    def add(self, worker: WorkerNumbers) -> None:
        """Adds a worker that has begun to serve."""
        self._workers.add(worker)

    def remove(self, worker: WorkerNumbers) -> None:
        """Removes a worker that has ended, and keeps its counts."""
        self._workers.discard(worker)
        self._past = merge([self._past, without_gauges(worker.last)])

    async def snapshot(self) -> Snapshot:
        """Returns the numbers as they are now."""
        if asking := [asyncio.create_task(worker.asked()) for worker in self._workers]:
            _, late = await asyncio.wait(asking, timeout=WAIT_SECONDS)
            for task in late:
                task.cancel()
        return merge([self._past, *(worker.last for worker in self._workers)])
