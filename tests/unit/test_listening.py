"""Addresses to listen on: which of them are loopback, however they are written, and why one cannot be used."""

import errno
import os
import socket
import stat
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from catraca_server.listening import (
    CannotListen,
    canonical_host,
    format_address,
    is_local,
    is_loopback,
    private_socket,
    reserve_port,
    socket_path,
    why_refused,
)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("127.0.0.1", "127.0.0.1"),
        (" 127.0.0.1\n", "127.0.0.1"),
        ("127.0.0.1.", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("127.1.", "127.0.0.1"),
        ("127.1.2.3", "127.1.2.3"),
        ("0x7f.1", "127.0.0.1"),
        ("0177.0.0.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("::FFFF:7F00:1", "127.0.0.1"),
        ("localhost", "localhost"),
        ("LOCALHOST", "localhost"),
        ("localhost.", "localhost"),
        ("Localhost. ", "localhost"),
    ],
)
def test_loopback_is_loopback_however_it_is_written(text: str, host: str) -> None:
    """All of these stay on the machine, and are converted to one form."""
    assert canonical_host(text) == host
    assert is_loopback(host)


@pytest.mark.parametrize("text", ["unix:/run/catraca.sock", "unix:///run/catraca.sock", "/run/catraca.sock"])
def test_a_unix_socket_is_local_however_it_is_written(text: str) -> None:
    """It stays on the machine, is not loopback, has a path, and is written without a port."""
    host = canonical_host(text)
    assert host == "unix:/run/catraca.sock"
    assert is_local(host)
    assert not is_loopback(host)
    assert socket_path(host) == Path("/run/catraca.sock")
    assert format_address(host, 50051) == host


def test_a_socket_is_made_for_its_user_alone(tmp_path: Path) -> None:
    """Nobody else may connect, nor look into a directory that was made for it."""
    path = tmp_path / "run" / "catraca" / "catraca.sock"
    mask = os.umask(0)
    try:
        with private_socket(path), socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
        assert os.umask(0) == 0
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_stale_socket_is_removed_and_a_used_one_is_not(tmp_path: Path) -> None:
    """One that nobody listens on is in the way; one that somebody listens on is a mistake to report."""
    path = tmp_path / "catraca.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(0)
        with pytest.raises(CannotListen, match="another program listens there"), private_socket(path):
            pass
        assert path.exists()
    with private_socket(path):
        assert not path.exists()


def test_two_servers_that_start_at_the_same_time(tmp_path: Path) -> None:
    """The second waits for the first, and then finds its socket in use: it does not take it for a stale one."""
    path = tmp_path / "catraca.sock"
    with socket.socket(socket.AF_UNIX) as first:
        begun = threading.Event()

        def start_second() -> str:
            begun.set()
            try:
                with private_socket(path):
                    return "let in"
            except CannotListen as error:
                return str(error)

        with ThreadPoolExecutor(1) as pool:
            with private_socket(path):
                second = pool.submit(start_second)
                begun.wait()
                # Long enough for one that does not wait to be let in.
                assert not wait([second], timeout=0.2).done
                first.bind(str(path))
                first.listen()
            assert "another program listens there" in second.result(timeout=20)


def test_what_is_not_a_socket_is_left_alone(tmp_path: Path) -> None:
    """A mistyped path must not cost anybody a file."""
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(CannotListen, match="not a socket"), private_socket(path):
        pass
    with pytest.raises(CannotListen, match="its directory cannot be used"), private_socket(path / "catraca.sock"):
        pass
    assert path.read_text() == "data"


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("0.0.0.0", "0.0.0.0"),  # noqa: S104  that is the point
        ("0", "0.0.0.0"),  # noqa: S104
        ("::", "::"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("10.1", "10.0.0.1"),
        ("128.0.0.1", "128.0.0.1"),
        ("127.0.0.1.example.com", "127.0.0.1.example.com"),
        ("localhost.example.com", "localhost.example.com"),
        ("Catraca.Internal", "catraca.internal"),
    ],
)
def test_what_only_looks_like_loopback_is_not(text: str, host: str) -> None:
    """Others could reach these."""
    assert canonical_host(text) == host
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("unix:", "the absolute path of a socket"),
        ("unix:catraca.sock", "the absolute path of a socket"),
        ("unix://catraca.sock", "the absolute path of a socket"),
        ("unix:/run/", "the absolute path of a socket"),
        ("unix:/run/a\x07", "the absolute path of a socket"),
        (f"unix:/{'a' * 103}", "at most 103 bytes"),
        ("http://localhost", "not a URL"),
        ("127.0.0.1:50051", "the port has a setting of its own"),
        ("localhost:50051", "the port has a setting of its own"),
        ("", "such as 127.0.0.1"),
        (".", "such as 127.0.0.1"),
        ("127.0.0.1 evil", "such as 127.0.0.1"),
        ("local host", "such as 127.0.0.1"),
        ("local\0host", "such as 127.0.0.1"),
    ],
)
def test_a_text_that_is_not_a_host(text: str, reason: str) -> None:
    """It is refused with the reason."""
    with pytest.raises(ValueError, match=reason):
        canonical_host(text)


@pytest.mark.parametrize("host", ["nobody.invalid", "a..b", "a" * 64])
def test_a_name_that_cannot_be_resolved(host: str) -> None:
    """It is not confused with a port in use."""
    with pytest.raises(CannotListen, match=r"cannot be resolved \(.+\)\. Set --host") as caught:
        reserve_port(host, 0)
    assert str(why_refused(host, 0)) == str(caught.value)


def test_an_address_of_another_machine() -> None:
    """It is not confused with a name that cannot be resolved or a port in use."""
    with pytest.raises(CannotListen, match=r"192\.0\.2\.1:0: 192\.0\.2\.1 is not an address of this machine"):
        reserve_port("192.0.2.1", 0)


def test_a_port_in_use() -> None:
    """The message says to choose another."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(CannotListen, match=rf"127\.0\.0\.1:{port}: another program has that port.*--port"):
            reserve_port("127.0.0.1", port)


def fail_to_bind(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """Makes a name resolve to as many addresses, and binding each of them fail with its errno."""
    addresses = [f"127.0.0.{last}" for last in range(1, len(numbers) + 1)]

    class Refusing(socket.socket):
        def bind(self, address: Any) -> None:
            number = numbers[addresses.index(address[0])]
            raise OSError(number, os.strerror(number))

    found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, 80)) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(socket, "socket", Refusing)


@pytest.mark.parametrize(
    ("port", "errnos", "reason"),
    [
        (80, [errno.EACCES], "ports below 1024 need a privilege"),
        (50051, [errno.EACCES], "Permission denied"),
        (50051, [errno.EADDRNOTAVAIL, errno.EADDRINUSE], "another program has that port"),
        (50051, [errno.EADDRINUSE, errno.EADDRNOTAVAIL], "another program has that port"),
        (80, [errno.EADDRNOTAVAIL, errno.EACCES], "ports below 1024 need a privilege"),
        (50051, [errno.EADDRNOTAVAIL], "is not an address of this machine"),
        (50051, [errno.ENOBUFS], "No buffer space available"),
    ],
)
def test_each_reason_has_its_message(
    port: int, errnos: list[int], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a name with several addresses, the reason that an operator can do something about is reported."""
    fail_to_bind(monkeypatch, *errnos)
    with pytest.raises(CannotListen, match=reason):
        reserve_port("localhost", port)


def test_an_address_that_is_free_after_all() -> None:
    """Even then there is a message."""
    assert "127.0.0.1:0" in str(why_refused("127.0.0.1", 0))
