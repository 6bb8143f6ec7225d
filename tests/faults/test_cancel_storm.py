"""Callers that lose patience by the thousand, in front of a slow store: nobody ever gets somebody else's answer."""

import asyncio
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvloop
from tests.support.cluster import Cluster
from tests.support.inprocess import serving
from tests.support.proxy import Proxy
from tests.support.sentinel import Sentinels
from tests.support.valkey import Valkey
from tests.support.waiting import eventually_async

from catraca import AsyncSessionClient
from catraca.v1 import session_service_pb2 as pb
from catraca.v1.session_service_pb2_grpc import SessionServiceStub

CALLS = 200_000 if os.environ.get("CATRACA_TEST_LONG") else 20_000
IN_FLIGHT = 64
USERS = 500
IMPATIENT = 0.45
"""Of the callers; some of them are answered before they have lost their patience, so that a third is cancelled."""

logger = logging.getLogger(__name__)


class Storm:
    """Validations by many callers at once, a third of them cancelled, every answer checked against who asked."""

    def __init__(self, target: str, users: Mapping[str, str]) -> None:
        self.outcomes: Counter[str] = Counter()
        self._typical = 0.05
        """Seconds that a call takes."""
        self._target = target
        self._users = list(users.items())
        self._chance = random.Random(64)  # noqa: S311

    async def blow(self, calls: int) -> None:
        """Makes so many calls."""
        numbers = iter(range(calls))
        async with grpc.aio.insecure_channel(self._target, [("grpc.enable_retries", 0)]) as channel:
            stub = SessionServiceStub(channel)

            async def caller() -> None:
                for _ in numbers:
                    await self._call(stub)

            await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))

    async def _call(self, stub: Any) -> None:
        token, user = self._chance.choice(self._users)
        # At any moment of the call's life, from before it is sent to after it is answered.
        patience = self._chance.random() * self._typical * 1.2
        impatient, by_deadline = self._chance.random() < IMPATIENT, self._chance.random() < 0.5
        timeout = patience if impatient and by_deadline else 30
        call = stub.ValidateSession(pb.ValidateSessionRequest(token=token), timeout=timeout)
        if impatient and not by_deadline:
            asyncio.get_running_loop().call_later(patience, call.cancel)
        before = time.monotonic()
        try:
            response = await call
        except grpc.aio.AioRpcError as error:
            # A deadline that has all but passed is over before the store is asked, which says so.
            late = impatient and error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
            self.outcomes["cancelled" if late else error.code().name] += 1
        except asyncio.CancelledError:
            self.outcomes["cancelled"] += 1
        else:
            if response is None:
                # What grpc.aio gives for a call whose deadline passes just as its answer comes.
                self.outcomes["cancelled"] += 1
                return
            self._typical += (time.monotonic() - before - self._typical) / 100
            self.outcomes["right" if response.valid and response.session.user_id == user else "wrong"] += 1


@pytest.mark.parametrize("kind", ["standalone", "sentinel", "cluster"])
def test_nobody_gets_the_answer_of_another(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Of all the calls, a third cancelled at random moments, each is answered about its own user or not at all.

    The connections to the store outlive them all, and nothing of them remains.
    """
    # On the event loop that `catraca serve` has.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if kind == "standalone":
            runner.run(weather_behind_a_slow_line(request.getfixturevalue("valkey"), tmp_path))
        else:
            nodes: Cluster | Sentinels = request.getfixturevalue(f"valkey_{kind}")
            nodes.renew()
            runner.run(weather(nodes.url))


async def weather_behind_a_slow_line(valkey: Valkey, directory: Path) -> None:
    """Lets the storm blow over a store that takes its time."""
    chance = random.Random(3)  # noqa: S311
    async with Proxy(valkey.socket, directory / "proxy.sock", delay=lambda: chance.random() * 0.01) as proxy:
        await weather(proxy.url, lambda: (proxy.accepted, proxy.connections) == (1, 1))


async def weather(store_url: str, is_undisturbed: Callable[[], bool] = lambda: True) -> None:
    """Lets the storm blow, and looks at what it leaves."""
    async with serving(store_url=store_url, store_timeout="30s") as target:
        async with AsyncSessionClient(target, timeout=30) as sessions:
            users = {(await sessions.create(f"user-{n}")).token: f"user-{n}" for n in range(USERS)}
        storm = Storm(target, users)
        await storm.blow(1_000)
        tasks = len(asyncio.all_tasks())

        async def quiet() -> bool:
            return len(asyncio.all_tasks()) <= tasks

        await storm.blow(CALLS)
        logger.info("%d calls: %s", CALLS, dict(storm.outcomes))
        assert storm.outcomes["wrong"] == 0
        assert storm.outcomes.keys() <= {"right", "cancelled"}
        assert storm.outcomes["cancelled"] > CALLS / 5
        assert storm.outcomes["right"] > CALLS / 2
        await eventually_async(quiet, "no task remains of it")
        assert is_undisturbed()
