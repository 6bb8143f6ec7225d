"""One worker, `python -m catraca_server.runtime.worker`: the service in a process of its own.

`supervisor` has the other half and says how the two speak.
"""

import asyncio
import os
import pickle
import signal
import sys
import threading
import time

import uvloop

from catraca_server import logs
from catraca_server.app import StartError, serve_as_worker
from catraca_server.runtime.supervisor import SERVING, STOP_PATIENCE, Order


def main() -> int:
    """Serves until told to stop, or until the supervisor has gone."""
    try:
        order: Order = pickle.load(sys.stdin.buffer)  # noqa: S301  from the supervisor, over a pipe of its own
    except EOFError:
        return 1
    logs.configure(order.settings.log_format, order.settings.log_level, worker=order.number)
    threading.Thread(target=_end_with_supervisor, args=(order,), daemon=True).start()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve_as_worker(order, _serving))
    except StartError as error:
        _say(str(error).encode())
        return 1
    return 0


def _end_with_supervisor(order: Order) -> None:
    """Waits, in a thread of its own, for the supervisor to let go of the line; then ends this process.

    Also if its event loop does not turn any more: a worker that nobody supervises must not keep the port.
    """
    # Past the buffer, whose lock a thread must not hold when Python ends.
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(order.settings.drain_timeout.seconds + STOP_PATIENCE)
    os._exit(1)


def _serving() -> None:
    _say(SERVING)


def _say(what: bytes) -> None:
    sys.stdout.buffer.write(what)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
