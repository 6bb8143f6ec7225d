"""Real clients with near caches, real servers and a real store, under faults: no revoked session is valid for long."""

import asyncio
import logging
import os
import random
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support import history_world as faults
from tests.support.history_world import FAULTS, Fault, World, befall
from tests.support.sentinel import Sentinels
from tests.support.session_history import BOUND_SECONDS, Breach, History
from tests.support.valkey import BINARY, WHY_MISSING, Valkey

from catraca._near_cache import SETTLE_SECONDS

LONG = "CATRACA_TEST_LONG" in os.environ
REVOCATIONS = 10_000 if LONG else 200
SEED = int(os.environ.get("CATRACA_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 16)

logger = logging.getLogger(__name__)

pytestmark = [
    pytest.mark.skipif(BINARY is None, reason=WHY_MISSING),
    pytest.mark.timeout(3600 if LONG else 300),
]


def told(history: History) -> str:
    """Returns the figures of a history."""
    lags = history.lags() or [0.0]
    p50, p99 = (lags[int(len(lags) * part)] for part in (0.5, 0.99))
    return (
        f"{len(history.records)} records, {history.revocations} revocations, {history.revoked_sessions} sessions; "
        f"valid after the acknowledgement, of {len(lags)}: p50 {p50:.4f} s, p99 {p99:.4f} s, longest {lags[-1]:.4f} s"
    )


async def run(world: World, chosen: Sequence[Fault]) -> None:
    """Has faults until there were enough revocations; checks what was seen."""
    async with world:
        await befall(world, chosen, pause_seconds=1.0)
        while world.history().revocations < REVOCATIONS:
            await befall(world, world.dice.sample(FAULTS, len(FAULTS)) if LONG else (faults.stall,), pause_seconds=1.0)
    history = world.history()
    logger.info("%s", told(history))
    assert history.violations()[:5] == []
    assert world.failures == []


def faults_for(seed: int) -> Sequence[Fault]:
    """Returns the faults of a run: all, or those that a short one has time for."""
    dice = random.Random(seed)  # noqa: S311  no secret
    return dice.sample(FAULTS, len(FAULTS)) if LONG else (faults.stop_server, *dice.sample(FAULTS, 2))


async def test_under_faults(own_valkey: Valkey, tmp_path: Path) -> None:
    """No near cache says "valid" later than the bound after a revocation was acknowledged."""
    print(f"again with: CATRACA_TEST_SEED={SEED}")  # noqa: T201  pytest shows it when the test fails
    await run(World(tmp_path, own_valkey, SEED), faults_for(SEED))


async def test_under_failovers(tmp_path: Path) -> None:
    """Neither where the store's primary is lost, and the end of the feed with it."""
    print(f"again with: CATRACA_TEST_SEED={SEED}")  # noqa: T201  pytest shows it when the test fails
    nodes = tmp_path / "nodes"
    nodes.mkdir()
    with Sentinels(nodes) as sentinels:
        chosen = faults_for(SEED) if LONG else (faults.kill_store,)
        await run(World(tmp_path, sentinels, SEED), chosen)


@pytest.mark.parametrize("broken", ["lease", "events"] if LONG else ["lease"])
async def test_a_broken_client_is_caught(broken: str, own_valkey: Valkey, tmp_path: Path) -> None:
    """One whose lease never ends says "valid" too late while its server is stopped; one without events, at any time."""
    world = World(tmp_path, own_valkey, SEED, clients=0)
    async with world:
        world.start_client(replace(world.plan(0), broken=broken, watches_only=True))
        # These use the other server.
        world.start_client(world.plan(3))
        world.start_client(world.plan(2))
        # What is kept in the first seconds of a stream is not kept for longer than a lease.
        await asyncio.sleep(SETTLE_SECONDS + 3)
        if broken == "lease":
            os.killpg(world.servers[0].pid, signal.SIGSTOP)
        await asyncio.sleep(BOUND_SECONDS + 3)
    violations = world.history().violations()
    assert Breach.LATE in {each.breach for each in violations} <= {Breach.LATE, Breach.ROTATED}
    assert all(each.seconds > BOUND_SECONDS for each in violations)


@pytest.mark.parametrize("broken", ["silent", "late"] if LONG else ["silent"])
async def test_a_broken_server_is_caught(broken: str, own_valkey: Valkey, tmp_path: Path) -> None:
    """One that does not tell of ends, or only after it has acknowledged them: leases are no help against it."""
    world = World(tmp_path, own_valkey, SEED, clients=0, broken=broken)
    async with world:
        world.start_client(replace(world.plan(0), watches_only=True))
        world.start_client(world.plan(3))
        world.start_client(world.plan(2))
        await asyncio.sleep(SETTLE_SECONDS + BOUND_SECONDS + 6)
    violations = world.history().violations()
    assert Breach.LATE in {each.breach for each in violations} <= {Breach.LATE, Breach.ROTATED}
    assert all(each.seconds > BOUND_SECONDS for each in violations)
