"""What the tests of the running service share."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.collector import Collector, collecting
from tests.support.curl import CURLS, Curl
from tests.support.door import Door
from tests.support.service import ServeProcess
from tests.support.valkey import Valkey
from tests.support.wire import serving_stub, stub_of

from catraca.v1.session_service_pb2_grpc import SessionServiceStub


@pytest.fixture(scope="module")
def stub(target: str) -> Iterator[SessionServiceStub]:
    """The service with the settings that it has by default."""
    with stub_of(target) as made:
        yield made


@pytest.fixture(scope="module")
def without_grace(valkey: Valkey) -> Iterator[SessionServiceStub]:
    """A service on the same store whose rotated-out tokens are past their grace at once."""
    with serving_stub(valkey, CATRACA_ROTATION_GRACE="0s") as made:
        yield made


@pytest.fixture(scope="module")
def service() -> Iterator[ServeProcess]:
    """A service that forgets everything, for those who do not care where it keeps it."""
    with ServeProcess(store_url="memory:", store_timeout="5s") as process:
        yield process


@pytest.fixture
def environment(service: ServeProcess) -> dict[str, str]:
    """What tells a command where that service is, and to be patient."""
    return {"CATRACA_TARGET": service.target, "CATRACA_TIMEOUT": "20s"}


@pytest.fixture
def user() -> str:
    """A user that no other test has."""
    return f"user-{secrets.token_hex(8)}"


@pytest.fixture(params=CURLS, ids=lambda each: each.name)
def curl(request: pytest.FixtureRequest) -> Curl:
    """Each program that calls by reflection, if it is installed."""
    made: Curl = request.param()
    if made.why_missing:
        pytest.skip(made.why_missing)
    return made


@pytest.fixture
def collector() -> Iterator[Collector]:
    """An OpenTelemetry collector."""
    with collecting() as made:
        yield made


@pytest.fixture
def door(tmp_path: Path) -> Door:
    """Files of a service without callers."""
    return Door(tmp_path)
