"""Connecting to each kind of Redis, and refusing what cannot be used, with the reason and what to do about it."""

import re
from typing import Any

from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    RedisError,
    ResponseError,
)

from catraca_server.redis.errors import StoreLoading, StoreProblem, StoreRefused, StoreUnavailable
from catraca_server.redis.multiplexer import Connector
from catraca_server.redis.replies import described
from catraca_server.redis.url import StoreKind, StoreUrl

OLDEST_VERSION = (6, 2)
"""The first with SET … PXAT, without which a session's end would depend on the server's clock."""

FIRST_VERSION_WITH_PEXPIRETIME = (7, 0)


class Dialer:
    """Connects to one server that speaks Redis' protocol.

    It sets no timeout of its own; the caller does. `password` takes precedence over the one in the URL.
    `configured_by` names the settings that the user and password come from.
    """

    def __init__(
        self,
        url: StoreUrl,
        *,
        password: str = "",
        configured_by: str = "CATRACA_STORE_URL and CATRACA_STORE_PASSWORD",
    ) -> None:
        self.url = url
        self._configured_by = configured_by
        self._class, self._options = connection_to(url)
        if password:
            self._options["password"] = password

    async def __call__(self) -> AbstractConnection:
        """Returns a new connection. Raises StoreRefused, or StoreUnavailable if the server cannot be reached."""
        connection = self._class(
            **self._options,
            # The multiplexer's own timeouts cover every exchange; a retry in here would be a hidden one.
            socket_timeout=None,
            socket_connect_timeout=None,
            retry=Retry(NoBackoff(), 0),
            # RESP2: on RESP3 redis-py turns maintenance notifications on, and they switch off its own check for
            # replies left over on a connection.
            protocol=2,
            client_name="catraca",
        )
        try:
            await connection.connect()  # type: ignore[no-untyped-call]  # redis-py gives it no types
            await self.examine(connection)
        except BaseException as error:
            await connection.disconnect(nowait=True)
            if isinstance(error, (RedisError, OSError)):
                # redis-py wraps what goes wrong in its handshake.
                raise self._explained(error.__cause__ if isinstance(error.__cause__, RedisError) else error) from error
            raise
        return connection

    async def examine(self, connection: AbstractConnection) -> None:
        """Examines the server before it is used. A Sentinel needs no examination."""

    def _explained(self, error: RedisError | OSError) -> StoreUnavailable:
        match error:
            case AuthenticationError() | AuthorizationError():
                return StoreRefused(f"{self.url} did not accept the user or password: check {self._configured_by}")
            case BusyLoadingError():
                return StoreLoading(f"{self.url} is still loading its data")
            case ResponseError():
                return StoreRefused(
                    f"{self.url} refused the first commands ({described(error)}): check the database number, and "
                    "that the user may run INFO"
                )
            case _:
                return StoreUnavailable(f"no answer at {self.url} ({error})", StoreProblem.CANNOT_CONNECT)


class RedisConnector(Dialer):
    """Connects to one Redis, Valkey or compatible server, and examines it each time.

    `allow_replica` is for connections over which a node is only asked about the cluster.
    """

    def __init__(
        self,
        url: StoreUrl,
        *,
        password: str = "",
        allow_eviction: bool = False,
        of_cluster: bool = False,
        allow_replica: bool = False,
    ) -> None:
        super().__init__(url, password=password)
        self.version = OLDEST_VERSION
        """The server's version, as of the last connection."""
        self._allow_eviction = allow_eviction
        self._of_cluster = of_cluster
        self._allow_replica = allow_replica

    async def examine(self, connection: AbstractConnection) -> None:
        """Refuses a server that cannot be used. Raises StoreRefused, StoreLoading."""
        await connection.send_command("INFO")
        info = _parse_info(await connection.read_response(disable_decoding=True))
        if info.get("loading") == "1":
            # While it loads, it answers INFO and TIME, but no command about a session.
            raise StoreLoading(f"{self.url} is still loading its data")
        version = re.match(r"(\d+)\.(\d+)", info.get("redis_version", ""))
        if version is None:
            raise StoreRefused(f"{self.url} does not tell its version: is it a Redis or a Valkey?")
        self.version = (int(version[1]), int(version[2]))
        if self.version < OLDEST_VERSION:
            raise StoreRefused(
                f"{self.url} is version {info['redis_version']}: catraca needs Redis 6.2 or newer, or any Valkey"
            )
        if (info.get("cluster_enabled") == "1") is not self._of_cluster:
            raise StoreRefused(
                f"{self.url} is not a node of a cluster: write redis:// instead of redis+cluster://"
                if self._of_cluster
                else f"{self.url} is a node of a cluster: write redis+cluster:// instead of redis://"
            )
        if info.get("role") == "slave" and not self._allow_replica:
            raise StoreRefused(f"{self.url} is a replica, which may lag behind: name the primary")
        policy = info.get("maxmemory_policy", "noeviction")
        if policy != "noeviction" and not self._allow_eviction:
            raise StoreRefused(
                f"{self.url} has maxmemory-policy {policy}, which may evict live sessions when memory runs out: "
                "set maxmemory-policy to noeviction, or accept it with --allow-eviction"
            )


def connection_to(url: StoreUrl) -> tuple[type[AbstractConnection], dict[str, Any]]:
    """Returns redis-py's class for a connection to a standalone server, and the arguments for it."""
    assert url.kind is StoreKind.STANDALONE, "of a group, its servers are connected to one by one"
    options: dict[str, Any] = {"db": url.db}
    if url.username:
        options["username"] = url.username
    if url.password:
        options["password"] = url.password
    if url.socket_path:
        return UnixDomainSocketConnection, {**options, "path": url.socket_path}
    (address,) = url.addresses
    options |= {"host": address.host, "port": address.port}
    if url.uses_tls:
        return SSLConnection, {**options, **dict(url.tls_options)}
    return Connection, options


def memory_connector() -> Connector:
    """Returns a connector to an in-process store of its own, which forgets everything when the process ends."""
    # Imported only where it is used, because that takes a while.
    from fakeredis import FakeServer  # noqa: PLC0415
    from fakeredis.aioredis import FakeAsyncRedisConnection  # noqa: PLC0415

    server = FakeServer(version=(7, 4))

    async def connect() -> AbstractConnection:
        connection: AbstractConnection = FakeAsyncRedisConnection(server=server, protocol=2, socket_timeout=None)
        await connection.connect()  # type: ignore[no-untyped-call]  # redis-py gives it no types
        return connection

    return connect


def _parse_info(reply: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in reply.decode(errors="replace").splitlines() if ":" in line)
    return {name: value for name, _, value in lines}
