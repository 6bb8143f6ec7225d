"""Updating sessions: atomic, by etag, never shortening, prolonging or reviving by accident; on every backend."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from tests.support.backends import Backend, Operations, a_call, stores

from catraca_server.domain.commands import NewSession, Update
from catraca_server.domain.errors import EtagMismatch, InvalidRequest, SessionNotFound
from catraca_server.domain.session import StoredSession
from catraca_server.domain.validation import ValidationRequest
from catraca_server.operations.users import Login

SECOND, MINUTE, HOUR, DAY = 1000, 60_000, 3_600_000, 86_400_000


@pytest.fixture(params=[True, False], ids=["PEXPIRETIME", "PTTL"])
async def operations(request: pytest.FixtureRequest, backend: Backend) -> AsyncIterator[Operations]:
    """The operations on each backend, as on Redis 7 and later and as on Redis 6.2."""
    async with stores(backend, has_pexpiretime=request.param) as opened:
        yield Operations.over(opened)


async def log_in(operations: Operations, **fields: Any) -> Login:
    """Creates a session that may last a day, with two attributes."""
    fields = {"ttl_ms": DAY, "idle_timeout_ms": HOUR, "attributes": {"device": "phone", "app": "shop"}, **fields}
    return await operations.users.create(NewSession("ana", **fields), a_call())


async def update(operations: Operations, login: Login, **changes: Any) -> StoredSession:
    """Updates a session."""
    return await operations.sessions.update(Update(login.stored.session.session_id, **changes), a_call())


async def test_attributes_are_replaced_or_set_one_by_one(operations: Operations) -> None:
    """All at once, one, one removed, and both in one update: reading returns what the update did."""
    login = await log_in(operations)
    steps: list[tuple[dict[str, Any], dict[str, str]]] = [
        ({"entries": {"device": "tablet"}}, {"device": "tablet", "app": "shop"}),
        ({"entries": {"app": None, "place": "home"}}, {"device": "tablet", "place": "home"}),
        ({"attributes": {"only": "this"}}, {"only": "this"}),
        ({"attributes": {}, "entries": {"a.b": "c"}}, {"a.b": "c"}),
        ({"entries": {"never there": None}}, {"a.b": "c"}),
    ]
    for changes, expected in steps:
        stored = await update(operations, login, **changes)
        assert stored.session.attributes == expected
        read = await operations.sessions.get(stored.session.session_id, a_call())
        # Redis 6.2 tells how much is left instead of when it ends, and time goes on between its clock and that.
        assert abs(read.expiry_ms - stored.expiry_ms) < SECOND
        assert replace(read, expiry_ms=stored.expiry_ms) == stored
    (validation,) = await operations.sessions.validate([ValidationRequest(login.token)], a_call())
    assert validation.stored is not None
    assert validation.stored.session.attributes == {"a.b": "c"}


async def test_attributes_do_not_change_the_expiry(backend: Backend, operations: Operations) -> None:
    """Writing attributes neither shortens nor prolongs a session, and is not activity."""
    login = await log_in(operations)
    key = f"session:{login.stored.session.session_id}"
    await backend.travel(10 * MINUTE)
    before = await backend.command("PEXPIRETIME", key)
    stored = await update(operations, login, entries={"k": "v"})
    assert await backend.command("PEXPIRETIME", key) == before
    assert abs(stored.expiry_ms - before) < SECOND


async def test_a_session_is_extended(backend: Backend, operations: Operations) -> None:
    """It lives until the later deadline, and its user's index as well."""
    login = await log_in(operations, ttl_ms=HOUR, idle_timeout_ms=0)
    end = await backend.now() + 3 * HOUR
    stored = await update(operations, login, absolute_expire_time_ms=end)
    assert stored.session.absolute_expire_time_ms == end
    await backend.travel(2 * HOUR)
    (validation,) = await operations.sessions.validate([ValidationRequest(login.token)], a_call())
    assert validation.stored is not None
    assert await operations.users.revoke("ana", "", a_call()) == 1, "the index names it for as long as it lives"


async def test_a_session_is_shortened(backend: Backend, operations: Operations) -> None:
    """An earlier absolute deadline holds, whatever the activity after it."""
    login = await log_in(operations)
    await update(operations, login, absolute_expire_time_ms=await backend.now() + 10 * MINUTE)
    for _ in range(9):
        await backend.travel(MINUTE)
        (validation,) = await operations.sessions.validate([ValidationRequest(login.token)], a_call())
        assert validation.stored is not None
    await backend.travel(MINUTE + 1)
    (validation,) = await operations.sessions.validate([ValidationRequest(login.token)], a_call())
    assert validation.stored is None


async def test_the_idle_timeout_counts_from_the_last_activity(backend: Backend, operations: Operations) -> None:
    """Longer, shorter and none: the recorded activity stays the same."""
    login = await log_in(operations)
    await backend.travel(10 * MINUTE)
    now = await backend.now()
    active = now - 10 * MINUTE
    for idle_timeout in (2 * HOUR, 11 * MINUTE, HOUR):
        stored = await update(operations, login, idle_timeout_ms=idle_timeout)
        assert stored.session.idle_timeout_ms == idle_timeout
        assert abs(stored.expire_time_ms - (active + idle_timeout)) < SECOND
    stored = await update(operations, login, idle_timeout_ms=0)
    assert stored.expire_time_ms == stored.session.absolute_expire_time_ms
    assert abs(stored.last_active_time_ms - active) < 2 * MINUTE


async def test_an_idle_timeout_that_has_passed_is_refused(backend: Backend, operations: Operations) -> None:
    """It would end the session: that is what revoking is for."""
    login = await log_in(operations)
    await backend.travel(10 * MINUTE)
    with pytest.raises(InvalidRequest) as caught:
        await update(operations, login, idle_timeout_ms=5 * MINUTE)
    assert [each.field for each in caught.value.violations] == ["session.idle_timeout"]
    assert (await operations.sessions.get(login.stored.session.session_id, a_call())).session.idle_timeout_ms == HOUR


async def test_concurrent_updates_are_all_applied(operations: Operations) -> None:
    """No update is lost: each is applied to the result of the other."""
    login = await log_in(operations)
    lives = await asyncio.gather(*(update(operations, login, entries={f"key-{at}": "v"}) for at in range(20)))
    final = (await operations.sessions.get(login.stored.session.session_id, a_call())).session
    assert {f"key-{at}" for at in range(20)} < set(final.attributes)
    assert len({stored.session.etag for stored in lives}) == 20
    assert final.version == 21


async def test_of_updates_with_one_etag_one_is_applied(operations: Operations) -> None:
    """The others fail: the session has changed."""
    login = await log_in(operations)
    etag = login.stored.session.etag
    outcomes = await asyncio.gather(
        *(update(operations, login, etag=etag, entries={"winner": str(at)}) for at in range(20)),
        return_exceptions=True,
    )
    applied = [each for each in outcomes if isinstance(each, StoredSession)]
    assert len(applied) == 1
    assert sum(isinstance(each, EtagMismatch) for each in outcomes) == 19
    final = (await operations.sessions.get(login.stored.session.session_id, a_call())).session
    assert final == applied[0].session


async def test_activity_does_not_change_the_etag(backend: Backend, operations: Operations) -> None:
    """An update with the etag from before a touch succeeds."""
    login = await log_in(operations)
    await backend.travel(5 * MINUTE)
    (validation,) = await operations.sessions.validate([ValidationRequest(login.token)], a_call())
    assert validation.stored is not None
    stored = await update(operations, login, etag=validation.stored.session.etag, idle_timeout_ms=2 * HOUR)
    assert abs(stored.last_active_time_ms - await backend.now()) < 2 * SECOND, "the touch was not lost"


async def test_a_revoked_session_cannot_be_updated(operations: Operations) -> None:
    """An update never revives it, also if both come at once (express-session#632)."""
    for _ in range(20):
        login = await log_in(operations)
        await asyncio.gather(
            update(operations, login, entries={"k": "v"}),
            operations.sessions.revoke(login.stored.session.session_id, a_call()),
            update(operations, login, absolute_expire_time_ms=login.stored.session.absolute_expire_time_ms + HOUR),
            return_exceptions=True,
        )
        with pytest.raises(SessionNotFound):
            await update(operations, login, entries={"k": "v"})


async def test_every_key_keeps_an_expiry(backend: Backend, operations: Operations) -> None:
    """Whatever is updated (better-auth#10992, spring-session#3357)."""
    login = await log_in(operations)
    now = await backend.now()
    for changes in (
        {"entries": {"k": "v"}},
        {"idle_timeout_ms": 0},
        {"idle_timeout_ms": 1},
        {"absolute_expire_time_ms": now + 2 * DAY},
    ):
        try:
            await update(operations, login, **changes)
        except InvalidRequest:
            assert changes == {"idle_timeout_ms": 1}
        assert all(ttl > 0 for ttl in (await backend.keys()).values())


async def test_limits_hold_for_updates(backend: Backend, operations: Operations) -> None:
    """The updated session is within the limits of a new one, or nothing is written."""
    login = await log_in(operations, attributes={str(at): "v" for at in range(64)})
    now = await backend.now()
    for changes, field in (
        ({"entries": {"one too many": "v"}}, "session.attributes"),
        ({"entries": {"0": "v" * 4097}}, "session.attributes"),
        ({"attributes": {"": "v"}}, "session.attributes"),
        ({"absolute_expire_time_ms": now - 1}, "session.absolute_expire_time"),
        ({"absolute_expire_time_ms": now + 31 * DAY}, "session.absolute_expire_time"),
        ({"idle_timeout_ms": -1}, "session.idle_timeout"),
        ({"idle_timeout_ms": 31 * DAY}, "session.idle_timeout"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            await update(operations, login, **changes)
        assert [each.field for each in caught.value.violations] == [field]
    assert (await operations.sessions.get(login.stored.session.session_id, a_call())).session == login.stored.session
