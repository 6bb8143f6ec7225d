"""What a fork does to connections. gRPC's threads and locks do not survive one.

So every connection is closed before a fork. While the process forks, no call begins, and calls under way in other
threads get a moment to end. Then the connections are closed. Once gRPC's own threads are gone, the process forks, and
parent and child both connect again at their next calls. Some connections cannot be closed: those of another library
that uses gRPC, and those of an event loop that waits for answers or runs in another thread. In that case the parent
goes on as before, and in the child every call fails at once, because it would hang or crash.
"""

import ctypes
import os
import threading
import time
import weakref
from pathlib import Path
from typing import Protocol

from catraca.errors import UnusableAfterFork

_DRAIN_SECONDS = 1.0
"""How long a fork waits for calls under way: as long as a call with the default timeout may last."""
_ENGINE_EXIT_SECONDS = 1.0
"""How long a fork waits for gRPC's threads once all connections are closed. They take a millisecond or two."""
_OTHERS_EXIT_SECONDS = 0.05
"""How long it waits if an earlier wait was in vain, because something else in this process uses gRPC."""
_ENGINE_POLL_SECONDS = 0.0005
_ENGINE_THREADS = ("event_engine", "grpc_")
"""How the names of gRPC's own threads begin."""
_THREADS = Path("/proc/self/task")

IN_USE = (
    "this process was forked while gRPC was in use, and gRPC does not survive that: close clients and other gRPC "
    "channels before the fork, or make them after it, or start processes with spawn"
)
UNSEEN = (
    "this process was forked without Python's fork hooks while a client was connected, and gRPC does not survive that: "
    "close the client before the fork, or make it after it"
)


class Connection(Protocol):
    """What a client holds: a channel that can be closed and opened again."""

    def calls_to_drain(self) -> int:
        """Returns how many calls are under way that will end while the forking thread waits."""

    def is_open(self) -> bool:
        """Returns whether there is a channel."""

    def close_for_fork(self) -> None:
        """Closes the channel, if that can be done here and now."""

    def abandon(self) -> None:
        """In a child: drops what belongs to the parent, without touching it."""


class WithoutConnection:
    """Base of what must react to forks but has no connection of its own. Subclasses define `abandon`."""

    def calls_to_drain(self) -> int:
        """See `Connection`."""
        return 0

    def is_open(self) -> bool:
        """See `Connection`."""
        return False

    def close_for_fork(self) -> None:
        """See `Connection`."""


class Forks:
    """Watches the forks of this process on behalf of all its connections."""

    def __init__(self) -> None:
        # Re-entrant, because a signal handler may fork while its thread is inside.
        self.gate = threading.Condition()
        self._forking = 0
        self._connections: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._pid = os.getpid()
        self._child_is_unusable = False
        self._others_use_grpc = False
        self._why_unusable = ""
        os.register_at_fork(before=self._before, after_in_parent=self._after_in_parent, after_in_child=self._in_child)

    def watch(self, connection: Connection) -> None:
        """Has a connection closed before forks for as long as it exists."""
        with self.gate:
            self._connections.add(connection)

    @property
    def forking(self) -> bool:
        """Whether calls have to wait for a fork."""
        return self._forking > 0

    def wait(self, timeout: float) -> bool:
        """Waits, inside the gate, until no thread forks. Returns whether that was so within `timeout` seconds."""
        return not self._forking or self.gate.wait_for(lambda: not self._forking, timeout)

    def check(self) -> None:
        """Raises UnusableAfterFork if gRPC cannot be used in this process."""
        if self._pid != os.getpid():
            self._become_child(UNSEEN)
        if self._why_unusable:
            raise UnusableAfterFork(self._why_unusable)

    def _before(self) -> None:
        with self.gate:
            self._forking += 1
            deadline = time.monotonic() + _DRAIN_SECONDS
            while any(each.calls_to_drain() for each in self._connections) and time.monotonic() < deadline:
                self.gate.wait(deadline - time.monotonic())
            opened = [each for each in self._connections if each.is_open()]
            for each in opened:
                each.close_for_fork()
        self._child_is_unusable = any(each.is_open() for each in opened) or not self._engine_ends()

    def _engine_ends(self) -> bool:
        """Waits for gRPC's threads to end, as they do once the last connection is closed. Returns whether they did."""
        seconds = _OTHERS_EXIT_SECONDS if self._others_use_grpc else _ENGINE_EXIT_SECONDS
        deadline = time.monotonic() + seconds
        while runs := _engine_runs():
            if time.monotonic() >= deadline:
                break
            time.sleep(_ENGINE_POLL_SECONDS)
        self._others_use_grpc = runs
        return not runs

    def _after_in_parent(self) -> None:
        with self.gate:
            self._forking -= 1
            self.gate.notify_all()

    def _in_child(self) -> None:
        self._become_child(IN_USE, unusable=self._child_is_unusable)

    def _become_child(self, why: str, *, unusable: bool = False) -> None:
        # The thread that held the old gate may not exist in this process.
        self.gate = threading.Condition()
        self._forking = 0
        self._pid = os.getpid()
        parents = any(each.is_open() for each in self._connections)
        for each in self._connections:
            each.abandon()
        if unusable or parents:
            self._why_unusable = why


def never_free(channel: object) -> None:
    """Keeps an object from ever being freed, even when the process ends.

    Freeing a channel means talking to its threads. A child does not have them, and would wait for ever.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(channel))


def _engine_runs() -> bool:
    """Whether gRPC has threads in this process. Only Linux can tell; elsewhere, closing everything has to be enough."""
    try:
        threads = list(_THREADS.iterdir())
    except OSError:
        return False
    return any(_name(each).startswith(_ENGINE_THREADS) for each in threads)


def _name(thread: Path) -> str:
    try:
        return (thread / "comm").read_text(encoding="utf-8", errors="replace")
    except OSError:  # it has just ended
        return ""


forks = Forks()
