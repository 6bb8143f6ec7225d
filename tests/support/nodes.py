"""Several real Valkeys that belong together, on TCP ports of loopback, each of which tests may stop and restart."""

import secrets
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from tests.support.valkey import FSYNC, Server
from tests.support.waiting import TIMEOUT_SECONDS, eventually

HOST = "127.0.0.1"

NODE_TIMEOUT_MS = 1000
"""After this much silence the others count a node as lost; shorter silences may be a slow machine's."""

_BUS = 10_000
"""How much higher the port of the cluster bus is."""

_PORTS = range(10_000, 22_000)
"""Linux gives neither these nor their bus ports to outgoing connections."""

_CLIENT_TIMEOUT_SECONDS = 5.0
_HEALING_SECONDS = 60.0
_OPTIONS = (
    'save ""',
    "appendonly yes",
    f"appendfsync {FSYNC}",
    "repl-diskless-sync-delay 0",
    # When all stop at once, none waits for the others.
    "shutdown-timeout 0",
)


class Node(Server):
    """A process on a TCP port. Its configuration and its data are in a directory, and survive a restart."""

    def __init__(self, directory: Path, *lines: str, mode: Sequence[str] = (), password: str = "") -> None:
        self.port = free_port()
        self.address = f"{HOST}:{self.port}"
        self._password = password
        directory.mkdir()
        # A file, not arguments: Sentinels and nodes of a cluster rewrite it when their configuration changes.
        file = directory / "valkey.conf"
        file.write_text("\n".join((f"port {self.port}", f"bind {HOST}", f'dir "{directory}"', *lines, "")))
        super().__init__(str(file), *mode)

    @property
    def running(self) -> bool:
        """Whether it is started and not paused."""
        return self.alive and not self.paused

    def revive(self) -> None:
        """Resumes it or starts it again, if needed."""
        if self.paused:
            self.resume()
        elif not self.alive:
            self.start()

    def _connect(self) -> redis.Redis:
        return redis.Redis(
            HOST,
            self.port,
            password=self._password or None,
            protocol=2,
            socket_timeout=_CLIENT_TIMEOUT_SECONDS,
            # Tests retry themselves where a node may be down.
            retry=Retry(NoBackoff(), 0),
        )


class DataNode(Node):
    """A node that holds data."""

    def __init__(self, directory: Path, *lines: str, password: str = "") -> None:
        secret = (f"requirepass {password}", f"masterauth {password}") if password else ()
        super().__init__(directory, *_OPTIONS, *secret, *lines, password=password)

    def replication(self) -> dict[str, Any]:
        """Returns its INFO replication."""
        found: dict[str, Any] = self.command("INFO", "replication")
        return found

    def follows(self, primary: "DataNode") -> bool:
        """Whether it is a replica of a primary, and connected to it."""
        found = self.replication()
        return found.get("master_port") == primary.port and found.get("master_link_status") == "up"


_Kind = TypeVar("_Kind", bound=Node)


class Nodes(ABC, Generic[_Kind]):
    """Nodes that belong together."""

    def __init__(self, nodes: Sequence[_Kind]) -> None:
        self.nodes = tuple(nodes)

    @property
    def running(self) -> list[_Kind]:
        """Those that are started and not paused."""
        return [node for node in self.nodes if node.running]

    @property
    @abstractmethod
    def primaries(self) -> list[DataNode]:
        """Those that hold the data."""

    @abstractmethod
    def is_healthy(self) -> bool:
        """Whether all run, know of each other, and have the same data."""

    def start(self) -> None:
        """Starts all and waits until they are healthy."""
        self.heal()

    def heal(self) -> None:
        """Brings back all nodes, and waits until they are healthy. Data may be lost."""
        for node in self.nodes:
            node.revive()
        eventually_answered(self.is_healthy, "all nodes are healthy", _HEALING_SECONDS)

    def flush(self) -> None:
        """Empties it."""
        for node in self.primaries:
            node.command("FLUSHALL")

    def renew(self) -> None:
        """Heals and empties it: every test that shares it begins with this."""
        self.heal()
        self.flush()

    def close(self) -> None:
        """Kills all nodes and releases everything."""
        for node in self.nodes:
            node.close()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def eventually_answered(condition: Callable[[], bool], what: str, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
    """Returns once the condition holds; errors of a busy or missing node count as "not yet"."""

    def holds() -> bool:
        try:
            return condition()
        except redis.RedisError:
            return False

    eventually(holds, what, timeout_seconds)


def free_port() -> int:
    """Returns a port that is free, as is its cluster bus port."""
    while True:
        port = secrets.choice(_PORTS)
        if _is_free(port) and _is_free(port + _BUS):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True
