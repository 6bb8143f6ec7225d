"""A Valkey or Redis for the servers that are measured, empty at the start and gone at the end."""

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from bench.processes import Running, StartError, running
from catraca_server.redis.embedded import find_binary
from catraca_server.redis.url import StoreUrl


@dataclass(frozen=True)
class Store:
    """A running store."""

    running: Running
    url: StoreUrl
    """Its unix socket."""
    port: int
    """A TCP port of 127.0.0.1, for what is compared as it is deployed: over TCP."""
    version: str

    def database(self, number: int) -> StoreUrl:
        """Returns the URL of one of its other databases."""
        return StoreUrl.parse(f"{self.url}?db={number}")


@contextmanager
def temporary_store(*, core: int | None) -> Iterator[Store]:
    """Runs a store on a unix socket and a port of its own. It writes nothing to disk."""
    binary = server_binary()
    version = subprocess.run([str(binary), "--version"], check=True, stdout=subprocess.PIPE, text=True)
    with tempfile.TemporaryDirectory() as directory:
        path, port = Path(directory, "socket"), _free_port()
        command = [str(binary), "--bind", "127.0.0.1", "--port", str(port), "--unixsocket", str(path)]
        with running([*command, "--dir", directory, "--save", ""], core=core) as store:
            store.wait_for(path.is_socket)
            yield Store(store, StoreUrl.at_socket(str(path)), port, " ".join(version.stdout.split()[:3]))


def server_binary() -> Path:
    """Returns the store's program, the one that `catraca serve` would use. Raises StartError if there is none."""
    binary = find_binary(os.environ)
    if binary is None:
        raise StartError("there is no valkey-server for this platform: CATRACA_VALKEY_SERVER can name one")
    return binary


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def connect(url: StoreUrl) -> redis.Redis:
    """Returns a client of a store that listens on a socket."""
    return redis.Redis(unix_socket_path=url.socket_path, db=url.db)
