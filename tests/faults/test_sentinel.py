"""A primary under Sentinel that dies, stalls and is replaced: the service finds the next one, and uses no other."""

import asyncio
import contextlib

import pytest
import redis
from tests.support.load import load_in_process
from tests.support.nodes import DataNode
from tests.support.operations import Service, service_on
from tests.support.sentinel import NAME, Sentinels
from tests.support.waiting import eventually_async

from catraca_server.operations.users import Login
from catraca_server.redis.errors import StoreUnavailable

MARGIN_SECONDS = 0.75
"""Within which a call has to end after the store's timeout; long, because the machine may be slow."""


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
    """Returns their tokens."""
    return [login.token for login in logins]


def connections_to(node: DataNode) -> int:
    """Returns how many connections a node has from services."""
    return sum(each["name"] == "catraca" for each in node.client.client_list())


async def assert_stay_revoked(service: Service, sentinels: Sentinels, logins: list[Login]) -> None:
    """Revokes sessions, and brings back all nodes; asserts that none of the sessions is valid meanwhile."""
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
        async with load_in_process(service, tokens_of(logins)) as load:
            lost = sentinels.primary
            lost.kill()
            await service.reported(True, False)
            await asyncio.to_thread(sentinels.wait_for_takeover, lost)
            await service.reported(True, False, True)
            await load.go_on()
        assert load.slowest_seconds() < service.timeout_seconds + MARGIN_SECONDS
        await assert_stay_revoked(service, sentinels, logins)
        assert service.changes == [True, False, True]


async def test_the_primary_stalls_and_is_replaced(sentinels: Sentinels) -> None:
    """When it resumes it believes for a moment that it is the primary; what was revoked meanwhile is not valid."""
    async with service_on(sentinels.url) as service:
        logins = await logged_in(service, sentinels)
        stalled = sentinels.primary
        stalled.pause()
        await service.reported(True, False)
        await asyncio.to_thread(sentinels.wait_for_takeover, stalled)
        await service.recovered(*tokens_of(logins))
        await assert_stay_revoked(service, sentinels, logins)
        assert service.changes == [True, False, True]


async def test_an_operator_fails_over(sentinels: Sentinels) -> None:
    """If all replicas must acknowledge, nothing is lost that the old primary accepted before it knew."""
    async with service_on(sentinels.url, replica_acks="2", store_timeout="1s") as service:
        logins = await logged_in(service, sentinels)
        async with load_in_process(service, tokens_of(logins), lives=4) as load:
            old = sentinels.primary
            await asyncio.to_thread(sentinels.fail_over)

            async def has_moved() -> bool:
                # A Sentinel that makes a primary a replica closes the connections of its clients, this one among them.
                with contextlib.suppress(redis.ConnectionError):
                    return connections_to(old) == 0 and connections_to(sentinels.primary) == 2
                return False

            await eventually_async(has_moved, "all connections are to the new primary")
            await load.go_on()
        await assert_stay_revoked(service, sentinels, logins)


# Sentinels that are down


async def test_sentinels_may_be_down(sentinels: Sentinels) -> None:
    """A majority is enough to start. Without one, open connections go on working; new ones need the majority back."""
    for node in sentinels.sentinels[:2]:
        node.kill()
    with pytest.raises(StoreUnavailable, match=rf"no majority of the Sentinels names a primary '{NAME}': no answer at"):
        async with service_on(sentinels.url):
            pass
    sentinels.sentinels[0].start()
    async with service_on(sentinels.url) as service:
        login = await service.create()
        sentinels.sentinels[0].kill()
        async with load_in_process(service, [login.token]) as load:
            await load.go_on(times=100)
            assert load.failures() == []
            sentinels.command("CLIENT KILL", "TYPE", "normal", "SKIPME", "yes")
            await service.reported(True, False)
            sentinels.sentinels[0].start()
            await service.reported(True, False, True)
            await load.go_on()


async def test_a_sentinel_that_does_not_reply(sentinels: Sentinels) -> None:
    """It is not waited for so long that a connection could not be made within a short timeout."""
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
