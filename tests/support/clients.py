"""Users of the bundled client, retries and all, who call all the time: what an operation costs its callers."""

import asyncio
import time
from types import TracebackType
from typing import Self

from tests.support.waiting import eventually_async

from catraca import AsyncSessionClient, _core, errors

OWN_CONNECTIONS = (*_core.CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1))
"""What makes clients of one process connect each for itself; as it is, they share a connection."""


class Clients:
    """Bundled clients that validate a live session, by several callers each, for as long as they are open."""

    def __init__(self, target: str, token: str, *, clients: int = 4, callers: int = 4) -> None:
        self.failures: list[str] = []
        """What went wrong, and when: errors, and answers that were not valid."""
        self.validated = 0
        self._clients = [AsyncSessionClient(target) for _ in range(clients)]
        self._token = token
        self._callers = callers

    async def go_on(self, calls: int = 200) -> None:
        """Returns after so many more validations."""
        goal = self.validated + calls

        async def reached() -> bool:
            return self.validated >= goal

        await eventually_async(reached, f"{calls} more validations; failures: {self.failures[:5]}")

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._call(each)) for each in self._clients * self._callers]
        await self.go_on()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for each in self._clients:
            await each.close()

    async def _call(self, sessions: AsyncSessionClient) -> None:
        while True:
            try:
                right = bool(await sessions.validate(self._token))
            except errors.CatracaError as error:
                self.failures.append(f"{time.monotonic():.3f} {error!r}")
                # As whoever is told "unknown" does; and nobody is served by a loop that does nothing else.
                await asyncio.sleep(0.01)
            else:
                self.validated += right
                if not right:
                    self.failures.append(f"{time.monotonic():.3f} not valid")
                await asyncio.sleep(0.002)
