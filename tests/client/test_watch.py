"""`watch` of both clients over a real connection: events, resets, a lost stream, and a client that is closed."""

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from tests.support.callers import Caller, closing
from tests.support.fake_service import FakeService
from tests.support.waiting import TIMEOUT_SECONDS, eventually

from catraca import (
    AsyncSessionClient,
    RevocationCause,
    SessionClient,
    SessionEvent,
    SessionEventType,
    WatchOpened,
    WatchReset,
    WatchResetReason,
    _watch_aio,
    _watch_sync,
    _watching,
    errors,
)
from catraca.v1 import session_event_pb2 as events, session_service_pb2 as pb

LONG = 20.0


@pytest.fixture
def service() -> Iterator[FakeService]:
    """A service with a feed."""
    with FakeService() as running:  # type: ignore[abstract]  # what no test calls is missing
        yield running


def script(service: FakeService) -> Iterator[object]:
    """Has things happen, one after the other. Yields what a watch must say of each, or None for a lost stream."""
    yield WatchOpened(cursor="e-0")
    service.tell(events.SESSION_EVENT_TYPE_REVOKED, "session-1", "12345")
    yield (SessionEventType.REVOKED, RevocationCause.UNSPECIFIED, "session-1", "12345", "e-1")
    service.tell(events.SESSION_EVENT_TYPE_UPDATED, "session-2", "12345")
    yield (SessionEventType.UPDATED, None, "session-2", "12345", "e-2")
    service.end_watches()
    yield WatchOpened(cursor="e-2")
    service.reset()
    yield WatchReset(reason=WatchResetReason.TRIMMED, cursor="e-3")
    service.tell(99, "session-3")  # type: ignore[arg-type]  # of a server of the future
    yield (SessionEventType.UNSPECIFIED, None, "session-3", "", "e-4")


def plain(said: SessionEvent | WatchOpened | WatchReset) -> object:
    """An event as a tuple, without the time."""
    if isinstance(said, SessionEvent):
        return (said.type, said.cause, said.session_id, said.user_id, said.cursor)
    return said


def test_sync(service: FakeService) -> None:
    """An iterator says all of it, and abandoned it ends the stream."""
    with SessionClient(service.target, timeout=LONG) as sessions:
        watch = sessions.watch(types=[SessionEventType.UPDATED, SessionEventType.REVOKED])
        for expected in script(service):
            assert plain(next(watch)) == expected
        assert list(service.starts[0].types) == [2, 4]
        del watch
        eventually(lambda: service.watches == 0, "the stream has ended")


async def test_async(service: FakeService) -> None:
    """The same, awaited."""
    async with AsyncSessionClient(service.target, timeout=LONG) as sessions:
        watch = sessions.watch()
        for expected in script(service):
            async with asyncio.timeout(TIMEOUT_SECONDS):
                assert plain(await anext(watch)) == expected


def test_a_client_that_is_closed(service: FakeService) -> None:
    """A watch ends with it, as calls under way do."""
    sessions = SessionClient(service.target, timeout=LONG)
    watch = sessions.watch()
    next(watch)
    threading.Timer(0.2, sessions.close).start()
    with pytest.raises(errors.Unavailable, match="closed"):
        next(watch)


async def test_an_async_client_that_is_closed_or_a_task_that_is_cancelled(service: FakeService) -> None:
    """The one is Unavailable, the other stays a cancellation."""
    sessions = AsyncSessionClient(service.target, timeout=LONG)
    watch = sessions.watch()
    await anext(watch)
    task = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0.2)
    await sessions.close()
    with pytest.raises(errors.Unavailable, match="closed"):
        await task
    watch = sessions.watch()
    await anext(watch)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await anext(watch)
    await sessions.close()


async def test_nobody_answers() -> None:
    """The first stream must open in time."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = f"127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        with SessionClient(target, timeout=LONG) as sessions, pytest.raises(errors.Unavailable, match="not opened"):
            next(sessions.watch(timeout=0.3))
        async with AsyncSessionClient(target, timeout=0.3) as waiting:
            with pytest.raises(errors.Unavailable, match="not opened"):
                await anext(waiting.watch())
    assert time.monotonic() - began < LONG


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients ping more often than usual, and give a silent server up sooner."""
    for shell in (_watch_sync, _watch_aio):
        monkeypatch.setattr(shell, "PING_SECONDS", 0.02)
    monkeypatch.setattr(_watching, "SILENCE_SECONDS", 0.2)


class Watcher:
    """A watch of either client."""

    def __init__(self, client: SessionClient | AsyncSessionClient) -> None:
        self._watch = client.watch()

    async def next(self) -> SessionEvent | WatchOpened | WatchReset:
        """Waits for the next event."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            if isinstance(self._watch, Iterator):
                return await asyncio.to_thread(next, self._watch)
            return await anext(self._watch)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("kind", [SessionClient, AsyncSessionClient])
async def test_an_event_that_takes_its_reader_long(
    service: FakeService, kind: type[SessionClient | AsyncSessionClient]
) -> None:
    """The stream stays open meanwhile: the server is not silent, only unread."""
    async with closing(Caller(kind(service.target, timeout=LONG))) as sessions:
        watcher = Watcher(sessions.client)
        await watcher.next()
        await asyncio.to_thread(service.wait_for_pings, 30)
        service.tell(events.SESSION_EVENT_TYPE_REVOKED, "session-1")
        assert isinstance(await watcher.next(), SessionEvent)
        assert len(service.starts) == 1


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("kind", [SessionClient, AsyncSessionClient])
async def test_a_silent_server(
    service: FakeService, kind: type[SessionClient | AsyncSessionClient], caplog: pytest.LogCaptureFixture
) -> None:
    """Another stream is opened, and the log says why."""
    async with closing(Caller(kind(service.target, timeout=LONG))) as sessions:
        watcher = Watcher(sessions.client)
        await watcher.next()
        service.pongs = False
        with caplog.at_level(logging.WARNING, "catraca"):
            assert isinstance(await watcher.next(), WatchOpened)
        assert "no pong and no event" in caplog.text
        assert len(service.starts) == 2


class Talking:
    """A talk whose server is never silent."""

    def start(self) -> pb.WatchSessionsRequest:
        """Begins."""
        return pb.WatchSessionsRequest(start=pb.WatchStart())

    def ping(self) -> pb.WatchSessionsRequest:
        """Pings."""
        return pb.WatchSessionsRequest(ping=pb.WatchPing(nonce=1))

    def is_silent(self) -> bool:
        """Is not."""
        return False


async def test_an_async_client_pings_only_after_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second message to a server that has refused the stream would make grpc.aio forget the status."""
    monkeypatch.setattr(_watch_aio, "PING_SECONDS", 3600)
    streams = _watch_aio.AsyncStreams(None, Talking())  # type: ignore[arg-type]  # no stream is opened, and this is a talk
    answered = asyncio.Event()
    requests = streams._requests(answered)
    assert pb.WatchSessionsRequest.FromString(await anext(requests)).HasField("start")
    ping: asyncio.Future[bytes] = asyncio.ensure_future(anext(requests))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not ping.done()
    answered.set()
    assert pb.WatchSessionsRequest.FromString(await ping).HasField("ping")
    await requests.aclose()
