"""The store stalls, dies, vanishes and returns under load: UNAVAILABLE in time, good again by itself, never wrong.

Scenarios that measure how long something takes are played up to three times, because the machine may be busy. What must
never happen must not happen in any of them.
"""

import asyncio
import contextlib
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import redis
from tests.support.load import OK, UNAVAILABLE, load_over_stub
from tests.support.proxy import Proxy
from tests.support.service import ServeProcess
from tests.support.valkey import BINARY, WHY_MISSING, Valkey
from tests.support.waiting import eventually_async

from catraca import AsyncSessionClient, errors

logger = logging.getLogger(__name__)

pytestmark = pytest.mark.skipif(BINARY is None, reason=WHY_MISSING)

STORE_TIMEOUT_SECONDS = 0.25
MARGIN_SECONDS = 0.75
"""Within which a call has to end after the store's timeout; long, because the machine may be slow."""

RECOVERY_SECONDS = 1.0
"""Within which the service has to be good again after the store is back."""

OUTAGE_SECONDS = 5.0 if "CATRACA_TEST_LONG" in os.environ else 0.0
"""For at least how long the store is away; and until enough calls have failed."""

ATTEMPTS = 3


class Fault(ABC):
    """Something that takes the store away, and gives it back."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @abstractmethod
    def running(self) -> "contextlib.AbstractAsyncContextManager[ServeProcess]":
        """Runs the service on a store that this fault can take away."""

    @abstractmethod
    async def take(self) -> None:
        """Takes the store away."""

    @abstractmethod
    async def give_back(self) -> None:
        """Gives it back, and returns once it replies."""


class OwnValkey(Fault):
    """A fault of a Valkey that the service connects to."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ServeProcess]:
        """Runs both."""
        self.valkey = Valkey(self.directory)
        await asyncio.to_thread(self.valkey.start)
        with contextlib.closing(self.valkey):
            async with ServeProcess(store_url=self.valkey.url) as process:
                yield process


class Stalled(OwnValkey):
    """The store is paused, and its connections stay open."""

    async def take(self) -> None:
        """SIGSTOP."""
        self.valkey.pause()

    async def give_back(self) -> None:
        """SIGCONT."""
        self.valkey.resume()
        await asyncio.to_thread(self.valkey.command, "PING")


class Killed(OwnValkey):
    """The store crashes, and is started again."""

    async def take(self) -> None:
        """SIGKILL."""
        self.valkey.kill()

    async def give_back(self) -> None:
        """Starts it, with all that it had."""
        await asyncio.to_thread(self.valkey.start)


class EmbeddedKilled(Fault):
    """The embedded store crashes; the service starts it again by itself."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ServeProcess]:
        """Runs the service with its embedded store."""
        async with ServeProcess(data_dir=str(self.directory)) as process:
            self.process = process
            yield process

    async def take(self) -> None:
        """SIGKILL."""
        (store,) = psutil.Process(self.process.pid).children()
        store.kill()

    async def give_back(self) -> None:
        """Waits until it replies."""
        with redis.Redis(unix_socket_path=str(self.directory / "valkey.sock")) as client:

            async def replies() -> bool:
                with contextlib.suppress(redis.RedisError):
                    return bool(client.ping())
                return False

            await eventually_async(replies, "the embedded store replies")


class WrongPassword(OwnValkey):
    """The store's password is changed."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ServeProcess]:
        """Runs both, with a user for the service."""
        self.valkey = Valkey(self.directory)
        await asyncio.to_thread(self.valkey.start)
        with contextlib.closing(self.valkey):
            self.valkey.command("ACL", "SETUSER", "service", "on", ">right", "~*", "&*", "+@all")
            url = f"unix://service@{self.valkey.socket}"
            async with ServeProcess(store_url=url, store_password="right") as process:
                yield process

    async def take(self) -> None:
        """Changes it, and closes the connections that used the old one."""
        self.valkey.command("ACL", "SETUSER", "service", "resetpass", ">other")
        self.valkey.command("CLIENT", "KILL", "USER", "service")

    async def give_back(self) -> None:
        """Accepts the old one again."""
        self.valkey.command("ACL", "SETUSER", "service", ">right")


class Proxied(OwnValkey):
    """A fault of the network between the service and its store."""

    tcp = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ServeProcess]:
        """Runs store, network and service."""
        self.valkey = Valkey(self.directory)
        await asyncio.to_thread(self.valkey.start)
        listen = None if self.tcp else self.directory / "proxy.sock"
        with contextlib.closing(self.valkey):
            async with (
                Proxy(self.valkey.socket, listen) as self.proxy,
                ServeProcess(store_url=self.proxy.url) as process,
            ):
                yield process


class BlackHole(Proxied):
    """Nothing gets through any more, and no connection is closed."""

    async def take(self) -> None:
        """Holds everything."""
        self.proxy.hold()

    async def give_back(self) -> None:
        """Lets everything through."""
        self.proxy.release()


class Slow(Proxied):
    """Replies take nearly the whole timeout, and more than that behind others."""

    async def take(self) -> None:
        """Delays every piece by 200 ms."""
        self.proxy.delay = lambda: 0.2

    async def give_back(self) -> None:
        """Delays nothing any more."""
        self.proxy.delay = None


class RepliesLost(Proxied):
    """The store executes requests, and its replies get lost."""

    async def take(self) -> None:
        """Drops replies."""
        self.proxy.lose_replies(True)

    async def give_back(self) -> None:
        """Drops them no longer."""
        self.proxy.lose_replies(False)


class Reset(Proxied):
    """Connections break, and none can be made."""

    tcp = True

    async def take(self) -> None:
        """Breaks all and hangs up on new ones."""
        self.proxy.refuse(True)
        self.proxy.reset()

    async def give_back(self) -> None:
        """Lets new ones through."""
        self.proxy.refuse(False)


class HalfClosed(Reset):
    """The store closes its direction of each connection, and no new one can be made."""

    async def take(self) -> None:
        """Ends them."""
        self.proxy.refuse(True)
        self.proxy.half_close()


async def play(fault: Fault) -> tuple[float, float]:
    """Takes the store away under load and gives it back.

    Asserts what must hold in every attempt. Returns how long the slowest call took, and how long after the store was
    back the service was good again.
    """
    async with fault.running() as process:
        async with AsyncSessionClient(process.target, timeout=20) as sessions:
            users = {(await sessions.create(f"user-{n}")).token: f"user-{n}" for n in range(16)}
        async with load_over_stub(process.target, users) as load:

            async def counted(status: str, since: float, at_least: int) -> bool:
                assert not load.wrong
                return load.count(status, since) >= at_least

            await eventually_async(lambda: counted(OK, 0, 30), "validations are right")
            taken = time.monotonic()
            await fault.take()
            await eventually_async(lambda: counted(UNAVAILABLE, taken, 50), "validations are unavailable")
            await asyncio.sleep(taken + OUTAGE_SECONDS - time.monotonic())
            assert not load.wrong
            await fault.give_back()
            back = time.monotonic()
            await eventually_async(lambda: counted(OK, back, 30), "validations are right again")
            good = load.first_ok_after(back)
        assert not load.wrong
        assert process.process.poll() is None
    assert good is not None
    return load.slowest_seconds(), good - back


FAULTS: list[type[Fault]] = [
    Stalled,
    Killed,
    EmbeddedKilled,
    WrongPassword,
    BlackHole,
    Slow,
    RepliesLost,
    Reset,
    HalfClosed,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda each: each.__name__)
async def test_the_store_goes_and_returns(fault: type[Fault], tmp_path: Path) -> None:
    """While away: UNAVAILABLE, within the store timeout. Back: good again within a second. Never: not valid."""
    figures = []
    for attempt in range(ATTEMPTS):
        directory = tmp_path / str(attempt)
        directory.mkdir()
        slowest, recovery = await play(fault(directory))
        figures.append(f"slowest call {slowest * 1000:.0f} ms, recovery {recovery * 1000:.0f} ms")
        logger.info(figures[-1])
        if slowest <= STORE_TIMEOUT_SECONDS + MARGIN_SECONDS and recovery <= RECOVERY_SECONDS:
            return
    pytest.fail(f"not once in {ATTEMPTS} attempts in time: {'; '.join(figures)}")


class Churn:
    """Users who log in and out all the time, and what was acknowledged to them."""

    def __init__(self, sessions: AsyncSessionClient) -> None:
        self.logged_in: set[str] = set()
        self.logged_out: set[str] = set()
        self._sessions = sessions

    async def run(self) -> None:
        """Goes on forever; nothing is known of calls that were unavailable."""
        while True:
            with contextlib.suppress(errors.Unavailable):
                token = (await self._sessions.create("12345")).token
                if len(self.logged_in) <= len(self.logged_out):
                    self.logged_in.add(token)
                elif await self._sessions.revoke(token=token):
                    self.logged_out.add(token)

    async def go_on(self) -> None:
        """Returns after 50 more logouts."""
        goal = len(self.logged_out) + 50

        async def reached() -> bool:
            return len(self.logged_out) >= goal

        await eventually_async(reached, "users log in and out")

    async def is_unavailable(self) -> bool:
        """Whether nobody can log in."""
        try:
            await self._sessions.create("12345")
        except errors.Unavailable:
            return True
        return False

    async def valid(self, tokens: set[str]) -> set[bool]:
        """Returns whether these tokens are valid, some of them or all."""
        ordered = list(tokens)
        batches = [ordered[at : at + 1000] for at in range(0, len(ordered), 1000)]
        return {bool(each) for batch in batches for each in await self._sessions.validate_batch(batch)}


@pytest.mark.parametrize("fault", [Killed, RepliesLost, Reset], ids=lambda each: each.__name__)
async def test_what_was_acknowledged_stays(fault: type[Fault], tmp_path: Path) -> None:
    """After the store went and returned amid logins and logouts, every acknowledged one is effective."""
    made = fault(tmp_path)
    async with made.running() as process, AsyncSessionClient(process.target, timeout=20) as sessions:
        churn = Churn(sessions)
        tasks = [asyncio.create_task(churn.run()) for _ in range(8)]
        for _ in range(3):
            await churn.go_on()
            await made.take()
            await eventually_async(churn.is_unavailable, "logins fail")
            await made.give_back()
        await churn.go_on()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert await churn.valid(churn.logged_in) == {True}
        assert await churn.valid(churn.logged_out) == {False}
