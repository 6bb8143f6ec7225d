"""The fault kit itself: it can stop nodes and bring them back, and it notices broken promises."""

import pytest
from redis.exceptions import AskError, MovedError
from tests.support.cluster import Cluster
from tests.support.mixed_load import MixedLoad
from tests.support.promises import Breach, Fate
from tests.support.proxy import Proxy
from tests.support.sentinel import Sentinels
from tests.support.service import ServeProcess
from tests.support.valkey import BINARY, WHY_MISSING, Valkey

pytestmark = pytest.mark.skipif(BINARY is None, reason=WHY_MISSING)


def test_a_cluster_fails_over_and_heals(valkey_cluster: Cluster) -> None:
    """A replica takes over, with all data; the old primary follows it when it is back."""
    valkey_cluster.renew()
    valkey_cluster.command("key", "SET", "key", "value")
    valkey_cluster.command("key", "WAIT", 1, 0)
    lost = valkey_cluster.node_of("key")
    lost.kill()
    successor = valkey_cluster.wait_for_takeover(lost)
    assert successor is valkey_cluster.node_of("key")
    assert valkey_cluster.command("key", "GET", "key") == b"value"
    valkey_cluster.heal()
    assert valkey_cluster.replicas_of(successor) == [lost]


def test_a_slot_moves_step_by_step(valkey_cluster: Cluster) -> None:
    """The old node redirects requests for moved keys to the new one: first once, then for good."""
    valkey_cluster.renew()
    valkey_cluster.command("key", "SET", "key", "value")
    source = valkey_cluster.node_of("key")
    target = next(node for node in valkey_cluster.primaries if node is not source)
    move = valkey_cluster.moving("key", target)
    move.begin()
    assert source.command("GET", "key") == b"value"
    move.move_keys()
    with pytest.raises(AskError):
        source.command("GET", "key")
    move.end()
    with pytest.raises(MovedError):
        source.command("GET", "key")
    assert valkey_cluster.command("key", "GET", "key") == b"value"


def test_sentinels_fail_over_and_heal(valkey_sentinel: Sentinels) -> None:
    """A replica takes over, with all data; the old primary follows it when it is back."""
    valkey_sentinel.renew()
    valkey_sentinel.command("SET", "key", "value")
    valkey_sentinel.command("WAIT", 2, 0)
    lost = valkey_sentinel.primary
    lost.kill()
    successor = valkey_sentinel.wait_for_takeover(lost)
    assert successor.command("GET", "key") == b"value"
    valkey_sentinel.heal()
    assert valkey_sentinel.primary is successor


async def test_the_mixed_load_finds_nothing_if_nothing_is_wrong(valkey_sentinel: Sentinels) -> None:
    """Over a proxy that breaks its connections."""
    valkey_sentinel.renew()
    async with Proxy(valkey_sentinel.primary.port) as proxy, ServeProcess(store_url=proxy.url) as process:
        async with MixedLoad(process.target) as load:
            for _ in range(3):
                await load.go_on()
                proxy.reset()
            await load.go_on()
        assert not await load.check_all()
    assert {each.fate for each in load.sessions} >= {Fate.ALIVE, Fate.ENDED}


async def test_the_mixed_load_finds_broken_promises(own_valkey: Valkey) -> None:
    """Sessions in an earlier state, sessions of others, and sessions that are gone."""
    async with ServeProcess(store_url=own_valkey.url) as process:
        async with MixedLoad(process.target, update=8, rotate=0) as load:
            await load.go_on()
            backup = {key: own_valkey.command("DUMP", key) for key in own_valkey.command("KEYS", "session:*")}
            await load.go_on(400)
        for key, dumped in backup.items():
            own_valkey.command("RESTORE", key, 60_000, dumped, "REPLACE")
        assert {each.breach for each in await load.check_all()} == {Breach.REVIVED, Breach.OUTDATED}
        one, other, *_ = (each for each in load.sessions if each.fate is Fate.ALIVE)
        one.token, other.token = other.token, one.token
        assert {each.breach for each in await load.check_all()} == {Breach.REVIVED, Breach.OUTDATED, Breach.OTHERS}
        own_valkey.command("FLUSHALL")
        assert {each.breach for each in await load.check_all()} == {*Breach} - {Breach.FAILED}
