"""Starts processes beside the bench, keeps them on a core, reads their CPU time, and stops them in any case."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import psutil

_START_TIMEOUT_SECONDS = 30.0
_STOP_TIMEOUT_SECONDS = 10.0
_LISTENING = re.compile(r"listening on 127\.0\.0\.1:(\d+)")


_T = TypeVar("_T")


class StartError(Exception):
    """A process did not start."""


@dataclass(frozen=True)
class Cores:
    """The core that each side is pinned to, so that neither takes the other's time; None if pinning is impossible."""

    load: int | None
    server: int | None


@dataclass(frozen=True)
class Running:
    """A process that has been started."""

    popen: subprocess.Popen[bytes]
    log: Callable[[], str]
    """Its standard output and standard error so far."""

    def cpu_seconds(self) -> float:
        """Returns the user and system time so far of the process and of those it has started."""
        return sum(times.user + times.system for times in (each.cpu_times() for each in _family(self.popen)))

    def memory_bytes(self) -> list[int]:
        """Returns the resident memory of the process and of each of those it has started."""
        return [each.memory_info().rss for each in _family(self.popen)]

    def wait_for(self, sign: Callable[[], _T | None], timeout_seconds: float = _START_TIMEOUT_SECONDS) -> _T:
        """Returns the match that shows it is ready. Raises StartError if it ends before that or takes too long."""
        deadline = time.monotonic() + timeout_seconds
        while not (seen := sign()):
            if self.popen.poll() is not None:
                raise StartError(f"{self.popen.args!r} ended before it was ready:\n{self.log()}")
            if time.monotonic() > deadline:
                raise StartError(f"{self.popen.args!r} was not ready after {timeout_seconds:.0f} s:\n{self.log()}")
            time.sleep(0.02)
        return seen


@dataclass(frozen=True)
class Server(Running):
    """A gRPC server that listens on a port of 127.0.0.1."""

    port: int
    start_seconds: float
    """The time from its start until it listened."""


@cache
def find_cores() -> Cores:
    """Chooses among the cores that this process may use; if there is only one, both sides share it.

    It chooses once: what measures later may find this process pinned to one core.
    """
    if sys.platform != "linux":
        return Cores(None, None)
    usable = sorted(os.sched_getaffinity(0))
    return Cores(load=usable[0], server=usable[-1])


def pin(core: int | None) -> None:
    """Pins this process to one core, with all its threads, including gRPC's, and every process that it starts."""
    if sys.platform == "linux" and core is not None:
        for thread in Path("/proc/self/task").iterdir():
            os.sched_setaffinity(int(thread.name), {core})


@contextmanager
def _pinned(core: int | None) -> Iterator[None]:
    """Starts the processes of the block on a core: pinning them later would miss threads that they have by then."""
    if sys.platform != "linux":
        yield
        return
    own = os.sched_getaffinity(0)
    if core is not None:
        # This pins only this thread. A process that the thread starts inherits that.
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


@contextmanager
def running(
    command: Sequence[str], *, core: int | None, environment: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Running]:
    """Runs a command on a core for as long as the block lasts; `environment` adds to this process's own."""
    # A file, not a pipe: a pipe would not be read during a measurement, and a full one blocks its writer.
    with tempfile.TemporaryFile() as log:
        with _pinned(core):
            popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **environment}
            )
        try:
            yield Running(popen, lambda: os.pread(log.fileno(), 1 << 20, 0).decode(errors="replace"))
        finally:
            _stop(popen)


@contextmanager
def serving(
    command: Sequence[str],
    *,
    core: int | None,
    environment: Mapping[str, str] = MappingProxyType({}),
    timeout_seconds: float = _START_TIMEOUT_SECONDS,
) -> Iterator[Server]:
    """Runs a gRPC server that says `listening on 127.0.0.1:PORT` when it is ready."""
    start = time.monotonic()
    with running(command, core=core, environment=environment) as server:
        listening = server.wait_for(lambda: _LISTENING.search(server.log()), timeout_seconds)
        yield Server(server.popen, server.log, int(listening[1]), time.monotonic() - start)


def _family(popen: subprocess.Popen[bytes]) -> list[psutil.Process]:
    process = psutil.Process(popen.pid)
    return [process, *process.children(recursive=True)]


def _stop(popen: subprocess.Popen[bytes]) -> None:
    if popen.poll() is None:
        family = _family(popen)
        popen.terminate()
        _, alive = psutil.wait_procs(family, timeout=_STOP_TIMEOUT_SECONDS)
        for process in alive:
            process.kill()
        popen.wait()
