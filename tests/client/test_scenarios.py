"""What callers do with a client, over both clients and a real service."""

import asyncio
import inspect
import socket
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import grpc
import pytest
from tests.support.callers import Caller, closing
from tests.support.service import ServeProcess

from catraca import AsyncSessionClient, InvalidReason, SessionClient, errors
from catraca.v1 import session_service_pb2 as pb, session_service_pb2_grpc as pb_grpc


@pytest.fixture(params=[SessionClient, AsyncSessionClient], ids=["sync", "async"])
def client_type(request: pytest.FixtureRequest) -> type[SessionClient | AsyncSessionClient]:
    """Each client in turn."""
    kind: type[SessionClient | AsyncSessionClient] = request.param
    return kind


@pytest.fixture(params=[False, True], ids=["", "near"])
async def sessions(
    target: str, client_type: type[SessionClient | AsyncSessionClient], request: pytest.FixtureRequest
) -> AsyncIterator[Caller]:
    """A client of the running service, with a near cache and without; patient, because the machine may be slow."""
    async with closing(Caller(client_type(target, timeout=30, near_cache=request.param))) as caller:
        yield caller


@pytest.fixture
def user() -> str:
    """A user nobody else uses."""
    return f"user-{uuid.uuid4()}"


@pytest.fixture(scope="module")
def strict() -> Iterator[str]:
    """Where a service listens that leaves a user two sessions, the newest, and has no grace for a rotated-out token."""
    with ServeProcess(
        store_url="memory:", store_timeout="5s", max_sessions_per_user="2", rotation_grace="0s"
    ) as service:
        yield service.target


@pytest.fixture(scope="module")
def rejecting() -> Iterator[str]:
    """Where a service listens that rejects a user's third session."""
    with ServeProcess(
        store_url="memory:", store_timeout="5s", max_sessions_per_user="2", session_limit_policy="reject"
    ) as service:
        yield service.target


async def test_a_login_its_clicks_and_its_logout(sessions: Caller) -> None:
    """Create, validate, require, read and revoke: the answers are true while it lives and false afterwards."""
    before = datetime.now(UTC)
    login = await sessions.create("12345", ttl=timedelta(hours=8), attributes={"device": "phone"})
    assert login.evicted_session_ids == ()

    check = await sessions.validate(login.token)
    assert check
    assert check.reason is None
    assert check.session == login.session
    assert check.session.user_id == "12345"
    assert check.session.attributes == {"device": "phone"}
    assert abs(check.session.create_time - before) < timedelta(minutes=1)
    assert check.session.absolute_expire_time - check.session.create_time == timedelta(hours=8)
    assert check.session.idle_timeout == timedelta(minutes=30)
    assert check.session.expire_time - check.session.last_active_time == timedelta(minutes=30)
    assert await sessions.require(login.token) == login.session
    assert await sessions.get(login.session.session_id) == login.session

    assert await sessions.revoke(token=login.token)
    assert not await sessions.revoke(token=login.token)
    gone = await sessions.validate(login.token)
    assert not gone
    assert gone.session is None
    assert gone.reason is InvalidReason.NOT_FOUND
    with pytest.raises(errors.SessionNotFound):
        await sessions.get(login.session.session_id)
    with pytest.raises(errors.SessionInvalid) as caught:
        await sessions.require(login.token)
    assert caught.value.invalid_reason is InvalidReason.NOT_FOUND


async def test_an_operator_revokes_by_id(sessions: Caller) -> None:
    """The public id ends a session too."""
    login = await sessions.create("12345")
    assert await sessions.revoke(session_id=login.session.session_id)
    assert not await sessions.validate(login.token)


async def test_without_an_idle_timeout(sessions: Caller) -> None:
    """Zero means none: only the absolute deadline ends the session."""
    login = await sessions.create("12345", ttl=timedelta(days=1), idle_timeout=timedelta(0))
    assert login.session.idle_timeout is None
    assert login.session.expire_time == login.session.absolute_expire_time


async def test_a_brought_token(sessions: Caller) -> None:
    """A caller's own token works as it is, is returned as it is, and is taken until its session ends."""
    token = f"a-jwt-of-ours-{time.monotonic_ns()}"
    login = await sessions.create("12345", token=token)
    assert login.token == token
    assert await sessions.validate(token)
    with pytest.raises(errors.TokenInUse) as caught:
        await sessions.create("67890", token=token)
    assert caught.value.reason == "TOKEN_IN_USE"
    assert token not in str(caught.value)
    assert (await sessions.require(token)).user_id == "12345"
    await sessions.revoke(token=token)
    assert (await sessions.create("67890", token=token)).session.user_id == "67890"


async def test_a_token_of_another_user(sessions: Caller) -> None:
    """A good token of another user than expected is not valid."""
    login = await sessions.create("12345")
    assert await sessions.validate(login.token, user_id="12345")
    check = await sessions.validate(login.token, user_id="67890")
    assert not check
    assert check.reason is InvalidReason.USER_MISMATCH
    with pytest.raises(errors.SessionInvalid):
        await sessions.require(login.token, user_id="67890")


async def test_what_cannot_be_a_token(sessions: Caller) -> None:
    """A malformed token is an answer and not an error."""
    for token in ("short", "ctr_nonsense", "x" * 5000):
        check = await sessions.validate(token)
        assert not check
        assert check.reason is InvalidReason.MALFORMED


async def test_many_tokens_at_once(sessions: Caller) -> None:
    """The answers of a batch come in the order of its tokens."""
    logins = [await sessions.create(f"user-{at}") for at in range(5)]
    await sessions.revoke(token=logins[3].token)
    answers = await sessions.validate_batch([*(login.token for login in logins), "short"], skip_touch=True)
    assert [answer.session.user_id if answer else answer.reason for answer in answers] == [
        "user-0",
        "user-1",
        "user-2",
        InvalidReason.NOT_FOUND,
        "user-4",
        InvalidReason.MALFORMED,
    ]


async def test_rules_that_are_broken_are_named(sessions: Caller) -> None:
    """Every broken rule of a request is told with its field, and no value is quoted."""
    with pytest.raises(errors.InvalidRequest) as caught:
        await sessions.create("", ttl=timedelta(seconds=-1), idle_timeout=timedelta(days=99), token="too short")
    assert caught.value.reason == "INVALID_REQUEST"
    assert {each.field for each in caught.value.violations} == {"user_id", "ttl", "idle_timeout", "token"}
    assert "too short" not in str(caught.value)
    with pytest.raises(errors.InvalidRequest):
        await sessions.validate("")
    with pytest.raises(errors.InvalidRequest):
        await sessions.validate_batch([])


async def test_text_that_no_message_can_carry(sessions: Caller) -> None:
    """Lone surrogates, as from a badly decoded header, are refused like any other bad value."""
    with pytest.raises(errors.InvalidRequest) as caught:
        await sessions.validate("token-with-\ud800-inside")
    assert "token-with" not in repr(caught.value)


async def test_revoking_takes_one_name(sessions: Caller) -> None:
    """Neither or both is a mistake in the calling code."""
    for arguments in ({}, {"token": "t", "session_id": "s"}):
        with pytest.raises(TypeError):
            await sessions.revoke(**arguments)


async def test_a_list_of_many_pages(sessions: Caller, user: str) -> None:
    """All of a user's sessions, newest first and each once, whatever a page holds; a user without any has none."""
    assert await sessions.list_sessions(user) == []
    logins = [await sessions.create(user, attributes={"at": str(at)}) for at in range(5)]
    await sessions.create(f"{user}-the-other")
    newest_first = [login.session for login in reversed(logins)]
    for page_size in (0, 1, 2, 5):
        assert await sessions.list_sessions(user, page_size=page_size) == newest_first
    await sessions.revoke(token=logins[2].token)
    assert await sessions.list_sessions(user, page_size=2) == newest_first[:2] + newest_first[3:]
    with pytest.raises(errors.InvalidRequest):
        await sessions.list_sessions("")


async def test_a_page_is_asked_for_when_the_one_before_is_used_up(sessions: Caller, user: str) -> None:
    """Who looks at the first session of a long list pays for one page."""
    for _ in range(5):
        await sessions.create(user)
    client = sessions.client
    if isinstance(client, SessionClient):
        listing = client.list_sessions(user, page_size=2)
        await asyncio.to_thread(next, listing)
        await sessions.revoke_user_sessions(user)
        rest = await asyncio.to_thread(list, listing)
    else:
        pages = client.list_sessions(user, page_size=2)
        await anext(pages)
        await sessions.revoke_user_sessions(user)
        rest = [session async for session in pages]
    assert len(rest) == 1


async def test_attributes_change_in_place(sessions: Caller) -> None:
    """Attributes are set and removed one by one, or replaced; nothing else of the session changes but its etag."""
    login = await sessions.create("12345", attributes={"device": "phone", "theme": "dark"})
    session_id = login.session.session_id
    changed = await sessions.update(session_id, set_attributes={"theme": None, "cart": "7", "no.such": None})
    assert changed.attributes == {"device": "phone", "cart": "7"}
    assert changed.etag != login.session.etag
    assert replace(changed, attributes=login.session.attributes, etag=login.session.etag) == login.session
    assert await sessions.require(login.token) == changed

    assert (await sessions.update(session_id, attributes={"a.b": "1"})).attributes == {"a.b": "1"}
    both = await sessions.update(session_id, attributes={"a": "1", "b": "2"}, set_attributes={"b": None, "c": "3"})
    assert both.attributes == {"a": "1", "c": "3"}
    assert (await sessions.update(session_id, attributes={})).attributes == {}


async def test_deadlines_change_in_place(sessions: Caller) -> None:
    """Both deadlines can be moved; a deadline that is past is refused, because that would be a revocation."""
    login = await sessions.create("12345", ttl=timedelta(hours=8))
    session_id = login.session.session_id
    end = (datetime.now(UTC) + timedelta(hours=1)).replace(microsecond=0)
    west = timezone(timedelta(hours=-3))
    changed = await sessions.update(
        session_id, absolute_expire_time=end.astimezone(west), idle_timeout=timedelta(minutes=10)
    )
    assert changed.absolute_expire_time == end
    assert changed.idle_timeout == timedelta(minutes=10)
    assert changed.expire_time == changed.last_active_time + timedelta(minutes=10)
    endless = await sessions.update(session_id, idle_timeout=timedelta(0))
    assert endless.idle_timeout is None
    assert endless.expire_time == endless.absolute_expire_time == end
    with pytest.raises(errors.InvalidRequest) as caught:
        await sessions.update(session_id, absolute_expire_time=datetime(2001, 1, 1, tzinfo=UTC))
    assert [each.field for each in caught.value.violations] == ["session.absolute_expire_time"]
    assert await sessions.require(login.token) == endless


async def test_an_update_decided_on_an_older_version(sessions: Caller) -> None:
    """With an etag an update is refused once the session has changed; without one the last wins."""
    login = await sessions.create("12345")
    session_id, etag = login.session.session_id, login.session.etag
    changed = await sessions.update(session_id, etag=etag, set_attributes={"a": "1"})
    with pytest.raises(errors.EtagMismatch) as caught:
        await sessions.update(session_id, etag=etag, set_attributes={"a": "2"})
    assert caught.value.reason == "ETAG_MISMATCH"
    assert await sessions.get(session_id) == changed
    assert (await sessions.update(session_id, etag=changed.etag, set_attributes={"a": "3"})).attributes == {"a": "3"}
    assert (await sessions.update(session_id, set_attributes={"a": "4"})).attributes == {"a": "4"}


async def test_an_update_of_what_is_gone(sessions: Caller) -> None:
    """An update brings nothing back."""
    login = await sessions.create("12345")
    await sessions.revoke(token=login.token)
    with pytest.raises(errors.SessionNotFound):
        await sessions.update(login.session.session_id, set_attributes={"a": "1"})
    assert not await sessions.validate(login.token)


async def test_an_update_that_is_none(sessions: Caller) -> None:
    """Mistakes in the calling code are told before anything is sent, and so is text that no message can carry."""
    without_zone = datetime(2030, 1, 1)  # noqa: DTZ001  that is the mistake
    mistakes: list[dict[str, Any]] = [
        {},
        {"etag": "1-1"},
        {"set_attributes": {}},
        {"absolute_expire_time": without_zone},
    ]
    for arguments in mistakes:
        with pytest.raises(TypeError):
            await sessions.update("0" * 22, **arguments)
    for attributes in ({"\ud800": "1"}, {"a": "\ud800"}):
        with pytest.raises(errors.InvalidRequest):
            await sessions.update("0" * 22, set_attributes=attributes)


async def test_a_rotation(sessions: Caller) -> None:
    """The session gets another token; the old one is good for a grace, and leads to the same new one once more."""
    login = await sessions.create("12345", attributes={"device": "phone"})
    rotation = await sessions.rotate(login.token)
    assert rotation.token != login.token
    assert rotation.token not in repr(rotation)
    assert replace(rotation.session, etag=login.session.etag) == login.session
    assert rotation.session.etag != login.session.etag

    new, old = await sessions.validate(rotation.token), await sessions.validate(login.token)
    assert new.session == old.session == rotation.session
    assert (new.token_rotated, old.token_rotated) == (False, True)
    assert await sessions.rotate(login.token) == rotation
    assert await sessions.revoke(token=rotation.token)
    assert not await sessions.validate(login.token)


async def test_a_rotation_of_what_is_no_token(sessions: Caller) -> None:
    """A token that opens nothing cannot be replaced."""
    login = await sessions.create("12345")
    await sessions.revoke(token=login.token)
    for token in (login.token, "ctr_nonsense"):
        with pytest.raises(errors.SessionNotFound):
            await sessions.rotate(token)
    with pytest.raises(errors.InvalidRequest):
        await sessions.rotate("")


async def test_a_token_presented_after_its_grace(
    strict: str, client_type: type[SessionClient | AsyncSessionClient], user: str
) -> None:
    """Somebody kept a token that its owner no longer uses: the session ends, whether it is rotated or validated."""
    async with closing(Caller(client_type(strict, timeout=30))) as sessions:
        login = await sessions.create(user)
        rotation = await sessions.rotate(login.token)
        with pytest.raises(errors.TokenReused) as caught:
            await sessions.rotate(login.token)
        assert caught.value.reason == "TOKEN_REUSED"
        assert not await sessions.validate(rotation.token)

        login = await sessions.create(user)
        rotation = await sessions.rotate(login.token)
        assert (await sessions.validate(login.token)).reason is InvalidReason.TOKEN_REUSED
        assert (await sessions.validate(rotation.token)).reason is InvalidReason.NOT_FOUND


async def test_a_user_is_logged_out_everywhere(sessions: Caller, user: str) -> None:
    """All sessions of a user end, or all but the one that asks; another user's stay."""
    logins = [await sessions.create(user) for _ in range(4)]
    other = await sessions.create(f"{user}-the-other")
    kept = logins[1]
    assert await sessions.revoke_user_sessions(user, except_session_id=kept.session.session_id) == 3
    answers = await sessions.validate_batch([login.token for login in logins])
    assert [bool(answer) for answer in answers] == [False, True, False, False]
    assert await sessions.list_sessions(user) == [kept.session]
    assert await sessions.revoke_user_sessions(user) == 1
    assert await sessions.revoke_user_sessions(user) == 0
    assert not await sessions.validate(kept.token)
    assert await sessions.validate(other.token)
    with pytest.raises(errors.InvalidRequest):
        await sessions.revoke_user_sessions("")


async def test_one_login_too_many_evicts_the_oldest(
    strict: str, client_type: type[SessionClient | AsyncSessionClient], user: str
) -> None:
    """At the limit the oldest session makes room, and who logs in is told which that was."""
    async with closing(Caller(client_type(strict, timeout=30))) as sessions:
        first, second = await sessions.create(user), await sessions.create(user)
        assert first.evicted_session_ids == second.evicted_session_ids == ()
        third = await sessions.create(user)
        assert third.evicted_session_ids == (first.session.session_id,)
        assert not await sessions.validate(first.token)
        assert await sessions.list_sessions(user) == [third.session, second.session]


async def test_one_login_too_many_is_rejected(
    rejecting: str, client_type: type[SessionClient | AsyncSessionClient], user: str
) -> None:
    """Where the policy is to reject, the sessions there are stay, and there is room again when one ends."""
    async with closing(Caller(client_type(rejecting, timeout=30))) as sessions:
        first, second = await sessions.create(user), await sessions.create(user)
        with pytest.raises(errors.SessionLimitReached) as caught:
            await sessions.create(user)
        assert caught.value.reason == "SESSION_LIMIT_REACHED"
        assert await sessions.list_sessions(user) == [second.session, first.session]
        await sessions.revoke(token=first.token)
        assert await sessions.validate((await sessions.create(user)).token)


async def test_tokens_stay_out_of_reprs(sessions: Caller) -> None:
    """What may be logged by accident has no token in it."""
    login = await sessions.create("12345")
    check = await sessions.validate(login.token)
    assert login.token not in f"{login!r} {login} {check!r} {sessions.client!r}"
    assert login.session.session_id in repr(login)


async def test_a_closed_client_reconnects(sessions: Caller) -> None:
    """Closing lets go of the connection; a later call opens another."""
    login = await sessions.create("12345")
    await sessions.close()
    await sessions.close()
    assert await sessions.validate(login.token)


async def test_many_callers_share_a_client(sessions: Caller) -> None:
    """The first calls of many threads or tasks, all at once, each get their own answer."""
    logins = await asyncio.gather(*(sessions.create(f"user-{at}") for at in range(32)))
    users = await asyncio.gather(*(sessions.require(login.token) for login in logins))
    assert [each.user_id for each in users] == [f"user-{at}" for at in range(32)]


async def test_nobody_listens(client_type: type[SessionClient | AsyncSessionClient]) -> None:
    """Making a client connects to nothing; a call to nobody is "unavailable" and never "not valid"."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    sessions = Caller(client_type(f"127.0.0.1:{port}", timeout=30))
    with pytest.raises(errors.Unavailable):
        await sessions.validate("any-token-at-all-will-do")
    await sessions.close()


async def test_every_call_has_a_deadline(client_type: type[SessionClient | AsyncSessionClient]) -> None:
    """Somebody who accepts and never answers holds nobody up."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        sessions = Caller(client_type(f"127.0.0.1:{silent.getsockname()[1]}"))
        started = time.monotonic()
        with pytest.raises(errors.Unavailable):
            await sessions.validate("any-token-at-all-will-do", timeout=0.2)
        with pytest.raises(errors.Unavailable):
            await sessions.validate("any-token-at-all-will-do")
        assert time.monotonic() - started < 15, "the default of a second, with room for a slow machine"
        await sessions.close()


class _Flaky(pb_grpc.SessionServiceServicer):
    """Fails with a status as often as it is told to, then answers."""

    def __init__(self, code: grpc.StatusCode, failures: int) -> None:
        self.code, self.failures, self.calls = code, failures, 0

    def ValidateSession(self, request: Any, context: Any) -> pb.ValidateSessionResponse:  # noqa: N802
        """Fails or answers."""
        del request
        self.calls += 1
        if self.calls <= self.failures:
            context.abort(self.code, "as told")
        return pb.ValidateSessionResponse(invalid_reason=99)  # type: ignore[arg-type]  # from a server of the future


@pytest.mark.parametrize(
    ("code", "failures", "calls"),
    [
        (grpc.StatusCode.UNAVAILABLE, 2, 3),
        (grpc.StatusCode.UNAVAILABLE, 9, 3),
        (grpc.StatusCode.CANCELLED, 2, 3),
        (grpc.StatusCode.INVALID_ARGUMENT, 1, 1),
        (grpc.StatusCode.INTERNAL, 1, 1),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 1, 1),
    ],
)
async def test_only_what_is_safe_to_repeat_is_repeated(
    client_type: type[SessionClient | AsyncSessionClient], code: grpc.StatusCode, failures: int, calls: int
) -> None:
    """What says "unknown" is tried three times, anything else once; an answer nobody knows yet is not valid."""
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        servicer = _Flaky(code, failures)  # type: ignore[abstract]  # one method is all that is called
        pb_grpc.add_SessionServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        sessions = Caller(client_type(f"127.0.0.1:{port}", timeout=30))
        if failures < calls:
            check = await sessions.validate("any-token-at-all-will-do")
            assert not check
            assert check.reason is InvalidReason.UNSPECIFIED
        else:
            with pytest.raises(errors.CatracaError):
                await sessions.validate("any-token-at-all-will-do")
        assert servicer.calls == calls
        await sessions.close()
        server.stop(None).wait()


async def test_both_clients_have_the_same_face() -> None:
    """Every public method of one is in the other, with the same parameters."""

    def face(kind: type) -> dict[str, list[str]]:
        return {
            name: [*inspect.signature(member).parameters]
            for name, member in vars(kind).items()
            if callable(member) and not name.startswith("_")
        }

    assert face(SessionClient) == face(AsyncSessionClient)
    assert [*inspect.signature(SessionClient).parameters] == [*inspect.signature(AsyncSessionClient).parameters]


def test_an_async_client_follows_its_caller_to_another_loop(target: str) -> None:
    """Used from one event loop after another, it connects anew in each."""
    sessions = AsyncSessionClient(target, timeout=30)
    for _ in range(2):
        assert asyncio.run(sessions.create("12345")).session.user_id == "12345"
