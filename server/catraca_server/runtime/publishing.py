"""Publishes the numbers of the service: on a page that Prometheus reads, and to a collector."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from catraca_server.app import cannot_set_up_otel
from catraca_server.observe.numbers import Snapshot
from catraca_server.observe.otel import sending_metrics
from catraca_server.observe.serving import serving_page
from catraca_server.settings import Settings


@asynccontextmanager
async def publishing(settings: Settings, snapshot: Callable[[], Awaitable[Snapshot]]) -> AsyncIterator[None]:
    """Publishes the numbers in the body, as the settings say. Raises StartError, CannotListen."""
    async with AsyncExitStack() as stack:
        if settings.metrics_port:
            await stack.enter_async_context(serving_page(settings.metrics_host, settings.metrics_port, snapshot))
        if settings.otel:
            try:
                await stack.enter_async_context(sending_metrics(snapshot))
            except (OSError, ValueError) as error:
                raise cannot_set_up_otel(error) from None
        yield
