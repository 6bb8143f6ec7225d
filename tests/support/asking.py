"""Callers of the operations in this process, without a wire and without retries, who know what is so."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tests.support.backends import Operations, Stores, a_call
from tests.support.waiting import eventually_async

from catraca_server.domain.call import Call
from catraca_server.domain.commands import NewSession, Update
from catraca_server.domain.errors import SessionNotFound
from catraca_server.domain.validation import Validation, ValidationRequest
from catraca_server.operations.users import Login
from catraca_server.redis.open import open_link
from catraca_server.settings import load
from catraca_server.store import StoreUnavailable

_PAUSE = 0.002


@dataclass
class Service:
    """Operations as a server has them, and what was told about its store."""

    stores: Stores
    operations: Operations
    changes: list[bool]
    timeout: float

    @property
    def call(self) -> Call:
        """A call that begins now and has to be answered as soon as over the wire."""
        return a_call(self.timeout)

    async def create(self, user_id: str = "ana", *, idle_timeout: int | None = None) -> Login:
        """Logs a user in."""
        return await self.operations.users.create(NewSession(user_id, idle_timeout_ms=idle_timeout), self.call)

    async def validate(self, *tokens: str) -> list[Validation]:
        """Validates tokens in one batch."""
        return await self.operations.sessions.validate([ValidationRequest(token) for token in tokens], self.call)

    async def is_valid(self, token: str) -> bool:
        """Whether a token is valid."""
        (validation,) = await self.validate(token)
        return validation.stored is not None

    async def revoke(self, login: Login) -> bool:
        """Logs a session out."""
        return await self.operations.sessions.revoke(login.stored.session.session_id, self.call)

    async def answers(self, *tokens: str) -> bool:
        """Whether there is an answer about these tokens: that all are valid."""
        try:
            validations = await self.validate(*tokens)
        except StoreUnavailable:
            return False
        assert all(validation.stored for validation in validations), "a live session was denied"
        return True

    async def recovered(self, *tokens: str) -> None:
        """Waits until there is an answer about these tokens."""
        await eventually_async(lambda: self.answers(*tokens), "the store answers again")

    async def told(self, *changes: bool) -> None:
        """Waits until it was told this about its store."""

        async def was_told() -> bool:
            return self.changes == [*changes]

        await eventually_async(was_told, f"told {changes}, not {self.changes}")


@asynccontextmanager
async def service_on(url: str, *, prefix: str = "", **settings: str) -> AsyncIterator[Service]:
    """Opens the store at a URL; keyword arguments are settings: `store_timeout="1s"`."""
    given = {"store_url": url, **settings}
    loaded = load({}, {f"CATRACA_{name.upper()}": value for name, value in given.items()}).settings
    changes: list[bool] = []
    async with open_link(
        loaded.store_url,
        store_password=loaded.store_password,
        sentinel_password=loaded.sentinel_password,
        timeout_seconds=loaded.store_timeout.seconds,
        replica_acks=loaded.replica_acks,
        on_change=changes.append,
    ) as (link, has_pexpiretime):
        made = Stores.over(link, prefix=prefix, has_pexpiretime=has_pexpiretime)
        operations = Operations.over(made, rotation_grace_ms=loaded.rotation_grace.ms)
        yield Service(made, operations, changes, loaded.store_timeout.seconds)


@dataclass(frozen=True, slots=True)
class Told:
    """How a validation ended; times are of `time.monotonic()`."""

    token: str
    asked: float
    answered: float
    error: str


class Asking:
    """Validates standing sessions all the time, each by a caller of its own, for as long as it is open.

    With `lives`, so many other callers lead sessions of their own through a whole life, again and again. An answer that
    is wrong ends it with an error; that there is none is written down.
    """

    def __init__(self, service: Service, tokens: Sequence[str], *, lives: int = 0) -> None:
        self.told: list[Told] = []
        """Of the standing sessions."""
        self.unavailable: list[str] = []
        """Why lives were interrupted."""
        self.lived = 0
        self._service = service
        self._tokens = tokens
        self._lives = lives

    def errors(self, *tokens: str, since: float = 0.0) -> list[Told]:
        """Returns the validations that were not answered, of these tokens or of all."""
        found = [each for each in self.told if each.error and each.asked >= since]
        return [each for each in found if each.token in tokens] if tokens else found

    def longest(self) -> float:
        """Returns how long the slowest validation took, answered or not, in seconds."""
        return max(each.answered - each.asked for each in self.told)

    async def go_on(self, *tokens: str, times: int = 20) -> None:
        """Returns once each of these standing sessions, or of all, was found valid so many more times."""
        begun, chosen = time.monotonic(), set(tokens or self._tokens)

        async def went_on() -> bool:
            self._look_for_defects()
            right = [each.token for each in self.told if not each.error and each.asked >= begun]
            return all(right.count(token) >= times for token in chosen)

        await eventually_async(went_on, "sessions are validated")
        lived = self.lived

        async def lived_on() -> bool:
            self._look_for_defects()
            return self.lived > lived + self._lives

        if self._lives:
            await eventually_async(lived_on, f"sessions live: {self.unavailable[-3:]}")

    async def __aenter__(self) -> Self:
        work = itertools.chain(
            (self._validate(token) for token in self._tokens), (self._live(number) for number in range(self._lives))
        )
        self._tasks = [asyncio.create_task(each) for each in work]
        await self.go_on(times=1)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        if exc is None:
            self._look_for_defects()

    def _look_for_defects(self) -> None:
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()

    async def _validate(self, token: str) -> None:
        while True:
            asked, error = time.monotonic(), ""
            try:
                assert await self._service.is_valid(token), "a live session was denied"
            except StoreUnavailable as fault:
                error = str(fault)
            self.told.append(Told(token, asked, time.monotonic(), error))
            await asyncio.sleep(_PAUSE)

    async def _live(self, number: int) -> None:
        while True:
            try:
                await self._life(f"user-{number}")
                self.lived += 1
            except StoreUnavailable as fault:
                self.unavailable.append(str(fault))
            await asyncio.sleep(_PAUSE)

    async def _life(self, user_id: str) -> None:
        service, sessions = self._service, self._service.operations.sessions
        login = await service.create(user_id)
        session_id = login.stored.session.session_id
        assert await service.is_valid(login.token)
        await sessions.update(Update(session_id, entries={"step": "1"}), service.call)
        found = await sessions.get(session_id, service.call)
        assert found.session.attributes == {"step": "1"}, "an update was forgotten"
        token = (await sessions.rotate(login.token, service.call)).token
        assert await service.is_valid(token)
        assert await service.revoke(login)
        assert not await service.is_valid(token), "a revoked session is valid"
        try:
            await sessions.get(session_id, service.call)
        except SessionNotFound:
            return
        raise AssertionError("a revoked session was found")
