"""The operations of a server on the store at a URL, in this process: without the wire and without retries."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
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


@dataclass
class Service:
    """Operations as a server has them, and what the link has reported of its store: connected or not."""

    stores: Stores
    operations: Operations
    changes: list[bool]
    timeout_seconds: float
    users: dict[str, str] = field(default_factory=dict, repr=False)
    """The user of each token that was created here."""

    @property
    def call(self) -> Call:
        """A call that begins now, with as much time as the store has."""
        return a_call(self.timeout_seconds)

    async def create(self, user_id: str = "ana", *, idle_timeout_ms: int | None = None) -> Login:
        """Logs a user in."""
        new = NewSession(user_id, idle_timeout_ms=idle_timeout_ms)
        login = await self.operations.users.create(new, self.call)
        self.users[login.token] = user_id
        return login

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

    async def live(self, user_id: str) -> None:
        """Takes a session through its whole life, and asserts that each step shows what the one before has done."""
        sessions = self.operations.sessions
        login = await self.create(user_id)
        session_id = login.stored.session.session_id
        assert await self.is_valid(login.token), "a live session was denied"
        await sessions.update(Update(session_id, entries={"step": "1"}), self.call)
        found = await sessions.get(session_id, self.call)
        assert found.session.attributes == {"step": "1"}, "an update was lost"
        token = (await sessions.rotate(login.token, self.call)).token
        assert await self.is_valid(token), "a live session was denied"
        assert await self.revoke(login)
        assert not await self.is_valid(token), "a revoked session is valid"
        with pytest.raises(SessionNotFound):
            await sessions.get(session_id, self.call)

    async def is_available(self, *tokens: str) -> bool:
        """Whether the validity of these tokens is known: all are valid."""
        try:
            validations = await self.validate(*tokens)
        except StoreUnavailable:
            return False
        assert all(validation.stored for validation in validations), "a live session was denied"
        return True

    async def recovered(self, *tokens: str) -> None:
        """Waits until the validity of these tokens is known."""
        await eventually_async(lambda: self.is_available(*tokens), "the store replies again")

    async def reported(self, *changes: bool) -> None:
        """Waits until the link has reported exactly this: connected or not."""

        async def has_reported() -> bool:
            return self.changes == [*changes]

        await eventually_async(has_reported, f"reported {changes}, not {self.changes}")


@asynccontextmanager
async def service_on(url: str, *, prefix: str = "", **settings: str) -> AsyncIterator[Service]:
    """Opens the store at a URL; keyword arguments are settings: `store_timeout="1s"`."""
    given = {"store_url": url, **settings}
    read = load({}, {f"CATRACA_{name.upper()}": value for name, value in given.items()})
    assert not read.warnings, read.warnings
    loaded = read.settings
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
