"""OpenTelemetry, asked for: what it takes, what it cannot do, and what it keeps to itself."""

import secrets
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.collector import Collector
from tests.support.command import catraca, clean_environment
from tests.support.metrics import free_port
from tests.support.service import ServeProcess
from tests.support.waiting import TIMEOUT_SECONDS, eventually
from tests.support.wire import create, stub_of

from catraca_server.api.handlers import METHOD_ROLES
from catraca_server.api.method_types import method_types
from catraca_server.observe import otel
from catraca_server.observe.metrics import Metrics
from catraca_server.observe.numbers import Snapshot


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_TRACES_EXPORTER", "none"), ("OTEL_SDK_DISABLED", "TRUE")], ids=lambda each: each
)
async def test_traces_can_be_left_out(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """Then nothing takes the place of the metrics."""
    monkeypatch.setenv(name, value)
    async with otel.tracing(Metrics(method_types(), ()), METHOD_ROLES, {}) as tracing:
        assert tracing is None


def test_a_collector_that_is_away_costs_two_seconds_at_the_end() -> None:
    """And the log says that something was lost."""
    environment = {"CATRACA_OTEL": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}"}
    with ServeProcess(environment, store_url="memory:") as process:
        with stub_of(process.target) as stub:
            assert create(stub, "ana").token
        assert process.stop() == 0
        assert process.log.count("telemetry lost") == 2
        assert "Traceback" not in process.log


def without_otel(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs a command as if the extra were not installed."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'opentelemetry':\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
    )
    environment = clean_environment({"CATRACA_PORT": "0", "CATRACA_STORE_URL": "memory:", "PYTHONPATH": str(tmp_path)})
    return subprocess.run(
        [sys.executable, "-m", "catraca", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    """When it is checked and when it starts, and only if it is asked for."""
    checked = without_otel(tmp_path, "config", "check", "--otel")
    started = without_otel(tmp_path, "serve", "--otel")
    assert (checked.returncode, started.returncode) == (2, 3)
    for done in (checked, started):
        assert "pip install 'catraca[server,otel]'" in done.stderr
    assert without_otel(tmp_path, "config", "check").returncode == 0


def test_what_it_cannot_do_is_a_problem() -> None:
    """Another protocol, another exporter; and a value that the library cannot read."""
    environment = {"CATRACA_OTEL": "true", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_TRACES_EXPORTER": "x"}
    checked = catraca("config", "check", environment=environment)
    assert checked.returncode == 2
    assert len(checked.stderr.splitlines()) == 2
    environment = {"CATRACA_OTEL": "true", "OTEL_EXPORTER_OTLP_TIMEOUT": "soon", "CATRACA_STORE_URL": "memory:"}
    started = catraca("serve", environment=environment | {"CATRACA_PORT": "0"})
    assert started.returncode == 3
    assert "OpenTelemetry cannot be set up" in started.stderr


@pytest.mark.parametrize("interval", ["0", "-1", "nan", "often"])
async def test_an_interval_that_would_keep_a_core_busy(monkeypatch: pytest.MonkeyPatch, interval: str) -> None:
    """It is refused, as is one that is no number."""

    async def snapshot() -> Snapshot:
        raise AssertionError("nobody is to ask")

    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", interval)
    with pytest.raises(ValueError, match=r"interval|could not convert"):
        await otel.sending_metrics(snapshot).__aenter__()


def test_headers_are_secrets(collector: Collector) -> None:
    """They get to the collector, and not into the log, be they well-formed or not."""
    mark = f"canary-{secrets.token_hex(16)}"
    for name, value in (("", mark), ("TRACES_", f"a b={mark}"), ("METRICS_", f"authorization={mark},{mark}")):
        (problem,) = otel.problems_with_otel({f"OTEL_EXPORTER_OTLP_{name}HEADERS": value})
        assert problem.startswith(f"OTEL_EXPORTER_OTLP_{name}HEADERS must be")
        assert mark not in problem
    environment = collector.environment | {
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{mark}, x-other = {mark}%",
        "CATRACA_LOG_LEVEL": "debug",
    }
    with ServeProcess(environment, store_url="memory:") as process:
        eventually(lambda: bool(collector.requests), "something is sent")
        assert process.stop() == 0
        assert mark not in process.log
    assert collector.authorizations == {f"Bearer {mark}"}


def test_it_is_not_even_imported_without_being_asked() -> None:
    """Neither its time nor its memory is spent."""
    code = "import sys, catraca_server.cli, catraca_server.runtime.worker; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "catraca_server.observe.otel" in done.stdout
    # The driver imports the SDK where it finds one.
    ours = ("opentelemetry.exporter", "catraca_server.observe.otlp", "catraca_server.observe.tracing")
    assert not [each for each in done.stdout.split() if each.startswith(ours)]
