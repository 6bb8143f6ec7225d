"""Programs that fork while clients are in a certain state: `python forking.py STATE TARGET`. Run by test_fork.py.

Each forks several times and has every child call the service, with the client it inherited and with new ones. It fails,
saying how, if a child does not end as it should within its time, or burns a core, or if a call of the parent fails.
"""

import asyncio
import contextlib
import ctypes
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import grpc

from catraca import AsyncSessionClient, SessionClient, errors

FORKS = 8
CHILD_SECONDS = 20.0
"""The time after which a child counts as hanging."""
CORE_SECONDS = 3.0
"""How much processor time a child may take, including connecting."""
AT_ONCE_SECONDS = 1.0
"""How soon a child must get the error that it cannot make calls."""

SETTINGS = b"\0\0\0\4\0\0\0\0\0"
"""The first bytes that an HTTP/2 server sends."""

Body = Callable[[], None]


def fork(body: Body, *, fork_process: Callable[[], int] = os.fork, leave: Callable[[int], NoReturn] = sys.exit) -> None:
    """Runs `body` in a child, which then leaves as programs do; fails unless it does so well and in time."""
    pid = fork_process()
    if not pid:
        body()
        leave(0)
    deadline = time.monotonic() + CHILD_SECONDS
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError("a child hangs")
        time.sleep(0.002)
    assert status == 0, f"a child ended with {status}"
    assert usage.ru_utime + usage.ru_stime < CORE_SECONDS, f"a child burnt {usage.ru_utime + usage.ru_stime} s"


def sync_call(sessions: SessionClient, user: str = "12345") -> None:
    """Makes a call and looks at the answer."""
    assert sessions.create(user).session.user_id == user


async def async_call(sessions: AsyncSessionClient, user: str = "12345") -> None:
    """Makes a call and looks at the answer."""
    assert (await sessions.create(user)).session.user_id == user


class Program:
    """A client of each kind, what children do with them, and with new ones."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.sync = SessionClient(target, timeout=15)
        self.aio = AsyncSessionClient(target, timeout=15)

    def child_calls(self) -> None:
        """Both clients work, and so do new ones; and then a child of this child works as well."""
        self.calls()
        fork(self.calls)
        self.calls()

    def calls(self) -> None:
        """Calls the service with every client."""
        sync_call(self.sync, f"user-{os.getpid()}")
        with SessionClient(self.target, timeout=15) as fresh:
            sync_call(fresh)

        async def call_both() -> None:
            await async_call(self.aio, f"user-{os.getpid()}")
            async with AsyncSessionClient(self.target, timeout=15) as fresh:
                await async_call(fresh)

        asyncio.run(call_both())

    def child_is_told(self) -> None:
        """No client works, and each says so at once."""
        began = time.monotonic()
        for sessions in (self.sync, SessionClient(self.target)):
            told = ""
            try:
                sync_call(sessions)
            except errors.UnusableAfterFork as error:
                told = str(error)
            assert "before the fork" in told, told
        for client in (self.aio, AsyncSessionClient(self.target)):
            told = ""
            try:
                asyncio.run(async_call(client))
            except errors.UnusableAfterFork as error:
                told = str(error)
            assert "before the fork" in told, told
        assert time.monotonic() - began < AT_ONCE_SECONDS, "a child was told late"

    @contextmanager
    def threads_that_call(
        self, call: Callable[[int], object] | None = None, *, threads_count: int = 6
    ) -> Iterator[None]:
        """Threads make calls all the time, by default logins; none of these calls may fail."""
        failures: list[Exception] = []
        over = threading.Event()
        calls = [0] * threads_count

        def go_on(number: int) -> None:
            while not over.is_set():
                try:
                    if call is None:
                        sync_call(self.sync, f"thread-{number}")
                    else:
                        call(number)
                    calls[number] += 1
                except Exception as error:  # noqa: BLE001  all are reported below
                    failures.append(error)

        threads = [threading.Thread(target=go_on, args=(number,)) for number in range(len(calls))]
        for thread in threads:
            thread.start()
        try:
            until(lambda: all(calls) or bool(failures))
            yield
            before = list(calls)
            until(lambda: all(now > then for now, then in zip(calls, before, strict=True)) or bool(failures))
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert not failures, failures[0]


def until(condition: Callable[[], bool]) -> None:
    """Waits for a condition; fails if it does not come true."""
    deadline = time.monotonic() + CHILD_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.002)


def fresh(program: Program) -> None:
    """Clients that were made and never used."""
    for _ in range(FORKS):
        fork(program.child_calls)
    program.calls()


def used(program: Program) -> None:
    """Clients that were used, are idle, and whose errors are kept by the program."""
    program.calls()
    kept: list[BaseException] = []
    for _ in range(FORKS):
        try:
            program.sync.get("0" * 22)
        except errors.SessionNotFound as error:
            kept.append(error)
        try:
            asyncio.run(program.aio.get("0" * 22))
        except errors.SessionNotFound as error:
            kept.append(error)
        fork(program.child_calls)
        program.calls()
    assert all(error.__cause__ for error in kept)


def busy_threads(program: Program) -> None:
    """A client that threads use at the moment of every fork."""
    with program.threads_that_call():
        for _ in range(FORKS):
            fork(program.child_calls)


def busy_together(program: Program) -> None:
    """A client whose threads share calls: at every fork some wait for a call that another thread makes."""
    token = program.sync.create("12345").token
    together = program.sync._answering._together
    assert together is not None

    def validate(_: int) -> None:
        assert program.sync.validate(token)

    def child() -> None:
        assert not together._departures.away, "a child waits for what its parent has sent"
        validate(0)
        program.child_calls()

    with program.threads_that_call(validate, threads_count=24):
        for _ in range(FORKS):
            until(lambda: len(together._departures._waiting) > 1)
            fork(child)


def busy_pool(program: Program) -> None:
    """The same, with a pool of multiprocessing."""
    with program.threads_that_call(), multiprocessing.get_context("fork").Pool(4) as pool:
        results = [pool.apply_async(program_calls, (program.target,)) for _ in range(FORKS)]
        for result in results:
            result.get(CHILD_SECONDS)


def program_calls(target: str) -> None:
    """What a worker of the pool does."""
    Program(target).calls()


def a_call_that_lasts(program: Program) -> None:
    """A call that gets no answer: the fork waits a moment for the call and then ends it, and the child works."""
    with call_without_answer(says=SETTINGS) as ended:
        fork(program.child_calls)
        until(lambda: bool(ended))
        assert "forked while the call was under way" in ended[0], ended
    program.calls()


def connecting(program: Program) -> None:
    """A server that accepts the connection and sends nothing: gRPC tries for 20 s, so the child gets the error."""
    with call_without_answer(says=b"") as ended:
        fork(program.child_is_told)
        until(lambda: bool(ended))
        assert "forked while the call was under way" in ended[0], ended
    program.calls()


@contextmanager
def call_without_answer(*, says: bytes) -> Iterator[list[str]]:
    """A thread makes a call to a server that sends only this. Yields how the call ended, once it has."""
    ended: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        lasting = SessionClient(f"127.0.0.1:{listener.getsockname()[1]}", timeout=60)

        def call() -> None:
            try:
                sync_call(lasting)
            except errors.Unavailable as error:
                ended.append(str(error))

        thread = threading.Thread(target=call)
        thread.start()
        with listener.accept()[0] as connection:
            connection.sendall(says)
            yield ended
            thread.join()


def inside_a_loop(program: Program) -> None:
    """An idle client of the event loop that the forking code runs in."""

    async def run() -> None:
        for _ in range(FORKS):
            await async_call(program.aio)
            fork(program.child_calls)
        await async_call(program.aio)

    asyncio.run(run())


def inside_a_busy_loop(program: Program) -> None:
    """A client with calls in flight in the forking code's event loop: they go on, and the child gets the error."""

    async def run() -> None:
        token = (await program.aio.create("12345")).token
        for _ in range(FORKS):
            calls = [asyncio.create_task(async_call(program.aio)) for _ in range(5)]
            # One makes its call, and the others wait to make theirs together.
            shared = [asyncio.create_task(program.aio.validate(token)) for _ in range(5)]
            await asyncio.sleep(0)
            fork(program.child_is_told)
            await asyncio.gather(*calls)
            assert all(await asyncio.gather(*shared))

    asyncio.run(run())
    # The calls have ended, and nothing prevents a fork any more.
    fork(program.child_calls)


def a_loop_elsewhere(program: Program) -> None:
    """A client of an event loop in another thread: it goes on, and the child gets the error."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def call() -> None:
        asyncio.run_coroutine_threadsafe(async_call(program.aio), loop).result(CHILD_SECONDS)

    try:
        for _ in range(FORKS):
            call()
            fork(program.child_is_told, leave=os._exit)
        call()
        asyncio.run_coroutine_threadsafe(program.aio.close(), loop).result(CHILD_SECONDS)
        fork(program.calls, leave=os._exit)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def another_library(program: Program) -> None:
    """A channel of other code, in use: its state in the child is unknown, so the child gets the error."""
    with grpc.insecure_channel(program.target) as channel:
        over = threading.Event()
        check: Callable[..., bytes] = channel.unary_unary("/grpc.health.v1.Health/Check")

        def go_on() -> None:
            while not over.is_set():
                check(b"", timeout=15)

        thread = threading.Thread(target=go_on)
        check(b"", timeout=15)
        thread.start()
        try:
            for _ in range(FORKS):
                fork(program.child_is_told, leave=os._exit)
        finally:
            over.set()
            thread.join()


def no_hooks(program: Program) -> None:
    """A fork that Python does not notice, as by a server written in C, while clients are connected."""
    program.calls()
    libc = ctypes.PyDLL(None)
    for _ in range(FORKS):
        fork(program.child_is_told, fork_process=lambda: int(libc.fork()))
    program.calls()
    program.sync.close()
    asyncio.run(program.aio.close())
    fork(program.child_calls, fork_process=lambda: int(libc.fork()))


STATES = {
    state.__name__: state
    for state in (
        fresh,
        used,
        busy_threads,
        busy_together,
        busy_pool,
        a_call_that_lasts,
        connecting,
        inside_a_loop,
        inside_a_busy_loop,
        a_loop_elsewhere,
        another_library,
        no_hooks,
    )
}

if __name__ == "__main__":
    with contextlib.closing(SessionClient(sys.argv[2])):
        STATES[sys.argv[1]](Program(sys.argv[2]))
