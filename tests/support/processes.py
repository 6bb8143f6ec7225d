"""The processes of a service, as the operating system sees them."""

from pathlib import Path

import psutil
from tests.support.service import ServeProcess


def alive(process: psutil.Process) -> bool:
    """Whether a process runs; one that has ended and only waits to be collected does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def store_processes(data_dir: Path) -> list[psutil.Process]:
    """Returns all processes whose working directory is a data directory: only its store has that."""
    return [each for each in psutil.process_iter(["cwd"]) if each.info["cwd"] == str(data_dir) and alive(each)]


def has_written(data_dir: Path, token: str) -> bool:
    """Whether the store has written the session of a minted token to its file.

    On a slow disk it answers up to two seconds before it writes. If it is killed in between, the session is lost, as
    documented.
    """
    # The key of its record: its user's index names the id before.
    key = f"session:{token[4:26]}".encode()
    return any(key in file.read_bytes() for file in data_dir.rglob("*.aof"))


def workers_of(process: ServeProcess) -> list[psutil.Process]:
    """Returns the workers that a service has now."""
    return [each for each in _children(process) if alive(each) and "catraca_server.runtime.worker" in _command(each)]


def connections_of(process: psutil.Process) -> list[tuple[str, int]]:
    """Returns the peer addresses of the TCP connections of a process."""
    found = (each for each in process.net_connections("tcp") if each.status == psutil.CONN_ESTABLISHED)
    return [(each.raddr.ip, each.raddr.port) for each in found]


def _children(process: ServeProcess) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children()
    except psutil.NoSuchProcess:
        return []


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []
