"""Runs the service until it is told to stop: signals, and the choice between one process and workers."""

import asyncio
import gc
import logging
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from importlib.metadata import version

from catraca_server.app import check_otel, new_metrics, read_pepper, running
from catraca_server.observe.numbers import Snapshot
from catraca_server.runtime.publishing import publishing
from catraca_server.runtime.supervisor import supervising
from catraca_server.settings import Settings

logger = logging.getLogger(__name__)


async def serve(settings: Settings, environment: Mapping[str, str]) -> None:
    """Serves, in one process or with workers, until SIGTERM or SIGINT; then drains. Raises StartError, CannotListen."""

    def announce(address: str) -> None:
        logger.info("catraca %s listening on %s; Ctrl-C stops it", version("catraca"), address)

    check_otel(settings, environment)
    pepper = read_pepper(settings)
    if settings.workers == 1:
        service = _alone(settings, environment, pepper)
    else:
        service = supervising(settings, environment, pepper)
    await run_until_stopped(service, announce)


@asynccontextmanager
async def _alone(settings: Settings, environment: Mapping[str, str], pepper: bytes | None) -> AsyncIterator[str]:
    """Runs the service in this process, and publishes its numbers if the settings say so."""
    metrics = new_metrics(settings)

    async def snapshot() -> Snapshot:
        assert metrics is not None, "or else nobody serves it"
        return metrics.snapshot()

    async with AsyncExitStack() as stack:
        if metrics is not None:
            # Around the service, so that the numbers are published while it drains, too.
            await stack.enter_async_context(publishing(settings, snapshot))
        yield await stack.enter_async_context(running(settings, environment, pepper, metrics))


async def run_until_stopped(service: AbstractAsyncContextManager[str], announce: Callable[[str], None]) -> None:
    """Runs a service until SIGTERM or SIGINT; once it serves, announces the address that it yields."""
    stop = asyncio.Event()
    task = asyncio.current_task()
    assert task is not None
    started = False

    def on_signal() -> None:
        # A start is cut short, because it may take as long as the store needs to load.
        if not started and not stop.is_set():
            task.cancel()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    try:
        async with service as address:
            started = True
            _spare_what_lasts()
            announce(address)
            await stop.wait()
    except asyncio.CancelledError:
        if started or not stop.is_set():
            raise
    logger.info("stopped")


def _spare_what_lasts() -> None:
    """Keeps the garbage collector from looking at modules and all else that lasts as long as the process.

    A full collection stops all calls. It takes 32 ms before a single call has come, and next to nothing after this.
    """
    gc.collect()
    gc.freeze()
