"""Where clients connect, and through what: targets, and proxies, which are for the web and not for tokens."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest
from tests.support.command import catraca
from tests.support.waiting import eventually

from catraca import AsyncSessionClient, SessionClient, errors

VARIABLES = ("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy")


class ConnectProxy:
    """A little HTTP proxy that knows CONNECT, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Takes no more connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError, IndexError, ValueError):
            head = b""
            while b"\r\n\r\n" not in head and (data := client.recv(4096)):
                head += data
            self.asked.append(head.split(b"\r\n")[0].decode("latin-1"))
            host, _, port = self.asked[-1].split()[1].rpartition(":")
            with socket.create_connection((host, int(port))) as server:
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                way_back = threading.Thread(target=_copy, args=(server, client), daemon=True)
                way_back.start()
                _copy(client, server)
                way_back.join()


def _copy(source: socket.socket, destination: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            destination.sendall(data)
    with suppress(OSError):
        destination.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy() -> Iterator[ConnectProxy]:
    """A proxy that works."""
    with closing(ConnectProxy()) as made:
        yield made


@pytest.fixture(params=VARIABLES)
def environment(request: pytest.FixtureRequest, proxy: ConnectProxy) -> dict[str, str]:
    """An environment that names the proxy, in each of the ways there are."""
    return dict.fromkeys(VARIABLES, "") | {"no_proxy": "", "no_grpc_proxy": "", request.param: proxy.url}


def call_with_both(target: str, *, use_proxy: bool | None) -> None:
    """Calls the service with a client of each kind."""
    with SessionClient(target, timeout=20, use_proxy=use_proxy) as sessions:
        assert sessions.create("12345").token

    async def call() -> None:
        async with AsyncSessionClient(target, timeout=20, use_proxy=use_proxy) as sessions:
            assert (await sessions.create("12345")).token

    asyncio.run(call())


def test_no_client_uses_a_proxy(
    target: str, proxy: ConnectProxy, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the environment says of proxies, clients connect to the service itself."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for use_proxy in (None, False):
        call_with_both(target, use_proxy=use_proxy)
    assert proxy.asked == []


def test_a_proxy_for_those_who_must(target: str, proxy: ConnectProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument or a setting has them go through it; the argument goes first."""
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.delenv("no_proxy", raising=False)
    call_with_both(target, use_proxy=True)
    assert proxy.asked == [f"CONNECT {target} HTTP/1.1"] * 2
    monkeypatch.setenv("CATRACA_USE_PROXY", "yes")
    call_with_both(target, use_proxy=None)
    assert len(proxy.asked) == 4
    call_with_both(target, use_proxy=False)
    assert len(proxy.asked) == 4


def test_no_command_uses_a_proxy(target: str, proxy: ConnectProxy, environment: dict[str, str]) -> None:
    """Neither those that call the service, nor `health`, which asks without a client."""
    named = environment | {"CATRACA_TARGET": target, "CATRACA_TIMEOUT": "20s"}
    for words in (("health",), ("create", "--user-id", "12345"), ("list", "--user-id", "12345")):
        done = catraca(*words, environment=named)
        assert done.returncode == 0, done.stderr
    assert proxy.asked == []


def test_the_demo_uses_no_proxy(proxy: ConnectProxy) -> None:
    """Not even if the setting says so: it calls a service of its own."""
    told = dict.fromkeys(VARIABLES, proxy.url) | {"CATRACA_USE_PROXY": "true"}
    done = catraca("demo", "--ttl", "500ms", environment=told, timeout=60)
    assert done.returncode == 0, done.stderr
    assert proxy.asked == []


@pytest.mark.parametrize("words", [("health",), ("create", "--user-id", "12345")], ids=" ".join)
def test_commands_use_a_proxy_if_told(target: str, proxy: ConnectProxy, words: tuple[str, ...]) -> None:
    """By flag or by setting; the flag goes first."""
    told = {"http_proxy": proxy.url, "no_proxy": "", "CATRACA_TARGET": target, "CATRACA_TIMEOUT": "20s"}
    assert catraca(*words, "--use-proxy", environment=told).returncode == 0
    eventually(lambda: len(proxy.asked) == 1, "the proxy is asked")
    told["CATRACA_USE_PROXY"] = "true"
    assert catraca(*words, environment=told).returncode == 0
    eventually(lambda: len(proxy.asked) == 2, "the proxy is asked")
    assert catraca(*words, "--no-use-proxy", environment=told).returncode == 0
    assert len(proxy.asked) == 2


@pytest.mark.parametrize("client", [SessionClient, AsyncSessionClient])
@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("http://localhost:50051", "write 'localhost:50051'"),
        ("HTTPS://localhost", "write 'localhost:50051'"),
        ("https://user:secret@example.org:443/path?x=1", "write 'example.org:443'"),
        ("http://", "write 'HOST:50051'"),
        (" 127.0.0.1:50051", "write HOST:PORT"),
        ("127.0.0.1:50051\n", "write HOST:PORT"),
        ("127.0.0.1\0:50051", "write HOST:PORT"),
        ("\udcff\udcfe", "write HOST:PORT"),
    ],
)
def test_what_cannot_be_a_target(
    client: type[SessionClient | AsyncSessionClient], target: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told when the client is made, with what to write; nothing that may be a password is quoted."""
    with pytest.raises(errors.InvalidSetting, match=told) as caught:
        client(target)
    assert str(caught.value).startswith("target ")
    assert "secret" not in str(caught.value)
    if "\0" not in target:
        monkeypatch.setenv("CATRACA_TARGET", target)
        with pytest.raises(ValueError, match=told) as as_value_error:
            client()
        assert str(as_value_error.value).startswith("CATRACA_TARGET ")


@pytest.mark.parametrize("client", [SessionClient, AsyncSessionClient])
def test_a_setting_that_is_neither_true_nor_false(
    client: type[SessionClient | AsyncSessionClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told when the client is made; an empty one is as if it were unset."""
    monkeypatch.setenv("CATRACA_USE_PROXY", "maybe")
    with pytest.raises(errors.InvalidSetting, match="CATRACA_USE_PROXY='maybe' is neither true nor false"):
        client()
    client(use_proxy=False)
    monkeypatch.setenv("CATRACA_USE_PROXY", "")
    client()
