"""A cluster whose nodes contradict each other, redirect without end or are replaced unseen: played by fakes."""

import asyncio
from pathlib import Path

import pytest
from tests.support.cluster import slot_of
from tests.support.fake_cluster import (
    ALL,
    FIRST_HALF,
    KEY,
    LAST_HALF,
    OTHER_KEY,
    FakeCluster,
    FakeLink,
    reply_with_name,
)
from tests.support.fake_redis import HANG_UP, OK, bulk, integer
from tests.support.multiplexers import in_seconds
from tests.support.waiting import TIMEOUT_SECONDS, eventually_async

from catraca_server.redis import cluster as cluster_link
from catraca_server.redis.cluster import REDIRECTIONS
from catraca_server.redis.errors import StoreUnavailable
from catraca_server.redis.link import KeyReads


@pytest.fixture
def frequent_refreshes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the map refreshed more often than by default."""
    monkeypatch.setattr(cluster_link, "REFRESH_PAUSE_SECONDS", 0.1)


async def test_a_repeated_request_that_is_redirected(tmp_path: Path) -> None:
    """It may have been executed where the slot was before, and the replies of the new node say so."""
    fakes = FakeCluster(tmp_path, "one", "two")
    hang_ups = [HANG_UP]
    fakes.reply_of = lambda name, command: (
        (hang_ups.pop() if hang_ups else b"-MOVED %d two:7000\r\n" % slot_of(KEY))
        if (name, command[0]) == ("one", b"GET")
        else reply_with_name(name, command)
    )
    fakes.give(("one", ALL))
    async with fakes.link("one") as link:
        (replies,) = await link.link.execute([(KEY, [("GET", KEY)])], in_seconds(TIMEOUT_SECONDS))
        assert (replies.values, replies.repeated) == ([b"two"], True)


READS = KeyReads("GET", "PEXPIRETIME")


async def read(link: FakeLink, *keys: str) -> dict[str, list[object]]:
    """Reads keys together. Returns what was read of each."""
    parts = await link.link.read(keys, READS, in_seconds(TIMEOUT_SECONDS))
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

    fakes.reply_of = reply
    fakes.give(("one", ALL))
    async with fakes.link("one") as link:
        expected = {KEY: [b"two", 3], OTHER_KEY: [b"one", 3]}
        for _ in range(2):
            assert await read(link, OTHER_KEY, KEY) == expected
            assert await read(link, KEY, OTHER_KEY) == expected


async def test_each_node_is_asked_for_its_own_keys(tmp_path: Path) -> None:
    """Keys on different nodes are read at once, each node for its own; and `together` says which those are."""
    fakes = FakeCluster(tmp_path, "one", "two")
    fakes.reply_of = lambda name, command: (
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
    """However often slots move, no connection and no task is left of the nodes that had them."""
    fakes = FakeCluster(tmp_path, "one", "two", "three")
    fakes.give(("one", ALL))
    async with fakes.link("one") as link:

        async def only_one_is_connected_to() -> bool:
            connected = {name: fake.connections for name, fake in fakes.nodes.items() if fake.connections}
            # Tasks of the test, the refreshes, the node's multiplexer, and the fake's end of the connection.
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
    """Until the move is over it has no slots, and yet gets requests all the time, over one connection."""
    fakes = FakeCluster(tmp_path, "old", "new")
    ask = b"-ASK %d new:7000\r\n" % slot_of(KEY)
    fakes.reply_of = lambda name, command: (
        ask if (name, command[0]) == ("old", b"GET") else reply_with_name(name, command)
    )
    fakes.give(("old", ALL))
    async with fakes.link("old") as link:

        async def is_refreshed() -> bool:
            assert await link.get() == ["new"]
            return fakes.refreshes("old") >= 5

        await eventually_async(is_refreshed, "the map is refreshed some more times")
        assert fakes.nodes["new"].connected == 1
        assert fakes.requests_to("new")[:2] == [b"ASKING", b"GET"]


@pytest.mark.parametrize("word", [b"MOVED", b"ASK"])
async def test_nodes_that_redirect_to_each_other(word: bytes, tmp_path: Path) -> None:
    """They are not followed forever: the session is unavailable."""
    fakes = FakeCluster(tmp_path, "one", "two")
    other = {"one": b"two", "two": b"one"}
    fakes.reply_of = lambda name, command: (
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
    fakes.reply_of = lambda _, command: rest.pop(0) if command[0] == b"GET" else None
    fakes.give(("one", ALL))
    async with fakes.link("one") as link:
        assert await link.get() == ["found"]


@pytest.mark.usefixtures("frequent_refreshes")
async def test_an_older_view_does_not_override_a_newer_one(tmp_path: Path) -> None:
    """A node that does not know of a failover yet is not believed."""
    fakes = FakeCluster(tmp_path, "old", "new")
    fakes.give(("old", ALL), epoch=1)
    async with fakes.link("old") as link:
        fakes.give(("old", FIRST_HALF), ("new", LAST_HALF), epoch=2)
        await link.comes_from("new")
        fakes.views = {"old": fakes.text(("old", ALL), epoch=1)}
        refreshes = fakes.refreshes("old")

        async def is_refreshed() -> bool:
            assert await link.get() == ["new"]
            return fakes.refreshes("old") >= refreshes + 2

        await eventually_async(is_refreshed, "the old node is queried some more times")


async def test_a_node_that_was_replaced_while_it_stalled_is_not_used(tmp_path: Path) -> None:
    """When a lost node replies again, the others are queried first whether it still has its slots."""
    fakes = FakeCluster(tmp_path, "stalled", "other")
    fakes.give(("stalled", LAST_HALF), ("other", FIRST_HALF))

    def replaced(name: str, command: list[bytes]) -> bytes | None:
        # By the time of its first reply.
        if name == "stalled" and command[0] == b"INFO":
            fakes.views = {"stalled": fakes.default}
            fakes.give(("other", ALL), epoch=2)
        return reply_with_name(name, command)

    async with fakes.link("other", timeout_seconds=0.25) as link:
        await link.comes_from("stalled")
        fakes.stalled = "stalled"
        await link.reported(True, False)
        fakes.nodes["stalled"].commands.clear()
        fakes.reply_of, fakes.stalled = replaced, ""
        await link.comes_from("other")
        await link.reported(True, False, True)
        assert fakes.requests_to("stalled") == []


async def test_a_link_is_disconnected_while_slots_are_uncovered(tmp_path: Path) -> None:
    """Requests for the other slots are answered meanwhile."""
    fakes = FakeCluster(tmp_path, "one", "two", "three")
    fakes.give(("one", FIRST_HALF), ("two", LAST_HALF))
    async with fakes.link("one", timeout_seconds=0.25) as link:
        await link.comes_from("two")
        fakes.stalled = "two"
        await link.reported(True, False)
        assert await link.get(OTHER_KEY) == ["one"]
        fakes.give(("one", FIRST_HALF), ("three", LAST_HALF), epoch=2)
        await link.reported(True, False, True)
        assert await link.get(KEY, OTHER_KEY) == ["three", "one"]


@pytest.mark.usefixtures("frequent_refreshes")
async def test_all_nodes_may_be_replaced_between_two_refreshes(tmp_path: Path) -> None:
    """When no known node is a primary any more, the seeds are queried again."""
    fakes = FakeCluster(tmp_path, "seed", "one", "two")
    fakes.give(("one", ALL))
    async with fakes.link("seed", timeout_seconds=0.25) as link:
        await link.comes_from("one")
        await fakes.nodes["one"].close()
        fakes.give(("two", ALL), epoch=2)
        await link.comes_from("two")
        await link.reported(True, False, True)
