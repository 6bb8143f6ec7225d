"""A connection over which nothing gets through any more, and which nobody closes, as when a machine is gone."""

from collections.abc import AsyncIterator, Iterator

import pytest
from tests.support.callers import Caller, closing
from tests.support.fake_service import FakeService
from tests.support.load import OWN_CONNECTIONS
from tests.support.proxy import Proxy
from tests.support.waiting import eventually_async

from catraca import AsyncSessionClient, NearCacheStats, SessionClient, _core, errors
from catraca._lease import LEASE_SECONDS

SOON = {"grpc.keepalive_time_ms": 1000, "grpc.keepalive_timeout_ms": 1000, "grpc.http2.ping_timeout_ms": 1000}


@pytest.fixture
def service() -> Iterator[FakeService]:
    """A service with a feed."""
    with FakeService() as running:  # type: ignore[abstract]  # what no test calls is missing
        yield running


@pytest.fixture
async def proxy(service: FakeService) -> AsyncIterator[Proxy]:
    """What is between the client and the service."""
    async with Proxy(int(service.target.rpartition(":")[2])) as running:
        yield running


@pytest.fixture(params=[SessionClient, AsyncSessionClient], ids=["sync", "async"])
async def sessions(
    proxy: Proxy, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Caller]:
    """A client with a near cache, which looks sooner than usual whether its connection is alive."""
    assert SOON.keys() <= dict(_core.CHANNEL_OPTIONS).keys()
    monkeypatch.setattr(_core, "CHANNEL_OPTIONS", tuple({**dict(OWN_CONNECTIONS), **SOON}.items()))
    client = request.param(proxy.url.removeprefix("redis://"), timeout=0.5, near_cache=True)
    async with closing(Caller(client)) as caller:
        yield caller


def stats(sessions: Caller) -> NearCacheStats:
    """What the near cache has done."""
    found = sessions.client.near_cache_stats()
    assert found is not None
    return found


async def until_hit(sessions: Caller, token: str) -> None:
    """Returns once a validation is answered near."""

    async def is_hit() -> bool:
        before = stats(sessions).hits
        try:
            assert await sessions.validate(token)
        except errors.Unavailable:
            return False
        return stats(sessions).hits > before

    await eventually_async(is_hit, "a validation is answered near")


async def test_it_is_noticed(service: FakeService, proxy: Proxy, sessions: Caller) -> None:
    """The lease ends, after which the answer is Unavailable; another connection is made, and all is as before."""
    token = service.login()
    await until_hit(sessions, token)
    before = proxy.accepted
    proxy.hold()

    async def lease_is_over() -> bool:
        return (stats(sessions).feed_age or 0) > LEASE_SECONDS

    await eventually_async(lease_is_over, "the lease ends")
    hits = stats(sessions).hits
    with pytest.raises(errors.Unavailable):
        await sessions.validate(token)
    assert stats(sessions).hits == hits

    async def is_given_up() -> bool:
        return proxy.accepted > before

    await eventually_async(is_given_up, "another connection is made, though nobody closed the first")
    proxy.release()
    await until_hit(sessions, token)
