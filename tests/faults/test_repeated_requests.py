"""What a repeated request finds, whether its first sending was executed or not: its own work, or something unknown."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest
from tests.support.backends import Backend, Operations, Stores, a_call

from catraca_server.domain.commands import NewSession, Update
from catraca_server.domain.errors import EtagMismatch, SessionNotFound, TokenInUse
from catraca_server.domain.session import Session
from catraca_server.domain.validation import ValidationRequest
from catraca_server.redis.errors import NotDurable, StoreUnavailable
from catraca_server.redis.link import Link, Request
from catraca_server.redis.replies import Replies
from catraca_server.store import Creation, IndexEntry, Replacement, scripts
from catraca_server.store.attempts import sequence_at

BROUGHT = "a-token-that-was-brought-along"
HOUR = 3_600_000
ENTRIES = [IndexEntry("0" * 21 + "1", sequence_at(1_790_000_000_000_000 + at)) for at in range(2)]
ENSURE_REPLICATED = scripts.load("ensure_replicated")


class Repeating(Link):
    """A link that repeats every request, as if the connection had been closed before the reply.

    Without `executed` the first sending was lost before it was executed.
    """

    def __init__(self, inner: Link, *, executed: bool) -> None:
        self.replicates = inner.replicates
        self._inner = inner
        self._executed = executed

    async def execute(
        self, requests: Sequence[Request], deadline: float, *, durable: bool = False
    ) -> Sequence[Replies]:
        """Executes requests and marks the replies as repeated."""
        if self._executed:
            await self._inner.execute(requests, deadline, durable=durable)
        all_replies = await self._inner.execute(requests, deadline, durable=durable)
        return [replace(replies, repeated=True) for replies in all_replies]


@pytest.fixture(params=[True, False], ids=["reply lost", "request lost"])
async def repeating(request: pytest.FixtureRequest, backend: Backend) -> AsyncIterator[Repeating]:
    """A link to a backend that repeats everything."""
    async with backend.link() as link:
        yield Repeating(link, executed=request.param)


async def revoked_once(operations: Operations, session_id: str, *, known: bool) -> None:
    """Revokes a session. If it is not `known` which call ended it, the call fails, and the session ends as well."""
    sessions = operations.sessions
    if known:
        assert await sessions.revoke(session_id, a_call())
    else:
        with pytest.raises(StoreUnavailable, match="does not tell what it did"):
            await sessions.revoke(session_id, a_call())
    with pytest.raises(SessionNotFound):
        await sessions.get(session_id, a_call())


async def test_a_whole_life(repeating: Repeating) -> None:
    """Logging in, validating, updating and rotating work as without repeats; revoking does, or fails as unknown."""
    operations = Operations.over(Stores.over(repeating))
    sessions = operations.sessions
    login = await operations.users.create(NewSession("ana"), a_call())
    session_id = login.stored.session.session_id
    (validation,) = await sessions.validate([ValidationRequest(login.token)], a_call())
    assert validation.stored is not None
    updated = await sessions.update(Update(session_id, entries={"step": "1"}), a_call())
    assert (updated.session.attributes, updated.session.version) == ({"step": "1"}, 2)
    rotation = await sessions.rotate(login.token, a_call())
    (validation,) = await sessions.validate([ValidationRequest(rotation.token)], a_call())
    assert validation.stored is not None
    page = await operations.users.page("ana", None, 10, a_call())
    assert [stored.session.session_id for stored in page.sessions] == [session_id]
    await revoked_once(operations, session_id, known=not repeating._executed)
    page = await operations.users.page("ana", None, 10, a_call())
    assert not page.sessions


async def test_an_update_with_an_etag(repeating: Repeating) -> None:
    """Of two updates with one etag one wins, also if both write the same: one that cannot know whether it won fails."""
    operations = Operations.over(Stores.over(repeating))
    login = await operations.users.create(NewSession("ana"), a_call())
    update = Update(login.stored.session.session_id, entries={"count": "2"}, etag=login.stored.session.etag)
    if repeating._executed:
        with pytest.raises(StoreUnavailable, match="does not tell what it did"):
            await operations.sessions.update(update, a_call())
    else:
        await operations.sessions.update(update, a_call())
    with pytest.raises(EtagMismatch):
        await operations.sessions.update(update, a_call())


async def test_a_session_that_its_index_does_not_name(repeating: Repeating, backend: Backend) -> None:
    """It is ended by its key alone, which is reported once or not at all."""
    operations = Operations.over(Stores.over(repeating))
    login = await operations.users.create(NewSession("ana"), a_call())
    await backend.command("DEL", "user-sessions:ana")
    await revoked_once(operations, login.stored.session.session_id, known=not repeating._executed)


async def test_a_token_that_was_brought(repeating: Repeating) -> None:
    """Exactly one of two creations with one token wins: one that cannot know whether it won fails."""
    users = Operations.over(Stores.over(repeating)).users
    if repeating._executed:
        with pytest.raises(StoreUnavailable, match="another call may have used the token"):
            await users.create(NewSession("ana", token=BROUGHT), a_call())
    else:
        await users.create(NewSession("ana", token=BROUGHT), a_call())
    with pytest.raises(TokenInUse):
        await users.create(NewSession("ana", token=BROUGHT), a_call())


async def test_the_same_record_twice(backend: Backend) -> None:
    """Two creations in one millisecond write the same record: the second is told that the id is taken."""
    async with backend.link() as link:
        store = Stores.over(link).sessions
        session = a_session(await backend.now())
        outcomes = [(await store.create(session, entry, a_call()))[0] for entry in ENTRIES]
        assert outcomes == [Creation.CREATED, Creation.TAKEN]


async def test_what_a_repeated_write_finds_may_have_come_after_it(backend: Backend) -> None:
    """Another record does not say whether the first sending was executed before it was written."""
    async with backend.link() as link:
        store, repeating = Stores.over(link).sessions, Stores.over(Repeating(link, executed=False)).sessions
        session = a_session(await backend.now())
        _, before = await store.create(session, ENTRIES[0], a_call())
        others, own = (replace(session, attributes={"step": step}, version=2) for step in ("others", "own"))
        assert await store.replace(Replacement(before, replace(before, session=others)), a_call())
        with pytest.raises(StoreUnavailable, match="does not tell what it did"):
            await repeating.replace(Replacement(before, replace(before, session=own)), a_call())
        with pytest.raises(StoreUnavailable, match="does not tell what it did"):
            await repeating.create(session, ENTRIES[1], a_call())


def a_session(now: int) -> Session:
    """Returns a session that begins now."""
    return Session(
        session_id="0000000000000000000001",
        user_id="ana",
        digest="d" * 43,
        attributes={},
        create_time_ms=now,
        absolute_expire_time_ms=now + HOUR,
        idle_timeout_ms=0,
    )


async def test_a_login_at_the_limit(repeating: Repeating) -> None:
    """It evicts once, and never in vain; if it does not know which session it ended, it fails."""
    users = Operations.over(Stores.over(repeating), max_sessions_per_user=1).users
    first = await users.create(NewSession("ana"), a_call())
    if repeating._executed:
        with pytest.raises(StoreUnavailable, match="does not tell what it did"):
            await users.create(NewSession("ana"), a_call())
    else:
        second = await users.create(NewSession("ana"), a_call())
        assert list(second.evicted_session_ids) == [first.stored.session.session_id]
    page = await users.page("ana", None, 10, a_call())
    assert len(page.sessions) <= 1
    assert first.stored.session.session_id not in [stored.session.session_id for stored in page.sessions]


async def test_logging_out_everywhere(repeating: Repeating) -> None:
    """All sessions end; their number is right, or the call fails."""
    users = Operations.over(Stores.over(repeating)).users
    for _ in range(3):
        await users.create(NewSession("ana"), a_call())
    if repeating._executed:
        with pytest.raises(StoreUnavailable, match="does not tell what it did"):
            await users.revoke("ana", "", a_call())
    else:
        assert await users.revoke("ana", "", a_call()) == 3
    page = await users.page("ana", None, 10, a_call())
    assert not page.sessions


class Recording(Link):
    """A link that waits for replicas and records which scripts have to be durable."""

    replicates = True

    def __init__(self, inner: Link) -> None:
        self._inner = inner
        self.durable: list[bytes] = []

    async def execute(
        self, requests: Sequence[Request], deadline: float, *, durable: bool = False
    ) -> Sequence[Replies]:
        """Executes requests; no replica ever has what `ensure_replicated` waits for."""
        all_replies = await self._inner.execute(requests, deadline)
        if durable:
            sent = [command[1] for _, commands in requests for command in commands]
            self.durable += sent
            if ENSURE_REPLICATED in sent:
                raise NotDurable("no replica has it")
        return all_replies


async def test_a_repeated_write_that_finds_its_work_done_waits_for_replicas(backend: Backend) -> None:
    """WAIT says nothing on a connection that has written nothing: the record is written again for the replicas."""
    async with backend.link() as link:
        login = await Operations.over(Stores.over(link)).users.create(NewSession("ana"), a_call())
        operations = Operations.over(Stores.over(Repeating(Recording(link), executed=True)))
        with pytest.raises(NotDurable):
            await operations.users.create(NewSession("bob"), a_call())
        session_id = login.stored.session.session_id
        with pytest.raises(NotDurable):
            await operations.sessions.update(Update(session_id, entries={"step": "1"}), a_call())


async def test_a_call_that_finds_the_work_of_another_done_waits_for_replicas(backend: Backend) -> None:
    """The other may be an earlier try of the same caller, and may have failed before replicas had its work."""
    async with backend.link() as link:
        before = Operations.over(Stores.over(link))
        brought = NewSession("ana", token=BROUGHT)
        await before.users.create(brought, a_call())
        rotated, ended = [(await before.users.create(NewSession("bob"), a_call())).token for _ in range(2)]
        await before.sessions.rotate(rotated, a_call())
        await before.sessions.revoke_token(ended, a_call())
        operations = Operations.over(Stores.over(Recording(link)))
        with pytest.raises(NotDurable):
            await operations.users.create(brought, a_call())
        with pytest.raises(NotDurable):
            await operations.sessions.rotate(rotated, a_call())
        with pytest.raises(NotDurable):
            await operations.sessions.revoke_token(ended, a_call())
