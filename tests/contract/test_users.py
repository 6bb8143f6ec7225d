"""All sessions of a user: limits, listing, and logging out everywhere, on every backend."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.support.backends import Backend, Operations, Stores, a_call, stores

from catraca_server.domain.commands import NewSession
from catraca_server.domain.errors import SessionLimitReached, TokenInUse
from catraca_server.domain.session import Session
from catraca_server.domain.validation import ValidationRequest
from catraca_server.operations.users import PAGE_MAX_BYTES, STEP_SESSIONS, Login
from catraca_server.store import Creation, IndexEntries, Reservation
from catraca_server.store.attempts import ATTEMPT_LIFETIME_MS, sequence_at, tombstone
from catraca_server.store.keys import Keys
from catraca_server.store.user_index import RedisUserIndex

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000


@pytest.fixture
async def made(backend: Backend) -> AsyncIterator[Stores]:
    """The store on each backend."""
    async with stores(backend) as opened:
        yield opened


async def log_in(operations: Operations, user_id: str = "ana", **fields: object) -> Login:
    """Creates a session."""
    return await operations.users.create(NewSession(user_id, **fields), a_call())  # type: ignore[arg-type]  # the tests' own


async def is_valid(operations: Operations, login: Login) -> bool:
    """Whether a login's token is valid."""
    (validation,) = await operations.sessions.validate([ValidationRequest(login.token)], a_call())
    return validation.stored is not None


def ids(*logins: Login) -> list[str]:
    """Returns the session ids of logins."""
    return [login.stored.session.session_id for login in logins]


async def test_a_user_sees_their_sessions_newest_first(made: Stores) -> None:
    """All of them, only theirs, whatever the size of the page."""
    operations = Operations.over(made)
    logins = [await log_in(operations) for _ in range(5)]
    await log_in(operations, "bia")
    for size in (1, 2, 5, 500):
        assert await operations.listed("ana", size) == ids(*logins[::-1])


async def test_a_page_of_large_sessions_ends_early(made: Stores) -> None:
    """A page is not larger than clients accept; the next one continues where it ended."""
    operations = Operations.over(made)
    attributes = {str(at): "x" * 4000 for at in range(4)}
    logins = [await log_in(operations, attributes=attributes) for _ in range(200)]
    page = await operations.users.page("ana", None, 500, a_call())
    assert page.next_before is not None
    assert PAGE_MAX_BYTES < sum(len(stored.record) for stored in page.sessions) < 1.5 * PAGE_MAX_BYTES
    assert await operations.listed("ana") == ids(*logins[::-1])


async def test_an_unreadable_session_stays_in_the_index(backend: Backend, made: Stores) -> None:
    """It may be of a newer version, which runs beside this one during an upgrade."""
    operations = Operations.over(made)
    login = await log_in(operations)
    (session_id,) = ids(login)
    await backend.command("SET", f"session:{session_id}", '{"user_id":"ana","format":2}', "KEEPTTL")
    assert await operations.listed("ana") == []
    assert await made.index.entry("ana", session_id, a_call())
    assert await operations.users.revoke("ana", "", a_call()) == 1
    assert await backend.command("GET", f"session:{session_id}") != b'{"user_id":"ana","format":2}'


async def test_ended_sessions_are_not_listed(backend: Backend, made: Stores) -> None:
    """Revoked and expired sessions are not in the list, which removes them from the index."""
    operations = Operations.over(made)
    stays = await log_in(operations)
    await log_in(operations, idle_timeout_ms=MINUTE)
    revoked = await log_in(operations)
    await operations.sessions.revoke_token(revoked.token, a_call())
    await backend.travel(2 * MINUTE)
    assert await operations.listed("ana") == ids(stays)
    assert len((await made.index.newest("ana", None, 9, a_call())).entries) == 1, "the listing has removed them"


async def test_one_session_per_user(made: Stores) -> None:
    """With a limit of one, each login evicts the one before, and says so."""
    operations = Operations.over(made, max_sessions_per_user=1)
    first = await log_in(operations)
    second = await log_in(operations)
    assert list(second.evicted_session_ids) == ids(first)
    assert not await is_valid(operations, first)
    assert await is_valid(operations, second)
    assert (await log_in(operations, "bia")).evicted_session_ids == ()


async def test_no_more_are_evicted_than_needed(made: Stores) -> None:
    """At the limit one login ends one session, the oldest, and not all (keycloak#16068)."""
    operations = Operations.over(made, max_sessions_per_user=3)
    logins = [await log_in(operations) for _ in range(5)]
    assert [list(login.evicted_session_ids) for login in logins] == [[], [], [], ids(logins[0]), ids(logins[1])]
    assert await operations.listed("ana") == ids(*logins[:1:-1])


async def test_logins_over_the_limit_are_rejected(backend: Backend, made: Stores) -> None:
    """With that policy nobody is logged out, the new login is refused, and succeeds once there is room."""
    operations = Operations.over(made, max_sessions_per_user=2, evict_oldest=False)
    first = await log_in(operations)
    await log_in(operations, idle_timeout_ms=MINUTE)
    with pytest.raises(SessionLimitReached):
        await log_in(operations)
    assert await is_valid(operations, first)
    await operations.sessions.revoke_token(first.token, a_call())
    third = await log_in(operations, idle_timeout_ms=0)
    with pytest.raises(SessionLimitReached):
        await log_in(operations)
    await backend.travel(2 * MINUTE)
    fourth = await log_in(operations)
    assert fourth.evicted_session_ids == ()
    assert set(await operations.listed("ana")) == set(ids(third, fourth))


async def test_expired_sessions_take_no_room(backend: Backend, made: Stores) -> None:
    """They are neither counted nor evicted in place of live ones."""
    operations = Operations.over(made, max_sessions_per_user=2)
    stays = await log_in(operations, idle_timeout_ms=0)
    await log_in(operations, idle_timeout_ms=MINUTE)
    await backend.travel(2 * MINUTE)
    new = await log_in(operations)
    assert new.evicted_session_ids == ()
    assert await is_valid(operations, stays)


async def test_a_lowered_limit_holds_from_the_next_login(made: Stores) -> None:
    """A login of a user with more sessions than a new limit allows evicts down to it."""
    logins = [await log_in(Operations.over(made)) for _ in range(6)]
    limited = Operations.over(made, max_sessions_per_user=2)
    login = await log_in(limited)
    assert set(login.evicted_session_ids) == set(ids(*logins[:5]))
    assert await limited.listed("ana") == ids(login, logins[5])


@pytest.mark.parametrize("limit", [1, 5])
async def test_many_logins_at_once_evict_exactly(made: Stores, limit: int) -> None:
    """100 logins at once at the limit: never more than it afterwards, each eviction reported once (keycloak#14689)."""
    operations = Operations.over(made, max_sessions_per_user=limit)
    logins = await asyncio.gather(*(log_in(operations) for _ in range(100)))
    alive = [login for login in logins if await is_valid(operations, login)]
    assert len(alive) == limit
    assert sorted(await operations.listed("ana")) == sorted(ids(*alive))
    evicted = [session_id for login in logins for session_id in login.evicted_session_ids]
    assert sorted(evicted) == sorted(set(ids(*logins)) - set(ids(*alive)))


async def test_many_logins_at_once_are_rejected_exactly(made: Stores) -> None:
    """With `reject`, of 100 logins at once as many succeed as there is room, and all of those stay."""
    operations = Operations.over(made, max_sessions_per_user=5, evict_oldest=False)
    outcomes = await asyncio.gather(*(log_in(operations) for _ in range(100)), return_exceptions=True)
    logins = [each for each in outcomes if isinstance(each, Login)]
    assert len(logins) == 5
    assert all([await is_valid(operations, login) for login in logins])
    assert sum(isinstance(each, SessionLimitReached) for each in outcomes) == 95


async def test_the_limit_holds_at_every_moment(backend: Backend, made: Stores) -> None:
    """While logins race, there are never more live sessions than the limit allows."""
    operations = Operations.over(made, max_sessions_per_user=3)
    count_sessions = """
        local count = 0
        for _, key in ipairs(redis.call('KEYS', 'session:*')) do
          if not string.find(redis.call('GET', key), '"void"', 1, true) then count = count + 1 end
        end
        return count
    """
    logins = asyncio.gather(*(log_in(operations) for _ in range(60)))
    seen = []
    while not logins.done():
        seen.append(await backend.command("EVAL", count_sessions, 0))
        await asyncio.sleep(0)
    await logins
    assert await backend.command("EVAL", count_sessions, 0) == 3
    assert max(seen) <= 3


async def test_log_out_everywhere(made: Stores) -> None:
    """All sessions of the user end, and nobody else's; again, there is nothing left to end."""
    operations = Operations.over(made)
    logins = [await log_in(operations) for _ in range(5)]
    other = await log_in(operations, "bia")
    assert await operations.users.revoke("ana", "", a_call()) == 5
    assert await operations.users.revoke("ana", "", a_call()) == 0
    assert not any([await is_valid(operations, login) for login in logins])
    assert await is_valid(operations, other)
    assert await operations.listed("ana") == []


async def test_log_out_everywhere_reaches_evicting_sessions(made: Stores) -> None:
    """Also a session that a login chose to evict before it crashed."""
    login = await log_in(Operations.over(made))
    another = replace(login.stored.session, session_id="0" * 22)
    reservation = await made.index.reserve(another, limit=1, evict_oldest=True, call=a_call())
    assert [entry.session_id for entry in reservation.evicting.entries] == ids(login)
    assert await Operations.over(made).users.revoke("ana", "", a_call()) == 2
    assert not await is_valid(Operations.over(made), login)


async def test_log_out_my_other_devices(made: Stores) -> None:
    """The session of the request stays."""
    operations = Operations.over(made)
    logins = [await log_in(operations) for _ in range(5)]
    assert await operations.users.revoke("ana", ids(logins[2])[0], a_call()) == 4
    assert await operations.listed("ana") == ids(logins[2])
    assert await is_valid(operations, logins[2])


async def test_thousands_are_ended_in_bounded_steps(made: Stores) -> None:
    """More sessions than one step takes, with the one that stays in the middle."""
    operations = Operations.over(made)
    logins = await asyncio.gather(*(log_in(operations) for _ in range(450)))
    assert await operations.users.revoke("ana", ids(logins[225])[0], a_call()) == 449
    assert await operations.listed("ana") == ids(logins[225])


async def test_a_brought_token_of_another_user_is_not_theirs_to_end(made: Stores) -> None:
    """A token that one user has cannot be brought by another, nor its session ended through the other's index."""
    operations = Operations.over(made, max_sessions_per_user=1)
    token = "one-token-two-users"
    theirs = await log_in(operations, "ana", token=token)
    before = await log_in(operations, "bia")
    with pytest.raises(TokenInUse):
        await log_in(operations, "bia", token=token)
    assert await is_valid(operations, before), "nobody is logged out in vain"
    # As if two logins had raced past the first read: the other user's index names this session.
    await made.index.reserve(
        replace(theirs.stored.session, user_id="bia"),
        limit=0,
        evict_oldest=False,
        call=a_call(),
    )
    assert await operations.users.revoke("bia", "", a_call()) == 1
    assert await is_valid(operations, theirs)
    assert await operations.listed("bia") == []


async def test_a_brought_token_can_be_brought_again(backend: Backend, made: Stores) -> None:
    """After its session ended, by revocation or by itself, also under a limit of one."""
    operations = Operations.over(made, max_sessions_per_user=1)
    for _ in range(3):
        login = await log_in(operations, token="brought-again-and-again")
        assert await is_valid(operations, login)
        assert await operations.sessions.revoke_token(login.token, a_call())
    await log_in(operations, token="brought-again-and-again", idle_timeout_ms=MINUTE)
    await backend.travel(2 * MINUTE)
    login = await log_in(operations, token="brought-again-and-again")
    assert await is_valid(operations, login)
    assert await operations.listed("ana") == ids(login)


async def test_a_login_under_way_ends_with_the_others(made: Stores) -> None:
    """Also one that brings a token whose last session has just ended and left a tombstone."""
    operations = Operations.over(made)
    token = "brought-again-at-once"
    session = (await log_in(operations, token=token)).stored.session
    assert await operations.users.revoke("ana", "", a_call()) == 1
    reservation = await made.index.reserve(session, limit=0, evict_oldest=False, call=a_call())
    assert reservation.entry is not None
    assert await operations.users.revoke("ana", "", a_call()) == 1
    outcome, _ = await made.sessions.create(session, reservation.entry, a_call())
    assert outcome is Creation.REVOKED
    assert await operations.users.revoke("ana", "", a_call()) == 0
    login = await log_in(operations, token=token)
    assert await is_valid(operations, login), "a later login is not affected"
    assert await operations.listed("ana") == ids(login)


async def test_a_clock_that_was_set_back_ends_no_login(backend: Backend, made: Stores) -> None:
    """A tombstone from the future says nothing about later logins, neither to them nor to calls that end them."""
    operations = Operations.over(made)
    token = "brought-again-in-the-past"
    session = (await log_in(operations, token=token)).stored.session
    assert await operations.sessions.revoke_token(token, a_call())
    future = tombstone(sequence_at((await backend.now() + HOUR) * 1000), "ana")
    await backend.command("SET", f"session:{session.session_id}", future, "PX", ATTEMPT_LIFETIME_MS)
    await made.index.reserve(session, limit=0, evict_oldest=False, call=a_call())
    assert await operations.users.revoke("ana", "", a_call()) == 1
    await backend.command("SET", f"session:{session.session_id}", future, "PX", ATTEMPT_LIFETIME_MS)
    assert await is_valid(operations, await log_in(operations, token=token))


async def test_a_login_that_got_stuck_ends_with_later_ones(made: Stores) -> None:
    """Two logins bring one token at once: ending the one that won keeps the other from being written."""
    operations = Operations.over(made)
    token = "brought-twice-at-once"
    session = (await log_in(operations, token=token)).stored.session
    assert await operations.sessions.revoke_token(token, a_call())
    stuck = (await made.index.reserve(session, limit=0, evict_oldest=False, call=a_call())).entry
    assert stuck is not None
    await log_in(operations, token=token)
    assert await operations.users.revoke("ana", "", a_call()) == 1
    outcome, _ = await made.sessions.create(session, stuck, a_call())
    assert outcome is Creation.REVOKED


async def test_a_written_session_is_in_the_index(made: Stores) -> None:
    """Also if its entry was removed as that of a login that was over."""

    async def reserve(session: Session, **options: Any) -> Reservation:
        reservation = await RedisUserIndex.reserve(made.index, session, **options)
        assert reservation.entry is not None
        await made.index.remove("ana", [reservation.entry], a_call())
        return reservation

    operations = Operations.over(made)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made.index, "reserve", reserve)
        login = await log_in(operations)
    assert await operations.listed("ana") == ids(login)


async def test_log_out_everywhere_reaches_what_is_evicted_meanwhile(made: Stores) -> None:
    """A login meanwhile may choose many sessions to evict, and then crash before it ends any."""
    operations = Operations.over(made)
    logins = await asyncio.gather(*(log_in(operations) for _ in range(3 * STEP_SESSIONS)))
    another = replace(logins[0].stored.session, session_id="0" * 22)

    async def evict() -> None:
        reservation = await made.index.reserve(another, limit=10, evict_oldest=True, call=a_call())
        assert len(reservation.evicting.entries) > STEP_SESSIONS

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made.index, "entries", before_the_first(made.index.entries, evict))
        await operations.users.revoke("ana", "", a_call())
    assert not any([await is_valid(operations, login) for login in logins])


async def test_log_out_everywhere_reaches_what_is_reserved_again_meanwhile(made: Stores) -> None:
    """A second login with a brought token does not hide the session that the first one made."""
    operations = Operations.over(made)
    login = await log_in(operations, token="brought-twice-at-once")

    async def reserve() -> None:
        await made.index.reserve(login.stored.session, limit=0, evict_oldest=False, call=a_call())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made.index, "entries", before_the_first(made.index.entries, reserve))
        assert await operations.users.revoke("ana", "", a_call()) == 1
    assert not await is_valid(operations, login)


def before_the_first(
    method: Callable[..., Awaitable[IndexEntries]], step: Callable[[], Awaitable[None]]
) -> Callable[..., Awaitable[IndexEntries]]:
    """Returns the method, with a step of another caller before its first call."""
    steps = [step]

    async def call(*arguments: Any) -> IndexEntries:
        while steps:
            await steps.pop()()
        return await method(*arguments)

    return call


async def test_the_index_stays_small(backend: Backend, made: Stores) -> None:
    """Many logins without a logout leave few entries of ended sessions (spring-session#2230)."""
    operations = Operations.over(made)
    for _ in range(120):
        await log_in(operations, ttl_ms=30 * DAY, idle_timeout_ms=MINUTE)
        await backend.travel(ATTEMPT_LIFETIME_MS + 2 * MINUTE)
    entries = await made.index.newest("ana", None, 500, a_call())
    assert len(entries.entries) < 30


async def test_the_index_ends_with_its_last_session(backend: Backend, made: Stores) -> None:
    """Nothing of a user is left once their last session's deadline has passed."""
    operations = Operations.over(made)
    await log_in(operations, ttl_ms=HOUR)
    await log_in(operations, ttl_ms=2 * HOUR, idle_timeout_ms=0)
    await backend.travel(2 * HOUR + 1)
    assert (await backend.keys()).keys() <= {Keys().feed()}
