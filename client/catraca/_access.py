"""How a client gets in: over which transport, and with which API key.

What the arguments leave out comes from the environment. No secret is in a message or a `repr`.
"""

import ipaddress
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

from catraca._settings import flag_from_environment
from catraca.errors import InvalidSetting

TLS_VARIABLES = ("CATRACA_TLS_CA", "CATRACA_TLS_CERT", "CATRACA_TLS_KEY")
"""Files in PEM: the authorities that servers are checked against (default: the public ones that gRPC ships with),
and the client's own certificate with its key."""

_KEY_PREFIX = "ctrk_"

_REREAD_SECONDS = 1.0
"""How often the key file is looked at, while there are calls."""


@dataclass(frozen=True, slots=True, repr=False)
class Access:
    """How a client gets in; both clients have one."""

    credentials: grpc.ChannelCredentials | None = None
    """For TLS; None: plaintext."""
    key: "Callable[[], str] | None" = None
    """Returns the API key."""

    def metadata(self) -> tuple[tuple[str, str], ...] | None:
        """Returns what goes with every call."""
        return None if self.key is None else (("authorization", f"Bearer {self.key()}"),)


def access_or_default(
    target: str,
    *,
    credentials: grpc.ChannelCredentials | None,
    api_key: str | None,
    api_key_file: str | os.PathLike[str] | None,
    insecure: bool | None,
    use_proxy: bool,
) -> Access:
    """Returns how to get in: as given, else as the environment says.

    Raises InvalidSetting, also if the key would be sent without TLS to another machine or through a proxy, unless
    `insecure` allows it.
    """
    credentials = credentials or tls_credentials({name: os.environ.get(name) for name in TLS_VARIABLES})
    key = _key(api_key, api_key_file)
    if key is not None and credentials is None and (use_proxy or not is_local(target)):
        allowed = flag_from_environment("CATRACA_INSECURE") if insecure is None else insecure
        if not allowed:
            raise InvalidSetting(
                "the API key would travel in clear, because there is no TLS: set CATRACA_TLS_CA, or insecure "
                "(CATRACA_INSECURE) if the network itself keeps others out"
            )
    return Access(credentials, key)


def is_local(target: str) -> bool:
    """Whether a target, as gRPC writes it, is on this machine: loopback, or a Unix socket."""
    scheme, separator, rest = target.partition(":")
    match scheme.lower():
        case "unix" | "unix-abstract" if separator:
            return True
        case "ipv4" | "ipv6" | "dns" if separator:
            names = rest.rpartition("/")[2].split(",")
        case _:
            names = [target]
    return all(_is_loopback(_host(name)) for name in names)


def _host(text: str) -> str:
    if text.startswith("["):
        return text[1:].partition("]")[0]
    # A bare IPv6 address has more than one colon, and no port.
    return text if text.count(":") > 1 else text.partition(":")[0]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().removesuffix(".") == "localhost"


def tls_credentials(paths: Mapping[str, str | None]) -> grpc.ChannelCredentials | None:
    """Returns what to connect with over TLS, given the files that TLS_VARIABLES name; None if there are none.

    The keys are what the files are called in errors. Raises InvalidSetting.
    """
    authority, certificate, key = (_file(name, path) for name, path in paths.items())
    if (certificate is None) is not (key is None):
        _, certificate_name, key_name = paths
        there, missing = (certificate_name, key_name) if certificate else (key_name, certificate_name)
        raise InvalidSetting(f"{there} is set and {missing} is not: a certificate takes both")
    if authority is None and certificate is None:
        return None
    return grpc.ssl_channel_credentials(authority, key, certificate)


def _file(name: str, path: str | None) -> bytes | None:
    if not path:
        return None
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not a path"
        raise InvalidSetting(f"{name} {path!a} cannot be read: {why}") from None
    if b"-----BEGIN " not in content:
        # gRPC would log an error of its own, and then fail every call.
        raise InvalidSetting(f"{name} {path!a} is not PEM")
    return content


def _key(api_key: str | None, api_key_file: str | os.PathLike[str] | None) -> Callable[[], str] | None:
    """Returns what gives the key. Arguments override the environment; each may name the key or the file, not both."""
    pairs = (
        (api_key, api_key_file, "api_key", "api_key_file"),
        (
            os.environ.get("CATRACA_API_KEY"),
            os.environ.get("CATRACA_API_KEY_FILE"),
            "CATRACA_API_KEY",
            "CATRACA_API_KEY_FILE",
        ),
    )
    for key, file, key_name, file_name in pairs:
        if key and file:
            raise InvalidSetting(f"both {key_name} and {file_name} are set: set one of them")
        if key:
            checked = _checked_key(key_name, key)
            return lambda: checked
        if file and str(file).startswith(_KEY_PREFIX):
            # The name of a file would be quoted in the error; a key must not be.
            raise InvalidSetting(f"{file_name} is a key: name a file that holds it, which only you can read")
        if file:
            return KeyFile(file_name, Path(file))
    return None


class KeyFile:
    """A file with an API key, read again when it has changed.

    While it cannot be read, or holds no key, the previous key stays in use. Raises InvalidSetting, but only when it is
    created.
    """

    def __init__(self, name: str, path: Path, *, now: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._path = path
        self._now = now
        self._key, self._stamp = self._read()
        self._look_at = now() + _REREAD_SECONDS

    def __call__(self) -> str:
        """Returns the key as it is now, or was at most a second ago."""
        now = self._now()
        if now >= self._look_at:
            self._look_at = now + _REREAD_SECONDS
            try:
                if _stamp(self._path) != self._stamp:
                    self._key, self._stamp = self._read()
            except (OSError, InvalidSetting):
                pass  # as the class says
        return self._key

    def _read(self) -> tuple[str, tuple[int, int, int]]:
        try:
            stamp = _stamp(self._path)
            text = self._path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise InvalidSetting(f"{self._name} {str(self._path)!a} cannot be read: {why}") from None
        return _checked_key(self._name, text.strip()), stamp


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def _checked_key(name: str, key: str) -> str:
    # gRPC accepts nothing else in metadata, and would quote the key in its error.
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidSetting(f"{name} does not hold an API key: it has to be printable ASCII without spaces")
    return key
