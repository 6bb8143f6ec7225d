"""Processes beside the bench: started, kept on a core, their CPU time read, and stopped whatever happens."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import psutil

_START_TIMEOUT = 30.0
_STOP_TIMEOUT = 10.0
_LISTENING = re.compile(r"listening on 127\.0\.0\.1:(\d+)")


_T = TypeVar("_T")


class StartError(Exception):
    """A process did not come up."""


@dataclass(frozen=True)
class Cores:
    """Which core each side is kept on, so that neither takes the other's time; None where that cannot be done."""

    load: int | None
    server: int | None


@dataclass(frozen=True)
class Running:
    """A process that has been started."""

    popen: subprocess.Popen[bytes]
    log: Callable[[], str]
    """What it has written to standard output and standard error."""

    def cpu_seconds(self) -> float:
        """Returns the user and system time, until now, of the process and those it has started."""
        return sum(times.user + times.system for times in (each.cpu_times() for each in _family(self.popen)))

    def memory(self) -> list[int]:
        """Returns the bytes of memory that are resident, of the process and of each of those it has started."""
        return [each.memory_info().rss for each in _family(self.popen)]

    def wait_for(self, sign: Callable[[], _T | None], patience: float = _START_TIMEOUT) -> _T:
        """Returns the sign of its being ready. Raises StartError when it ends before that or takes too long."""
        give_up = time.monotonic() + patience
        while not (seen := sign()):
            if self.popen.poll() is not None:
                raise StartError(f"{self.popen.args!r} ended before it was ready:\n{self.log()}")
            if time.monotonic() > give_up:
                raise StartError(f"{self.popen.args!r} was not ready after {patience:.0f} s:\n{self.log()}")
            time.sleep(0.02)
        return seen


@dataclass(frozen=True)
class Server(Running):
    """A gRPC server that listens on a port of 127.0.0.1."""

    port: int
    started_in: float
    """Seconds from its start until it listened."""


def find_cores() -> Cores:
    """Chooses among the cores this process may use; where there is only one, both sides share it."""
    if sys.platform != "linux":
        return Cores(None, None)
    usable = sorted(os.sched_getaffinity(0))
    return Cores(load=usable[0], server=usable[-1])


def pin(pid: int, core: int | None) -> None:
    """Keeps a process on one core, with the threads and processes it starts from now on (0: this process)."""
    if sys.platform == "linux" and core is not None:
        os.sched_setaffinity(pid, {core})


@contextmanager
def running(command: Sequence[str], *, core: int | None) -> Iterator[Running]:
    """Runs a command on a core for as long as the block lasts."""
    # A file and not a pipe: nobody would read the pipe during a measurement, and a full one stops its writer.
    with tempfile.TemporaryFile() as log:
        popen = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            pin(popen.pid, core)
            yield Running(popen, lambda: os.pread(log.fileno(), 1 << 20, 0).decode(errors="replace"))
        finally:
            _stop(popen)


@contextmanager
def serving(command: Sequence[str], *, core: int | None, patience: float = _START_TIMEOUT) -> Iterator[Server]:
    """Runs a gRPC server that says `listening on 127.0.0.1:PORT` when it is ready."""
    start = time.monotonic()
    with running(command, core=core) as server:
        listening = server.wait_for(lambda: _LISTENING.search(server.log()), patience)
        yield Server(server.popen, server.log, int(listening[1]), time.monotonic() - start)


def _family(popen: subprocess.Popen[bytes]) -> list[psutil.Process]:
    process = psutil.Process(popen.pid)
    return [process, *process.children(recursive=True)]


def _stop(popen: subprocess.Popen[bytes]) -> None:
    if popen.poll() is None:
        family = _family(popen)
        popen.terminate()
        _, alive = psutil.wait_procs(family, timeout=_STOP_TIMEOUT)
        for process in alive:
            process.kill()
        popen.wait()
