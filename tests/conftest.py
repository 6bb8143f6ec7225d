"""What all suites share: a Valkey for the whole run, and the backends."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.support.backends import Backend, ClusterBackend, FakeBackend, SentinelBackend
from tests.support.cluster import Cluster
from tests.support.sentinel import Sentinels
from tests.support.service import ServeProcess
from tests.support.valkey import BINARY, WHY_NONE, Valkey


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """A real Valkey that lasts for the run; who uses it empties it first."""
    if BINARY is None:
        pytest.skip(WHY_NONE)
    server = Valkey(tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server
    server.close()


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A real Valkey for one test, which may stop it, kill it and change its configuration."""
    if BINARY is None:
        pytest.skip(WHY_NONE)
    server = Valkey(tmp_path)
    server.start()
    yield server
    server.close()


@pytest.fixture(scope="session")
def valkey_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A real cluster that lasts for the run; who uses it renews it first."""
    if BINARY is None:
        pytest.skip(WHY_NONE)
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def valkey_sentinel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sentinels]:
    """A real primary under Sentinel that lasts for the run; who uses it renews it first."""
    if BINARY is None:
        pytest.skip(WHY_NONE)
    with Sentinels(tmp_path_factory.mktemp("sentinel")) as sentinels:
        yield sentinels


@pytest.fixture(scope="session")
def target(valkey: Valkey) -> Iterator[str]:
    """Where a service over a Valkey of the run listens; it is patient, because the machine may be slow."""
    with ServeProcess(store_url=valkey.url, store_timeout="5s") as service:
        yield service.target


@pytest.fixture(params=["fakeredis", "valkey", "sentinel", "cluster"])
def unopened_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """Each backend in turn, empty; whoever uses it closes it."""
    match request.param:
        case "fakeredis":
            return FakeBackend(monkeypatch)
        case "sentinel":
            sentinels: Sentinels = request.getfixturevalue("valkey_sentinel")
            sentinels.renew()
            return SentinelBackend(sentinels)
        case "cluster":
            cluster: Cluster = request.getfixturevalue("valkey_cluster")
            cluster.renew()
            return ClusterBackend(cluster)
        case _:
            valkey: Valkey = request.getfixturevalue("valkey")
            valkey.command("FLUSHALL")
            return Backend(valkey.url)


@pytest.fixture
async def backend(unopened_backend: Backend) -> AsyncIterator[Backend]:
    """Each backend in turn, empty."""
    yield unopened_backend
    await unopened_backend.close()
