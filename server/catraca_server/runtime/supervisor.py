"""The supervisor: keeps the workers running, the processes that serve one port together.

gRPC in Python uses one core per process. With N workers the service is N processes that share the port (SO_REUSEPORT:
the kernel gives each new connection to one of them) and the store. The supervisor has what there may be only one of:
the embedded store, and the reservation of the port.

A worker is a fresh process, not a fork, which gRPC does not survive. Supervisor and worker speak over the worker's
standard streams. On its input the worker gets its configuration; when that stream ends, because the supervisor stops
the worker or has died, the worker drains. On its output it says that it serves, or why it cannot; and its numbers,
when it is asked for them on its input and before it ends (`numbers`).
"""

import asyncio
import logging
import pickle
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

from catraca_server.app import StartError, embedded_store
from catraca_server.listening import format_address, reserve_port
from catraca_server.runtime.numbers import ASK, LINE_MAX_BYTES, AllNumbers, WorkerNumbers
from catraca_server.runtime.publishing import publishing
from catraca_server.settings import Settings

logger = logging.getLogger(__name__)

WORKER_MODULE = "catraca_server.runtime.worker"

SERVING = b"serving\n"
"""What a worker says once it serves."""

STABLE_AFTER_SECONDS = 10.0
"""How long a worker must have served for its death not to count towards a crash loop."""

CRASH_LIMIT = 5
"""So many deaths in a row are a crash loop."""

FIRST_RESTART_DELAY_SECONDS = 0.5
"""Before a worker that has died twice in a row is replaced; doubled with each further death."""

START_RETRY_SECONDS = 2.0
"""Between attempts to replace a worker that cannot start, for example while the store is down."""

WORKER_STOP_GRACE_SECONDS = 5.0
"""For a worker to exit, on top of the drain timeout that its calls have."""


class RestartPolicy:
    """Decides whether and when to replace a worker that has died. It has no clock: it is told how long each served."""

    def __init__(self) -> None:
        self._deaths = 0

    def delay_seconds(self, served_seconds: float) -> float | None:
        """Returns how long to wait before replacing a worker that has just died. None: this is a crash loop."""
        self._deaths = 1 if served_seconds >= STABLE_AFTER_SECONDS else self._deaths + 1
        if self._deaths >= CRASH_LIMIT:
            return None
        return 0 if self._deaths == 1 else FIRST_RESTART_DELAY_SECONDS * 2 ** (self._deaths - 2)


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What a worker gets from the supervisor. It has secrets in it, so it must not be in a command line or environment.

    Every worker gets what the supervisor read at its start: if a file has changed since, the workers still agree.
    """

    number: int
    settings: Settings
    pepper: bytes | None

    @property
    def stop_timeout_seconds(self) -> float:
        """How long the worker may take to stop."""
        return self.settings.drain_timeout.seconds + WORKER_STOP_GRACE_SECONDS


@dataclass(frozen=True, slots=True)
class _Exit:
    """How a worker ended."""

    served_seconds: float
    status: int
    start_error: str
    """Why it could not start, if it said so."""


@asynccontextmanager
async def supervising(settings: Settings, environment: Mapping[str, str], pepper: bytes | None) -> AsyncIterator[str]:
    """Runs the service by several workers and yields the address they share; they drain on the way out.

    Raises StartError, also later on, when workers keep dying, and CannotListen.
    """
    if sys.platform != "linux":
        raise StartError(
            f"--workers {settings.workers} needs Linux, which spreads connections over them. On other systems run "
            "several servers, each on its own port"
        )
    with reserve_port(settings.host, settings.port) as reservation:
        port = reservation.getsockname()[1]
        async with embedded_store(settings, environment) as embedded:
            if embedded is not None:
                settings = replace(settings, store_url=embedded.url)
            numbers = AllNumbers()
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(publishing(settings, numbers.snapshot))
                await stack.enter_async_context(run_workers(replace(settings, port=port), pepper, numbers))
                yield format_address(settings.host, port)


@asynccontextmanager
async def run_workers(settings: Settings, pepper: bytes | None, numbers: AllNumbers) -> AsyncIterator[None]:
    """Runs the workers; yields once all of them serve, and drains them on the way out.

    Raises StartError, and cancels the body, when a worker cannot start or keeps dying.
    """
    try:
        async with asyncio.TaskGroup() as group:
            serving = [asyncio.Event() for _ in range(settings.workers)]
            keepers = [
                group.create_task(
                    _keep_running(WorkerConfig(number, settings, pepper), event, numbers), name=f"worker-{number}"
                )
                for number, event in enumerate(serving, start=1)
            ]
            for event in serving:
                await event.wait()
            yield
            for keeper in keepers:
                keeper.cancel()
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _keep_running(config: WorkerConfig, serving: asyncio.Event, numbers: AllNumbers) -> None:
    """Runs one worker after the other; sets `serving` when the first serves. Raises StartError."""
    policy = RestartPolicy()
    while True:
        ended = await _run_worker(config, serving, numbers)
        if not ended.start_error:
            delay = policy.delay_seconds(ended.served_seconds)
        elif serving.is_set():
            # The others serve meanwhile, and what keeps this one from starting may pass.
            delay = START_RETRY_SECONDS
        else:
            raise StartError(ended.start_error)
        what = ended.start_error or f"exited: status {ended.status} after {ended.served_seconds:.1f} s"
        if delay is None:
            raise StartError(
                f"worker {config.number} {what}, the {CRASH_LIMIT}th time in a row. See the log above for the reason"
            )
        logger.error("worker %d %s; restarting in %g s", config.number, what, delay)
        await asyncio.sleep(delay)


async def _run_worker(config: WorkerConfig, serving: asyncio.Event, numbers: AllNumbers) -> _Exit:
    """Runs a worker until it exits; cancelled, has it drain."""
    clock = asyncio.get_running_loop().time
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            # -P: no modules from the working directory, whoever can write there.
            *("-P", "-m", WORKER_MODULE),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # Ctrl-C is for the supervisor, which then has the workers drain.
            start_new_session=True,
            limit=LINE_MAX_BYTES,
        )
    except OSError as error:
        return _Exit(0, 0, f"cannot be started: {error.strerror}")
    assert process.stdin is not None
    assert process.stdout is not None
    taking: asyncio.Task[None] | None = None
    try:
        # It may have been killed by now.
        if not process.stdin.is_closing():
            process.stdin.write(pickle.dumps(config))
        first_line = await process.stdout.readline()
        began = clock()
        if first_line == SERVING:
            serving.set()
            start_error = ""
            # Not cancelled with this task: a worker that drains tells its last numbers before it ends.
            taking = asyncio.create_task(_take_numbers(process, numbers), name=f"numbers-{config.number}")
            await asyncio.shield(taking)
        else:
            start_error = (first_line + await process.stdout.read()).decode().strip()
        status = await process.wait()
        return _Exit(clock() - began, status, start_error)
    finally:
        process.stdin.close()
        await _wait_until_stopped(process, config)
        if taking is not None:
            await taking


async def _take_numbers(process: asyncio.subprocess.Process, numbers: AllNumbers) -> None:
    """Takes what a worker tells until it ends."""
    assert process.stdin is not None
    assert process.stdout is not None
    told = WorkerNumbers(partial(_ask, process.stdin))
    numbers.add(told)
    try:
        async for line in process.stdout:
            # A worker that was killed may have left half a line.
            if line.endswith(b"\n"):
                told.tell(line)
    finally:
        numbers.remove(told)


def _ask(stdin: asyncio.StreamWriter) -> None:
    """Asks a worker for its numbers, unless it drains: it tells its last ones unasked."""
    if not stdin.is_closing():
        stdin.write(ASK)


async def _wait_until_stopped(process: asyncio.subprocess.Process, config: WorkerConfig) -> None:
    """Waits for a worker that was told to stop; kills it if it does not."""
    try:
        async with asyncio.timeout(config.stop_timeout_seconds):
            await process.wait()
    except TimeoutError:
        logger.error(  # noqa: TRY400  the traceback would say nothing
            "worker %d killed: it did not stop within %g s", config.number, config.stop_timeout_seconds
        )
        process.kill()
        await process.wait()
