"""Addresses to listen on: how they are written, which of them stay on this machine, and why one cannot be had."""

import errno
import ipaddress
import socket


class CannotListen(Exception):
    """The address cannot be listened on: why, and what to do about it."""

    def __init__(self, host: str, port: int, reason: str) -> None:
        super().__init__(f"cannot listen on {format_address(host, port)}: {reason}")


def format_address(host: str, port: int) -> str:
    """Returns host and port as one text, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def canonical_host(text: str) -> str:
    """Returns a host in the one form that every resolver reads alike. Raises ValueError.

    Whatever `getaddrinfo` takes for an address counts as that address: `127.1` is 127.0.0.1. Names are not resolved.
    """
    host = text.strip()
    if host.startswith(("unix:", "/")):
        raise ValueError("must be an address or a name: listening on a Unix socket is not supported yet")
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


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host, given in its canonical form."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
            # First for us alone: that fails if another server has the port, whether it shares it or not, but not if
            # the port was in use a moment ago.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(address)
            # From here on for those who share it, which a second supervisor does not.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        except OSError as refused:
            holder.close()
            errors.append(refused)
        else:
            return holder
    raise CannotListen(host, port, _reason(host, port, errors))


def why_refused(host: str, port: int) -> CannotListen:
    """Returns why an address was refused to the gRPC library, which does not say, by asking for it again."""
    try:
        reserve_port(host, port).close()
    except CannotListen as error:
        return error
    return CannotListen(host, port, "the gRPC library refused it. Try again, or choose another with --host or --port")


def _reason(host: str, port: int, errors: list[OSError]) -> str:
    """Returns why none of a host's addresses could be had; the first of these reasons that holds for one of them."""
    seen = {error.errno: error for error in errors}
    if errno.EADDRINUSE in seen:
        return "another program has that port. Stop it, or choose another port with --port"
    if errno.EACCES in seen and 0 < port < 1024:
        return "ports below 1024 need a privilege that this process does not have. Choose another with --port"
    if errno.EADDRNOTAVAIL in seen:
        return f"{host} is not an address of this machine. Set --host to one that is"
    return f"{errors[-1].strerror}. Choose another with --host or --port"
