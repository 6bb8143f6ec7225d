"""WatchSessions on the wire: every change is sent, in order, or a reset if changes may have been missed."""

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import grpc
import psutil
import pytest
from tests.support.curl import Grpcurl
from tests.support.inprocess import serving
from tests.support.service import ServeProcess
from tests.support.valkey import Valkey
from tests.support.waiting import TIMEOUT_SECONDS, eventually_async
from tests.support.wire import INVALID, refusal_of

from catraca import AsyncSessionClient, errors
from catraca.v1 import session_event_pb2 as event_pb, session_service_pb2 as pb
from catraca.v1.session_service_pb2_grpc import SessionServiceStub
from catraca_server import core_options
from catraca_server.operations import watch_buffer

CREATED, UPDATED, ROTATED, REVOKED = (
    event_pb.SESSION_EVENT_TYPE_CREATED,
    event_pb.SESSION_EVENT_TYPE_UPDATED,
    event_pb.SESSION_EVENT_TYPE_ROTATED,
    event_pb.SESSION_EVENT_TYPE_REVOKED,
)
REQUEST, USER_REQUEST, LIMIT, TOKEN_REUSE = (
    event_pb.REVOCATION_CAUSE_REQUEST,
    event_pb.REVOCATION_CAUSE_USER_REQUEST,
    event_pb.REVOCATION_CAUSE_LIMIT,
    event_pb.REVOCATION_CAUSE_TOKEN_REUSE,
)


OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    # What a connection takes in for one who does not read stays small.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1 << 16),
)


class Watch:
    """A stream, as a client has one."""

    def __init__(self, call: Any) -> None:
        self.call = call

    async def read(self) -> pb.WatchSessionsResponse:
        """Returns the next response."""
        response = await asyncio.wait_for(self.call.read(), TIMEOUT_SECONDS)
        assert response is not grpc.aio.EOF, await self.call.details()
        return response  # type: ignore[no-any-return]

    async def events(self, count: int) -> list[tuple[int, int, str, str]]:
        """Returns the next events: type, cause, session and user."""
        found: list[tuple[int, int, str, str]] = []
        for _ in range(count):
            response = await self.read()
            assert response.WhichOneof("response") == "event", response
            event = response.event
            found.append((event.type, event.cause, event.session_id, event.user_id))
        return found

    async def ping(self, nonce: int = 1) -> None:
        """Sends a ping."""
        await self.call.write(pb.WatchSessionsRequest(ping=pb.WatchPing(nonce=nonce)))

    async def pong(self, nonce: int = 1) -> float:
        """Pings, and returns the age in the pong, which comes next."""
        await self.ping(nonce)
        response = await self.read()
        assert response.WhichOneof("response") == "pong", response
        assert response.pong.nonce == nonce
        return response.pong.age.ToTimedelta().total_seconds()

    async def refusal(self) -> tuple[grpc.StatusCode, str, list[str]]:
        """Returns how the stream ends, whatever comes before."""
        with contextlib.suppress(grpc.aio.AioRpcError):
            while await asyncio.wait_for(self.call.read(), TIMEOUT_SECONDS) is not grpc.aio.EOF:
                pass
        code, details, metadata = [
            await each() for each in (self.call.code, self.call.details, self.call.trailing_metadata)
        ]
        return refusal_of(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, details))


@asynccontextmanager
async def watching(target: str, options: Sequence[tuple[str, int]] = OPTIONS, **start: Any) -> AsyncIterator[Watch]:
    """Opens a watch, and yields it once it is open; the cursor is in `opened`."""
    async with grpc.aio.insecure_channel(target, options) as channel:
        call = SessionServiceStub(channel).WatchSessions()
        await call.write(pb.WatchSessionsRequest(start=pb.WatchStart(**start)))
        yield Watch(call)


async def opened(watch: Watch) -> str:
    """Returns the cursor of the first response."""
    response = await watch.read()
    assert response.WhichOneof("response") == "opened", response
    return response.opened.cursor


@pytest.mark.parametrize("kind", ["memory", "valkey"])
async def test_every_change_is_told(kind: str, valkey: Valkey) -> None:
    """With its cause; those of one session in their order."""
    valkey.command("FLUSHALL")
    url = "memory:" if kind == "memory" else valkey.url
    settings = {"store_url": url, "rotation_grace": "0s", "max_sessions_per_user": "2", "store_timeout": "5s"}
    async with (
        serving(**settings) as target,
        watching(target) as watch,
        watching(target, types=[REVOKED, ROTATED]) as some,
        AsyncSessionClient(target, timeout=20) as sessions,
    ):
        await opened(watch)
        await opened(some)
        began = time.time()
        first = await sessions.create("ana")
        await sessions.update(first.session.session_id, set_attributes={"a": "b"})
        await sessions.rotate(first.token)
        assert not await sessions.validate(first.token)
        logins = [await sessions.create("ana") for _ in range(3)]
        await sessions.revoke(token=logins[2].token)
        await sessions.revoke(token=logins[2].token)
        await sessions.revoke(session_id=logins[2].session.session_id)
        assert await sessions.revoke_user_sessions("ana") == 1
        ids = [first.session.session_id, *(login.session.session_id for login in logins)]
        expected = [
            (CREATED, 0, ids[0], "ana"),
            (UPDATED, 0, ids[0], "ana"),
            (ROTATED, 0, ids[0], "ana"),
            (REVOKED, TOKEN_REUSE, ids[0], "ana"),
            (CREATED, 0, ids[1], "ana"),
            (CREATED, 0, ids[2], "ana"),
            (REVOKED, LIMIT, ids[1], "ana"),
            (CREATED, 0, ids[3], "ana"),
            (REVOKED, REQUEST, ids[3], "ana"),
            (REVOKED, REQUEST, ids[3], ""),
            (REVOKED, REQUEST, ids[3], ""),
            (REVOKED, USER_REQUEST, ids[2], "ana"),
            (REVOKED, USER_REQUEST, "", "ana"),
        ]
        assert await watch.events(len(expected)) == expected
        wanted = [each for each in expected if each[0] in (REVOKED, ROTATED)]
        assert await some.events(len(wanted)) == wanted
        await sessions.create("bia")
        event = (await watch.read()).event
        assert abs(event.event_time.ToDatetime().timestamp() - time.timezone - began) < 86_400


async def test_it_goes_on_after_a_cursor(valkey: Valkey) -> None:
    """That of `opened`, of an event, and of another server on the same store."""
    valkey.command("FLUSHALL")
    settings = {"store_url": valkey.url, "store_timeout": "5s"}
    async with serving(**settings) as target, AsyncSessionClient(target, timeout=20) as sessions:
        async with watching(target) as watch:
            start = await opened(watch)
            for user in "abc":
                await sessions.create(user)
            cursors = [(await watch.read()).event.cursor for _ in range(3)]
        async with serving(**settings) as other:
            for cursor, users in ((start, "abcd"), (cursors[0], "bcd"), (cursors[2], "d")):
                async with watching(other, cursor=cursor) as watch:
                    assert await opened(watch) == cursor
                    assert [each[3] for each in await watch.events(len(users) - 1)] == [*users[:-1]]
                    await sessions.create("d")
                    if cursor == start:
                        assert (await watch.events(1))[0][3] == "d"
                valkey.command("XTRIM", "session-feed", "MAXLEN", 3)
                await sessions.revoke_user_sessions("d")
                break
        async with watching(target, cursor=start) as watch:
            now = await opened(watch)
            reset = (await watch.read()).reset
            assert (reset.cursor, reset.reason) == (now, pb.WATCH_RESET_REASON_TRIMMED)
            await sessions.create("e")
            assert (await watch.events(1))[0][3] == "e"


UNKNOWN: list[Any] = [CREATED, 0, 99]
ONE = pb.WatchSessionsRequest(start=pb.WatchStart())
PING = pb.WatchSessionsRequest(ping=pb.WatchPing(nonce=1))


@pytest.mark.parametrize(
    ("requests", "fields"),
    [
        ([PING], ["start"]),
        ([pb.WatchSessionsRequest()], ["start"]),
        ([], ["start"]),
        ([ONE, ONE], ["start"]),
        ([ONE, PING, pb.WatchSessionsRequest()], ["ping"]),
        ([pb.WatchSessionsRequest(start=pb.WatchStart(cursor="what?"))], ["start.cursor"]),
        ([pb.WatchSessionsRequest(start=pb.WatchStart(types=UNKNOWN))], ["start.types[1]", "start.types[2]"]),
        ([b"\xff"], []),
        ([ONE, b"\xff"], []),
    ],
    ids=["ping first", "empty", "nothing", "two starts", "empty later", "cursor", "types", "garbage", "garbage later"],
)
async def test_wrong_requests_are_refused(requests: Sequence[Any], fields: list[str]) -> None:
    """INVALID_ARGUMENT, with the field."""
    async with serving(store_url="memory:") as target, grpc.aio.insecure_channel(target) as channel:
        call: Any = channel.stream_stream("/catraca.v1.SessionService/WatchSessions")()
        # A refused stream takes no more requests.
        with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.UsageError):
            for request in requests:
                await call.write(request if isinstance(request, bytes) else request.SerializeToString())
            await call.done_writing()
        assert await Watch(call).refusal() == (*INVALID, fields)


async def test_one_who_does_not_read_is_reset(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on from there, and nobody else notices."""
    monkeypatch.setattr(watch_buffer, "ENTRIES_MAX", 50)
    monkeypatch.setattr(watch_buffer.WatchBuffer.__init__, "__defaults__", (50,))
    valkey.command("FLUSHALL")
    async with (
        serving(store_url=valkey.url, store_timeout="5s") as target,
        watching(target) as slow,
        watching(target) as other,
        AsyncSessionClient(target, timeout=20) as sessions,
    ):
        await opened(slow)
        await opened(other)
        # More than a connection takes in for one who does not read.
        user = "u" * 250
        count = 1000
        for _ in range(count // 20):
            await asyncio.gather(*(sessions.create(user) for _ in range(20)))
            assert len(await other.events(20)) == 20
        read = 0
        while (response := await slow.read()).WhichOneof("response") == "event":
            read += 1
        assert read < count
        assert response.reset.reason == pb.WATCH_RESET_REASON_SLOW_CONSUMER
        rest = count - read
        await slow.ping()
        while (response := await slow.read()).WhichOneof("response") != "pong":
            rest -= 1
        assert rest > 0, "what the reset stands for was sent all the same"


async def test_little_is_written_ahead_for_one_who_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events that come together are written together, but not many more than the connection takes in."""
    monkeypatch.setattr(watch_buffer.WatchBuffer.__init__, "__defaults__", (500,))
    window = 1 << 10
    options = (*OPTIONS[:-1], ("grpc.http2.lookahead_bytes", window))
    user = "u" * 250
    async with serving(store_url="memory:") as target, AsyncSessionClient(target, timeout=20) as sessions:

        async def log_in(times: int) -> None:
            for _ in range(times // 20):
                await asyncio.gather(*(sessions.create(user) for _ in range(20)))

        await log_in(400)
        async with watching(target, options) as slow, watching(target) as other:
            await opened(slow)
            await opened(other)
            assert await sessions.revoke_user_sessions(user) == 400
            await log_in(300)
            assert len(await other.events(701)) == 701
            ahead = 0
            while (response := await slow.read()).WhichOneof("response") == "event":
                ahead += response.ByteSize()
        assert response.reset.reason == pb.WATCH_RESET_REASON_SLOW_CONSUMER
        assert ahead < 2 * (window + core_options.WATCH_WRITE_BYTES)


async def test_ages_are_of_the_readings(own_valkey: Valkey) -> None:
    """Young while the store replies; as old as the outage while it does not; then there is a reset, if it restarted."""
    async with (
        serving(store_url=own_valkey.url, store_timeout="1s") as target,
        watching(target) as watch,
        AsyncSessionClient(target, timeout=20) as sessions,
    ):
        await opened(watch)

        async def is_young() -> bool:
            return await watch.pong() < 0.5

        await eventually_async(is_young, "pongs are young")
        own_valkey.pause()
        paused = time.monotonic()

        async def is_old() -> bool:
            age = await watch.pong()
            assert age <= time.monotonic() - paused + 5
            return age > 1

        await eventually_async(is_old, "pongs get older")
        own_valkey.resume()
        await eventually_async(is_young, "pongs are young again, without a reset")
        own_valkey.kill()
        async with watching(target) as refused:
            assert (await refused.refusal())[:2] == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
        await eventually_async(is_old, "pongs get older")
        own_valkey.start()
        await watch.ping(7)
        while (response := await watch.read()).WhichOneof("response") == "pong":
            await watch.ping(8)
        assert response.reset.reason == pb.WATCH_RESET_REASON_EPOCH_CHANGED

        async def is_created() -> bool:
            try:
                await sessions.create("later")
            except errors.Unavailable:
                return False
            return True

        await eventually_async(is_created, "the store is back")
        while (response := await watch.read()).WhichOneof("response") == "pong":
            pass
        assert response.event.user_id == "later"


async def test_a_pong_follows_what_was_acknowledged_before_a_reading() -> None:
    """Once a pong is younger than an acknowledgement, the event has come."""
    async with (
        serving(store_url="memory:") as target,
        watching(target) as watch,
        AsyncSessionClient(target, timeout=20) as sessions,
    ):
        await opened(watch)
        for number in range(50):
            login = await sessions.create(str(number))
            acknowledged = time.monotonic()
            seen = ""
            while True:
                sent = time.monotonic()
                await watch.ping()
                while (response := await watch.read()).WhichOneof("response") == "event":
                    seen = response.event.session_id
                if sent - response.pong.age.ToTimedelta().total_seconds() > acknowledged:
                    break
            assert seen == login.session.session_id


@pytest.mark.parametrize("reads", [True, False], ids=["one who reads", "one who does not"])
async def test_a_stopping_server_ends_watches_at_once(reads: bool, valkey: Valkey) -> None:
    """UNAVAILABLE, long before the drain timeout; also those that have not begun, or do not read."""
    valkey.command("FLUSHALL")
    async with (
        ServeProcess(store_url=valkey.url, store_timeout="5s", drain_timeout="60s") as process,
        watching(process.target) as watch,
        grpc.aio.insecure_channel(process.target) as channel,
        AsyncSessionClient(process.target, timeout=20) as sessions,
    ):
        await opened(watch)
        silent = SessionServiceStub(channel).WatchSessions()
        if not reads:
            for _ in range(30):
                await asyncio.gather(*(sessions.create("u" * 250) for _ in range(20)))
        begun = time.monotonic()
        process.signal(signal.SIGTERM)
        if reads:
            assert (await watch.refusal())[:2] == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
            assert "the server is stopping" in await watch.call.details()
        assert await asyncio.to_thread(process.wait, 50) == 0
        assert time.monotonic() - begun < 30
        silent.cancel()
    assert "Traceback" not in process.log


async def test_events_reach_watches_on_other_workers(valkey: Valkey) -> None:
    """Each worker reads by itself what any of them appends."""
    valkey.command("FLUSHALL")
    async with ServeProcess(store_url=valkey.url, store_timeout="5s", workers="2") as process:
        watches, stack = [], []
        for _ in range(8):
            context = watching(process.target)
            stack.append(context)
            watches.append(await context.__aenter__())
            await opened(watches[-1])
        async with AsyncSessionClient(process.target, timeout=20) as sessions:
            login = await sessions.create("ana")
        for watch in watches:
            assert await watch.events(1) == [(CREATED, 0, login.session.session_id, "ana")]
        for context in stack:
            await context.__aexit__(None, None, None)


async def test_pings_without_end_do_not_grow_the_server(valkey: Valkey) -> None:
    """One who pings and does not read holds up only itself."""
    async with (
        ServeProcess(store_url=valkey.url, store_timeout="5s") as process,
        watching(process.target) as watch,
        watching(process.target) as other,
    ):
        await opened(watch)
        await opened(other)
        sent = 0

        async def flood() -> None:
            nonlocal sent
            while True:
                await watch.ping(2**63)
                sent += 1

        flooding = asyncio.create_task(flood())
        before = psutil.Process(process.pid).memory_info().rss
        stuck = -1
        while stuck != sent:
            stuck = sent
            await asyncio.sleep(0.5)  # there is no sign of one who is held up
        assert await other.pong() < 5
        assert psutil.Process(process.pid).memory_info().rss - before < 20 << 20
        flooding.cancel()


def grpcurl_if_there() -> Grpcurl:
    """Returns it, or skips the test."""
    made = Grpcurl()
    if made.why_missing:
        pytest.skip(made.why_missing)
    return made


async def test_a_watch_whose_requests_have_ended_goes_on() -> None:
    """As that of a command line: nothing more to say, much to hear."""
    grpcurl = grpcurl_if_there()
    async with serving(store_url="memory:") as target, AsyncSessionClient(target, timeout=20) as sessions:
        process = await asyncio.create_subprocess_exec(
            grpcurl.program, "-plaintext", "-d", json.dumps({"start": {}}), target,
            "catraca.v1.SessionService/WatchSessions", stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            assert b"opened" in await asyncio.wait_for(process.stdout.readuntil(b"\n}\n"), TIMEOUT_SECONDS)
            await sessions.create("ana", ttl=timedelta(hours=1))
            assert b"ana" in await asyncio.wait_for(process.stdout.readuntil(b"\n}\n"), TIMEOUT_SECONDS)
        finally:
            process.kill()
            await process.communicate()


async def test_nothing_is_left_of_a_watch() -> None:
    """No task remains when its caller has left."""
    async with serving(store_url="memory:") as target:
        for _ in range(3):
            async with watching(target) as watch:
                await opened(watch)

        def names() -> set[str]:
            return {task.get_name() for task in asyncio.all_tasks()}

        async def is_over() -> bool:
            return not names() & {"feed-reader", "watch-requests"}

        await eventually_async(is_over, "the tasks have ended")
