"""What a process uses, for tests that check that nothing grows."""

import gc
import re
import signal
from dataclasses import dataclass
from pathlib import Path

import psutil
from tests.support.service import ServeProcess
from tests.support.waiting import eventually

COUNTING = {"PYTHONPATH": str(Path(__file__).with_name("counting"))}
"""The environment in which a server reports how many objects it has."""

_OBJECTS = re.compile(r"objects: (\d+)\n")


@dataclass(frozen=True)
class Use:
    """What a process has."""

    resident_bytes: int
    descriptors: int
    threads: int
    objects: int
    """The objects that Python's garbage collector tracks."""


def own_use() -> Use:
    """Measures this process."""
    gc.collect()
    return _use(psutil.Process(), len(gc.get_objects()))


def use_of(server: ServeProcess) -> Use:
    """Measures a server that was started with `COUNTING`."""
    told = len(_OBJECTS.findall(server.log))
    server.signal(signal.SIGUSR1)
    eventually(lambda: len(_OBJECTS.findall(server.log)) > told, "the server has counted its objects")
    return _use(psutil.Process(server.pid), int(_OBJECTS.findall(server.log)[-1]))


def _use(process: psutil.Process, objects: int) -> Use:
    return Use(process.memory_info().rss, process.num_fds(), process.num_threads(), objects)
