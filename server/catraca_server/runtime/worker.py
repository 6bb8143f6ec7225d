"""One worker, `python -m catraca_server.runtime.worker`: a server in a process of its own, kept by the supervisor.

How the two speak is described in `supervisor`.
"""

import asyncio
import logging
import os
import pickle
import signal
import sys
import threading
import time

import uvloop

from catraca_server import logs
from catraca_server.app import StartError, running
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
    threading.Thread(target=_stop_with_supervisor, args=(config,), daemon=True).start()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(config))
    except (StartError, CannotListen) as error:
        _tell_supervisor(str(error).encode())
        return 1
    return 0


async def _serve(config: WorkerConfig) -> None:
    def announce(_: str) -> None:
        logger.info("serving: pid %d", os.getpid())
        _tell_supervisor(SERVING)

    await run_until_stopped(running(config.settings, {}, config.pepper), announce)


def _stop_with_supervisor(config: WorkerConfig) -> None:
    """Waits, in a thread of its own, for the supervisor to close its end of the pipe; then stops this process.

    It stops even if the event loop hangs: a worker without a supervisor must not keep the port.
    """
    # Not through the buffer, whose lock a thread must not hold when Python exits.
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(config.stop_timeout_seconds)
    os._exit(1)


def _tell_supervisor(message: bytes) -> None:
    sys.stdout.buffer.write(message)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
