"""`catraca serve` with several workers: all of them serve, any of them may die, and none outlives the service."""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from tests.support.load import OWN_CONNECTIONS, Load, load_over_clients, load_over_stub
from tests.support.processes import alive, connections_of, has_written, store_processes, workers_of
from tests.support.proxy import Proxy
from tests.support.service import ServeProcess
from tests.support.valkey import BINARY, WHY_MISSING, Valkey
from tests.support.waiting import TIMEOUT_SECONDS, eventually, eventually_async

from catraca import AsyncSessionClient, SessionClient, _core, errors

pytestmark = [
    pytest.mark.skipif(BINARY is None, reason=WHY_MISSING),
    pytest.mark.skipif(sys.platform != "linux", reason="workers take Linux"),
]

USAGE, UNAVAILABLE = 2, 3
STOP_SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda each: each.name)


@pytest.fixture(autouse=True)
def own_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives each client its own connection, as clients in different processes have."""
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


async def replaced(process: ServeProcess, dead: psutil.Process) -> None:
    """Waits until the service has both workers again, and reaches both."""

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
    """Connects until every worker has a client, and validates everywhere a session that one of them created."""
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
        # The supervisor accepts none: it holds the port without listening.
        assert not connections_of(psutil.Process(process.pid))


async def test_a_killed_worker_is_replaced_and_no_client_notices(service: ServeProcess, token: str) -> None:
    """The bundled client repeats what was in flight on a worker that died; a new worker takes its place."""
    async with load_over_clients(service.target, {token: "12345"}) as load:
        for _ in range(3):
            victim = max(workers_of(service), key=lambda each: len(connections_of(each)))
            assert connections_of(victim)
            victim.kill()
            await replaced(service, victim)
            await load.go_on(times=200)
    assert not load.failures()
    assert service.log.count("exited: status -9") == 3


async def test_only_calls_on_a_killed_worker_fail(service: ServeProcess, token: str) -> None:
    """Calls on the other worker all succeed, without any retry; those on the killed one soon do again."""
    async with contextlib.AsyncExitStack() as stack:
        loads: dict[psutil.Process, Load] = {}
        while len(loads) < 2:
            before = {each: connections_of(each) for each in workers_of(service)}
            load = await stack.enter_async_context(load_over_stub(service.target, {token: "12345"}, callers=2))
            await load.go_on(times=100)
            (worker,) = (each for each in before if connections_of(each) != before[each])
            loads[worker] = load
        (victim, its_load), (_, other_load) = loads.items()
        victim.kill()
        await its_load.go_on(times=100)
        await other_load.go_on(times=100)
    assert not its_load.wrong
    assert not other_load.failures()


async def test_a_stopped_worker_drains_and_is_replaced(service: ServeProcess, token: str) -> None:
    """SIGTERM to one worker fails no call."""
    async with load_over_clients(service.target, {token: "12345"}) as load:
        for victim in workers_of(service):
            victim.terminate()
            await replaced(service, victim)
            await load.go_on(times=200)
    assert not load.failures()
    assert service.log.count("exited: status 0") == 2


async def test_a_worker_that_cannot_start_is_restarted_later(own_valkey: Valkey) -> None:
    """While the store is down a dead worker cannot be replaced; once the store is back, it is. The service goes on."""
    async with ServeProcess(store_url=own_valkey.url, workers="2", store_timeout="5s") as process:
        own_valkey.kill()
        victim, other = workers_of(process)
        victim.kill()

        async def is_logged() -> bool:
            return "The store is set by CATRACA_STORE_URL; restarting in 2 s" in process.log

        await eventually_async(is_logged, "the supervisor says why there is no new worker")
        assert alive(other)
        await asyncio.to_thread(own_valkey.start)
        await replaced(process, victim)
        assert other in workers_of(process)


def test_a_crash_loop_ends_the_service(valkey: Valkey) -> None:
    """When a worker dies again and again, the service ends with status 3 and the reason, and the others drain."""
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
    """After kill -9 the workers and the store end by themselves; the next start gets port and data at once."""
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
threading.Thread(target=worker._follow_supervisor, args=(config, print), daemon=True).start()
while True:
    pass
"""


def test_a_worker_that_hangs_does_not_outlive_the_supervisor() -> None:
    """When its connection to the supervisor ends, it ends, even if nothing in it reacts."""
    hanging = subprocess.run(
        [sys.executable, "-c", STUCK],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert (hanging.returncode, hanging.stderr) == (1, b"")


def test_a_suspended_worker_does_not_delay_the_stop(valkey: Valkey) -> None:
    """It is killed, because it does not stop by itself."""
    with ServeProcess(store_url=valkey.url, workers="2", drain_timeout="0s") as process:
        workers = workers_of(process)
        workers[0].suspend()
        assert process.stop() == 0
        assert not any(map(alive, workers))
    assert "killed: it did not stop within 5 s" in process.log


@pytest.mark.parametrize("how", ["SIGTERM", "SIGTERM to all", "Ctrl-C"])
async def test_calls_in_flight_finish(how: str, valkey: Valkey, tmp_path: Path) -> None:
    """Workers finish their calls, also if the signal reaches every process of the service."""
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

        async def is_draining() -> bool:
            return process.log.count("draining") == 2 and process.log.count("drained") == 1

        await eventually_async(is_draining, "one worker has drained, the other has a call in flight")
        assert not call.done()
        proxy.release()
        assert await call
        assert await asyncio.to_thread(process.wait) == 0
        assert not any(map(alive, workers))
    assert process.log.splitlines()[-1].endswith(" INFO    stopped")


@STOP_SIGNALS
def test_a_stop_ends_the_embedded_store_last(number: signal.Signals, tmp_path: Path) -> None:
    """Workers have drained by then; nothing is lost and nothing is left."""
    with ServeProcess(data_dir=str(tmp_path), workers="2") as process:
        with SessionClient(process.target, timeout=10) as sessions:
            token = sessions.create("12345").token
        process.signal(number)
        assert process.wait() == 0
    assert "store disconnected" not in process.log
    assert not store_processes(tmp_path)
    with ServeProcess(data_dir=str(tmp_path)) as again, SessionClient(again.target, timeout=10) as sessions:
        assert sessions.validate(token)


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

        # Each reconnects by itself, one sooner than the other.
        await eventually_async(all_serve, "every worker serves again")
        assert workers_of(process) == workers


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_each_line_of_a_worker_has_its_number(log_format: str, valkey: Valkey) -> None:
    """The supervisor's lines have none."""
    with ServeProcess(store_url=valkey.url, workers="2", log_format=log_format) as process:
        assert process.stop() == 0
    lines = process.log.splitlines()
    if log_format == "json":
        entries = [json.loads(line) for line in lines]
        lines_by_worker = [(entry.get("worker"), entry["message"]) for entry in entries]
    else:
        lines_by_worker = []
        for line in lines:
            text = line.split(maxsplit=2)[2]
            who, _, message = text.partition(": ")
            lines_by_worker.append(
                (int(who.removeprefix("worker ")), message) if who.startswith("worker ") else (None, text)
            )
    for number in (1, 2):
        messages = [message for who, message in lines_by_worker if who == number]
        assert [message.split()[0].rstrip(":") for message in messages] == [
            "store",
            "serving",
            "draining",
            "drained",
            "stopped",
        ]
    assert [message.split()[0] for who, message in lines_by_worker if who is None] == ["catraca", "stopped"]


async def test_a_replaced_worker_has_the_secrets_of_the_others(valkey: Valkey, tmp_path: Path) -> None:
    """Every worker has what the supervisor has read, and no command line has it."""
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
