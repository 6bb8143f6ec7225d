"""What all suites share: a Valkey for the whole run, and the backends.

For servers in the tests' own process, gRPC's core reads the same environment as in `catraca serve`.
"""

import os

from catraca_server.runtime.core_environment import ENVIRONMENT

os.environ.update({**ENVIRONMENT, **os.environ})

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest
from tests.support.backends import Backend, ClusterBackend, FakeBackend, SentinelBackend
from tests.support.cluster import Cluster
from tests.support.sentinel import Sentinels
from tests.support.service import ServeProcess
from tests.support.valkey import BINARY, WHY_MISSING, Valkey

# The machine may be slow, and no test is about how long an example takes.
hypothesis.settings.register_profile("catraca", deadline=None)
hypothesis.settings.load_profile("catraca")


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """A real Valkey for the whole run; a test empties it before use."""
    if BINARY is None:
        pytest.skip(WHY_MISSING)
    server = Valkey(tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server
    server.close()


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A real Valkey for one test, which may stop it, kill it and change its configuration."""
    if BINARY is None:
        pytest.skip(WHY_MISSING)
    server = Valkey(tmp_path)
    server.start()
    yield server
    server.close()


@pytest.fixture(scope="session")
def valkey_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A real cluster for the whole run; a test renews it before use."""
    if BINARY is None:
        pytest.skip(WHY_MISSING)
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def valkey_sentinel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sentinels]:
    """A real primary under Sentinel for the whole run; a test renews it before use."""
    if BINARY is None:
        pytest.skip(WHY_MISSING)
    with Sentinels(tmp_path_factory.mktemp("sentinel")) as sentinels:
        yield sentinels


@pytest.fixture(scope="session")
def target(valkey: Valkey) -> Iterator[str]:
    """The address of a service on the Valkey of the run, with a long store timeout: the machine may be slow."""
    with ServeProcess(store_url=valkey.url, store_timeout="5s") as service:
        yield service.target


@pytest.fixture(params=["fakeredis", "valkey", "sentinel", "cluster"])
def unopened_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """Each backend in turn, empty; the test closes it."""
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
