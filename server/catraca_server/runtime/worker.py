"""One worker, `python -m catraca_server.runtime.worker`: a server in a process of its own, kept by the supervisor.

`supervisor` describes how the two communicate.
"""

import asyncio
import json
import logging
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import uvloop

from catraca_server import logs
from catraca_server.app import StartError, new_metrics, running
from catraca_server.listening import CannotListen
from catraca_server.runtime.run import run_until_stopped
from catraca_server.runtime.supervisor import SERVING, WorkerConfig

logger = logging.getLogger(__name__)


def main() -> int:
    """Serves until told to stop, or until the supervisor has gone."""
    try:
        config: WorkerConfig = pickle.load(sys.stdin.buffer)  # noqa: S301  from the supervisor, over its own pipe
    except EOFError:
        return 1
    logs.configure(config.settings.log_format, config.settings.log_level, worker=config.number)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(config))
    except (StartError, CannotListen) as error:
        _tell_supervisor(str(error).encode())
        return 1
    return 0


async def _serve(config: WorkerConfig) -> None:
    metrics = new_metrics(config.settings)

    def tell_numbers() -> None:
        if metrics is not None:
            _tell_supervisor(json.dumps(metrics.snapshot()).encode() + b"\n")

    tell_soon = partial(asyncio.get_running_loop().call_soon_threadsafe, tell_numbers)
    threading.Thread(target=_follow_supervisor, args=(config, tell_soon), daemon=True).start()

    def announce(_: str) -> None:
        logger.info("serving: pid %d", os.getpid())
        _tell_supervisor(SERVING)

    await run_until_stopped(running(config.settings, {}, config.pepper, metrics), announce)
    tell_numbers()


def _follow_supervisor(config: WorkerConfig, tell_numbers: Callable[[], object]) -> None:
    """Waits, in a thread of its own, for the supervisor to close its end of the pipe; then stops this process.

    Until then each byte on it asks for this worker's numbers.

    It stops even if the event loop hangs: a worker without a supervisor must not keep the port.
    """
    # Not through the buffer, whose lock a thread must not hold when Python exits.
    while os.read(sys.stdin.fileno(), 1):
        with suppress(RuntimeError):  # the loop has ended
            tell_numbers()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(config.stop_timeout_seconds)
    os._exit(1)


def _tell_supervisor(message: bytes) -> None:
    sys.stdout.buffer.write(message)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
