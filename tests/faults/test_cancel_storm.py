"""Thousands of cancelled calls in front of a slow store: nobody ever gets a response about somebody else."""

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

CALLS = 200_000 if os.environ.get("CATRACA_TEST_LONG") else 12_000
IN_FLIGHT = 64
USERS = 500
CANCELLING = 0.45
"""Share of the calls to cancel. Some of them end first, so that a third is cancelled."""

logger = logging.getLogger(__name__)


class Storm:
    """Validations by many callers at once, a third of them cancelled, every response checked against its request."""

    def __init__(self, target: str, users: Mapping[str, str]) -> None:
        self.outcomes: Counter[str] = Counter()
        self._typical_seconds = 0.05
        """How long a call takes on average."""
        self._target = target
        self._users = list(users.items())
        self._chance = random.Random(64)  # noqa: S311

    async def run(self, calls: int) -> None:
        """Makes this many calls."""
        numbers = iter(range(calls))
        async with grpc.aio.insecure_channel(self._target, [("grpc.enable_retries", 0)]) as channel:
            stub = SessionServiceStub(channel)

            async def caller() -> None:
                for _ in numbers:
                    await self._call(stub)

            await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))

    async def _call(self, stub: Any) -> None:
        token, user = self._chance.choice(self._users)
        # At any moment of the call, from before it is sent to after it has ended.
        cancel_after_seconds = self._chance.random() * self._typical_seconds * 1.2
        cancelling, by_deadline = self._chance.random() < CANCELLING, self._chance.random() < 0.5
        timeout = cancel_after_seconds if cancelling and by_deadline else 30
        call = stub.ValidateSession(pb.ValidateSessionRequest(token=token), timeout=timeout)
        if cancelling and not by_deadline:
            asyncio.get_running_loop().call_later(cancel_after_seconds, call.cancel)
        before = time.monotonic()
        try:
            response = await call
        except grpc.aio.AioRpcError as error:
            # A deadline that is nearly over may pass while the call waits for the store, which is UNAVAILABLE.
            late = cancelling and error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
            self.outcomes["cancelled" if late else error.code().name] += 1
        except asyncio.CancelledError:
            self.outcomes["cancelled"] += 1
        else:
            if response is None:
                # What grpc.aio returns if the deadline passes just as the response arrives.
                self.outcomes["cancelled"] += 1
                return
            self._typical_seconds += (time.monotonic() - before - self._typical_seconds) / 100
            self.outcomes["right" if response.valid and response.session.user_id == user else "wrong"] += 1


@pytest.mark.parametrize("kind", ["standalone", "sentinel", "cluster"])
def test_nobody_gets_the_response_of_another(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Of all calls, a third cancelled at random moments, each gets a response about its own user or none.

    The connections to the store survive, and no task is left.
    """
    # On the event loop that `catraca serve` has.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if kind == "standalone":
            runner.run(run_on_a_slow_store(request.getfixturevalue("valkey"), tmp_path))
        else:
            nodes: Cluster | Sentinels = request.getfixturevalue(f"valkey_{kind}")
            nodes.renew()
            runner.run(run_storm(nodes.url))


async def run_on_a_slow_store(valkey: Valkey, directory: Path) -> None:
    """Runs the storm on a store whose replies are delayed."""
    chance = random.Random(3)  # noqa: S311
    async with Proxy(valkey.socket, directory / "proxy.sock", delay=lambda: chance.random() * 0.01) as proxy:
        await run_storm(proxy.url, lambda: (proxy.accepted, proxy.connections) == (1, 1))


async def run_storm(store_url: str, keeps_its_connection: Callable[[], bool] = lambda: True) -> None:
    """Runs the storm, and asserts what must be true of its outcomes and afterwards."""
    async with serving(store_url=store_url, store_timeout="30s") as target:
        async with AsyncSessionClient(target, timeout=30) as sessions:
            users = {(await sessions.create(f"user-{n}")).token: f"user-{n}" for n in range(USERS)}
        storm = Storm(target, users)
        await storm.run(1_000)
        tasks = len(asyncio.all_tasks())

        async def is_over() -> bool:
            return len(asyncio.all_tasks()) <= tasks

        await storm.run(CALLS)
        logger.info("%d calls: %s", CALLS, dict(storm.outcomes))
        assert storm.outcomes["wrong"] == 0
        assert storm.outcomes.keys() <= {"right", "cancelled"}
        assert storm.outcomes["cancelled"] > CALLS / 5
        assert storm.outcomes["right"] > CALLS / 2
        await eventually_async(is_over, "no task is left")
        assert keeps_its_connection()
