"""ValidateSession calls that come together: each gets the answer that it would get alone, on every backend."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import grpc
import pytest
from tests.support.backends import Backend, Operations, Stores, a_call, stores
from tests.support.incoming import Incoming, answered, validation

from catraca.v1 import session_service_pb2 as pb
from catraca_server.domain.commands import NewSession, Update
from catraca_server.domain.errors import SessionNotFound
from catraca_server.domain.session import TOUCH_INTERVAL_MAX_MS
from catraca_server.operations.users import Login
from catraca_server.redis.link import KeyReads, Link, Part, Request
from catraca_server.redis.replies import Replies

MINUTE = 60_000
BROUGHT = "a-token-that-was-brought"
UNKNOWN = "a-token-that-nobody-brought"


@pytest.fixture
async def operations(backend: Backend) -> AsyncIterator[Operations]:
    """The operations on each backend, with a grace of 30 seconds."""
    async with stores(backend) as opened:
        yield Operations.over(opened, rotation_grace_ms=MINUTE // 2)


async def log_in(operations: Operations, user_id: str = "ana", token: str = "") -> Login:
    """Creates a session."""
    return await operations.users.create(NewSession(user_id, attributes={"of": user_id}, token=token), a_call())


async def test_each_gets_its_own_answer(operations: Operations) -> None:
    """Good, unknown, malformed and mismatching tokens, bodies that are none, in one batch, and again from the memo."""
    logins = [await log_in(operations, f"user-{number}") for number in range(20)]
    brought = await log_in(operations, "bia", BROUGHT)
    for _ in range(2):
        good = [validation(login.token) for login in (*logins, brought, *logins)]
        theirs = validation(BROUGHT, user_id="bia")
        others = validation(BROUGHT, user_id="ana")
        unknown, malformed, wrong = validation(UNKNOWN), validation("ctr_x"), validation(logins[0].token[:-1] + "?")
        refused = [validation(""), validation(BROUGHT, user_id="\n"), Incoming(b"\xff"), Incoming(b"\x0a\x02\xff\xff")]
        calls = [*good[:7], unknown, theirs, *refused, *good[7:30], malformed, others, wrong, *good[30:]]
        await answered(operations, *calls)
        for login, call in zip((*logins, brought, *logins), good, strict=True):
            assert call.response.valid
            assert call.response.session.session_id == login.stored.session.session_id
            assert call.response.session.user_id == login.stored.session.user_id
            assert dict(call.response.session.attributes) == login.stored.session.attributes
            assert 0 < call.response.cache_ttl.ToMilliseconds() <= TOUCH_INTERVAL_MAX_MS
        assert theirs.response.session.user_id == "bia"
        assert [call.response.invalid_reason for call in (unknown, malformed, wrong, others)] == [
            pb.INVALID_REASON_NOT_FOUND,
            pb.INVALID_REASON_MALFORMED,
            pb.INVALID_REASON_MALFORMED,
            pb.INVALID_REASON_USER_MISMATCH,
        ]
        assert {call.code for call in refused} == {grpc.StatusCode.INVALID_ARGUMENT}


async def test_unknown_fields_are_ignored(operations: Operations) -> None:
    """A request of a later version of the API is understood, whatever comes first in it."""
    token = (await log_in(operations)).token
    later = b"\xfa\x01\x03new"
    request = pb.ValidateSessionRequest(token=token).SerializeToString()
    calls = [Incoming(later + request), Incoming(request + later), Incoming(b"\x0a\x01x" + request)]
    await answered(operations, *calls)
    assert all(call.response.valid for call in calls)


@pytest.mark.parametrize("count", [1, 1_000])
async def test_any_number(operations: Operations, count: int) -> None:
    """One call alone or a thousand, many of them of the same session."""
    tokens = [(await log_in(operations, f"user-{number}")).token for number in range(7)]
    calls = [validation(tokens[number % 7]) for number in range(count)]
    await answered(operations, *calls)
    assert [call.response.session.user_id for call in calls] == [f"user-{number % 7}" for number in range(count)]
    await answered(operations)


async def test_activity_is_written_down(backend: Backend, operations: Operations) -> None:
    """Of those whose touch is due, but for probes; and each is told what was written."""
    logins = [await log_in(operations, f"user-{number}") for number in range(6)]
    await backend.travel(2 * MINUTE)
    fresh = await log_in(operations, "fresh")
    calls = [validation(login.token, skip_touch=at % 2 == 1) for at, login in enumerate(logins)]
    calls += [validation(fresh.token), validation(logins[0].token)]
    await answered(operations, *calls)
    again = [validation(login.token, skip_touch=True) for login in logins]
    await answered(operations, *again)
    now = await backend.now()
    for at, (call, seen) in enumerate(zip(calls, again, strict=False)):
        active = call.response.session.last_active_time
        assert (now - active.ToMilliseconds() < MINUTE) is (at % 2 == 0), "a probe counted, or activity did not"
        assert seen.response.session.last_active_time == active
        assert (call.response.cache_ttl.ToMilliseconds() > 0) is (at % 2 == 0)
    assert calls[6].response.valid
    assert calls[7].response.session == calls[0].response.session


class Meanwhile(Link):
    """A link to a store in which something happens right after the first read."""

    def __init__(self, inner: Link, happens: Callable[[], Awaitable[object]]) -> None:
        self._inner = inner
        self._happens: list[Callable[[], Awaitable[object]]] = [happens]

    async def execute(
        self, requests: Sequence[Request], deadline: float, *, durable: bool = False
    ) -> Sequence[Replies]:
        """Executes requests."""
        return await self._inner.execute(requests, deadline, durable=durable)

    async def read(self, keys: Sequence[str], reads: KeyReads, deadline: float) -> Sequence[Part]:
        """Reads keys."""
        parts = await self._inner.read(keys, reads, deadline)
        while self._happens:
            await self._happens.pop()()
        return parts


async def test_what_changes_before_it_is_touched_is_validated_again(backend: Backend) -> None:
    """A session that was revoked meanwhile is not valid, one that was changed is told as it is now."""
    async with backend.link() as link:
        others = Operations.over(Stores.over(link))
        revoked, changed, same = [await log_in(others, f"user-{number}") for number in range(3)]
        await backend.travel(2 * MINUTE)

        async def happens() -> None:
            await others.sessions.revoke_token(revoked.token, a_call())
            await others.sessions.update(Update(changed.stored.session.session_id, attributes={"new": "1"}), a_call())

        calls = [validation(login.token) for login in (revoked, changed, same)]
        await answered(Operations.over(Stores.over(Meanwhile(link, happens))), *calls)
        assert [call.response.valid for call in calls] == [False, True, True]
        assert dict(calls[1].response.session.attributes) == {"new": "1"}
        now = await backend.now()
        assert all(now - call.response.session.last_active_time.ToMilliseconds() < MINUTE for call in calls[1:])


async def test_a_reused_token_concerns_nobody_else(backend: Backend, operations: Operations) -> None:
    """Its session is ended before that is told, also when it comes twice; all others are answered as ever."""
    stolen, stays = await log_in(operations), await log_in(operations, "bia")
    graceful = await log_in(operations, "caio")
    await operations.sessions.rotate(stolen.token, a_call())
    await backend.travel(MINUTE)
    await operations.sessions.rotate(graceful.token, a_call())
    calls = [validation(login.token) for login in (stays, stolen, graceful, stolen, stays)]
    await answered(operations, *calls)
    assert [call.response.invalid_reason for call in calls if not call.response.valid] == [
        pb.INVALID_REASON_TOKEN_REUSED
    ] * 2
    assert [call.response.token_rotated for call in calls] == [False, False, True, False, False]
    assert not calls[2].response.cache_ttl.ToMilliseconds()
    with pytest.raises(SessionNotFound):
        await operations.sessions.get(stolen.stored.session.session_id, a_call())


async def test_what_cannot_be_read_concerns_nobody_else(
    backend: Backend, operations: Operations, caplog: pytest.LogCaptureFixture
) -> None:
    """One record among many that is none, of either kind: its session counts as none, and that is told on the log."""
    logins = [await log_in(operations, f"user-{number}") for number in range(5)]
    keys = [f"session:{login.stored.session.session_id}" for login in logins]
    await answered(operations, *(validation(login.token) for login in logins))
    await backend.command("SET", keys[1], "garbage", "KEEPTTL")
    await backend.command("DEL", keys[3])
    await backend.command("HSET", keys[3], "field", "value")
    calls = [validation(login.token) for login in logins]
    with caplog.at_level(logging.ERROR):
        await answered(operations, *calls)
    assert [call.response.valid for call in calls] == [True, False, True, False, True]
    assert {calls[at].response.invalid_reason for at in (1, 3)} == {pb.INVALID_REASON_NOT_FOUND}
    assert len([record for record in caplog.records if "unreadable record" in record.message]) == 2


async def test_what_was_known_does_not_outlive_the_store(backend: Backend, operations: Operations) -> None:
    """A session that was read before is not valid once it was revoked, changed its token, or has gone."""
    revoked, rotated, gone = [await log_in(operations, f"user-{number}") for number in range(3)]
    tokens = [login.token for login in (revoked, rotated, gone)]
    before = [validation(token) for token in tokens]
    await answered(operations, *before)
    assert all(call.response.valid for call in before)
    assert await operations.sessions.revoke_token(revoked.token, a_call())
    await operations.sessions.rotate(rotated.token, a_call())
    await backend.command("DEL", f"session:{gone.stored.session.session_id}")
    after = [validation(token) for token in tokens]
    await answered(operations, *after)
    assert [call.response.valid for call in after] == [False, True, False]
    assert after[1].response.token_rotated


async def test_deadlines_are_each_calls_own(operations: Operations) -> None:
    """Calls without any time left fail, and the others are answered."""
    token = (await log_in(operations)).token
    good, late, hasty = validation(token), validation(token, within=-1), validation(token)
    hasty.deadline = late.deadline
    await answered(operations, late, good, hasty)
    assert good.response.valid
    assert late.code is hasty.code is grpc.StatusCode.UNAVAILABLE
