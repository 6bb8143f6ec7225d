"""The link to the store that the settings ask for: made, connected, closed again. A part of the composition root."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

from catraca_server.redis.cluster import Cluster
from catraca_server.redis.dialer import (
    FIRST_VERSION_THAT_TELLS_EXPIRY,
    Address,
    Dialer,
    Group,
    RedisConnector,
    memory_connector,
)
from catraca_server.redis.link import Link, Server
from catraca_server.redis.multiplexer import Connector
from catraca_server.redis.sentinel import Sentinels, Watch
from catraca_server.settings import Settings

logger = logging.getLogger(__name__)


@asynccontextmanager
async def linked(url: str, settings: Settings, on_change: Callable[[bool], None]) -> AsyncIterator[tuple[Link, bool]]:
    """Connects to the store at a URL. Yields the link, and whether the store tells expiries (PEXPIRETIME).

    `on_change` is told when the store is found (True) or lost (False). Raises StoreUnavailable, and TimeoutError if
    there is no answer at all.
    """
    connectors: dict[str, RedisConnector] = {}

    def connector(node: str, *, of_cluster: bool = False) -> RedisConnector:
        made = RedisConnector(
            node,
            password=settings.store_password,
            allow_eviction=settings.allow_eviction,
            of_cluster=of_cluster,
        )
        return connectors.setdefault(node, made)

    def connector_in(group: Group, *, of_cluster: bool) -> Callable[[Address], RedisConnector]:
        return lambda address: connector(group.url(address), of_cluster=of_cluster)

    timeout, acks = settings.store_timeout.seconds, settings.replica_acks
    async with AsyncExitStack() as stack:
        link: Server | Cluster
        match urlsplit(url).scheme.partition("+")[2]:
            case "sentinel":
                group = Group.read(url)
                sentinels = Sentinels(
                    group.name,
                    [_sentinel(group.sentinel_url(address), settings) for address in group.addresses],
                    connector_in(group, of_cluster=False),
                )
                link = Server.at(sentinels, timeout=timeout, on_change=on_change, replica_acks=acks)
                watch = Watch(sentinels, link)
                stack.push_async_callback(watch.stop)
                watch.start()
            case "cluster":
                group = Group.read(url)
                link = Cluster(
                    {address: _seed(group.url(address), settings) for address in group.addresses},
                    connector_in(group, of_cluster=True),
                    timeout=timeout,
                    on_change=on_change,
                    replica_acks=acks,
                )
            case _ if url == "memory:":
                logger.warning("SESSIONS ARE KEPT IN MEMORY and forgotten when this process ends; not for production")
                link = Server.at(memory_connector(), timeout=timeout, on_change=on_change)
            case _:
                link = Server.at(connector(url), timeout=timeout, on_change=on_change, replica_acks=acks)
        stack.push_async_callback(link.stop)
        await link.start()
        yield link, all(each.version >= FIRST_VERSION_THAT_TELLS_EXPIRY for each in connectors.values())


def _sentinel(url: str, settings: Settings) -> Connector:
    return Dialer(url, password=settings.sentinel_password, told_by="CATRACA_SENTINEL_PASSWORD")


def _seed(url: str, settings: Settings) -> Connector:
    """Returns a connector to a node that is only asked about the cluster."""
    return RedisConnector(
        url, password=settings.store_password, allow_eviction=True, of_cluster=True, allow_replica=True
    )
