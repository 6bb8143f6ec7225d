"""Addresses to listen on: how they are written, which are on this machine only, and why one cannot be used."""

import errno
import fcntl
import ipaddress
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SOCKET_PREFIX = "unix:"
_SOCKET_PATH_MAX_BYTES = 103
"""What every system allows: 108 on Linux, 104 elsewhere, with the NUL at the end."""


class CannotListen(Exception):
    """The address cannot be listened on: why, and what to do about it."""

    def __init__(self, host: str, port: int, reason: str) -> None:
        super().__init__(f"cannot listen on {format_address(host, port)}: {reason}")


def format_address(host: str, port: int) -> str:
    """Returns host and port as one text, an IPv6 address in brackets. A Unix socket has no port."""
    if host.startswith(_SOCKET_PREFIX):
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def canonical_host(text: str) -> str:
    """Returns a host in the one form that every resolver reads alike. Raises ValueError.

    Whatever `getaddrinfo` reads as an address counts as that address: `127.1` is 127.0.0.1. Names are not resolved.
    A Unix socket is `unix:` and its absolute path.
    """
    host = text.strip()
    if host.startswith((_SOCKET_PREFIX, "/")):
        return _SOCKET_PREFIX + _canonical_path(host.removeprefix(_SOCKET_PREFIX))
    if "://" in host:
        raise ValueError("must be an address or a name, not a URL")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    host = host.lower().removesuffix(".")
    if not host or not host.isprintable() or any(char.isspace() for char in host):
        raise ValueError("must be an address or a name, such as 127.0.0.1")
    if address := _address(host):
        return address
    if ":" in host:
        raise ValueError("must be an address or a name; the port has a setting of its own, port")
    return host


def _address(host: str) -> str:
    """Returns the usual form of an IP address, or nothing if it is none."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:
            # The old short and octal forms. It ignores what comes after a space; there is none.
            return socket.inet_ntoa(socket.inet_aton(host))
        except (OSError, UnicodeError):
            return ""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _canonical_path(text: str) -> str:
    path = text.removeprefix("//") if text.startswith("///") else text
    if not path.startswith("/") or path.startswith("//") or path.endswith("/") or not path.isprintable():
        raise ValueError("must be unix: and the absolute path of a socket, such as unix:/run/catraca/catraca.sock")
    if len(os.fsencode(path)) > _SOCKET_PATH_MAX_BYTES:
        raise ValueError(f"must be the path of a socket, of at most {_SOCKET_PATH_MAX_BYTES} bytes")
    return path


def socket_path(host: str) -> Path | None:
    """Returns the path of the Unix socket that a host stands for; None if it is an address or a name."""
    return Path(host.removeprefix(_SOCKET_PREFIX)) if host.startswith(_SOCKET_PREFIX) else None


def is_local(host: str) -> bool:
    """Whether only this machine can reach a host, given in its canonical form: loopback, or a Unix socket."""
    return host.startswith(_SOCKET_PREFIX) or is_loopback(host)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host, given in its canonical form."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def private_socket(path: Path) -> Iterator[None]:
    """Clears a path for a Unix socket; one that is bound in the body is for this user alone.

    A missing directory is created, for this user alone. A socket that no process listens on any more is removed. Raises
    CannotListen.
    """
    host = f"{_SOCKET_PREFIX}{path}"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise CannotListen(host, 0, f"its directory cannot be used ({error.strerror})") from None
    try:
        # Of two servers that start at the same time, the second must not take the first one's new socket for stale.
        fcntl.flock(directory, fcntl.LOCK_EX)
        _remove_stale(host, path)
        # By the mask and not afterwards, so that there is no moment at which others can connect.
        mask = os.umask(0o177)
        try:
            yield
        finally:
            os.umask(mask)
    finally:
        os.close(directory)


def _remove_stale(host: str, path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise CannotListen(host, 0, f"{error.strerror}. Choose another path with --host") from None
    if not stat.S_ISSOCK(mode):
        raise CannotListen(host, 0, "there is a file that is not a socket. Choose another path with --host")
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            # A full queue of connections also means that a server is listening.
            probe.setblocking(False)
            probe.connect(str(path))
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
        return
    except BlockingIOError:
        pass
    except OSError as error:
        raise CannotListen(host, 0, f"{error.strerror}. Choose another path with --host") from None
    raise CannotListen(host, 0, "another program listens there. Stop it, or choose another path with --host")


def reserve_port(host: str, port: int) -> socket.socket:
    """Returns a socket that holds a port (0: a free one) for workers to share, without listening.

    Raises CannotListen.
    """
    errors: list[OSError] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a host name"
        raise CannotListen(
            host, port, f"the name cannot be resolved ({why}). Set --host to an address of this machine"
        ) from None
    for family, kind, protocol, _, address in found:
        try:
            holder = socket.socket(family, kind, protocol)
        except OSError as unknown_family:
            errors.append(unknown_family)
            continue
        try:
            # First exclusively: this fails if another server has the port, whether it shares it or not, but not if the
            # port was in use a moment ago.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(address)
            # From here on it is shared with the workers, but not with a second supervisor.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        except OSError as refused:
            holder.close()
            errors.append(refused)
        else:
            return holder
    raise CannotListen(host, port, _reason(host, port, errors))


def why_refused(host: str, port: int) -> CannotListen:
    """Returns why gRPC could not bind an address, which it does not say, by trying to bind it again."""
    if path := socket_path(host):
        access = os.access(path.parent, os.W_OK | os.X_OK)
        why = "the gRPC library refused it" if access else f"{path.parent} may not be written by this user"
        return CannotListen(host, port, f"{why}. Choose another path with --host")
    try:
        reserve_port(host, port).close()
    except CannotListen as error:
        return error
    return CannotListen(host, port, "the gRPC library refused it. Try again, or choose another with --host or --port")


def _reason(host: str, port: int, errors: list[OSError]) -> str:
    """Returns why none of a host's addresses could be bound: the first of these reasons that holds for one of them."""
    seen = {error.errno: error for error in errors}
    if errno.EADDRINUSE in seen:
        return "another program has that port. Stop it, or choose another port with --port"
    if errno.EACCES in seen and 0 < port < 1024:
        return "ports below 1024 need a privilege that this process does not have. Choose another with --port"
    if errno.EADDRNOTAVAIL in seen:
        return f"{host} is not an address of this machine. Set --host to one that is"
    return f"{errors[-1].strerror}. Choose another with --host or --port"
