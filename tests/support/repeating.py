"""A call that is made over and over while something else happens."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.support.waiting import eventually_async

from catraca.errors import CatracaError


@dataclass
class Repeated:
    """How often the call was made, and what went wrong."""

    done: int = 0
    failures: list[CatracaError] = field(default_factory=list)

    async def go_on(self, times: int = 3) -> None:
        """Returns when the call was made this many more times."""
        enough = self.done + times

        async def is_enough() -> bool:
            return self.done >= enough

        await eventually_async(is_enough, "calls go on")


@asynccontextmanager
async def repeating(call: Callable[[], Awaitable[object]]) -> AsyncIterator[Repeated]:
    """Makes a call again and again in the body. An error of another kind than the client's is raised at its end."""
    calls = Repeated()

    async def go_on() -> None:
        while True:
            try:
                await call()
            except CatracaError as error:
                calls.failures.append(error)
            calls.done += 1

    task = asyncio.create_task(go_on())
    try:
        yield calls
    finally:
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()
