"""The page of metrics: what it counts, of one process and of several."""

import contextlib
import re
import signal
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.support.door import Door
from tests.support.metrics import free_port, scrape
from tests.support.processes import workers_of
from tests.support.service import ServeProcess
from tests.support.valkey import Valkey
from tests.support.waiting import TIMEOUT_SECONDS, eventually
from tests.support.wire import create, rotate, stub_of, validate

from catraca.v1 import session_service_pb2 as pb
from catraca.v1.session_service_pb2_grpc import SessionServiceStub
from catraca_server import app
from catraca_server.api.engine import Server
from catraca_server.api.method_types import method_types
from catraca_server.observe.metrics import Metrics
from catraca_server.observe.numbers import FAMILIES
from catraca_server.settings import load

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


def handled(method: str, code: str) -> str:
    """Returns the sample of calls that ended."""
    labels = f'grpc_type="unary",grpc_service="catraca.v1.SessionService",grpc_method="{method}",grpc_code="{code}"'
    return f"grpc_server_handled_total{{{labels}}}"


async def test_the_seconds_of_shedding_are_those_of_this_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its engine counts is on the page."""
    servers: list[Server] = []

    class Known(Server):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            servers.append(self)

    monkeypatch.setattr(app, "Server", Known)
    settings = load({}, {"CATRACA_PORT": "0", "CATRACA_STORE_URL": "memory:"}).settings
    metrics = Metrics(method_types(), ())
    async with app.running(settings, {}, None, metrics):
        for seconds in (0.0, 7.5):
            servers[0].shedding.seconds = seconds
            assert metrics.snapshot()["catraca_shedding_seconds_total"] == {"catraca_shedding_seconds_total": seconds}


def test_what_happens_is_counted_once() -> None:
    """Calls by their codes, validations by outcome, sessions by what happened to them, and the store."""
    port = free_port()
    with ServeProcess(store_url="memory:", metrics_port=str(port), rotation_grace="0s") as process:
        before = scrape(port)
        with stub_of(process.target) as stub:
            created = create(stub, "ana")
            assert validate(stub, created.token).valid
            assert not validate(stub, "not a token").valid
            rotated = rotate(stub, created.token)
            assert not validate(stub, created.token).valid  # reused
            assert not validate(stub, rotated.token).valid  # gone
            batch = pb.BatchValidateSessionsRequest(requests=[pb.ValidateSessionRequest(token="x")] * 3)
            stub.BatchValidateSessions(batch, timeout=TIMEOUT_SECONDS)
            assert not stub.RevokeSession(
                pb.RevokeSessionRequest(session_id=created.session.session_id), timeout=TIMEOUT_SECONDS
            ).revoked
            with pytest.raises(grpc.RpcError):
                create(stub, "")
            # Whatever a caller invents is no label.
            with contextlib.suppress(grpc.RpcError), grpc.insecure_channel(process.target) as channel:
                made_up: Any = channel.unary_unary("/made.Up/Method")
                made_up(b"", timeout=TIMEOUT_SECONDS)
            # The status is on its way a moment before the call counts as ended.
            eventually(lambda: scrape(port).get(handled("CreateSession", "InvalidArgument")) == 1, "it is counted")
        after = scrape(port)
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    expected = {
        handled("CreateSession", "OK"): 1,
        handled("CreateSession", "InvalidArgument"): 1,
        handled("ValidateSession", "OK"): 4,
        'catraca_errors_total{reason="invalid_request"}': 1,
        'catraca_validations_total{outcome="valid"}': 1,
        'catraca_validations_total{outcome="malformed"}': 4,
        'catraca_validations_total{outcome="token_reused"}': 1,
        'catraca_validations_total{outcome="not_found"}': 1,
        "catraca_sessions_created_total": 1,
        "catraca_sessions_rotated_total": 1,
        "catraca_sessions_updated_total": 0,
        'catraca_sessions_ended_total{cause="token_reuse"}': 1,
        'catraca_sessions_ended_total{cause="request"}': 0,
    }
    assert {name: grown[name] for name in expected} == expected
    assert after["catraca_store_connected"] == after["catraca_workers"] == 1
    assert grown["catraca_store_exchange_seconds_count"] >= grown["catraca_store_batch_commands_count"] > 0
    started = 'grpc_server_started_total{grpc_type="unary",grpc_service="unknown",grpc_method="unknown"}'
    assert grown[started] == 1
    assert not [name for name in after if "made.Up" in name]


def log_in_anywhere(target: str, times: int) -> None:
    """Logs in over as many connections, which the workers share."""
    for at in range(times):
        options = (("grpc.use_local_subchannel_pool", 1), ("catraca.test", at))
        with grpc.insecure_channel(target, options) as channel:
            create(SessionServiceStub(channel), "ana")


@pytest.mark.skipif(sys.platform != "linux", reason="workers take Linux")
def test_it_is_one_page_for_all_workers(valkey: Valkey) -> None:
    """Whoever answers; and nothing runs backwards when a worker ends."""
    port = free_port()
    with ServeProcess(store_url=valkey.url, workers="2", metrics_port=str(port), store_timeout="5s") as process:
        log_in_anywhere(process.target, 8)
        eventually(lambda: scrape(port)[handled("CreateSession", "OK")] == 8, "all are counted")
        assert scrape(port)["catraca_workers"] == 2
        # Nobody asks for these before their worker ends.
        log_in_anywhere(process.target, 32)
        victim = workers_of(process)[0]
        victim.send_signal(signal.SIGTERM)
        eventually(lambda: process.log.count("serving: pid") == 3, "it is replaced")
        after = scrape(port)
        assert (after["catraca_workers"], after[handled("CreateSession", "OK")]) == (2, 40)
        assert after["catraca_sessions_created_total"] == 40


def test_refused_callers_and_the_certificate(door: Door) -> None:
    """The reason of a refusal is counted, and the page tells when the certificate ends."""
    port = free_port()
    with ServeProcess(
        store_url="memory:",
        metrics_port=str(port),
        callers_file=str(door.callers),
        tls_cert=str(door.certificate),
        tls_key=str(door.key),
    ) as process:
        credentials = grpc.ssl_channel_credentials(door.ca.read_bytes())
        with grpc.secure_channel(process.target, credentials) as channel, pytest.raises(grpc.RpcError):
            create(SessionServiceStub(channel), "ana")
        found = scrape(port)
    assert found['catraca_errors_total{reason="unauthenticated"}'] == 1
    assert found[handled("CreateSession", "Unauthenticated")] == 1
    assert found["catraca_tls_certificate_expiry_timestamp_seconds"] > 1.7e9


def test_the_page_and_nothing_else() -> None:
    """Other paths and methods are refused; without a port there is no page."""
    port = free_port()
    with ServeProcess(store_url="memory:", metrics_port=str(port)):
        for path, data, code in (("/", None, 404), ("/metrics", b"x", 405)):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", data, timeout=20)
            assert refused.value.code == code
            refused.value.close()
    with ServeProcess(store_url="memory:") as process:
        assert "metrics on" not in process.log


def test_the_documentation_names_every_metric() -> None:
    """And no other."""
    documented = re.findall(r"^\| `((?:catraca|grpc)_\w+)", OPERATIONS.read_text(), re.MULTILINE)
    assert documented == [*FAMILIES]
