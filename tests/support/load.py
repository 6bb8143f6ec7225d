"""Load on a service: callers that validate live sessions all the time, and the outcome of every call.

What they call is up to the test: the operations in this process, stubs without any retry, or the bundled client.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import grpc
from tests.support.operations import Service
from tests.support.waiting import eventually_async

from catraca import AsyncSessionClient, _core, errors
from catraca.v1 import session_service_pb2 as pb
from catraca.v1.session_service_pb2_grpc import SessionServiceStub
from catraca_server.store import StoreUnavailable

OK, UNAVAILABLE = "OK", "UNAVAILABLE"
WRONG = "WRONG"
"""OK, but the session was not valid, or another user's."""

OWN_CONNECTIONS = (*_core.CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1))
"""Options with which each client of a process has a connection of its own; by default they share one."""

CALL_TIMEOUT_SECONDS = 20.0
"""Far longer than the store timeout, so that only a server that does not respond exceeds it."""

_PAUSE_SECONDS = 0.002
_WIRE_PAUSE_SECONDS = 0.005
_PAUSE_AFTER_FAILURE_SECONDS = 0.01
"""The pause after a failure: a busy loop of failures helps no test."""


class CallFailed(Exception):
    """A call that ended with another status than OK."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


Validate = Callable[[str], Awaitable[str | None]]
"""Validates a token. Returns the id of its user, or None if the token is not valid; raises CallFailed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended; times are of `time.monotonic()`."""

    operation: str
    status: str
    began: float
    ended: float
    token: str = field(default="", repr=False)
    message: str = ""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.began


class Outcomes:
    """The outcomes of calls, in the order in which they ended."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def count(self, status: str = OK, since: float = 0.0) -> int:
        """Returns how many of the calls that began since a moment ended with this status."""
        return sum(each.status == status and each.began >= since for each in self.outcomes)

    def failures(self, *tokens: str) -> list[Outcome]:
        """Returns the calls that were not OK, for these tokens or for all."""
        return [each for each in self.outcomes if each.status != OK and (not tokens or each.token in tokens)]

    def slowest_seconds(self) -> float:
        """Returns how long the slowest call took, whatever its outcome."""
        return max(each.seconds for each in self.outcomes)


class Load(Outcomes):
    """Validates live sessions in turn, by several callers at once, for as long as it is open.

    `users` has the user of each token, and `connections` what is called, dealt out to the callers. Each of `lives` is
    the life of another session, which one more caller repeats all the time. `go_on` and the end raise AssertionError
    for everything that no fault of a store excuses.
    """

    def __init__(
        self,
        connections: Sequence[Validate],
        users: Mapping[str, str],
        *,
        callers: int,
        pause_seconds: float = _WIRE_PAUSE_SECONDS,
        lives: Sequence[Callable[[], Awaitable[None]]] = (),
    ) -> None:
        super().__init__()
        self.interrupted: list[str] = []
        """Why lives came to an early end."""
        self._lived = 0
        self._connections = connections
        self._users = list(users.items())
        self._callers = callers
        self._pause_seconds = pause_seconds
        self._lives = lives

    @property
    def wrong(self) -> list[Outcome]:
        """Outcomes that no fault of a store excuses: anything but OK and UNAVAILABLE."""
        return [each for each in self.outcomes if each.status not in (OK, UNAVAILABLE)]

    def first_ok_after(self, moment: float) -> float | None:
        """Returns when the first call that began after a moment was OK."""
        return min((each.ended for each in self.outcomes if each.status == OK and each.began >= moment), default=None)

    async def go_on(self, times: int = 20) -> None:
        """Returns once each session was validated this many more times, and each life was lived once more."""
        begun, at, lived = time.monotonic(), len(self.outcomes), self._lived

        async def is_validated() -> bool:
            self._raise_defects()
            new = Counter(each.token for each in self.outcomes[at:] if each.status == OK and each.began >= begun)
            return all(new[token] >= times for token, _ in self._users)

        await eventually_async(is_validated, f"sessions are validated; failures: {self.failures()[-3:]}")

        async def is_lived() -> bool:
            self._raise_defects()
            return not self._lives or self._lived > lived + len(self._lives)

        await eventually_async(is_lived, f"sessions live: {self.interrupted[-3:]}")

    async def __aenter__(self) -> Self:
        calls = [self._validate(first) for first in range(self._callers)]
        self._tasks = [asyncio.create_task(each) for each in (*calls, *map(self._repeat, self._lives))]
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        if exc is None:
            self._raise_defects()

    def _raise_defects(self) -> None:
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()
        assert not self.wrong, self.wrong[:5]

    async def _validate(self, caller: int) -> None:
        validate = self._connections[caller % len(self._connections)]
        at = caller
        while True:
            token, user_id = self._users[at % len(self._users)]
            at += self._callers
            began, message = time.monotonic(), ""
            try:
                found = await validate(token)
                status = OK if found == user_id else WRONG
            except CallFailed as error:
                status, message = error.status, str(error)
            self.outcomes.append(Outcome("validate", status, began, time.monotonic(), token, message))
            await asyncio.sleep(self._pause_seconds if status == OK else _PAUSE_AFTER_FAILURE_SECONDS)

    async def _repeat(self, live: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await live()
                self._lived += 1
            except CallFailed as error:
                self.interrupted.append(str(error))
            await asyncio.sleep(self._pause_seconds)


@asynccontextmanager
async def load_in_process(service: Service, tokens: Sequence[str], *, lives: int = 0) -> AsyncIterator[Load]:
    """Validates sessions that the service created, each by a caller of its own; begins when each is valid."""

    async def validate(token: str) -> str | None:
        try:
            (validation,) = await service.validate(token)
        except StoreUnavailable as error:
            raise CallFailed(UNAVAILABLE, str(error)) from error
        return validation.stored.session.user_id if validation.stored else None

    def life(number: int) -> Callable[[], Awaitable[None]]:
        async def live() -> None:
            try:
                await service.live(f"user-{number}")
            except StoreUnavailable as error:
                raise CallFailed(UNAVAILABLE, str(error)) from error

        return live

    users = {token: service.users[token] for token in tokens}
    async with Load(
        [validate],
        users,
        callers=len(users),
        pause_seconds=_PAUSE_SECONDS,
        lives=[life(number) for number in range(lives)],
    ) as load:
        await load.go_on(times=1)
        yield load


@asynccontextmanager
async def load_over_stub(target: str, users: Mapping[str, str], *, callers: int = 8) -> AsyncIterator[Load]:
    """Validates over one connection of its own, without any retry."""
    options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(target, options) as channel:
        stub = SessionServiceStub(channel)

        async def validate(token: str) -> str | None:
            request = pb.ValidateSessionRequest(token=token)
            try:
                response = await stub.ValidateSession(request, timeout=CALL_TIMEOUT_SECONDS)
            except grpc.aio.AioRpcError as error:
                raise CallFailed(error.code().name, error.details() or "") from error
            return response.session.user_id if response.valid else None

        async with Load([validate], users, callers=callers) as load:
            yield load


@asynccontextmanager
async def load_over_clients(
    target: str, users: Mapping[str, str], *, clients: int = 4, callers: int = 4
) -> AsyncIterator[Load]:
    """Validates as users of the bundled client do, retries and all, by several callers of each client."""

    def validating_with(client: AsyncSessionClient) -> Validate:
        async def validate(token: str) -> str | None:
            try:
                validation = await client.validate(token)
            except errors.CatracaError as error:
                status = UNAVAILABLE if isinstance(error, errors.Unavailable) else type(error).__name__
                raise CallFailed(status, repr(error)) from error
            return validation.session.user_id if validation.session else None

        return validate

    async with AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(AsyncSessionClient(target, timeout=CALL_TIMEOUT_SECONDS))
            for _ in range(clients)
        ]
        connections = [validating_with(client) for client in opened]
        load = Load(connections, users, callers=clients * callers, pause_seconds=_PAUSE_SECONDS)
        async with load:
            await load.go_on()
            yield load
