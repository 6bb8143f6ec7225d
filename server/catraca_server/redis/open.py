"""Turns a store URL into a link, connects it and closes it again."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from catraca_server.redis.cluster import Cluster
from catraca_server.redis.dialer import (
    FIRST_VERSION_WITH_PEXPIRETIME,
    Dialer,
    RedisConnector,
    memory_connector,
)
from catraca_server.redis.link import Link, Server
from catraca_server.redis.multiplexer import Connector
from catraca_server.redis.observer import NO_OBSERVER, StoreObserver
from catraca_server.redis.sentinel import PrimaryMonitor, Sentinels
from catraca_server.redis.url import Address, StoreKind, StoreUrl

logger = logging.getLogger(__name__)


@asynccontextmanager
async def open_link(
    url: StoreUrl,
    *,
    store_password: str = "",
    sentinel_password: str = "",
    allow_eviction: bool = False,
    timeout_seconds: float,
    replica_acks: int = 0,
    on_change: Callable[[bool], None],
    observer: StoreObserver = NO_OBSERVER,
) -> AsyncIterator[tuple[Link, bool]]:
    """Connects to the store at a URL. Yields the link, and whether the store has PEXPIRETIME.

    `on_change` is called with True when the store is connected, with False when it is disconnected. Raises
    StoreUnavailable, and TimeoutError if there is no answer at all.
    """
    connectors: dict[StoreUrl, RedisConnector] = {}

    def connector(server: StoreUrl, *, of_cluster: bool = False) -> RedisConnector:
        made = RedisConnector(server, password=store_password, allow_eviction=allow_eviction, of_cluster=of_cluster)
        return connectors.setdefault(server, made)

    def sentinel_connector(address: Address) -> Dialer:
        return Dialer(url.sentinel(address), password=sentinel_password, configured_by="CATRACA_SENTINEL_PASSWORD")

    def seed_connector(address: Address) -> RedisConnector:
        """Returns a connector to a node that is only asked about the cluster."""
        return RedisConnector(
            url.server(address), password=store_password, allow_eviction=True, of_cluster=True, allow_replica=True
        )

    def server_at(connect: Connector) -> Server:
        return Server.at(
            connect,
            timeout_seconds=timeout_seconds,
            on_change=on_change,
            replica_acks=replica_acks,
            observer=observer,
        )

    async with AsyncExitStack() as stack:
        link: Server | Cluster
        match url.kind:
            case StoreKind.SENTINEL:
                sentinels = Sentinels(
                    url.primary_name,
                    [sentinel_connector(address) for address in url.addresses],
                    lambda address: connector(url.server(address)),
                )
                link = server_at(sentinels)
                monitor = PrimaryMonitor(sentinels, link)
                stack.push_async_callback(monitor.stop)
                monitor.start()
            case StoreKind.CLUSTER:
                link = Cluster(
                    {address: seed_connector(address) for address in url.addresses},
                    lambda address: connector(url.server(address), of_cluster=True),
                    timeout_seconds=timeout_seconds,
                    on_change=on_change,
                    replica_acks=replica_acks,
                    observer=observer,
                )
            case StoreKind.MEMORY:
                logger.warning("SESSIONS ARE KEPT IN MEMORY and forgotten when this process ends; not for production")
                link = server_at(memory_connector())
            case StoreKind.STANDALONE:
                link = server_at(connector(url))
            case StoreKind.EMBEDDED:
                raise ValueError("the embedded store has to be started first, and has a URL of its own then")
        stack.push_async_callback(link.stop)
        await link.start()
        yield link, all(each.version >= FIRST_VERSION_WITH_PEXPIRETIME for each in connectors.values())
