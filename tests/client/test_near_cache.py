"""Near caches of both clients over a real connection: a stream that is opened, lost, refused, closed and forked."""

import asyncio
import gc
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.support.callers import Caller, closing
from tests.support.command import clean_environment
from tests.support.fake_service import FakeService
from tests.support.waiting import TIMEOUT_SECONDS, eventually, eventually_async

from catraca import AsyncSessionClient, InvalidReason, NearCache, NearCacheStats, SessionClient, _core, errors
from catraca._flights import Flight, Flights, Key
from catraca.v1 import session_event_pb2 as events, session_service_pb2 as pb

OF = "token-of-session-"
PROGRAM = Path(__file__).parents[1] / "support" / "forking_near.py"


@pytest.fixture
def service() -> Iterator[FakeService]:
    """A service with a feed."""
    with FakeService() as running:  # type: ignore[abstract]  # what no test calls is missing
        yield running


@pytest.fixture(params=[SessionClient, AsyncSessionClient], ids=["sync", "async"])
async def sessions(service: FakeService, request: pytest.FixtureRequest) -> AsyncIterator[Caller]:
    """A client with a near cache."""
    async with closing(Caller(request.param(service.target, timeout=30, near_cache=True))) as caller:
        yield caller


def stats(sessions: Caller) -> NearCacheStats:
    """What a client's near cache has done."""
    told: NearCacheStats | None = sessions.client.near_cache_stats()
    assert told is not None
    return told


async def until(condition: Callable[[], bool]) -> None:
    """Returns once the condition holds, and lets others run until then."""

    async def holds() -> bool:
        return condition()

    await eventually_async(holds, "what is waited for")


async def leased(sessions: Caller, token: str) -> None:
    """Returns once a validation of the token is answered near."""

    async def hit() -> bool:
        before = stats(sessions).hits
        await sessions.validate(token)
        return stats(sessions).hits > before

    await eventually_async(hit, "a near answer")


async def test_answers_are_given_again_until_an_event(service: FakeService, sessions: Caller) -> None:
    """The second validation asks nobody; another's revocation is known as soon as its event comes."""
    token = service.login()
    await leased(sessions, token)
    asked = len(service.asked)
    first = await sessions.validate(token)
    assert await sessions.validate(token) is first
    assert len(service.asked) == asked
    service.end(token)

    async def refused() -> bool:
        return not await sessions.validate(token)

    await eventually_async(refused, "the event drops the answer")
    assert (await sessions.validate(token)).reason is InvalidReason.NOT_FOUND


async def test_a_client_without_one(service: FakeService, sessions: Caller) -> None:
    """Has no statistics, and opens no stream."""
    async with closing(Caller(type(sessions.client)(service.target, timeout=30))) as plain:
        await plain.validate(service.login())
        assert plain.client.near_cache_stats() is None
    assert not service.starts


async def test_what_a_client_changes_it_sees(service: FakeService, sessions: Caller) -> None:
    """At once, without waiting for an event, whichever way it is changed."""
    tokens = [service.login() for _ in range(4)] + [service.login("67890")]
    for token in tokens:
        await leased(sessions, token)
    await sessions.revoke(token=tokens[0])
    assert not await sessions.validate(tokens[0])
    await sessions.revoke(session_id="session-2")
    assert not await sessions.validate(tokens[1])
    await sessions.update("session-3", attributes={"a": "1"})
    assert (await sessions.require(tokens[2])).attributes == {"a": "1"}
    await sessions.rotate(tokens[3])
    assert not await sessions.validate(tokens[3])
    await sessions.revoke_user_sessions("67890")
    assert not await sessions.validate(tokens[4])


async def test_a_change_overtakes_an_answer(service: FakeService, sessions: Caller) -> None:
    """An answer that was read before this client's revocation, and comes after it, is neither kept nor shared."""
    token = service.login()
    await leased(sessions, service.login())
    held, go_on = threading.Event(), threading.Event()

    def hold(_: object) -> None:
        held.set()
        assert go_on.wait(20)

    service.gate = hold
    early = asyncio.create_task(sessions.validate(token))
    await asyncio.to_thread(held.wait, 20)
    service.gate = lambda _: None
    await sessions.revoke(token=token)
    assert not await sessions.validate(token)
    go_on.set()
    assert await early
    assert not await sessions.validate(token)


async def test_no_lease_no_near_answer(service: FakeService, sessions: Caller) -> None:
    """When pongs stay away, or prove nothing, the server is asked again; malformed tokens need no lease."""
    token = service.login()
    await leased(sessions, token)
    assert (await sessions.validate("short")).reason is InvalidReason.MALFORMED
    service.age.seconds = 10

    async def asks() -> bool:
        before = len(service.asked)
        assert await sessions.validate(token)
        return len(service.asked) > before

    await eventually_async(asks, "the lease ends")
    assert (stats(sessions).feed_age or 0) >= 2
    service.status = grpc.StatusCode.UNAVAILABLE
    with pytest.raises(errors.Unavailable):
        await sessions.validate(token)
    assert (await sessions.validate("short")).reason is InvalidReason.MALFORMED


async def test_a_stream_that_is_lost_is_resumed(service: FakeService, sessions: Caller) -> None:
    """With the last cursor, and the answers that are kept are given meanwhile."""
    token = service.login()
    await leased(sessions, token)
    service.tell(events.SESSION_EVENT_TYPE_UPDATED, "session-99", "67890")
    await asyncio.to_thread(service.wait_for_pings, 2)
    service.end_watches()
    await until(lambda: len(service.starts) == 2 and stats(sessions).watching)
    assert service.starts[1].cursor == "e-1"
    before = len(service.asked)
    assert await sessions.validate(token)
    assert len(service.asked) == before
    assert stats(sessions).resets == 0


async def test_a_reset_drops_what_is_kept(service: FakeService, sessions: Caller) -> None:
    """And it is asked for again."""
    token = service.login()
    await leased(sessions, token)
    service.reset(pb.WATCH_RESET_REASON_SLOW_CONSUMER)
    await until(lambda: stats(sessions).resets == 1)
    assert stats(sessions).entries == 0
    await leased(sessions, token)


@pytest.mark.parametrize("code", [grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.PERMISSION_DENIED])
async def test_a_server_that_is_not_watched(
    service: FakeService, sessions: Caller, code: grpc.StatusCode, caplog: pytest.LogCaptureFixture
) -> None:
    """An older one, or one that refuses this caller: every validation asks it, and the log says so once."""
    service.watch_status = code
    token = service.login()

    def own() -> list[logging.LogRecord]:
        # asyncio logs it when gRPC hears of a call whose event loop, of an earlier test, has been closed.
        return [each for each in caplog.records if each.name.startswith("catraca")]

    with caplog.at_level(logging.WARNING, "catraca"):
        assert await sessions.validate(token)
        await until(lambda: bool(own()))
        for _ in range(3):
            assert await sessions.validate(token)
    assert len(service.asked) == 4
    assert len(own()) == 1
    assert code.name in caplog.text
    assert token not in caplog.text


async def test_many_miss_at_once(service: FakeService, sessions: Caller) -> None:
    """Whoever asks for the same shares a call, even if it fails or its caller gives up, which is not theirs."""
    token = service.login()
    await leased(sessions, service.login())
    service.gate = lambda _: time.sleep(0.2)
    before = sum(map(len, service.asked))
    answers = await asyncio.gather(*(sessions.validate(token) for _ in range(4)))
    assert all(answers)
    assert sum(map(len, service.asked)) == before + 1
    other = service.login()
    leader: asyncio.Task[Any] = asyncio.create_task(sessions.validate(other, timeout=0.05))
    await asyncio.sleep(0.02)
    joiners = [asyncio.create_task(sessions.validate(other)) for _ in range(3)]
    with pytest.raises(errors.Unavailable):
        await leader
    assert all(await asyncio.gather(*joiners))


async def test_an_answer_that_took_long_is_not_shared(service: FakeService, sessions: Caller) -> None:
    """Longer than a lease: whoever joined asks for an answer of their own."""
    token = service.login()
    await leased(sessions, service.login())
    delays = iter([2.5])
    service.gate = lambda _: time.sleep(next(delays, 0))
    before = sum(map(len, service.asked))
    assert all(await asyncio.gather(*(sessions.validate(token) for _ in range(2))))
    assert sum(map(len, service.asked)) == before + 2


async def test_closing_ends_all(service: FakeService, sessions: Caller) -> None:
    """No thread, no task and no stream is left, and a later call begins anew."""
    token = service.login()
    for _ in range(3):
        await leased(sessions, token)
        await sessions.close()
        assert stats(sessions).entries == 0
        await until(lambda: not service.watches and len(asyncio.all_tasks()) == 1)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("catraca")]


async def test_closing_ends_those_who_share_a_call(
    service: FakeService, sessions: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them gets the error of the close, and nobody connects again."""
    await leased(sessions, service.login())
    token = service.login()
    go_on = threading.Event()
    service.gate = lambda _: go_on.wait(TIMEOUT_SECONDS)
    joined: list[Flight[Any] | None] = []
    join = Flights.join

    def recorded(self: Flights[Any], key: Key, now: float) -> Flight[Any] | None:
        flight = join(self, key, now)
        joined.append(flight)
        return flight

    monkeypatch.setattr(Flights, "join", recorded)
    before = len(service.asked)
    leader = asyncio.create_task(sessions.validate(token))
    await until(lambda: len(service.asked) == before + 1)
    joiners = [asyncio.create_task(sessions.validate(token)) for _ in range(2)]
    await until(lambda: sum(each is not None for each in joined) == 2)
    await sessions.close()
    failures = await asyncio.gather(leader, *joiners, return_exceptions=True)
    go_on.set()
    assert [(type(each), str(each)) for each in failures] == [(errors.Unavailable, _core.CLOSED)] * 3
    assert not sessions.client._channel.is_open()
    assert len(service.asked) == before + 1


async def test_a_client_that_nobody_closes(service: FakeService, sessions: Caller) -> None:
    """Freeing it ends its stream."""
    forgotten: Any = Caller(type(sessions.client)(service.target, timeout=30, near_cache=True))
    await leased(forgotten, service.login())
    assert service.watches == 1
    del forgotten

    async def ended() -> bool:
        gc.collect()
        return not service.watches

    await eventually_async(ended, "the stream ends")


def test_one_event_loop_after_another(service: FakeService) -> None:
    """The stream follows the client into the loop that uses it."""
    sessions = Caller(AsyncSessionClient(service.target, timeout=30, near_cache=NearCache(max_entries=10)))
    for at in range(3):
        asyncio.run(leased(sessions, service.login()))
        assert len(service.starts) == at + 1
    asyncio.run(sessions.close())


def test_threads_hit_while_everything_changes(service: FakeService) -> None:  # noqa: C901  it is one story
    """Eight threads validate while sessions end, the feed is reset and the stream is lost: nothing ended comes back."""
    with SessionClient(service.target, timeout=30, near_cache=NearCache(max_entries=100)) as sessions:
        tokens = [service.login(f"user-{at % 5}") for at in range(40)]
        over = threading.Event()
        strange: list[object] = []

        def look(token: str) -> None:
            try:
                session = sessions.validate(token).session
                if session is not None and session.session_id.removeprefix("session-") != token.removeprefix(OF):
                    strange.append(session)
            except Exception as error:  # noqa: BLE001  all are told below
                strange.append(error)

        def go_on() -> None:
            while not over.is_set():
                for token in tokens:
                    look(token)

        threads = [threading.Thread(target=go_on) for _ in range(8)]
        for thread in threads:
            thread.start()
        for at in range(12):
            service.end(tokens[at])
            if at % 4 == 1:
                service.reset()
            if at % 4 == 3:
                service.end_watches()
            time.sleep(0.05)
        eventually(lambda: not any(map(sessions.validate, tokens[:12])), "what has ended is refused")
        over.set()
        for thread in threads:
            thread.join()
        told = sessions.near_cache_stats()
        assert told is not None
        assert (told.hits > 0, told.entries <= 100) == (True, True)
    assert not strange, strange[:3]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forks_under_load() -> None:
    """Threads hit and miss while the process forks: it does not wait for the stream, and both processes watch on."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM)],
        env=clean_environment({"PYTHONPATH": str(PROGRAM.parents[2])}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", [SessionClient, AsyncSessionClient])
async def test_a_real_service(target: str, kind: type[SessionClient | AsyncSessionClient]) -> None:
    """Whatever another client changes is seen here, far within the bound."""
    async with (
        closing(Caller(kind(target, timeout=30, near_cache=True))) as sessions,
        closing(Caller(AsyncSessionClient(target, timeout=30))) as other,
    ):
        logins = [await other.create("a-user-of-near-caches") for _ in range(4)]
        for login in logins:
            await leased(sessions, login.token)

        async def changed() -> bool:
            first = await sessions.validate(logins[0].token)
            return first.session.attributes == {"a": "1"} and not await sessions.validate(logins[1].token)

        begun = time.monotonic()
        await other.update(logins[0].session.session_id, attributes={"a": "1"})
        await other.revoke(token=logins[1].token)
        await eventually_async(changed, "an update and a revocation")
        await other.revoke_user_sessions("a-user-of-near-caches")

        async def all_ended() -> bool:
            return not any([await sessions.validate(login.token) for login in logins])

        await eventually_async(all_ended, "the revocation of all")
        assert time.monotonic() - begun < 5
        assert stats(sessions).hits
        assert stats(sessions).resets == 0
