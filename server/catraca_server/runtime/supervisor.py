"""Workers: processes that serve one port together, and the supervisor that keeps them running.

gRPC in Python uses one core per process. With N workers the service is N processes that share the port (SO_REUSEPORT:
the kernel gives each new connection to one of them) and the store. What there may be only one of belongs to the
supervisor: the embedded store, and the claim on the port.

A worker is a program started afresh and no fork, which gRPC does not survive. Its standard input is the line to the
supervisor: first it is told what to do, and when that line ends, because the supervisor has it stop or has itself died,
it drains. On its standard output it says that it serves, or else why it cannot.
"""

import asyncio
import logging
import pickle
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from catraca_server.settings import Settings

logger = logging.getLogger(__name__)

SERVING = b"serving\n"
"""What a worker says once it serves."""

STEADY = 10.0
"""Seconds of service after which a death is no longer one of a crash loop."""

CRASH_LIMIT = 5
"""Deaths in a row that are a crash loop."""

RETRY_PAUSE = 2.0
"""Seconds between attempts to replace a worker that cannot start, because the store is away for example."""

STOP_PATIENCE = 5.0
"""Seconds for a worker to end, after those that its calls have."""

_FIRST_PAUSE = 0.5


class WorkersFailed(Exception):
    """The workers cannot serve: why."""


class Restarts:
    """Decides about the replacement of a worker, death by death. It knows no clock: it is told how long each served."""

    def __init__(self) -> None:
        self._deaths = 0

    def pause(self, served: float) -> float | None:
        """Returns how many seconds to wait before replacing one that served so long; None: it is a crash loop."""
        self._deaths = 1 if served >= STEADY else self._deaths + 1
        if self._deaths >= CRASH_LIMIT:
            return None
        return 0 if self._deaths == 1 else _FIRST_PAUSE * 2 ** (self._deaths - 2)


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker is told. It has secrets in it, so it stands on no command line and in no environment."""

    number: int
    settings: Settings
    pepper: bytes | None
    """Handed over as it was read once: a file that has changed since would part the replaced worker from the others."""


@dataclass(frozen=True, slots=True)
class _End:
    """How a worker ended."""

    served: float
    status: int
    reason: str
    """Why it could not start, if it said so."""


def claim(host: str, port: int) -> socket.socket:
    """Returns a socket that holds a port (0: a free one) for workers to share, without listening. Raises OSError."""
    error = OSError(f"{host} is no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        try:
            holder = socket.socket(family, kind, protocol)
        except OSError as unknown_family:
            error = unknown_family
            continue
        try:
            # First for us alone, which another server on that port prevents, whether it shares or not. To have been
            # used a moment ago is no reason to be refused.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(address)
            # From here on for who shares it, which a second supervisor does not.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        except OSError as refused:
            holder.close()
            error = refused
        else:
            return holder
    raise error


@asynccontextmanager
async def working(settings: Settings, pepper: bytes | None) -> AsyncIterator[None]:
    """Runs the workers; yields once all of them serve, and drains them on the way out.

    Raises WorkersFailed, and cancels what it has yielded to, when one cannot start or keeps dying.
    """
    try:
        async with asyncio.TaskGroup() as group:
            serving = [asyncio.Event() for _ in range(settings.workers)]
            keepers = [
                group.create_task(_keep(Order(number, settings, pepper), each), name=f"worker-{number}")
                for number, each in enumerate(serving, start=1)
            ]
            for each in serving:
                await each.wait()
            yield
            for keeper in keepers:
                keeper.cancel()
    except ExceptionGroup as group_of_errors:
        raise group_of_errors.exceptions[0] from None


async def _keep(order: Order, serving: asyncio.Event) -> None:
    """Keeps a worker running, one after the other. Raises WorkersFailed."""
    restarts = Restarts()
    while True:
        end = await _run(order, serving)
        if not end.reason:
            pause = restarts.pause(end.served)
        elif serving.is_set():
            # One that has served comes back when what keeps it from starting has gone; the others serve meanwhile.
            pause = RETRY_PAUSE
        else:
            raise WorkersFailed(end.reason)
        what = end.reason or f"ended with status {end.status} after {end.served:.1f} s of service"
        if pause is None:
            raise WorkersFailed(
                f"worker {order.number} {what}, for the {CRASH_LIMIT}th time in a row: the log above may say why"
            )
        logger.error("worker %d %s; starting another in %g s", order.number, what, pause)
        await asyncio.sleep(pause)


async def _run(order: Order, serving: asyncio.Event) -> _End:
    """Runs a worker to its end; cancelled, has it drain."""
    clock = asyncio.get_running_loop().time
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            # Not the working directory's modules, whoever can write there.
            *("-P", "-m", "catraca_server.runtime.worker"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # Ctrl-C is for the supervisor, which lets workers drain.
            start_new_session=True,
        )
    except OSError as error:
        return _End(0, 0, f"cannot be started: {error.strerror}")
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        # One may have been killed by now.
        if not process.stdin.is_closing():
            process.stdin.write(pickle.dumps(order))
        said = await process.stdout.readline()
        began = clock()
        if said == SERVING:
            serving.set()
            reason = ""
        else:
            reason = (said + await process.stdout.read()).decode().strip()
        status = await process.wait()
        return _End(clock() - began, status, reason)
    finally:
        process.stdin.close()
        await _ended(process, order)


async def _ended(process: asyncio.subprocess.Process, order: Order) -> None:
    """Returns once a worker that was told to stop has; kills one that does not."""
    try:
        async with asyncio.timeout(order.settings.drain_timeout.seconds + STOP_PATIENCE):
            await process.wait()
    except TimeoutError:
        logger.error("worker %d did not stop in time and is killed", order.number)  # noqa: TRY400
        process.kill()
        await process.wait()
