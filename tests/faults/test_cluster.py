"""A cluster whose slots move and whose primaries die, stall and are replaced: calls are right, or fail for a moment."""

import asyncio
import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Literal

import pytest
import redis
from redis.exceptions import AskError
from tests.support.cluster import Cluster
from tests.support.load import load_in_process
from tests.support.nodes import NODE_TIMEOUT_MS, DataNode
from tests.support.operations import Service, service_on
from tests.support.valkey import Valkey
from tests.support.waiting import TIMEOUT_SECONDS, eventually_async

from catraca_server.operations.users import Login
from catraca_server.redis.cluster import Cluster as Link
from catraca_server.redis.dialer import RedisConnector
from catraca_server.redis.errors import StoreRefused, StoreUnavailable
from catraca_server.redis.url import Address, StoreUrl

SEED = Address("10.0.0.9", 7009)
LONG_TIMEOUT = "2s"
"""A store timeout for tests that are not about time."""

MARGIN_SECONDS = 0.75
"""Within which a call has to end after the store's timeout; long, because the machine may be slow."""

IN_ONE_SLOT = "{moving}"
"""A key prefix: all sessions are in the slot of what is in braces."""


@pytest.fixture
async def cluster(valkey_cluster: Cluster) -> Cluster:
    """The cluster, empty and healthy, whose nodes go on while a slot is uncovered."""
    await asyncio.to_thread(valkey_cluster.renew)
    for node in valkey_cluster.nodes:
        node.command("CONFIG SET", "cluster-require-full-coverage", "no")
    return valkey_cluster


@pytest.fixture
def stable_cluster(cluster: Cluster) -> Iterator[Cluster]:
    """The same, and no replica takes over from a node that is only slow."""
    for node in cluster.nodes:
        node.command("CONFIG SET", "cluster-node-timeout", 30_000)
    yield cluster
    for node in cluster.nodes:
        node.command("CONFIG SET", "cluster-node-timeout", NODE_TIMEOUT_MS)


async def logged_in(service: Service, cluster: Cluster, per_primary: int = 2) -> dict[DataNode, list[Login]]:
    """Creates sessions until each primary has this many; returns them by primary, once its replica has them."""
    found: dict[DataNode, list[Login]] = {node: [] for node in cluster.primaries}
    while min(map(len, found.values())) < per_primary:
        login = await service.create()
        found[cluster.node_of(key_of(login))].append(login)
    for node in found:
        assert node.command("WAIT", 1, 5000) == 1
    return {node: logins[:per_primary] for node, logins in found.items()}


def key_of(login: Login, prefix: str = "") -> str:
    """Returns the key of a session."""
    return f"{prefix}session:{login.stored.session.session_id}"


def tokens_of(logins: Mapping[DataNode, list[Login]], *nodes: DataNode) -> list[str]:
    """Returns the tokens of the sessions on these nodes, or on all."""
    return [login.token for node in nodes or logins for login in logins[node]]


def connections_to(node: DataNode) -> int:
    """Returns how many connections a node has from services."""
    return sum(each["name"] == "catraca" for each in node.client.client_list())


# Slots that move


async def test_a_slot_moves_under_load(stable_cluster: Cluster) -> None:
    """Before, during and after the move every call about its sessions is OK and right."""
    cluster = stable_cluster
    target = next(node for node in cluster.primaries if node is not cluster.node_of(IN_ONE_SLOT))
    async with service_on(cluster.url, prefix=IN_ONE_SLOT, store_timeout=LONG_TIMEOUT) as service:
        logins = [await service.create() for _ in range(6)]
        async with load_in_process(service, [login.token for login in logins], lives=4) as load:
            for destination in (target, cluster.node_of(IN_ONE_SLOT)):
                move = cluster.moving(IN_ONE_SLOT, destination)
                await asyncio.to_thread(move.begin)
                await load.go_on()
                move.move_keys(*(key_of(login, IN_ONE_SLOT) for login in logins[:3]))
                await load.go_on()
                await asyncio.to_thread(move.move_keys)
                await load.go_on()
                await asyncio.to_thread(move.move_keys)
                await asyncio.to_thread(move.end)
                await load.go_on()
        assert load.failures() == []
        assert load.interrupted == []
        assert service.changes == [True]


async def test_sessions_are_found_on_both_nodes_of_a_moving_slot(stable_cluster: Cluster) -> None:
    """A batch over both nodes is right and in order, and what is written is written once."""
    cluster = stable_cluster
    source = cluster.node_of(IN_ONE_SLOT)
    target = next(node for node in cluster.primaries if node is not source)
    async with service_on(cluster.url, prefix=IN_ONE_SLOT, store_timeout=LONG_TIMEOUT) as service:
        logins = [await service.create(f"user-{number}") for number in range(8)]
        move = cluster.moving(IN_ONE_SLOT, target)
        await asyncio.to_thread(move.begin)
        move.move_keys(*(key_of(login, IN_ONE_SLOT) for login in logins[::2]))
        validations = await service.validate(*(login.token for login in logins))
        assert [validation.stored and validation.stored.session.user_id for validation in validations] == [
            f"user-{number}" for number in range(8)
        ]
        new = await service.create()
        with pytest.raises(AskError):
            source.command("GET", key_of(new, IN_ONE_SLOT))
        assert [await service.revoke(login) for login in logins[:4]] == [True] * 4
        assert [await service.is_valid(login.token) for login in (*logins, new)] == [False] * 4 + [True] * 5
        await asyncio.to_thread(move.move_keys)
        await asyncio.to_thread(move.end)
        assert [await service.is_valid(login.token) for login in (*logins, new)] == [False] * 4 + [True] * 5
        assert source.command("KEYS", f"{IN_ONE_SLOT}*") == []


async def test_a_batch_over_all_nodes_is_in_order(stable_cluster: Cluster) -> None:
    """However tokens are spread over the nodes, each validation is at the position of its token."""
    cluster = stable_cluster
    dice = random.Random(1)  # noqa: S311  no secret
    async with service_on(cluster.url, store_timeout=LONG_TIMEOUT) as service:
        logins = [await service.create(f"user-{number}") for number in range(150)]
        dice.shuffle(logins)
        assert {cluster.node_of(key_of(login)) for login in logins} == set(cluster.primaries)
        for login in logins[::3]:
            await service.revoke(login)
        validations = await service.validate(*(login.token for login in logins))
    expected = [None if at % 3 == 0 else login.stored.session.session_id for at, login in enumerate(logins)]
    assert [validation.stored and validation.stored.session.session_id for validation in validations] == expected


# Primaries that are lost and replaced


async def test_a_primary_is_killed(cluster: Cluster) -> None:
    """Its sessions are unavailable until a replica takes over, without a restart; the others always are available."""
    async with service_on(cluster.url, store_timeout="1s") as service:
        logins = await logged_in(service, cluster)
        lost = cluster.primaries[0]
        of_lost = tokens_of(logins, lost)
        of_others = tokens_of(logins, *(node for node in logins if node is not lost))
        async with load_in_process(service, tokens_of(logins)) as load:
            lost.kill()
            await service.reported(True, False)
            with pytest.raises(StoreUnavailable):
                await service.validate(*tokens_of(logins))
            heir = await asyncio.to_thread(cluster.wait_for_takeover, lost)
            await load.go_on()
            assert await service.is_available(*tokens_of(logins))
            await service.reported(True, False, True)
            # A node that returns has old data, and is not used.
            revoked = await service.create()
            while cluster.node_of(key_of(revoked)) is not heir:
                revoked = await service.create()
            assert await service.revoke(revoked)
            await asyncio.to_thread(cluster.heal)
            await load.go_on()
            assert not await service.is_valid(revoked.token)
            assert connections_to(lost) == 0
        assert load.failures(*of_others) == []
        assert load.failures(*of_lost) != []
        assert load.slowest_seconds() < service.timeout_seconds + MARGIN_SECONDS
        assert service.changes == [True, False, True]


@pytest.mark.parametrize("how", ["", "FORCE"], ids=["agreed", "forced"])
async def test_a_failover_under_load(stable_cluster: Cluster, how: Literal["", "FORCE"]) -> None:
    """An operator makes a replica the primary: some calls may be unavailable for a moment, and none is wrong."""
    cluster = stable_cluster
    async with service_on(cluster.url, store_timeout=LONG_TIMEOUT) as service:
        logins = await logged_in(service, cluster, per_primary=1)
        async with load_in_process(service, tokens_of(logins), lives=0 if how else 4) as load:
            old = cluster.primaries[0]
            (replica,) = cluster.replicas_of(old)
            await asyncio.to_thread(cluster.fail_over, replica, how)
            await load.go_on()
            assert cluster.node_of(key_of(logins[old][0])) is replica
        # Only requests that were in flight when the role was read.
        assert {each.token for each in load.failures()} <= set(tokens_of(logins, old))
        assert len(load.failures()) + len(load.interrupted) <= 8


async def test_a_primary_that_stalled_while_it_was_replaced(cluster: Cluster) -> None:
    """When it resumes it believes for a moment that it is the primary; what was revoked meanwhile is not valid."""
    async with service_on(cluster.url) as service:
        stalled = cluster.primaries[0]
        logins = (await logged_in(service, cluster, per_primary=5))[stalled]
        tokens = [login.token for login in logins]
        stalled.pause()
        await asyncio.to_thread(cluster.wait_for_takeover, stalled)
        await service.recovered(*tokens)
        for login in logins:
            assert await service.revoke(login)

        async def are_gone(service: Service) -> bool:
            with contextlib.suppress(StoreUnavailable):
                assert not any(validation.stored for validation in await service.validate(*tokens)), (
                    "a revoked session is valid"
                )
            with contextlib.suppress(redis.RedisError):
                return cluster.is_healthy()
            return False

        stalled.resume()
        with contextlib.suppress(StoreUnavailable):
            # A service that starts just now, and knows no other node.
            async with service_on(f"redis+cluster://{stalled.address}") as late:
                await eventually_async(lambda: are_gone(late), "the cluster is healthy again")
        await eventually_async(lambda: are_gone(service), "the cluster is healthy again")
        assert not any(validation.stored for validation in await service.validate(*tokens))


# Starting


async def test_it_starts_from_any_node_that_replies(cluster: Cluster) -> None:
    """Nodes in its URL may be down, stalled, or replicas: one that replies is enough."""
    one, other, _ = cluster.primaries
    (stalled_node,), (replica,) = cluster.replicas_of(one), cluster.replicas_of(other)
    stalled_node.pause()
    async with service_on(f"redis+cluster://127.0.0.1:1,{stalled_node.address},{replica.address}") as service:
        assert await service.is_valid((await service.create()).token)


@pytest.mark.parametrize("seeds", ["127.0.0.1:1", "127.0.0.1:1,127.0.0.1:2"])
async def test_it_does_not_start_without_any_node(seeds: str) -> None:
    """If no node replies, the error says why."""
    with pytest.raises(StoreUnavailable, match=r"no answer at redis://127\.0\.0\.1:1/"):
        async with service_on(f"redis+cluster://{seeds}"):
            pass


async def test_it_does_not_start_on_an_incomplete_cluster(cluster: Cluster) -> None:
    """If a primary is down and no replica takes over, the error says so, or how many slots are missing."""
    gone, other, _ = cluster.primaries
    cluster.replicas_of(gone)[0].kill()
    gone.kill()

    async def is_missed() -> bool:
        with pytest.raises(StoreUnavailable, match=r"no answer at|slots are on no node that is up") as caught:
            async with service_on(f"redis+cluster://{other.address}"):
                pass
        return "the cluster is not complete" in str(caught.value)

    await eventually_async(is_missed, "the cluster knows that a primary is missing")


async def test_it_does_not_start_on_what_is_not_a_cluster(cluster: Cluster, valkey: Valkey) -> None:
    """The URL of a single server for a cluster, or the other way round, is an error that says what to write."""
    with pytest.raises(StoreRefused, match=r"write redis\+cluster:// instead"):
        async with service_on(f"redis://{cluster.primaries[0].address}"):
            pass
    single = {SEED: RedisConnector(StoreUrl.parse(valkey.url), of_cluster=True, allow_replica=True)}
    with pytest.raises(StoreRefused, match="write redis:// instead"):
        await Link(single, single.__getitem__, timeout_seconds=TIMEOUT_SECONDS, on_change=lambda _: None).start()


async def test_it_does_not_start_as_a_user_who_may_not_run_cluster_nodes(cluster: Cluster) -> None:
    """Without that right no key can be found, and the error says so."""
    node = cluster.primaries[0]
    node.command("ACL SETUSER", "limited", "on", ">word", "~*", "+@all", "-cluster|nodes")
    with pytest.raises(StoreRefused, match="CLUSTER NODES"):
        async with service_on(f"redis+cluster://limited:word@{node.address}"):
            pass
    node.command("ACL DELUSER", "limited")
