"""A Valkey or Redis for the servers that are measured, empty at the start and gone at the end."""

import os
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
    version: str

    def database(self, number: int) -> StoreUrl:
        """Returns the URL of one of its other databases."""
        return StoreUrl.parse(f"{self.url}?db={number}")


@contextmanager
def temporary_store(*, core: int | None) -> Iterator[Store]:
    """Runs a store on a unix socket of its own. It writes nothing to disk."""
    binary = server_binary()
    version = subprocess.run([str(binary), "--version"], check=True, stdout=subprocess.PIPE, text=True)
    with tempfile.TemporaryDirectory() as directory:
        socket = Path(directory, "socket")
        command = [str(binary), "--port", "0", "--unixsocket", str(socket), "--dir", directory, "--save", ""]
        with running(command, core=core) as store:
            store.wait_for(socket.is_socket)
            yield Store(store, StoreUrl.at_socket(str(socket)), " ".join(version.stdout.split()[:3]))


def server_binary() -> Path:
    """Returns the store's program, the one that `catraca serve` would use. Raises StartError if there is none."""
    binary = find_binary(os.environ)
    if binary is None:
        raise StartError("there is no valkey-server for this platform: CATRACA_VALKEY_SERVER can name one")
    return binary


def connect(url: StoreUrl) -> redis.Redis:
    """Returns a client of a store that listens on a socket."""
    return redis.Redis(unix_socket_path=url.socket_path, db=url.db)
