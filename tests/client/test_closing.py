"""What ends a call: the client's close, the caller's cancellation, a strange answer, Ctrl-C. Each can be told apart."""

import asyncio
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, contextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from tests.support.waiting import TIMEOUT_SECONDS, eventually, eventually_async

from catraca import AsyncSessionClient, SessionClient, _core, errors
from catraca.v1 import session_pb2, session_service_pb2 as pb

TOKEN = "x" * 20
BY_CLOSE = "the client was closed while this call was under way"


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """An address at which every call gets these bytes as its answer."""
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers([_Always(answer)])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


class _Always(grpc.GenericRpcHandler):
    """Answers whatever is asked."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Answers."""
        del handler_call_details
        return grpc.unary_unary_rpc_method_handler(lambda _request, _context: self._answer)


@pytest.fixture
def silent() -> Iterator[str]:
    """An address at which somebody takes connections and never says anything."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


async def under_way(sessions: AsyncSessionClient, calls: int) -> None:
    """Returns once so many calls are under way, as many of them sent as may be."""

    async def sent() -> bool:
        opened = sessions._channel._opened
        return opened is not None and opened.calls == calls and bool(opened._stubs)

    await eventually_async(sent, f"{calls} calls are under way")


@asynccontextmanager
async def waiting_call(sessions: AsyncSessionClient, calls: int = 1) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """Tasks whose calls are under way."""
    tasks = [asyncio.create_task(sessions.validate(TOKEN)) for _ in range(calls)]
    await under_way(sessions, calls)
    yield tasks
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), TIMEOUT_SECONDS)


@pytest.mark.parametrize("calls", [1, _core.CALLS_AT_A_TIME + 5])
async def test_close_with_calls_under_way(silent: str, calls: int) -> None:
    """Each call, sent or still waiting for its turn, is told that the client was closed; no task is cancelled."""
    sessions = AsyncSessionClient(silent, timeout=60, coalesce=False)
    async with waiting_call(sessions, calls) as tasks:
        await sessions.close()
        ended = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), TIMEOUT_SECONDS)
    assert [(type(each), str(each)) for each in ended] == [(errors.Unavailable, BY_CLOSE)] * calls
    assert not any(task.cancelling() for task in tasks)


async def test_a_task_group_learns_of_a_close(silent: str) -> None:
    """A group does not take the close for a cancellation and swallow it."""
    sessions = AsyncSessionClient(silent, timeout=60)
    with pytest.RaisesGroup(pytest.RaisesExc(errors.Unavailable, match=BY_CLOSE)):
        async with asyncio.TaskGroup() as group:
            group.create_task(sessions.validate(TOKEN))
            await under_way(sessions, 1)
            await sessions.close()


async def test_the_callers_own_cancellation_stays_one(silent: str) -> None:
    """Whoever cancels gets CancelledError, by itself and when the client is closed at that moment."""
    for close_too in (False, True):
        sessions = AsyncSessionClient(silent, timeout=60)
        async with waiting_call(sessions) as (task,):
            task.cancel("mine")
            if close_too:
                await sessions.close()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(asyncio.shield(task), TIMEOUT_SECONDS)
            assert task.cancelled()
        await sessions.close()


async def test_a_cancellation_that_comes_before_the_call(silent: str) -> None:
    """Requested before the call began, it is delivered in it, also if the client is closed then."""
    sessions = AsyncSessionClient(silent, timeout=60)

    async def cancelled_and_calling() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        asyncio.get_running_loop().create_task(sessions.close())
        await sessions.validate(TOKEN)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(cancelled_and_calling())


async def test_a_cancellation_that_was_overcome(silent: str) -> None:
    """A task that was cancelled earlier, and went on, is told of a close as any other."""
    sessions = AsyncSessionClient(silent, timeout=60)

    async def go_on() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await sessions.validate(TOKEN)

    task = asyncio.create_task(go_on())
    await asyncio.sleep(0)
    task.cancel()
    await under_way(sessions, 1)
    await sessions.close()
    with pytest.raises(errors.Unavailable, match=BY_CLOSE):
        await asyncio.wait_for(task, TIMEOUT_SECONDS)


async def test_a_timeout_of_the_caller(silent: str) -> None:
    """`asyncio.timeout` around a call works as around anything else, and leaves no cancellation behind."""
    async with AsyncSessionClient(silent, timeout=60) as sessions:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await sessions.validate(TOKEN)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0


def test_close_while_threads_call(target: str) -> None:
    """Closed again and again while eight threads call: each call is answered, or told that the client was closed."""
    sessions = SessionClient(target, timeout=30)
    token = sessions.create("12345").token
    over = threading.Event()
    strange: list[BaseException] = []
    answers = [0] * 8

    def go_on(number: int) -> None:
        while not over.is_set():
            try:
                assert sessions.validate(token)
                answers[number] += 1
            except errors.Unavailable as error:
                if str(error) != BY_CLOSE:
                    strange.append(error)
            except BaseException as error:  # noqa: BLE001  all are told below
                strange.append(error)

    threads = [threading.Thread(target=go_on, args=(number,)) for number in range(len(answers))]
    for thread in threads:
        thread.start()
    try:
        for _ in range(100):
            sessions.close()
        before = list(answers)
        eventually(lambda: all(now > then for now, then in zip(answers, before, strict=True)), "all go on")
    finally:
        over.set()
        for thread in threads:
            thread.join()
        sessions.close()
    assert not strange, strange[:3]


def test_close_ends_a_call_of_another_thread(silent: str) -> None:
    """It does not wait for an answer."""
    sessions = SessionClient(silent, timeout=60)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(sessions.validate, TOKEN)
        eventually(lambda: sessions._channel.calls_to_drain() == 1, "the call is under way")
        sessions.close()
        with pytest.raises(errors.Unavailable, match=BY_CLOSE):
            call.result(TIMEOUT_SECONDS)


def test_a_channel_closed_before_grpc_saw_the_call(silent: str) -> None:
    """The moment between taking a channel and using it: gRPC's own ValueError does not reach the caller."""
    sessions = SessionClient(silent, timeout=60)
    channel = sessions._channel
    opened, _ = channel._enter(60)
    assert opened._channel is not None
    stub = opened._stub("/x")
    opened.close(BY_CLOSE)
    opened._stubs["/catraca.v1.SessionService/ValidateSession"] = stub
    channel._opened = opened
    with pytest.raises(errors.Unavailable, match=BY_CLOSE):
        sessions.validate(TOKEN)


def test_a_loop_that_was_closed(target: str) -> None:
    """A client whose loop is gone works in the next, and can be closed there."""
    sessions = AsyncSessionClient(target, timeout=30)
    assert asyncio.run(sessions.create("12345")).session.user_id == "12345"
    asyncio.run(sessions.close())
    assert asyncio.run(sessions.create("12345")).session.user_id == "12345"
    asyncio.run(sessions.close())


STRANGE_ANSWERS = {
    "not a message": b"\xff\xff\xff",
    "text that is not text": b"\x12\x04\x0a\x02\xff\xff",
    "a time after the year 9999": pb.ValidateSessionResponse(
        valid=True, session=session_pb2.Session(create_time=Timestamp(seconds=1 << 60))
    ).SerializeToString(),
    "a duration beyond all": pb.ValidateSessionResponse(
        valid=True, session=session_pb2.Session(idle_timeout=Duration(seconds=1 << 60))
    ).SerializeToString(),
}


@pytest.mark.parametrize("answer", STRANGE_ANSWERS.values(), ids=STRANGE_ANSWERS)
async def test_an_answer_that_cannot_be_read(answer: bytes) -> None:
    """It is an unexpected answer, for both clients, and nothing of it is quoted."""
    with answering(answer) as target:
        with SessionClient(target, timeout=30) as sessions, pytest.raises(errors.UnexpectedAnswer) as caught:
            await asyncio.to_thread(sessions.validate, TOKEN)
        async with AsyncSessionClient(target, timeout=30) as others:
            with pytest.raises(errors.UnexpectedAnswer, match="cannot be read"):
                await others.validate(TOKEN)
    assert TOKEN not in str(caught.value)


async def test_a_failure_inside_grpc(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors that gRPC has for its own use do not reach the caller as they are."""
    sessions = AsyncSessionClient(silent, timeout=60)
    for failure in (grpc.aio.UsageError("as told"), grpc.aio.InternalError("as told")):
        opened = sessions._channel._enter()
        opened.calls -= 1

        def fail(*_: object, failure: Exception = failure, **__: object) -> None:
            raise failure

        monkeypatch.setitem(opened._stubs, "/catraca.v1.SessionService/ValidateSession", fail)
        with pytest.raises(errors.UnexpectedAnswer, match="gRPC failed: as told"):
            await sessions.validate(TOKEN)
    await sessions.close()


@pytest.mark.parametrize("target", ["dns:///", "unix:", "foo:bar:baz", "ipv4:999.1.1.1:1", "localhost:99999", "[::1"])
async def test_a_target_that_leads_nowhere(target: str) -> None:
    """What looks like a target and is none is told at the call."""
    with SessionClient(target, timeout=5) as sessions, pytest.raises(errors.CatracaError):
        await asyncio.to_thread(sessions.validate, TOKEN)
    async with AsyncSessionClient(target, timeout=5) as others:
        with pytest.raises(errors.CatracaError):
            await others.validate(TOKEN)


def test_ctrl_c_during_a_call(silent: str, target: str) -> None:
    """It ends the call as KeyboardInterrupt, and the client is as good as before."""
    with SessionClient(silent, timeout=60) as sessions:

        def press() -> None:
            eventually(lambda: sessions._channel.calls_to_drain() == 1, "the call is under way")
            os.kill(os.getpid(), signal.SIGINT)

        pressing = threading.Thread(target=press)
        pressing.start()
        with pytest.raises(KeyboardInterrupt):
            sessions.validate(TOKEN)
        pressing.join()
        assert sessions._channel.calls_to_drain() == 0
        with pytest.raises(errors.Unavailable, match="DEADLINE_EXCEEDED"):
            sessions.validate(TOKEN, timeout=0.05)
    with SessionClient(target, timeout=30) as sessions:
        assert sessions.create("12345").token
