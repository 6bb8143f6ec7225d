"""Store URLs: the only code that reads them. Faults in one are reported here, before anything is connected.

Everywhere else a store URL is a `StoreUrl`. The password is in one field of it, and in no text made from it.
"""

import re
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NamedTuple
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

HIDDEN = "********"
DEFAULT_PORT = 6379

_SCHEMES = {
    "embedded": "embedded:",
    "memory": "memory:",
    **{scheme: f"{scheme}://" for scheme in ("redis", "rediss", "unix")},
    **{scheme: f"{scheme}://" for scheme in ("redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")},
}
STORE_SCHEMES = tuple(_SCHEMES)

_CERTIFICATE_CHECKS = ("none", "optional", "required")
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_TLS_OPTIONS = {
    "ssl_ca_certs",
    "ssl_ca_path",
    "ssl_cert_reqs",
    "ssl_certfile",
    "ssl_check_hostname",
    "ssl_keyfile",
}
"""The options that a URL may have besides `db`. Timeouts and retries are not among them: we set those ourselves."""


class StoreKind(Enum):
    """What a store URL means."""

    EMBEDDED = "embedded"
    MEMORY = "memory"
    STANDALONE = "standalone"
    """One server, over TCP or a Unix socket."""
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        """Returns it as operators write it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, repr=False)
class StoreUrl:
    """Where a store is, and as whom to connect. As text it is what the operator wrote, without the password."""

    kind: StoreKind
    addresses: tuple[Address, ...] = ()
    """Of the server, of the Sentinels, or of some nodes of the cluster; none if it listens on a socket."""
    socket_path: str = ""
    primary_name: str = ""
    """What the Sentinels call the primary."""
    username: str = ""
    password: str = ""
    db: int = 0
    uses_tls: bool = False
    tls_options: tuple[tuple[str, str | bool], ...] = ()
    """As redis-py names them."""
    _text: str = field(default="", compare=False)

    @classmethod
    def parse(cls, text: str) -> "StoreUrl":
        """Reads a store URL. Raises ValueError, which says what is wrong without showing a password."""
        shown = hide_passwords(text)
        try:
            parts = urlsplit(text)
        except ValueError:
            raise ValueError(_not_a_redis_url(shown)) from None
        scheme, _, group = parts.scheme.partition("+")
        if parts.scheme not in _SCHEMES:
            *first, last = _SCHEMES.values()
            raise ValueError(f"must start with {', '.join(first)} or {last}")
        if scheme in ("embedded", "memory"):
            if text != f"{scheme}:":
                raise ValueError(f"{shown} says more than can be meant: write {scheme}: and nothing after it")
            return cls(StoreKind(scheme), _text=text)
        _check_escaping(parts, text, shown)
        url = cls(StoreKind(group or "standalone"), uses_tls=scheme == "rediss", _text=shown)
        url = _with_credentials(_with_options(url, parts, shown), parts)
        if group:
            return _with_group(url, parts, shown)
        return _with_socket(url, parts, shown) if scheme == "unix" else _with_server(url, parts, shown)

    @classmethod
    def at_socket(cls, path: str) -> "StoreUrl":
        """Returns the URL of a server that listens on a Unix socket."""
        return cls(StoreKind.STANDALONE, socket_path=path, _text=f"unix://{quote(path)}")

    def with_tls_files(self, **files: str) -> "StoreUrl":
        """Returns the same store with these TLS options (`ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`).

        Raises ValueError if the store does not use TLS, or its URL sets one of these options itself.
        """
        if not self.uses_tls:
            raise ValueError(f"{self} does not use TLS: write rediss instead of redis")
        if said := files.keys() & dict(self.tls_options).keys():
            raise ValueError(f"{self} names another file itself ({', '.join(sorted(said))}): leave one of the two out")
        return replace(self, tls_options=tuple(sorted((*self.tls_options, *files.items()))))

    def server(self, address: Address) -> "StoreUrl":
        """Returns the URL of one of the servers that keep the sessions of this store."""
        return replace(self, kind=StoreKind.STANDALONE, addresses=(address,), primary_name="", _text="")

    def sentinel(self, address: Address) -> "StoreUrl":
        """Returns the URL of a Sentinel, which has users and a password of its own, and no databases."""
        return replace(self.server(address), username="", password="", db=0)

    def __str__(self) -> str:
        return self._text or self._written()

    def __repr__(self) -> str:
        return f"StoreUrl({str(self)!r})"

    def _written(self) -> str:
        scheme = "rediss" if self.uses_tls else "redis"
        credentials = quote(self.username, safe="") + (f":{HIDDEN}" if self.password else "")
        return f"{scheme}://{credentials}{'@' if credentials else ''}{self.addresses[0]}/{self.db or ''}"


def hide_passwords(text: str) -> str:
    """Returns a text, which may be a store URL with faults, without its passwords."""
    try:
        urlsplit(text)
    except ValueError:
        return HIDDEN
    # Up to the last @, because a password may have characters in it that ought to be escaped, and must not be shown.
    text = re.sub(r"(?<=://)([^:/@]*):.+@", rf"\1:{HIDDEN}@", text)
    # Options that other clients take and this one refuses: the refusal must not show their passwords.
    return re.sub(r"([?&]\w*password=)[^&#]+", rf"\1{HIDDEN}", text)


def shows_password(text: str) -> bool:
    """Whether there is a password in a text that may be a store URL, as far as it can be made out."""
    return hide_passwords(text) not in (text, HIDDEN)


def _not_a_redis_url(shown: str) -> str:
    return f"{shown} is not the URL of a Redis: write redis://host:6379/0"


def _check_escaping(parts: SplitResult, text: str, shown: str) -> None:
    """Refuses a password with characters that end it early, and would make the rest of it a host or an option."""
    if parts.fragment or "#" in text or ("@" not in parts.netloc and f":{HIDDEN}@" in shown):
        raise ValueError(
            f"{shown} has a character in it that must be escaped: write %23 for #, %2F for /, %3F for ? and %40 for @"
        )


def _with_credentials(url: StoreUrl, parts: SplitResult) -> StoreUrl:
    username, _, password = parts.netloc.rpartition("@")[0].partition(":")
    return replace(url, username=unquote(username), password=unquote(password))


def _with_options(url: StoreUrl, parts: SplitResult, shown: str) -> StoreUrl:
    """Reads the options after the question mark."""
    options = _options(parts)
    if unknown := options.keys() - _TLS_OPTIONS - {"db"}:
        raise ValueError(f"{shown} has options that mean nothing here ({', '.join(sorted(unknown))}): leave them out")
    tls_options: dict[str, str | bool] = {name: value for name, value in options.items() if name != "db"}
    if tls_options and not url.uses_tls:
        raise ValueError(f"{shown} has options for TLS and does not use it: write rediss instead of redis")
    if options.get("ssl_cert_reqs", "none") not in _CERTIFICATE_CHECKS:
        raise ValueError(f"{shown} has an ssl_cert_reqs that is not one of {', '.join(_CERTIFICATE_CHECKS)}")
    if "ssl_check_hostname" in options:
        checks_hostname = _BOOLEANS.get(options["ssl_check_hostname"].lower())
        if checks_hostname is None:
            raise ValueError(f"{shown} has an ssl_check_hostname that is neither true nor false")
        tls_options["ssl_check_hostname"] = checks_hostname
    return replace(
        url,
        db=_database(options["db"], shown) if "db" in options else 0,
        tls_options=tuple(sorted(tls_options.items())),
    )


def _with_group(url: StoreUrl, parts: SplitResult, shown: str) -> StoreUrl:
    """Reads what names several servers: `redis+sentinel://…` or `redis+cluster://…`."""
    try:
        addresses = tuple(_address(host) for host in parts.netloc.rpartition("@")[2].split(","))
    except ValueError:
        raise ValueError(f"{shown} names no servers: write {parts.scheme}://host:port,host:port") from None
    name = parts.path.strip("/")
    if url.kind is StoreKind.CLUSTER:
        if name or "db" in _options(parts):
            raise ValueError(f"{shown} names a database, and a cluster has only one: leave it out")
    elif not name or "/" in name:
        raise ValueError(
            f"{shown} names no primary: write {parts.scheme}://host:port,host:port/NAME, with the name that the "
            "Sentinels have for it, and ?db=1 for another database than the first"
        )
    return replace(url, addresses=addresses, primary_name=unquote(name))


def _with_socket(url: StoreUrl, parts: SplitResult, shown: str) -> StoreUrl:
    if not parts.path or parts.hostname not in (None, "localhost"):
        raise ValueError(f"{shown} names no socket: write unix:///path/to/redis.sock")
    return replace(url, socket_path=unquote(parts.path))


def _with_server(url: StoreUrl, parts: SplitResult, shown: str) -> StoreUrl:
    database = parts.path.strip("/")
    try:
        port = DEFAULT_PORT if parts.port is None else parts.port
    except ValueError:
        port = 0
    if not port:
        raise ValueError(_not_a_redis_url(shown))
    address = Address(unquote(parts.hostname or "localhost"), port)
    # ?db= goes before the path, as in redis-py.
    db = url.db if "db" in _options(parts) or not database else _database(unquote(database), shown)
    return replace(url, addresses=(address,), db=db)


def _options(parts: SplitResult) -> dict[str, str]:
    return dict(parse_qsl(parts.query, keep_blank_values=True))


def _address(text: str) -> Address:
    host, separator, port = text.rpartition(":")
    if not (separator and host and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise ValueError
    return Address(unquote(host.strip("[]")), int(port))


def _database(text: str, shown: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ValueError(f"{shown} names no database by number: write redis://host:6379/0")
    return int(text)
