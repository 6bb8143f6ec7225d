"""What callers do with a client, over both clients and a real service."""

import asyncio
import inspect
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest

from catraca import AsyncSessionClient, InvalidReason, SessionClient, errors
from catraca.v1 import session_service_pb2 as pb, session_service_pb2_grpc as pb_grpc


class Caller:
    """Either client, called the same way: awaited, the sync one from a thread."""

    def __init__(self, client: SessionClient | AsyncSessionClient) -> None:
        self.client = client

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self.client, name)

        async def call(*positional: Any, **named: Any) -> Any:
            if isinstance(self.client, SessionClient):
                return await asyncio.to_thread(method, *positional, **named)
            return await method(*positional, **named)

        return call


@pytest.fixture(params=[SessionClient, AsyncSessionClient], ids=["sync", "async"])
def client_type(request: pytest.FixtureRequest) -> type[SessionClient | AsyncSessionClient]:
    """Each client in turn."""
    kind: type[SessionClient | AsyncSessionClient] = request.param
    return kind


@pytest.fixture
async def sessions(target: str, client_type: type[SessionClient | AsyncSessionClient]) -> AsyncIterator[Caller]:
    """A client of the running service; patient, because the machine may be slow."""
    caller = Caller(client_type(target, timeout=30))
    yield caller
    await caller.close()


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
        (grpc.StatusCode.INVALID_ARGUMENT, 1, 1),
        (grpc.StatusCode.INTERNAL, 1, 1),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 1, 1),
    ],
)
async def test_only_what_is_safe_to_repeat_is_repeated(
    client_type: type[SessionClient | AsyncSessionClient], code: grpc.StatusCode, failures: int, calls: int
) -> None:
    """UNAVAILABLE is tried three times, anything else once; an answer nobody knows yet is not valid."""
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
