"""A primary under Sentinel that dies, sleeps and is replaced: the service finds the next one, and uses no other."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis
from tests.support.asking import Asking, Service, service_on
from tests.support.fake_redis import FakeRedis, array, bulk
from tests.support.multiplexers import connector_to, in_seconds
from tests.support.nodes import DataNode
from tests.support.proxy import Proxy
from tests.support.sentinel import NAME, Sentinels
from tests.support.waiting import PATIENCE, eventually_async

from catraca_server.operations.users import Login
from catraca_server.redis import sentinel as sentinel_link
from catraca_server.redis.dialer import Dialer
from catraca_server.redis.errors import StoreUnavailable
from catraca_server.redis.link import Server
from catraca_server.redis.sentinel import PrimaryMonitor, Sentinels as Link
from catraca_server.redis.url import StoreUrl

NOTICE = 0.75
"""Seconds beyond the store's timeout within which an answer has to be there; much, because the machine is slow."""


@pytest.fixture
async def sentinels(valkey_sentinel: Sentinels) -> Sentinels:
    """The primary, its replicas and their Sentinels, empty and healthy."""
    await asyncio.to_thread(valkey_sentinel.renew)
    return valkey_sentinel


async def logged_in(service: Service, sentinels: Sentinels, count: int = 4) -> list[Login]:
    """Creates sessions that both replicas have."""
    logins = [await service.create() for _ in range(count)]
    assert sentinels.command("WAIT", 2, 5000) == 2
    return logins


def tokens_of(logins: list[Login]) -> list[str]:
    """Returns the tokens of these."""
    return [login.token for login in logins]


def connections_to(node: DataNode) -> int:
    """Returns how many connections a node has from services."""
    return sum(each["name"] == "catraca" for each in node.client.client_list())


async def stays_revoked(service: Service, sentinels: Sentinels, logins: list[Login]) -> None:
    """Revokes sessions, and brings back all that is away; asserts that nobody is let through meanwhile."""
    for login in logins:
        assert await service.revoke(login)
    healing = asyncio.create_task(asyncio.to_thread(sentinels.heal))
    while not healing.done():
        with contextlib.suppress(StoreUnavailable):
            assert [each.stored for each in await service.validate(*tokens_of(logins))] == [None] * len(logins)
        await asyncio.sleep(0.001)
    await healing


# Primaries that are lost and replaced


async def test_the_primary_is_killed(sentinels: Sentinels) -> None:
    """The service is unavailable until the Sentinels have another, and then good again, without a restart."""
    async with service_on(sentinels.url) as service:
        logins = await logged_in(service, sentinels)
        async with Asking(service, tokens_of(logins)) as asking:
            lost = sentinels.primary
            lost.kill()
            await service.told(True, False)
            await asyncio.to_thread(sentinels.wait_for_takeover, lost)
            await service.told(True, False, True)
            await asking.go_on()
        assert asking.longest() < service.timeout + NOTICE
        await stays_revoked(service, sentinels, logins)
        assert service.changes == [True, False, True]


async def test_the_primary_sleeps_and_is_replaced(sentinels: Sentinels) -> None:
    """It wakes up and takes itself for the primary until it is told; what was revoked meanwhile is not valid there."""
    async with service_on(sentinels.url) as service:
        logins = await logged_in(service, sentinels)
        slept = sentinels.primary
        slept.pause()
        await service.told(True, False)
        await asyncio.to_thread(sentinels.wait_for_takeover, slept)
        await service.recovered(*tokens_of(logins))
        await stays_revoked(service, sentinels, logins)
        assert service.changes == [True, False, True]


async def test_an_operator_has_it_replaced(sentinels: Sentinels) -> None:
    """If all replicas must acknowledge, nothing is lost of what an old primary accepted before it knew."""
    async with service_on(sentinels.url, replica_acks="2", store_timeout="1s") as service:
        logins = await logged_in(service, sentinels)
        async with Asking(service, tokens_of(logins), lives=4) as asking:
            old = sentinels.primary
            await asyncio.to_thread(sentinels.fail_over)

            async def has_moved() -> bool:
                # A Sentinel that makes a primary a replica closes the connections of its clients, this one among them.
                with contextlib.suppress(redis.ConnectionError):
                    return connections_to(old) == 0 and connections_to(sentinels.primary) == 2
                return False

            await eventually_async(has_moved, "all connections are to the new primary")
            await asking.go_on()
        await stays_revoked(service, sentinels, logins)


# Sentinels that are away


async def test_sentinels_may_be_away(sentinels: Sentinels) -> None:
    """A majority is enough to start. Without one, connections go on working, and new ones are made when it is back."""
    for node in sentinels.sentinels[:2]:
        node.kill()
    with pytest.raises(StoreUnavailable, match=rf"no majority of the Sentinels names a primary '{NAME}': no answer at"):
        async with service_on(sentinels.url):
            pass
    sentinels.sentinels[0].start()
    async with service_on(sentinels.url) as service:
        login = await service.create()
        sentinels.sentinels[0].kill()
        async with Asking(service, [login.token]) as asking:
            await asking.go_on(times=100)
            assert asking.errors() == []
            sentinels.command("CLIENT KILL", "TYPE", "normal", "SKIPME", "yes")
            await service.told(True, False)
            sentinels.sentinels[0].start()
            await service.told(True, False, True)
            await asking.go_on()


async def test_a_sentinel_that_says_nothing(sentinels: Sentinels) -> None:
    """It is not waited for so long that no connection could be made within a short timeout."""
    sentinels.sentinels[0].pause()
    async with service_on(sentinels.url, store_timeout="100ms") as service:
        login = await service.create()
        for _ in range(3):
            sentinels.command("CLIENT KILL", "TYPE", "normal", "SKIPME", "yes")
            await service.recovered(login.token)


async def test_a_name_that_no_sentinel_knows(sentinels: Sentinels) -> None:
    """The service does not start, and says which name the Sentinels do not know."""
    with pytest.raises(StoreUnavailable, match="names a primary 'other': a Sentinel refused: No such master"):
        async with service_on(sentinels.url.replace(f"/{NAME}", "/other")):
            pass


# Sentinels and primaries that behave as no real ones can be made to


@dataclass
class Opinion:
    """What a Sentinel says about the primary."""

    epoch: int
    name: str
    master: str = ""
    """The primary in its reply to SENTINEL MASTER, if it contradicts itself there."""


@dataclass
class Fakes:
    """Three Sentinels and some servers, which behave as a test wants."""

    directory: Path
    servers: dict[str, FakeRedis] = field(default_factory=dict)
    opinions: list[Opinion] = field(default_factory=list)
    asleep: str = ""
    """The server that does not reply."""
    meanwhile: Callable[[], None] = lambda: None
    """What happens before a server's first reply on a connection."""
    replied: list[str] = field(default_factory=list)
    """The servers that replied about a key, one after the other."""

    def agree(self, epoch: int, name: str) -> None:
        """Has all Sentinels name a server."""
        self.opinions = [Opinion(epoch, name) for _ in range(3)]

    @asynccontextmanager
    async def link(self, *names: str, timeout: float = PATIENCE, replica_acks: int = 0) -> AsyncIterator["FakeLink"]:
        """Runs servers of these names, Sentinels that name the first, and a link to whatever they name."""
        self.agree(1, names[0])
        async with AsyncExitStack() as stack:
            for name in names:
                self.servers[name] = await stack.enter_async_context(
                    FakeRedis(self.directory / name, self._server(name))
                )
            sentinels = [
                await stack.enter_async_context(FakeRedis(self.directory / str(at), self.sentinel(at)))
                for at in range(3)
            ]
            changes: list[bool] = []
            link = Link(
                NAME, [dialer(each.url) for each in sentinels], lambda at: connector_to(self.servers[at.host].url)
            )
            server = Server.at(link, timeout_seconds=timeout, on_change=changes.append, replica_acks=replica_acks)
            monitor = PrimaryMonitor(link, server)
            stack.push_async_callback(monitor.stop)
            stack.push_async_callback(server.stop)
            await server.start()
            monitor.start()
            yield FakeLink(server, changes)

    def connections(self) -> dict[str, int]:
        """Returns how many connections there are to which server."""
        return {name: fake.connections for name, fake in self.servers.items() if fake.connections}

    def _server(self, name: str) -> Callable[[list[bytes]], bytes | None]:
        def answer(command: list[bytes]) -> bytes | None:
            if name == self.asleep:
                return b""
            if command[0] == b"INFO":
                self.meanwhile()
            if command[0] == b"GET":
                self.replied.append(name)
                return bulk(name.encode())
            return b":9\r\n" if command[0] == b"WAIT" else None

        return answer

    def sentinel(self, at: int) -> Callable[[list[bytes]], bytes | None]:
        """Returns how a Sentinel answers."""

        def answer(command: list[bytes]) -> bytes | None:
            told = self.opinions[at]
            if command[:2] == [b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME"]:
                return array(bulk(told.name.encode()), bulk(b"6379"))
            if command[:2] == [b"SENTINEL", b"MASTER"]:
                known = {"ip": told.master or told.name, "port": "6379", "config-epoch": str(told.epoch)}
                return array(*(bulk(word.encode()) for pair in known.items() for word in pair))
            return None

        return answer


def dialer(url: str) -> Dialer:
    """Returns what connects to a Sentinel."""
    return Dialer(StoreUrl.parse(url))


@dataclass
class FakeLink:
    """A link to fake servers, and what it reported."""

    server: Server
    changes: list[bool]

    async def get(self, *, durable: bool = False) -> str:
        """Reads a key."""
        (replies,) = await self.server.execute([("key", [("GET", "key")])], in_seconds(PATIENCE), durable=durable)
        found: bytes = replies.get(0, bytes)
        return found.decode()

    async def comes_from(self, name: str) -> None:
        """Waits until the reply comes from a certain server."""

        async def does() -> bool:
            with contextlib.suppress(StoreUnavailable):
                return await self.get() == name
            return False

        await eventually_async(does, f"{name} answers")

    async def reported(self, *changes: bool) -> None:
        """Waits until it has reported exactly this: connected or not."""

        async def has_reported() -> bool:
            return self.changes == [*changes]

        await eventually_async(has_reported, f"reported {changes}")


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    """Fake servers and Sentinels; the Sentinels are polled more often than by a server."""
    monkeypatch.setattr(sentinel_link, "POLL_PAUSE_SECONDS", 0.05)
    return Fakes(tmp_path)


async def test_an_old_view_misleads_nobody(fakes: Fakes) -> None:
    """The newest opinion counts, however many Sentinels have not heard of it."""
    async with fakes.link("old", "new") as link:
        fakes.opinions = [Opinion(1, "old"), Opinion(2, "new"), Opinion(1, "old")]
        await link.comes_from("new")
        fakes.replied.clear()
        link.server.invalidate("to have it connect again")
        await link.comes_from("new")
        assert set(fakes.replied) == {"new"}


async def test_one_that_knows_more_may_be_slower(fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A majority may not have heard yet, so the others have a moment to answer as well."""
    monkeypatch.setattr(sentinel_link, "STRAGGLER_TIMEOUT_SECONDS", PATIENCE)
    fakes.opinions = [Opinion(1, "old"), Opinion(1, "old"), Opinion(2, "new")]
    async with (
        FakeRedis(tmp_path / "0", fakes.sentinel(0)) as one,
        FakeRedis(tmp_path / "1", fakes.sentinel(1)) as two,
        FakeRedis(tmp_path / "2", fakes.sentinel(2)),
        Proxy(tmp_path / "2", tmp_path / "slow", delay=lambda: 0.05) as slow,
    ):
        link = Link(NAME, [dialer(url) for url in (one.url, two.url, slow.url)], lambda _: dialer(one.url))
        assert (await link.primary()).host == "new"


@pytest.mark.parametrize("names", [("z", "a"), ("a", "z")])
async def test_the_leader_of_a_failover_misleads_nobody(names: tuple[str, str], fakes: Fakes) -> None:
    """It replies with the new epoch and the old address until the failover is over."""
    old, new = names
    async with fakes.link(old, new) as link:
        fakes.opinions = [Opinion(2, new, master=old), Opinion(2, new), Opinion(1, old)]
        await link.comes_from(new)
        assert fakes.connections() == {new: 1}


async def test_a_primary_that_answers_and_has_been_replaced_is_dropped(fakes: Fakes) -> None:
    """It does not know; callers wait no longer than a reconnection takes."""
    async with fakes.link("old", "new") as link:
        assert await link.get() == "old"
        fakes.agree(2, "new")
        await link.comes_from("new")
        assert link.changes == [True]
        assert fakes.connections() == {"new": 1}


async def test_a_primary_that_was_replaced_while_it_slept_is_not_used(fakes: Fakes) -> None:
    """When it wakes up, the Sentinels are asked again before it is used."""
    async with fakes.link("slept", "new", timeout=0.25) as link:
        fakes.asleep = "slept"
        await link.reported(True, False)
        fakes.meanwhile = lambda: fakes.agree(2, "new")
        fakes.asleep = ""
        await link.comes_from("new")
        assert "slept" not in fakes.replied


async def test_both_connections_are_to_the_same_primary(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    """When one of the two moves, with or without waiting for replicas, the other does not stay behind."""
    monkeypatch.setattr(sentinel_link, "POLL_PAUSE_SECONDS", PATIENCE)
    async with fakes.link("old", "new", timeout=0.25, replica_acks=1) as link:
        assert [await link.get(), await link.get(durable=True)] == ["old", "old"]
        fakes.agree(2, "new")
        link.server._durable.invalidate("as it would after a timeout")

        async def has_moved() -> bool:
            return fakes.connections() == {"new": 2}

        await eventually_async(has_moved, "both have moved")
        assert [await link.get(), await link.get(durable=True)] == ["new", "new"]


async def test_nothing_is_left_of_old_primaries(fakes: Fakes) -> None:
    """However often the primary is replaced, there is one connection, and no more tasks than before."""
    async with fakes.link("one", "two") as link:
        # The test, the owner and the poll; and the other end of each connection to a server.
        for epoch in range(2, 22):
            name = ("one", "two")[epoch % 2]
            fakes.agree(epoch, name)
            await link.comes_from(name)

            async def is_alone(name: str = name) -> bool:
                return fakes.connections() == {name: 1} and len(asyncio.all_tasks()) == 4

            await eventually_async(is_alone, "nothing else is left")
        assert link.changes == [True]
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize(
    "reply", [b"*-1\r\n", b"$-1\r\n", b":1\r\n", b"*1\r\n$1\r\n1\r\n", array(bulk(b"\xff"), bulk(b"x"))]
)
async def test_a_sentinel_that_makes_no_sense(reply: bytes, tmp_path: Path) -> None:
    """A reply without an address is refused."""
    async with FakeRedis(tmp_path / "0", lambda command: reply if command[0] == b"SENTINEL" else None) as fake:
        with pytest.raises(StoreUnavailable, match="malformed Sentinel reply"):
            await Link(NAME, [dialer(fake.url)], lambda _: dialer(fake.url)).primary()


async def test_sentinels_with_a_password(tmp_path: Path) -> None:
    """They have their own, and if it is missing the error names the right setting."""
    authenticated = False

    def answer(command: list[bytes]) -> bytes | None:
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
        FakeRedis(tmp_path / "sentinel", answer),
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
