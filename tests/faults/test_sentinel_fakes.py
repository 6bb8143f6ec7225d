"""Sentinels that disagree, lag behind or reply nonsense, and primaries replaced unseen: played by fakes."""

import asyncio
from pathlib import Path

import pytest
from tests.support.fake_redis import FakeRedis, array, bulk
from tests.support.fake_sentinels import Fakes, View, dialer
from tests.support.operations import service_on
from tests.support.proxy import Proxy
from tests.support.sentinel import NAME
from tests.support.waiting import TIMEOUT_SECONDS, eventually_async

from catraca_server.redis import sentinel as sentinel_link
from catraca_server.redis.errors import StoreUnavailable
from catraca_server.redis.sentinel import Sentinels as Link
from catraca_server.redis.url import StoreUrl


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    """Fake servers and Sentinels; the Sentinels are polled more often than by default."""
    monkeypatch.setattr(sentinel_link, "POLL_PAUSE_SECONDS", 0.05)
    return Fakes(tmp_path)


async def test_the_newest_view_counts(fakes: Fakes) -> None:
    """However many Sentinels have an older one."""
    async with fakes.link("old", "new") as link:
        fakes.views = [View(1, "old"), View(2, "new"), View(1, "old")]
        await link.comes_from("new")
        fakes.replied.clear()
        link.server.invalidate("so that it connects again")
        await link.comes_from("new")
        assert set(fakes.replied) == {"new"}


async def test_a_slower_sentinel_may_know_more(fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A majority may be outdated, so the others get a moment to reply as well."""
    monkeypatch.setattr(sentinel_link, "STRAGGLER_TIMEOUT_SECONDS", TIMEOUT_SECONDS)
    fakes.views = [View(1, "old"), View(1, "old"), View(2, "new")]
    async with (
        FakeRedis(tmp_path / "0", fakes.sentinel(0)) as one,
        FakeRedis(tmp_path / "1", fakes.sentinel(1)) as two,
        FakeRedis(tmp_path / "2", fakes.sentinel(2)),
        Proxy(tmp_path / "2", tmp_path / "slow", delay=lambda: 0.05) as slow,
    ):
        link = Link(NAME, [dialer(url) for url in (one.url, two.url, slow.url)], lambda _: dialer(one.url))
        assert (await link.primary()).host == "new"


async def test_the_sentinels_are_polled_again_after_a_defect(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise nobody would notice any more that the primary was replaced."""
    ask, failures = Link.change, [ZeroDivisionError()] * 3

    async def change(link: Link) -> str | None:
        if failures:
            raise failures.pop()
        return await ask(link)

    monkeypatch.setattr(Link, "change", change)
    async with fakes.link("old", "new") as link:
        await link.comes_from("old")
        fakes.agree(2, "new")
        await link.comes_from("new")
        assert not failures


@pytest.mark.parametrize("names", [("z", "a"), ("a", "z")])
async def test_the_leader_of_a_failover_is_not_believed_too_early(names: tuple[str, str], fakes: Fakes) -> None:
    """It replies with the new epoch and the old address until the failover is over."""
    old, new = names
    async with fakes.link(old, new) as link:
        fakes.views = [View(2, new, master=old), View(2, new), View(1, old)]
        await link.comes_from(new)
        assert fakes.connections() == {new: 1}


async def test_a_replaced_primary_that_replies_is_dropped(fakes: Fakes) -> None:
    """It does not know that it was replaced; callers wait no longer than a reconnection takes."""
    async with fakes.link("old", "new") as link:
        assert await link.get() == "old"
        fakes.agree(2, "new")
        await link.comes_from("new")
        assert link.changes == [True]
        assert fakes.connections() == {"new": 1}


async def test_a_primary_that_was_replaced_while_it_stalled_is_not_used(fakes: Fakes) -> None:
    """When it replies again, the Sentinels are queried before it is used."""
    async with fakes.link("stalled", "new", timeout_seconds=0.25) as link:
        fakes.stalled = "stalled"
        await link.reported(True, False)
        fakes.on_info = lambda: fakes.agree(2, "new")
        fakes.stalled = ""
        await link.comes_from("new")
        assert "stalled" not in fakes.replied


async def test_both_connections_are_to_the_same_primary(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    """When one of the two moves, the one that waits for replicas or the other, both do."""
    monkeypatch.setattr(sentinel_link, "POLL_PAUSE_SECONDS", TIMEOUT_SECONDS)
    async with fakes.link("old", "new", timeout_seconds=0.25, replica_acks=1) as link:
        assert [await link.get(), await link.get(durable=True)] == ["old", "old"]
        fakes.agree(2, "new")
        link.server._durable.invalidate("as after a timeout")

        async def has_moved() -> bool:
            return fakes.connections() == {"new": 2}

        await eventually_async(has_moved, "both have moved")
        assert [await link.get(), await link.get(durable=True)] == ["new", "new"]


async def test_nothing_is_left_of_old_primaries(fakes: Fakes) -> None:
    """However often the primary is replaced, there is one connection, and no more tasks than before."""
    async with fakes.link("one", "two") as link:
        # Tasks of the test, the multiplexer and the poll, and the fake's end of the connection.
        for epoch in range(2, 22):
            name = ("one", "two")[epoch % 2]
            fakes.agree(epoch, name)
            await link.comes_from(name)

            async def is_alone(name: str = name) -> bool:
                return fakes.connections() == {name: 1} and len(asyncio.all_tasks()) == 4

            await eventually_async(is_alone, "only the new primary is connected to")
        assert link.changes == [True]
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize(
    "reply", [b"*-1\r\n", b"$-1\r\n", b":1\r\n", b"*1\r\n$1\r\n1\r\n", array(bulk(b"\xff"), bulk(b"x"))]
)
async def test_a_malformed_sentinel_reply(reply: bytes, tmp_path: Path) -> None:
    """A reply without an address is refused."""
    async with FakeRedis(tmp_path / "0", lambda command: reply if command[0] == b"SENTINEL" else None) as fake:
        with pytest.raises(StoreUnavailable, match="malformed Sentinel reply"):
            await Link(NAME, [dialer(fake.url)], lambda _: dialer(fake.url)).primary()


async def test_sentinels_with_a_password(tmp_path: Path) -> None:
    """It is their own; if it is missing or wrong, the error names its setting."""
    authenticated = False

    def reply_to(command: list[bytes]) -> bytes | None:
        nonlocal authenticated
        if command[0] == b"AUTH":
            authenticated = command[1:] == [b"their-own"]
            return b"+OK\r\n" if authenticated else b"-WRONGPASS invalid username-password pair\r\n"
        if not authenticated:
            return b"-NOAUTH Authentication required.\r\n"
        if command[1:2] == [b"GET-MASTER-ADDR-BY-NAME"]:
            ((host, port),) = StoreUrl.parse(primary.url).addresses
            return array(bulk(host.encode()), bulk(str(port).encode()))
        return array(bulk(b"config-epoch"), bulk(b"1")) if command[0] == b"SENTINEL" else None

    async with (
        FakeRedis(tmp_path / "primary"),
        Proxy(tmp_path / "primary") as primary,
        FakeRedis(tmp_path / "sentinel", reply_to),
        Proxy(tmp_path / "sentinel") as sentinel,
    ):
        url = f"{sentinel.url.replace('redis://', 'redis+sentinel://the-store:its-own@')}/{NAME}"
        async with service_on(url, sentinel_password="their-own") as service:
            assert not await service.is_valid("ctr_")
        for wrong in ({}, {"sentinel_password": "its-own"}):
            authenticated = False
            with pytest.raises(StoreUnavailable, match="check CATRACA_SENTINEL_PASSWORD") as caught:
                async with service_on(url, **wrong):
                    pass
            assert "its-own" not in str(caught.value)
