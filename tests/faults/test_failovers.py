"""Primaries are killed under a mixed load: nothing acknowledged is lost, and nothing revoked comes back."""

import asyncio
import logging
import os
import random
import time

import pytest
from tests.support.cluster import Cluster
from tests.support.load import OK
from tests.support.mixed_load import MixedLoad
from tests.support.promises import Breach
from tests.support.sentinel import Sentinels
from tests.support.service import ServeProcess

LONG = "CATRACA_TEST_LONG" in os.environ
ROUNDS = 20 if LONG else 2
ACKS = [1, 0] if LONG else [1]
CALLERS = 32

logger = logging.getLogger(__name__)


@pytest.mark.parametrize("replica_acks", ACKS)
@pytest.mark.parametrize("kind", ["sentinel", "cluster"])
async def test_primaries_are_killed(kind: str, replica_acks: int, request: pytest.FixtureRequest) -> None:
    """If one replica must acknowledge, nothing is lost or comes back; otherwise the log says what was lost."""
    nodes: Cluster | Sentinels = request.getfixturevalue(f"valkey_{kind}")
    await asyncio.to_thread(nodes.renew)
    dice = random.Random(replica_acks)  # noqa: S311  no secret
    async with ServeProcess(store_url=nodes.url, replica_acks=str(replica_acks)) as process:
        async with MixedLoad(process.target, callers=CALLERS) as load:
            begun = time.monotonic()
            for number in range(ROUNDS):
                await load.go_on(500)
                victim = dice.choice(nodes.primaries)
                killed = time.monotonic()
                victim.kill()
                await asyncio.to_thread(nodes.wait_for_takeover, victim)
                await load.go_on(500)
                logger.info("round %d: %s", number + 1, unavailability(load, killed))
                await asyncio.to_thread(nodes.heal)
            await load.go_on(500)
            seconds = time.monotonic() - begun
        broken = await load.check_all()
        log = process.log
    logger.info(
        "%s, replica_acks %d, %d rounds, %.0f operations/s", kind, replica_acks, ROUNDS, load.count(OK) / seconds
    )
    logger.info("\n%s", load.table())
    excused = set() if replica_acks else {Breach.LOST, Breach.REVIVED, Breach.OUTDATED}
    assert [each for each in broken if each.breach not in excused] == []
    assert "CRITICAL" not in log
    assert "Traceback" not in log


def unavailability(load: MixedLoad, killed: float) -> str:
    """Returns how many operations failed after a kill, and for how long."""
    failed = [each for each in load.outcomes if each.status != OK and each.ended >= killed]
    lasted = max((each.ended - killed for each in failed), default=0.0)
    return f"{len(failed)} operations failed, the last {lasted:.2f} s after the kill"
