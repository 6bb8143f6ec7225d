"""A real Valkey under Sentinel for tests: a primary with two replicas, and three sentinels that monitor them."""

import contextlib
from collections import Counter
from pathlib import Path
from typing import Any

import redis
from tests.support.nodes import HOST, NODE_TIMEOUT_MS, DataNode, Node, Nodes, eventually_answered

NAME = "catraca"
"""What the sentinels call the primary."""

_REPLICAS = 2
_SENTINELS = 3
_QUORUM = 2
_FAILOVER_TIMEOUT_MS = 2000
_PERIODS_MS = {
    "INFO-PERIOD": 500,
    "PING-PERIOD": 200,
    "ASK-PERIOD": 200,
    # A primary that was replaced becomes a replica four of these after its return.
    "PUBLISH-PERIOD": 250,
    # How long a sentinel does nothing after it was suspended; the default is half a minute.
    "TILT-PERIOD": 1000,
}
"""The periods of a sentinel; the defaults are up to twenty times as long."""


class SentinelNode(Node):
    """A sentinel."""

    def __init__(self, directory: Path, primary: DataNode, *, password: str = "") -> None:
        super().__init__(
            directory,
            f"sentinel monitor {NAME} {HOST} {primary.port} {_QUORUM}",
            f"sentinel down-after-milliseconds {NAME} {NODE_TIMEOUT_MS}",
            f"sentinel failover-timeout {NAME} {_FAILOVER_TIMEOUT_MS}",
            f"sentinel parallel-syncs {NAME} {_REPLICAS}",
            *([f"sentinel auth-pass {NAME} {password}"] if password else []),
            mode=("--sentinel",),
        )

    def start(self) -> None:
        """Starts it, and shortens its periods."""
        super().start()
        self.command("SENTINEL DEBUG", *(word for period in _PERIODS_MS.items() for word in period))

    def primary_port(self) -> int:
        """Returns the port of the primary, as it sees it."""
        _, port = self.command("SENTINEL GET-MASTER-ADDR-BY-NAME", NAME)
        return int(port)

    def is_satisfied(self) -> bool:
        """Whether it knows all others, and all are up."""
        primary = self.command("SENTINEL MASTER", NAME)
        replicas = self.command("SENTINEL SLAVES", NAME)
        others = self.command("SENTINEL SENTINELS", NAME)
        return (
            primary["flags"] == "master"
            and len(replicas) == _REPLICAS
            and len(others) == _SENTINELS - 1
            # They may also be "master_down", which they keep from the previous primary.
            and not any(each["is_sdown"] or each["is_disconnected"] for each in (*replicas, *others))
        )


class Sentinels(Nodes[Node]):
    """A primary, its replicas and their sentinels. `options` are configuration lines of those that hold data.

    A password is that of the data nodes; the sentinels have none.
    """

    def __init__(self, directory: Path, *options: str, password: str = "") -> None:
        first = DataNode(directory / "node-0", *options, password=password)
        self.data = [first]
        for number in range(1, 1 + _REPLICAS):
            follow = f"replicaof {HOST} {first.port}"
            self.data.append(DataNode(directory / f"node-{number}", follow, *options, password=password))
        self.sentinels = [
            SentinelNode(directory / f"sentinel-{number}", first, password=password) for number in range(_SENTINELS)
        ]
        super().__init__([*self.data, *self.sentinels])
        self.url = f"redis+sentinel://{','.join(node.address for node in self.sentinels)}/{NAME}"

    @property
    def primary(self) -> DataNode:
        """The primary that most of the running sentinels name."""
        ports = Counter(node.primary_port() for node in self.sentinels if node.running)
        (port, _), *_ = ports.most_common()
        return next(node for node in self.data if node.port == port)

    @property
    def primaries(self) -> list[DataNode]:
        """The primary."""
        return [self.primary]

    @property
    def replicas(self) -> list[DataNode]:
        """The others that hold data."""
        primary = self.primary
        return [node for node in self.data if node is not primary]

    def command(self, *args: str | bytes | float) -> Any:
        """Runs a command on the primary."""
        return self.primary.command(*args)

    def wait_for_takeover(self, lost: DataNode) -> DataNode:
        """Waits until all running sentinels name another primary, which knows that it is one; returns it."""

        def is_replaced() -> bool:
            ports = {node.primary_port() for node in self.sentinels if node.running}
            return len(ports) == 1 and lost.port not in ports and self.primary.replication()["role"] == "master"

        eventually_answered(is_replaced, f"a replica takes over from {lost.address}")
        return self.primary

    def fail_over(self) -> DataNode:
        """Makes the sentinels choose another primary; returns it."""
        old, asked = self.primary, self.sentinels[0]

        def is_chosen() -> bool:
            # Asked again until it is done: none begins while no replica is fit, and one that has begun may be given up.
            if asked.primary_port() == old.port:
                with contextlib.suppress(redis.ResponseError):  # so it is refused, too, while one is under way
                    asked.command("SENTINEL FAILOVER", NAME)
            return asked.primary_port() != old.port

        eventually_answered(is_chosen, f"a sentinel chooses another primary than {old.address}")
        return self.wait_for_takeover(old)

    def is_healthy(self) -> bool:
        """Whether all sentinels agree on the primary and are satisfied, and both replicas follow it."""
        ports = {node.primary_port() for node in self.sentinels}
        return (
            len(ports) == 1
            and all(node.is_satisfied() for node in self.sentinels)
            and self.primary.replication()["role"] == "master"
            and all(node.follows(self.primary) for node in self.replicas)
        )
