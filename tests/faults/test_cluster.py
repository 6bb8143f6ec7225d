"""A cluster whose slots move and whose primaries die, sleep and are replaced: right answers, or none for a moment."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import redis
from redis.exceptions import AskError
from tests.support.asking import Asking, Service, service_on
from tests.support.cluster import Cluster, slot_of
from tests.support.fake_redis import HANG_UP, OK, FakeRedis, bulk, integer
from tests.support.multiplexers import in_seconds
from tests.support.nodes import NODE_TIMEOUT, DataNode
from tests.support.valkey import Valkey
from tests.support.waiting import PATIENCE, eventually_async

from catraca_server.operations.users import Login
from catraca_server.redis import cluster as cluster_link
from catraca_server.redis.cluster import REDIRECTIONS, Cluster as Link
from catraca_server.redis.dialer import RedisConnector
from catraca_server.redis.errors import StoreRefused, StoreUnavailable
from catraca_server.redis.link import KeyReads
from catraca_server.redis.multiplexer import Connector
from catraca_server.redis.slots import Claim, View
from catraca_server.redis.url import Address, StoreUrl

SEED = Address("10.0.0.9", 7009)
PATIENT = "2s"
"""A store timeout for tests that are not about time."""

NOTICE = 0.75
"""Seconds beyond the store's timeout within which an answer has to be there; much, because the machine is slow."""

IN_ONE_SLOT = "{moving}"
"""A key prefix: all sessions are in the slot of what is in braces."""


@pytest.fixture
async def cluster(valkey_cluster: Cluster) -> Cluster:
    """The cluster, empty and healthy, whose nodes answer even while a slot is uncovered."""
    await asyncio.to_thread(valkey_cluster.renew)
    for node in valkey_cluster.nodes:
        node.command("CONFIG SET", "cluster-require-full-coverage", "no")
    return valkey_cluster


@pytest.fixture
def calm_cluster(cluster: Cluster) -> Iterator[Cluster]:
    """The same, and no replica takes over from a node that only had no time to run."""
    for node in cluster.nodes:
        node.command("CONFIG SET", "cluster-node-timeout", 30_000)
    yield cluster
    for node in cluster.nodes:
        node.command("CONFIG SET", "cluster-node-timeout", NODE_TIMEOUT)


async def logged_in(service: Service, cluster: Cluster, each: int = 2) -> dict[DataNode, list[Login]]:
    """Creates sessions until each primary has so many; returns them by primary, once its replicas have them."""
    found: dict[DataNode, list[Login]] = {node: [] for node in cluster.primaries}
    while min(map(len, found.values())) < each:
        login = await service.create()
        found[cluster.node_of(key_of(login))].append(login)
    for node in found:
        assert node.command("WAIT", 1, 5000) == 1
    return {node: logins[:each] for node, logins in found.items()}


def key_of(login: Login, prefix: str = "") -> str:
    """Returns where a session is."""
    return f"{prefix}session:{login.stored.session.session_id}"


def tokens_of(logins: Mapping[DataNode, list[Login]], *nodes: DataNode) -> list[str]:
    """Returns the tokens of the sessions on these nodes, or on all."""
    return [login.token for node in nodes or logins for login in logins[node]]


def connections_to(node: DataNode) -> int:
    """Returns how many connections a node has from services."""
    return sum(each["name"] == "catraca" for each in node.client.client_list())


# Slots that move


async def test_a_slot_moves_under_load(calm_cluster: Cluster) -> None:
    """Before, during and after: every request about a session in it is answered, and right."""
    cluster = calm_cluster
    target = next(node for node in cluster.primaries if node is not cluster.node_of(IN_ONE_SLOT))
    async with service_on(cluster.url, prefix=IN_ONE_SLOT, store_timeout=PATIENT) as service:
        logins = [await service.create() for _ in range(6)]
        async with Asking(service, [login.token for login in logins], lives=4) as asking:
            for back_and_forth in (target, cluster.node_of(IN_ONE_SLOT)):
                move = cluster.moving(IN_ONE_SLOT, back_and_forth)
                await asyncio.to_thread(move.begin)
                await asking.go_on()
                move.move_keys(*(key_of(login, IN_ONE_SLOT) for login in logins[:3]))
                await asking.go_on()
                await asyncio.to_thread(move.move_keys)
                await asking.go_on()
                await asyncio.to_thread(move.move_keys)
                await asyncio.to_thread(move.end)
                await asking.go_on()
        assert asking.errors() == []
        assert asking.unavailable == []
        assert service.changes == [True]


async def test_what_has_been_moved_is_found_while_the_rest_has_not(calm_cluster: Cluster) -> None:
    """One batch over both nodes of a slot is right and in order, and what is written there is written once."""
    cluster = calm_cluster
    source = cluster.node_of(IN_ONE_SLOT)
    target = next(node for node in cluster.primaries if node is not source)
    async with service_on(cluster.url, prefix=IN_ONE_SLOT, store_timeout=PATIENT) as service:
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


async def test_a_batch_over_all_nodes_is_in_order(calm_cluster: Cluster) -> None:
    """However tokens are spread over the nodes, each validation is at the position of its token."""
    cluster = calm_cluster
    dice = random.Random(1)  # noqa: S311  no secret
    async with service_on(cluster.url, store_timeout=PATIENT) as service:
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
    """Its sessions are unavailable until a replica has taken over, without a restart; others never are."""
    async with service_on(cluster.url, store_timeout="1s") as service:
        logins = await logged_in(service, cluster)
        lost = cluster.primaries[0]
        of_lost = tokens_of(logins, lost)
        of_others = tokens_of(logins, *(node for node in logins if node is not lost))
        async with Asking(service, tokens_of(logins)) as asking:
            lost.kill()
            await service.told(True, False)
            with pytest.raises(StoreUnavailable):
                await service.validate(*tokens_of(logins))
            heir = await asyncio.to_thread(cluster.wait_for_takeover, lost)
            await asking.go_on()
            assert await service.answers(*tokens_of(logins))
            await service.told(True, False, True)
            # A node that comes back has old data, and is not used.
            revoked = await service.create()
            while cluster.node_of(key_of(revoked)) is not heir:
                revoked = await service.create()
            assert await service.revoke(revoked)
            await asyncio.to_thread(cluster.heal)
            await asking.go_on()
            assert not await service.is_valid(revoked.token)
            assert connections_to(lost) == 0
        assert asking.errors(*of_others) == []
        assert asking.errors(*of_lost) != []
        assert asking.longest() < service.timeout + NOTICE
        assert service.changes == [True, False, True]


@pytest.mark.parametrize("how", ["", "FORCE"], ids=["agreed", "forced"])
async def test_a_failover_under_load(calm_cluster: Cluster, how: Literal["", "FORCE"]) -> None:
    """An operator makes a replica the primary: some calls may be unavailable for a moment, and none is wrong."""
    cluster = calm_cluster
    async with service_on(cluster.url, store_timeout=PATIENT) as service:
        logins = await logged_in(service, cluster, each=1)
        async with Asking(service, tokens_of(logins), lives=0 if how else 4) as asking:
            old = cluster.primaries[0]
            (replica,) = cluster.replicas_of(old)
            await asyncio.to_thread(cluster.fail_over, replica, how)
            await asking.go_on()
            assert cluster.node_of(key_of(logins[old][0])) is replica
        # Requests that were in flight when the role was read.
        assert {each.token for each in asking.errors()} <= set(tokens_of(logins, old))
        assert len(asking.errors()) + len(asking.unavailable) <= 8


async def test_a_primary_that_slept_while_it_was_replaced(cluster: Cluster) -> None:
    """It wakes up and takes itself for the primary for a moment; what was revoked meanwhile is not valid there."""
    async with service_on(cluster.url) as service:
        slept = cluster.primaries[0]
        logins = (await logged_in(service, cluster, each=5))[slept]
        tokens = [login.token for login in logins]
        slept.pause()
        await asyncio.to_thread(cluster.wait_for_takeover, slept)
        await service.recovered(*tokens)
        for login in logins:
            assert await service.revoke(login)

        async def are_gone(asked: Service) -> bool:
            with contextlib.suppress(StoreUnavailable):
                assert not any(validation.stored for validation in await asked.validate(*tokens)), (
                    "a revoked session is valid"
                )
            with contextlib.suppress(redis.RedisError):
                return cluster.is_healthy()
            return False

        slept.resume()
        with contextlib.suppress(StoreUnavailable):
            # A service that starts just then, and knows no other node.
            async with service_on(f"redis+cluster://{slept.address}") as late:
                await eventually_async(lambda: are_gone(late), "all is as it was")
        await eventually_async(lambda: are_gone(service), "all is as it was")
        assert not any(validation.stored for validation in await service.validate(*tokens))


# Starting


async def test_it_starts_from_whichever_node_answers(cluster: Cluster) -> None:
    """Some of the nodes in its URL may be gone, asleep, or replicas: one that answers is enough."""
    one, other, _ = cluster.primaries
    (asleep,), (replica,) = cluster.replicas_of(one), cluster.replicas_of(other)
    asleep.pause()
    async with service_on(f"redis+cluster://127.0.0.1:1,{asleep.address},{replica.address}") as service:
        assert await service.is_valid((await service.create()).token)


@pytest.mark.parametrize("seeds", ["127.0.0.1:1", "127.0.0.1:1,127.0.0.1:2"])
async def test_it_does_not_start_without_any(seeds: str) -> None:
    """If no node answers, the error says why."""
    with pytest.raises(StoreUnavailable, match=r"no answer at redis://127\.0\.0\.1:1/"):
        async with service_on(f"redis+cluster://{seeds}"):
            pass


async def test_it_does_not_start_on_a_part(cluster: Cluster) -> None:
    """If a primary is gone and no replica takes over, the error says so, or how many slots are missing."""
    gone, other, _ = cluster.primaries
    cluster.replicas_of(gone)[0].kill()
    gone.kill()

    async def is_missed() -> bool:
        with pytest.raises(StoreUnavailable, match=r"no answer at|slots are on no node that is up") as caught:
            async with service_on(f"redis+cluster://{other.address}"):
                pass
        return "the cluster is not complete" in str(caught.value)

    await eventually_async(is_missed, "the cluster knows that a part is missing")


async def test_it_does_not_start_on_what_is_not_a_cluster(cluster: Cluster, valkey: Valkey) -> None:
    """A single server and a cluster are not taken for each other, and the error says what to write."""
    with pytest.raises(StoreRefused, match=r"write redis\+cluster:// instead"):
        async with service_on(f"redis://{cluster.primaries[0].address}"):
            pass
    single = {SEED: RedisConnector(StoreUrl.parse(valkey.url), of_cluster=True, allow_replica=True)}
    with pytest.raises(StoreRefused, match="write redis:// instead"):
        await Link(single, single.__getitem__, timeout_seconds=PATIENCE, on_change=lambda _: None).start()


async def test_it_does_not_start_as_a_user_who_may_not_run_cluster_nodes(cluster: Cluster) -> None:
    """Without that right no key can be found, and the error says so."""
    node = cluster.primaries[0]
    node.command("ACL SETUSER", "limited", "on", ">word", "~*", "+@all", "-cluster|nodes")
    with pytest.raises(StoreRefused, match="CLUSTER NODES"):
        async with service_on(f"redis+cluster://limited:word@{node.address}"):
            pass
    node.command("ACL DELUSER", "limited")


# Nodes that behave as no real one can be made to


class FakeCluster:
    """Nodes that behave as a test wants. By default all of them have the same view of the slots."""

    def __init__(self, directory: Path, *names: str) -> None:
        self.nodes = {name: FakeRedis(directory / name, self._answering(name)) for name in names}
        for fake in self.nodes.values():
            fake.info["cluster_enabled"] = "1"
        self.default = ""
        """How nodes reply to CLUSTER NODES."""
        self.views: dict[str, str] = {}
        """How single nodes reply that have another view."""
        self.reply: Callable[[str, list[bytes]], bytes | None] = naming
        """How a node replies to any other command."""
        self.asleep = ""
        """The node that does not reply at all."""

    @staticmethod
    def text(*owners: tuple[str, str], epoch: int = 1) -> str:
        """Returns a reply to CLUSTER NODES in which nodes have slots."""
        return "".join(
            f"id-{name} {name}:7000@17000 master - 0 0 {epoch} connected {slots}\n" for name, slots in owners
        )

    def give(self, *owners: tuple[str, str], epoch: int = 1) -> None:
        """Gives slots to nodes."""
        self.default = self.text(*owners, epoch=epoch)

    @asynccontextmanager
    async def link(self, seed: str, timeout: float = PATIENCE) -> AsyncIterator["FakeLink"]:
        """Runs all nodes, and a link with one of them as its seed."""
        async with AsyncExitStack() as stack:
            for fake in self.nodes.values():
                await stack.enter_async_context(fake)
            changes: list[bool] = []
            first = Address(seed, 7000)
            link = Link(
                {first: self._connector(first)}, self._connector, timeout_seconds=timeout, on_change=changes.append
            )
            stack.push_async_callback(link.stop)
            await link.start()
            yield FakeLink(link, changes)

    def requests_to(self, name: str) -> list[bytes]:
        """Returns the commands about keys that a node received."""
        return [command[0] for command in self.nodes[name].commands if command[0] in (b"GET", b"ASKING")]

    def refreshes(self, name: str) -> int:
        """Returns how often a node was asked for its view."""
        return sum(command[0] == b"CLUSTER" for command in self.nodes[name].commands)

    def _connector(self, address: Address) -> Connector:
        return RedisConnector(StoreUrl.parse(self.nodes[address.host].url), of_cluster=True)

    def _answering(self, name: str) -> Callable[[list[bytes]], bytes | None]:
        def answer(command: list[bytes]) -> bytes | None:
            if name == self.asleep:
                return b""
            if command[0] == b"CLUSTER":
                return bulk(self.views.get(name, self.default).encode())
            return self.reply(name, command)

        return answer


@dataclass
class FakeLink:
    """A link to fake nodes, and what it reported."""

    link: Link
    changes: list[bool]

    async def get(self, *keys: str) -> list[str]:
        """Reads keys; by default one whose slot is in the second half."""
        requests = [(key, [("GET", key)]) for key in keys or (KEY,)]
        return [replies.get(0, bytes).decode() for replies in await self.link.execute(requests, in_seconds(PATIENCE))]

    async def comes_from(self, name: str) -> None:
        """Waits until the reply comes from this node; nodes reply with their names."""

        async def does() -> bool:
            with contextlib.suppress(StoreUnavailable):
                return await self.get() == [name]
            return False

        await eventually_async(does, f"{name} has the slot")

    async def reported(self, *changes: bool) -> None:
        """Waits until it has reported exactly this: connected or not."""

        async def has_reported() -> bool:
            return self.changes == [*changes]

        await eventually_async(has_reported, f"reported {changes}")


KEY, OTHER_KEY = "key", "b"
ALL, FIRST_HALF, LAST_HALF = "0-16383", "0-8191", "8192-16383"


def naming(name: str, command: list[bytes]) -> bytes | None:
    """Replies to GET with the node's own name."""
    return bulk(name.encode()) if command[0] == b"GET" else None


@pytest.fixture
def frequent_refreshes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refreshes the map more often than a server does."""
    monkeypatch.setattr(cluster_link, "REFRESH_PAUSE_SECONDS", 0.1)


async def test_a_repeated_request_that_is_redirected(tmp_path: Path) -> None:
    """Its first sending may have been executed where the slot was then, and the replies from its new place say so."""
    fakes = FakeCluster(tmp_path, "one", "two")
    hang_ups = [HANG_UP]
    fakes.reply = lambda name, command: (
        (hang_ups.pop() if hang_ups else b"-MOVED %d two:7000\r\n" % slot_of(KEY))
        if (name, command[0]) == ("one", b"GET")
        else naming(name, command)
    )
    fakes.give(("one", ALL))
    async with fakes.link("one") as link:
        (replies,) = await link.link.execute([(KEY, [("GET", KEY)])], in_seconds(PATIENCE))
        assert (replies.values, replies.repeated) == ([b"two"], True)


READS = KeyReads("GET", "PEXPIRETIME")


async def read(link: FakeLink, *keys: str) -> dict[str, list[object]]:
    """Reads keys together. Returns what was read of each."""
    parts = await link.link.read(keys, READS, in_seconds(PATIENCE))
    found = {
        keys[at]: [*replies.values[2 * n : 2 * n + 2]] for positions, replies in parts for n, at in enumerate(positions)
    }
    assert sum(len(positions) for positions, _ in parts) == len(keys)
    return found


@pytest.mark.parametrize("word", [b"MOVED", b"ASK"])
async def test_reading_many_follows_each_key(word: bytes, tmp_path: Path) -> None:
    """Of keys that are read together, those whose slot has moved, or is moving, are read where they are now."""
    fakes = FakeCluster(tmp_path, "one", "two")

    def reply(name: str, command: list[bytes]) -> bytes | None:
        if command[0] not in (b"GET", b"PEXPIRETIME"):
            return OK if command[0] == b"ASKING" else None
        if (name, command[1]) == ("one", KEY.encode()):
            return b"-%s %d two:7000\r\n" % (word, slot_of(KEY))
        return bulk(name.encode()) if command[0] == b"GET" else integer(len(name))

    fakes.reply = reply
    fakes.give(("one", ALL))
    async with fakes.link("one") as link:
        expected = {KEY: [b"two", 3], OTHER_KEY: [b"one", 3]}
        for _ in range(2):
            assert await read(link, OTHER_KEY, KEY) == expected
            assert await read(link, KEY, OTHER_KEY) == expected


async def test_each_node_is_asked_for_its_own_keys(tmp_path: Path) -> None:
    """Keys on different nodes are read at once, each node for its own; and `together` says which those are."""
    fakes = FakeCluster(tmp_path, "one", "two")
    fakes.reply = lambda name, command: (
        bulk(name.encode()) if command[0] == b"GET" else integer(1) if command[0] == b"PEXPIRETIME" else None
    )
    fakes.give(("one", FIRST_HALF), ("two", LAST_HALF))
    async with fakes.link("one") as link:
        assert await read(link, KEY, OTHER_KEY) == {KEY: [b"two", 1], OTHER_KEY: [b"one", 1]}
        groups = link.link.together([KEY, OTHER_KEY, KEY, OTHER_KEY])
        assert sorted(map(list, groups)) == [[0, 2], [1, 3]]
        assert [fakes.requests_to(name) for name in ("one", "two")] == [[b"GET"], [b"GET"]]


@pytest.mark.usefixtures("frequent_refreshes")
async def test_nodes_without_slots_are_dropped(tmp_path: Path) -> None:
    """However often slots move from node to node, nothing is left behind: no connection and no task."""
    fakes = FakeCluster(tmp_path, "one", "two", "three")
    fakes.give(("one", ALL))
    async with fakes.link("one") as link:

        async def only_one_is_connected_to() -> bool:
            connected = {name: fake.connections for name, fake in fakes.nodes.items() if fake.connections}
            # A task for each: the test, the refreshes, the node's owner, and the fake's end of the connection.
            return list(connected.values()) == [1] and len(asyncio.all_tasks()) == 4

        for epoch in range(2, 8):
            owner = ("one", "two", "three")[epoch % 3]
            fakes.give((owner, ALL), epoch=epoch)
            await link.comes_from(owner)
            await eventually_async(only_one_is_connected_to, "only one node is connected to")
        assert link.changes == [True]
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.usefixtures("frequent_refreshes")
async def test_a_node_that_gets_its_first_slot_is_kept(tmp_path: Path) -> None:
    """Until the move is over it has no slots, and yet gets requests all the time: over one connection, which stays."""
    fakes = FakeCluster(tmp_path, "old", "new")
    ask = b"-ASK %d new:7000\r\n" % slot_of(KEY)
    fakes.reply = lambda name, command: ask if (name, command[0]) == ("old", b"GET") else naming(name, command)
    fakes.give(("old", ALL))
    async with fakes.link("old") as link:

        async def is_looked_at() -> bool:
            assert await link.get() == ["new"]
            return fakes.refreshes("old") >= 5

        await eventually_async(is_looked_at, "the cluster was looked at some more times")
        assert fakes.nodes["new"].connected == 1
        assert fakes.requests_to("new")[:2] == [b"ASKING", b"GET"]


@pytest.mark.parametrize("word", [b"MOVED", b"ASK"])
async def test_nodes_that_redirect_to_each_other(word: bytes, tmp_path: Path) -> None:
    """They are not followed for ever: the session is unavailable."""
    fakes = FakeCluster(tmp_path, "one", "two")
    other = {"one": b"two", "two": b"one"}
    fakes.reply = lambda name, command: (
        b"-%s %d %s:7000\r\n" % (word, slot_of(KEY), other[name]) if command[0] == b"GET" else None
    )
    fakes.give(("one", ALL))
    async with fakes.link("one") as link:
        for keys in ((KEY,), (KEY, OTHER_KEY)):
            with pytest.raises(StoreUnavailable, match="redirect to each other without end"):
                await link.get(*keys)
        times = [command for name in other for command in fakes.requests_to(name) if command == b"GET"]
        assert len(times) <= 3 * (REDIRECTIONS + 1)


async def test_a_redirection_without_a_host(tmp_path: Path) -> None:
    """A node may redirect to another port of its own host, as Redis 7 does if configured to."""
    fakes = FakeCluster(tmp_path, "one")
    rest = [b"-MOVED %d :7000\r\n" % slot_of(KEY), bulk(b"found")]
    fakes.reply = lambda _, command: rest.pop(0) if command[0] == b"GET" else None
    fakes.give(("one", ALL))
    async with fakes.link("one") as link:
        assert await link.get() == ["found"]


@pytest.mark.usefixtures("frequent_refreshes")
async def test_an_older_view_does_not_override_a_newer_one(tmp_path: Path) -> None:
    """A node that has not heard of a failover yet, or slept through it, is not believed."""
    fakes = FakeCluster(tmp_path, "old", "new")
    fakes.give(("old", ALL), epoch=1)
    async with fakes.link("old") as link:
        fakes.give(("old", FIRST_HALF), ("new", LAST_HALF), epoch=2)
        await link.comes_from("new")
        fakes.views = {"old": fakes.text(("old", ALL), epoch=1)}
        looks = fakes.refreshes("old")

        async def is_looked_at() -> bool:
            assert await link.get() == ["new"]
            return fakes.refreshes("old") >= looks + 2

        await eventually_async(is_looked_at, "the old node has told its view some more times")


async def test_a_node_that_was_replaced_while_it_slept_is_not_asked(tmp_path: Path) -> None:
    """When a lost node answers again, the others are asked first whether it still has its slots."""
    fakes = FakeCluster(tmp_path, "slept", "other")
    fakes.give(("slept", LAST_HALF), ("other", FIRST_HALF))

    def replaced(name: str, command: list[bytes]) -> bytes | None:
        # By the time of its first reply.
        if name == "slept" and command[0] == b"INFO":
            fakes.views = {"slept": fakes.default}
            fakes.give(("other", ALL), epoch=2)
        return naming(name, command)

    async with fakes.link("other", timeout=0.25) as link:
        await link.comes_from("slept")
        fakes.asleep = "slept"
        await link.reported(True, False)
        fakes.nodes["slept"].commands.clear()
        fakes.reply, fakes.asleep = replaced, ""
        await link.comes_from("other")
        await link.reported(True, False, True)
        assert fakes.requests_to("slept") == []


async def test_its_health_follows_the_cluster(tmp_path: Path) -> None:
    """It is disconnected as long as some slots cannot be reached, and requests about others are answered meanwhile."""
    fakes = FakeCluster(tmp_path, "one", "two", "three")
    fakes.give(("one", FIRST_HALF), ("two", LAST_HALF))
    async with fakes.link("one", timeout=0.25) as link:
        await link.comes_from("two")
        fakes.asleep = "two"
        await link.reported(True, False)
        assert await link.get(OTHER_KEY) == ["one"]
        fakes.give(("one", FIRST_HALF), ("three", LAST_HALF), epoch=2)
        await link.reported(True, False, True)
        assert await link.get(KEY, OTHER_KEY) == ["three", "one"]


@pytest.mark.usefixtures("frequent_refreshes")
async def test_all_nodes_may_be_replaced_while_nobody_looks(tmp_path: Path) -> None:
    """When no node that it knows is a primary any more, the seeds are asked again."""
    fakes = FakeCluster(tmp_path, "seed", "one", "two")
    fakes.give(("one", ALL))
    async with fakes.link("seed", timeout=0.25) as link:
        await link.comes_from("one")
        await fakes.nodes["one"].close()
        fakes.give(("two", ALL), epoch=2)
        await link.comes_from("two")
        await link.reported(True, False, True)


# Views

REDIS_6 = b"""\
07c3 127.0.0.1:30004@31004 slave e7d1 0 1426238317239 4 connected
67ed 127.0.0.1:30002@31002 master - 0 1426238316232 2 connected 5461-10922
292f 127.0.0.1:30003@31003 master,fail? - 0 1426238318243 3 connected 10923-16383
6ec2 127.0.0.1:30005@31005 master,fail - 1426238316232 0 5 disconnected 9 10-12
e7d1 :30001@31001 myself,master - 0 0 1 connected 0-5459 5460 [93->-67ed] [77-<-292f]
824f :0@0 master,noaddr - 1426238316232 0 6 disconnected 20-30
0000 127.0.0.1:30009@31009 handshake - 0 0 0 disconnected
"""
REDIS_7 = b"""\
67ed 10.0.0.1:6379@16379,one.example master - 0 1426238316232 2 connected 0-16383
07c3 10.0.0.2:6379@16379,two.example slave 67ed 0 1426238317239 2 connected
"""
VALKEY_9 = b"""\
67ed 2001:db8::1:6379@16379,one.example,shard-id=69bc080733d1355567173199 myself,master - 0 0 7 connected 1 3-4
07c3 2001:db8::2:6379@16379,,shard-id=69bc080733d1355567173188 master - 0 1426238317239 8 connected
"""


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        (
            REDIS_6,
            {
                Claim(Address("127.0.0.1", 30002), 2, (range(5461, 10923),)),
                Claim(Address("127.0.0.1", 30003), 3, (range(10923, 16384),)),
                Claim(Address("10.0.0.9", 30001), 1, (range(5460), range(5460, 5461))),
            },
        ),
        (REDIS_7, {Claim(Address("10.0.0.1", 6379), 2, (range(16384),))}),
        (
            VALKEY_9,
            {
                Claim(Address("2001:db8::1", 6379), 7, (range(1, 2), range(3, 5))),
                Claim(Address("2001:db8::2", 6379), 8, ()),
            },
        ),
        (b"", set()),
    ],
    ids=["Redis 6.2", "Redis 7", "Valkey 9", "nothing"],
)
def test_a_view_is_read(text: bytes, claims: set[Claim]) -> None:
    """A view has the primaries that are up, with their slots; slots that are moving still belong to their source."""
    assert View.read(text, SEED).claims == claims


@pytest.mark.parametrize(
    "text",
    [
        b"\xff",
        b"what?",
        b"\n",
        b"a b master",
        b"67ed :@ master - 0 0 7 connected",
        b"67ed h:1 master - 0 0 x connected",
        b"67ed h:1 master - 0 0 7 connected x-y",
    ],
)
def test_what_is_no_view_is_none(text: bytes) -> None:
    """A view that cannot be read says nothing."""
    with pytest.raises(StoreUnavailable):
        View.read(text, SEED)
