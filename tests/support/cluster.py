"""A real Valkey Cluster for tests: three primaries with a replica each, nodes that fail, and slots that move."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS, key_slot
from tests.support.nodes import HOST, NODE_TIMEOUT_MS, DataNode, Nodes, eventually_answered

_PRIMARIES = 3
_OPTIONS = (
    "cluster-enabled yes",
    f"cluster-node-timeout {NODE_TIMEOUT_MS}",
    # A replica that was away for a long time may also take over.
    "cluster-replica-validity-factor 0",
    # Each primary keeps its own replica, so that a healed cluster is as before.
    "cluster-allow-replica-migration no",
)
_MOVE_TIMEOUT_MS = 5000


@dataclass(frozen=True)
class NodeView:
    """A node as it sees itself, or as another node sees it."""

    address: str
    node_id: str
    flags: frozenset[str]
    primary_id: str
    epoch: int
    """If two nodes claim a slot, the one with the higher epoch has it."""
    slots: frozenset[tuple[int, int]]
    """Ranges, ends included."""
    moving: frozenset[int]
    """Slots that are moving to or from it; only the node itself knows them."""
    connected: bool

    def has(self, slot: int) -> bool:
        """Whether it claims a slot."""
        return any(first <= slot <= last for first, last in self.slots)


class Cluster(Nodes[DataNode]):
    """A cluster of six nodes. `options` are lines for the configuration of each."""

    def __init__(self, directory: Path, *options: str, password: str = "") -> None:
        self.password = password
        super().__init__(
            [
                DataNode(directory / f"node-{number}", *_OPTIONS, *options, password=password)
                for number in range(2 * _PRIMARIES)
            ]
        )
        self.url = "redis+cluster://" + ",".join(node.address for node in self.nodes[:_PRIMARIES])

    @property
    def primaries(self) -> list[DataNode]:
        """The running nodes that serve slots."""
        owners = {self._owner(first) for own in self._claims() for first, _ in self._own(own).slots}
        return [node for node in self.nodes if node in owners]

    def node_of(self, key: str | bytes) -> DataNode:
        """Returns the running primary that has a key's slot."""
        return self._owner(slot_of(key))

    def replicas_of(self, primary: DataNode) -> list[DataNode]:
        """Returns a primary's replicas, as it sees them."""
        own = self._own(primary)
        theirs = {each.address for each in self._views(primary) if each.primary_id == own.node_id}
        return [node for node in self.nodes if node.address in theirs]

    def command(self, key: str | bytes, *args: str | bytes | float) -> Any:
        """Runs a command on the node that has a key."""
        return self.node_of(key).command(*args)

    def wait_for_takeover(self, lost: DataNode) -> DataNode:
        """Waits until a replica has the slots of a lost primary and all running nodes know it; returns that replica."""

        def knows_loss(node: DataNode) -> bool:
            return not any(each.slots for each in self._views(node) if each.address == lost.address)

        def is_taken_over() -> bool:
            return all(knows_loss(node) and _is_up(node) for node in self.running)

        eventually_answered(is_taken_over, f"a replica takes over from {lost.address}")
        return max(self._claims(), key=lambda node: self._own(node).epoch)

    def fail_over(self, replica: DataNode, how: Literal["", "FORCE", "TAKEOVER"] = "") -> None:
        """Makes a replica the primary, and returns once all running nodes know it."""
        node_id = self._own(replica).node_id
        replica.command("CLUSTER FAILOVER", *([how] if how else []))

        def knows(node: DataNode) -> bool:
            return any("master" in each.flags for each in self._views(node) if each.node_id == node_id)

        eventually_answered(
            lambda: all(knows(node) and _is_up(node) for node in self.running), "the replica is the primary"
        )

    def moving(self, key: str | bytes, target: DataNode) -> "Move":
        """Returns the move of a key's slot to another primary, which has not begun."""
        return Move(self, slot_of(key), self.node_of(key), target)

    def is_healthy(self) -> bool:
        """Whether three primaries serve all slots, a replica follows each, and all nodes agree on it."""
        views = [self._views(node) for node in self.nodes]
        stable = {frozenset({"master"}), frozenset({"slave"})}
        return (
            all(_is_up(node) and _has_its_peer(node) for node in self.nodes)
            and all(each.flags - {"myself"} in stable and each.connected for view in views for each in view)
            and not any(each.moving for view in views for each in view)
            and len({_topology(view) for view in views}) == 1
        )

    def start(self) -> None:
        """Starts all, makes them one cluster, and waits until it is healthy."""
        for node in self.nodes:
            node.start()
        self._unite()
        self.heal()

    def heal(self) -> None:
        """Brings back all nodes that are away, and cancels all moves of slots."""
        for node in self.nodes:
            node.revive()

        def ends_moves() -> bool:
            views = [(node, self._own(node)) for node in self.nodes]
            for node, own in views:
                # A replica learns this from its primary, and refuses it from any other node.
                for slot in own.moving if "master" in own.flags else ():
                    node.command("CLUSTER SETSLOT", slot, "STABLE")
            return not any(own.moving for _, own in views)

        eventually_answered(ends_moves, "no slot is moving")
        super().heal()

    def _unite(self) -> None:
        primaries, replicas = self.nodes[:_PRIMARIES], self.nodes[_PRIMARIES:]
        for number, node in enumerate(primaries):
            first, after = (SLOTS * at // _PRIMARIES for at in (number, number + 1))
            node.command("CLUSTER ADDSLOTSRANGE", first, after - 1)
            node.command("CLUSTER SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes[1:]:
            self.nodes[0].command("CLUSTER MEET", HOST, node.port)
        eventually_answered(self._are_introduced, "all nodes know each other")
        for primary, replica in zip(primaries, replicas, strict=True):
            replica.command("CLUSTER REPLICATE", self._own(primary).node_id)

    def _are_introduced(self) -> bool:
        views = [self._views(node) for node in self.nodes]
        return all(
            len(view) == len(self.nodes) and not any("handshake" in each.flags for each in view) for view in views
        )

    def _views(self, node: DataNode) -> list[NodeView]:
        """Returns all nodes as a node sees them."""
        rows = node.command("CLUSTER NODES")
        return [
            NodeView(
                address=address,
                node_id=each["node_id"],
                flags=frozenset(each["flags"].split(",")),
                primary_id=each["master_id"],
                epoch=int(each["epoch"]),
                slots=frozenset((int(ends[0]), int(ends[-1])) for ends in each["slots"]),
                moving=frozenset(int(move["slot"]) for move in each["migrations"]),
                connected=each["connected"],
            )
            for address, each in rows.items()
        ]

    def _own(self, node: DataNode) -> NodeView:
        return next(each for each in self._views(node) if "myself" in each.flags)

    def _claims(self) -> list[DataNode]:
        """Returns the running nodes that claim slots; one that was paused may claim slots that it has lost."""
        return [node for node in self.running if "master" in (own := self._own(node)).flags and own.slots]

    def _owner(self, slot: int) -> DataNode:
        views = {node: self._own(node) for node in self._claims()}
        claims = [node for node, own in views.items() if own.has(slot)]
        assert claims, f"no running node has slot {slot}"
        return max(claims, key=lambda node: views[node].epoch)


class Move:
    """The move of a slot, one step at a time. Until it ends, both nodes reply for the slot, with ASK."""

    def __init__(self, cluster: Cluster, slot: int, source: DataNode, target: DataNode) -> None:
        self.slot = slot
        self.source = source
        self.target = target
        self._cluster = cluster

    def begin(self) -> None:
        """Makes the source redirect requests for keys that it does not have to the target."""
        self.target.command("CLUSTER SETSLOT", self.slot, "IMPORTING", self._cluster._own(self.source).node_id)
        self.source.command("CLUSTER SETSLOT", self.slot, "MIGRATING", self._cluster._own(self.target).node_id)

    def move_keys(self, *keys: str | bytes) -> None:
        """Moves these keys, or all keys that the source has in the slot."""
        chosen = keys or self.source.command("CLUSTER", "GETKEYSINSLOT", self.slot, 10_000)
        if chosen:
            auth = ("AUTH", self._cluster.password) if self._cluster.password else ()
            self.source.command("MIGRATE", HOST, self.target.port, "", 0, _MOVE_TIMEOUT_MS, *auth, "KEYS", *chosen)

    def end(self) -> None:
        """Gives the slot to the target, and returns once all running nodes know it."""
        target_id = self._cluster._own(self.target).node_id
        for node in (self.target, self.source):
            node.command("CLUSTER SETSLOT", self.slot, "NODE", target_id)

        def knows(node: DataNode) -> bool:
            return any(each.node_id == target_id and each.has(self.slot) for each in self._cluster._views(node))

        eventually_answered(lambda: all(map(knows, self._cluster.running)), f"all know where slot {self.slot} is")


def slot_of(key: str | bytes) -> int:
    """Returns a key's slot."""
    return key_slot(key.encode() if isinstance(key, str) else key)


def _is_up(node: DataNode) -> bool:
    state = node.command("CLUSTER INFO")
    return bool(state["cluster_state"] == "ok" and int(state["cluster_slots_ok"]) == SLOTS)


def _has_its_peer(node: DataNode) -> bool:
    found = node.replication()
    return bool(found["connected_slaves"] == 1 if found["role"] == "master" else found["master_link_status"] == "up")


def _topology(view: list[NodeView]) -> frozenset[tuple[str, str, frozenset[tuple[int, int]]]]:
    return frozenset((each.node_id, each.primary_id, each.slots) for each in view)
