"""What all suites share: a Valkey for the whole run, and the backends."""

from collections.abc import AsyncIterator, Iterator

import pytest
from tests.support.backends import Backend, fake_backend, valkey_backend
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


@pytest.fixture(scope="session")
def target(valkey: Valkey) -> Iterator[str]:
    """Where a service over a Valkey of the run listens; it is patient, because the machine may be slow."""
    with ServeProcess(store_url=valkey.url, store_timeout="5s") as service:
        yield service.target


@pytest.fixture(params=["fakeredis", "valkey"])
async def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Backend]:
    """Each backend in turn, empty."""
    if request.param == "fakeredis":
        made = fake_backend(monkeypatch)
    else:
        made = valkey_backend(request.getfixturevalue("valkey"))
    yield made
    await made.close()
