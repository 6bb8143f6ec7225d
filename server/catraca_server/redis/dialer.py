"""Connecting to each kind of Redis, and refusing what cannot be used, with the reason and the remedy."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, urlsplit

from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
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

from catraca_server.redis.multiplexer import Connector
from catraca_server.settings import without_password
from catraca_server.store import StoreUnavailable

OLDEST_VERSION = (6, 2)
"""The first with SET … PXAT, without which a session's end would depend on the server's clock."""

FIRST_VERSION_THAT_TELLS_EXPIRY = (7, 0)
"""The first with PEXPIRETIME."""

_CLASSES: dict[str, type[AbstractConnection]] = {
    "redis": Connection,
    "rediss": SSLConnection,
    "unix": UnixDomainSocketConnection,
}
_URL_OPTIONS = {
    "db",
    "ssl_ca_certs",
    "ssl_ca_path",
    "ssl_cert_reqs",
    "ssl_certfile",
    "ssl_check_hostname",
    "ssl_keyfile",
}
"""What a store URL may say after its question mark. Timeouts and retries are not among it: they are ours to set."""


class StoreRefused(StoreUnavailable):
    """This store cannot be used as it is: why, and what to do about it."""


class StoreLoading(StoreUnavailable):
    """The store is there and still reading its data."""


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        """Returns it as operators write it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Group:
    """What a store URL says that names several servers: `redis+sentinel://…` or `redis+cluster://…`."""

    addresses: Sequence[Address]
    name: str
    """After the addresses: of the primary, as Sentinels know it."""
    _scheme: str
    _credentials: str = field(repr=False)
    _query: str

    @classmethod
    def read(cls, url: str) -> "Group":
        """Reads a store URL. Raises StoreRefused."""
        shown, parts = without_password(url), urlsplit(url)
        credentials, at, hosts = parts.netloc.rpartition("@")
        try:
            addresses = [_address(host) for host in hosts.split(",")]
        except ValueError:
            raise StoreRefused(f"{shown} names no servers: write {parts.scheme}://host:port,host:port") from None
        scheme, _, kind = parts.scheme.partition("+")
        name = parts.path.strip("/")
        if kind == "sentinel" and (not name or "/" in name):
            raise StoreRefused(
                f"{shown} names no primary: write {parts.scheme}://host:port,host:port/NAME, with the name that the "
                "Sentinels have for it, and ?db=1 for another database than the first"
            )
        if kind == "cluster" and (name or "db" in parse_qs(parts.query, keep_blank_values=True)):
            raise StoreRefused(f"{shown} names a database, and a cluster has only one: leave it out")
        group = cls(addresses, name, scheme, credentials + at, f"?{parts.query}" if parts.query else "")
        _options(group.url(addresses[0]), shown)
        return group

    def url(self, address: Address) -> str:
        """Returns the store URL of one of the servers that keep sessions."""
        return f"{self._scheme}://{self._credentials}{address}/{self._query}"

    def sentinel_url(self, address: Address) -> str:
        """Returns the URL of a Sentinel, which has users and a password of its own, and no databases."""
        query = "&".join(option for option in self._query[1:].split("&") if not option.startswith("db="))
        return f"{self._scheme}://{address}/{f'?{query}' if query else ''}"


class Dialer:
    """Connects to a server that speaks Redis's protocol.

    Takes as long as it takes: who calls it sets a timeout. Raises StoreRefused when made from a URL that names no such
    server. `told_by` are the settings that a user and password come from.
    """

    def __init__(
        self, url: str, *, password: str = "", told_by: str = "CATRACA_STORE_URL and CATRACA_STORE_PASSWORD"
    ) -> None:
        self.shown = without_password(url)
        self._told_by = told_by
        self._class = _CLASSES[urlsplit(url).scheme]
        self._options = _options(url, self.shown)
        if password:
            self._options["password"] = password

    async def __call__(self) -> AbstractConnection:
        """Returns a new connection. Raises StoreRefused, or StoreUnavailable if there is no answer."""
        connection = self._class(
            **self._options,
            # The batcher's own timeouts cover every exchange; a retry in here would be a hidden one.
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
                # What goes wrong while redis-py shakes hands comes wrapped.
                raise self._explained(error.__cause__ if isinstance(error.__cause__, RedisError) else error) from error
            raise
        return connection

    async def examine(self, connection: AbstractConnection) -> None:
        """Looks at what answers, before it is used."""

    def _explained(self, error: RedisError | OSError) -> StoreUnavailable:
        match error:
            case AuthenticationError() | AuthorizationError():
                return StoreRefused(f"{self.shown} did not accept the user or password: check {self._told_by}")
            case BusyLoadingError():
                return StoreLoading(f"{self.shown} is still loading its data")
            case ResponseError():
                return StoreRefused(
                    f"{self.shown} refused the first commands ({error}): check the database number, and that the user "
                    "may run INFO"
                )
            case _:
                return StoreUnavailable(f"no answer at {self.shown} ({error})")


class RedisConnector(Dialer):
    """Connects to one Redis, Valkey or compatible server, and examines it each time.

    `allow_replica`: for who asks it about others only.
    """

    def __init__(
        self,
        url: str,
        *,
        password: str = "",
        allow_eviction: bool = False,
        of_cluster: bool = False,
        allow_replica: bool = False,
    ) -> None:
        super().__init__(url, password=password)
        self.version = OLDEST_VERSION
        """Of the store that was connected to last."""
        self._allow_eviction = allow_eviction
        self._of_cluster = of_cluster
        self._allow_replica = allow_replica

    async def examine(self, connection: AbstractConnection) -> None:
        """Refuses what cannot be used. Raises StoreRefused, StoreLoading."""
        await connection.send_command("INFO")
        info = _parse_info(await connection.read_response(disable_decoding=True))
        if info.get("loading") == "1":
            # It answers INFO and TIME by then, and nothing about sessions.
            raise StoreLoading(f"{self.shown} is still loading its data")
        version = re.match(r"(\d+)\.(\d+)", info.get("redis_version", ""))
        if version is None:
            raise StoreRefused(f"{self.shown} does not tell its version: is it a Redis or a Valkey?")
        self.version = (int(version[1]), int(version[2]))
        if self.version < OLDEST_VERSION:
            raise StoreRefused(
                f"{self.shown} is version {info['redis_version']}: catraca needs Redis 6.2 or newer, or any Valkey"
            )
        if (info.get("cluster_enabled") == "1") is not self._of_cluster:
            raise StoreRefused(
                f"{self.shown} is no node of a cluster: write redis:// instead of redis+cluster://"
                if self._of_cluster
                else f"{self.shown} is a node of a cluster: write redis+cluster:// instead of redis://"
            )
        if info.get("role") == "slave" and not self._allow_replica:
            raise StoreRefused(f"{self.shown} is a replica, which may lag behind: name the primary")
        policy = info.get("maxmemory_policy", "noeviction")
        if policy != "noeviction" and not self._allow_eviction:
            raise StoreRefused(
                f"{self.shown} has maxmemory-policy {policy}, which may evict live sessions when memory runs out: "
                "set maxmemory-policy to noeviction, or accept it with --allow-eviction"
            )


def unix_url(path: str) -> str:
    """Returns the store URL of a Unix socket."""
    return f"unix://{quote(path)}"


def memory_connector() -> Connector:
    """Returns a connector to an in-process store of its own, which forgets everything when the process ends."""
    # Only who asks for it pays for importing it.
    from fakeredis import FakeServer  # noqa: PLC0415
    from fakeredis.aioredis import FakeAsyncRedisConnection  # noqa: PLC0415

    server = FakeServer(version=(7, 4))

    async def connect() -> AbstractConnection:
        connection: AbstractConnection = FakeAsyncRedisConnection(server=server, protocol=2, socket_timeout=None)
        await connection.connect()  # type: ignore[no-untyped-call]  # redis-py gives it no types
        return connection

    return connect


def _address(text: str) -> Address:
    host, separator, port = text.rpartition(":")
    if not (separator and host and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise ValueError
    return Address(host.strip("[]"), int(port))


def _options(url: str, shown: str) -> dict[str, Any]:
    parts = urlsplit(url)
    if unknown := parse_qs(parts.query, keep_blank_values=True).keys() - _URL_OPTIONS:
        raise StoreRefused(f"{shown} has options that mean nothing here ({', '.join(sorted(unknown))}): leave them out")
    if parts.scheme == "unix":
        if not parts.path:
            raise StoreRefused(f"{shown} names no socket: write unix:///path/to/redis.sock")
    elif not parts.path.lstrip("/").isdecimal() and parts.path not in ("", "/"):
        raise StoreRefused(f"{shown} names no database by number: write redis://host:6379/0")
    try:
        options = dict(parse_url(url))
    except ValueError:
        raise StoreRefused(f"{shown} is no URL of a Redis: write redis://host:6379/0") from None
    options.pop("connection_class", None)
    return options


def _parse_info(reply: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in reply.decode(errors="replace").splitlines() if ":" in line)
    return {name: value for name, _, value in lines}
