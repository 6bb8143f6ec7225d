"""A link to a Redis Cluster: each key is on the primary that has its slot, and slots move.

Which primary has which slot is read from the nodes (CLUSTER NODES) and kept as a map (see `slots`). A node that replies
MOVED or ASK has done nothing, so the request is sent to the node that it names.
"""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.crc import REDIS_CLUSTER_HASH_SLOTS
from redis.exceptions import AskError, MovedError, RedisError, ResponseError

from catraca_server.redis.errors import Overloaded, StoreProblem, StoreRefused, StoreUnavailable
from catraca_server.redis.link import KeyReads, Part, Request, Server
from catraca_server.redis.multiplexer import CONNECT_TIMEOUT_SECONDS, Connector
from catraca_server.redis.observer import NO_OBSERVER, StoreObserver
from catraca_server.redis.replies import Replies, described
from catraca_server.redis.slots import Claim, SlotMap, View
from catraca_server.redis.url import Address

logger = logging.getLogger(__name__)

REFRESH_PAUSE_SECONDS = 1.0
"""Between two refreshes of the map while nothing is known to be wrong."""

REFRESH_PAUSE_IN_TROUBLE_SECONDS = 0.1
"""Between two refreshes while a node is disconnected, or a slot uncovered."""

REFRESH_FRACTION = 0.4
"""The part of the timeout that a refresh may take while connecting to a node: all of it must fit in the timeout."""

SEED_TIMEOUT_SECONDS = CONNECT_TIMEOUT_SECONDS / 2
"""How long the seeds have to answer: a silent one must leave time for the rest of the start."""

REDIRECTIONS = 5
"""How many times one request follows MOVED or ASK: more are needed only if the nodes disagree."""


@dataclass(slots=True)
class _Node:
    server: Server
    connected: bool = True
    used: bool = True
    """Whether a request went to it since the last refresh."""


class Cluster:
    """A link to all primaries of a cluster.

    `seeds` are the nodes that are asked about it first, whatever their role; `connector_to` makes a connector to a
    primary. `on_change` is called with True when all slots can be reached, with False when some cannot.
    """

    def __init__(
        self,
        seeds: Mapping[Address, Connector],
        connector_to: Callable[[Address], Connector],
        *,
        timeout_seconds: float,
        on_change: Callable[[bool], None],
        replica_acks: int = 0,
        observer: StoreObserver = NO_OBSERVER,
    ) -> None:
        self._observer = observer
        self.replicates = replica_acks > 0
        self._seeds = seeds
        self._connector_to = connector_to
        self._timeout_seconds = timeout_seconds
        self._on_change = on_change
        self._replica_acks = replica_acks
        self._slots = SlotMap()
        self._nodes: dict[Address, _Node] = {}
        self._complete = False
        self._trouble = asyncio.Event()
        self._refreshing: asyncio.Task[None] | None = None

    @property
    def waiting_commands(self) -> int:
        """How many commands wait to be sent."""
        return sum(node.server.waiting_commands for node in self._nodes.values())

    async def start(self) -> None:
        """Connects to every primary. Raises StoreUnavailable, also if slots are uncovered, or TimeoutError."""
        async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
            await self._read_first_map()
            # One after the other, to raise the first reason why a primary cannot be used.
            for address in sorted(self._slots.owners()):
                node = self._nodes[address] = self._new_node(address)
                await node.server.start()
            # What the seeds said may have been out of date.
            await self._refresh()
        self._refreshing = asyncio.create_task(self._keep_refreshing(), name="cluster-refresh")

    async def stop(self) -> None:
        """Closes all connections, and fails what still waits."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)
        await asyncio.gather(*(node.server.stop() for node in self._nodes.values()))

    async def execute(
        self, requests: Sequence[Request], deadline: float, *, durable: bool = False
    ) -> Sequence[Replies]:
        """Sends each request to the node that has its key, all nodes at once."""
        owners = [self._slots.owner(key) for key, _ in requests]
        by_owner: dict[Address, list[int]] = defaultdict(list)
        for at, owner in enumerate(owners):
            by_owner[owner].append(at)

        async def execute_at(owner: Address, positions: Sequence[int]) -> None:
            chosen = [requests[at] for at in positions]
            found = await self._execute_at(owner, chosen, deadline, durable=durable)
            replies.update(zip(positions, found, strict=True))

        async def follow(at: int) -> None:
            replies[at] = await self._follow(requests[at], owners[at], replies[at], deadline, durable=durable)

        replies: dict[int, Replies] = {}
        await _all(execute_at(owner, positions) for owner, positions in by_owner.items())
        await _all(follow(at) for at, found in replies.items() if _redirection(found))
        return [replies[at] for at in range(len(requests))]

    def together(self, keys: Sequence[str]) -> Sequence[Sequence[int]]:
        """Groups keys whose slots are on one node, as far as is known."""
        by_owner: dict[Address, list[int]] = defaultdict(list)
        for at, key in enumerate(keys):
            by_owner[self._slots.owner(key)].append(at)
        return [*by_owner.values()]

    async def read(self, keys: Sequence[str], reads: KeyReads, deadline: float) -> Sequence[Part]:
        """Reads each key at the node that has it, all nodes at once."""
        parts: list[Part] = []

        async def read_at(owner: Address, positions: Sequence[int]) -> None:
            chosen = [keys[at] for at in positions]
            ((_, replies),) = await self._server_at(owner).read(chosen, reads, deadline)
            if _redirection(replies) is None:
                parts.append((positions, replies))
                return
            each = replies.split([reads.count] * len(positions))
            # The rare case, one key at a time. Replies that redirect nowhere stay as they are.
            await _all(follow(at, owner, found) for at, found in zip(positions, each, strict=True))

        async def follow(at: int, owner: Address, found: Replies) -> None:
            request = (keys[at], reads.commands(keys[at]))
            parts.append(((at,), await self._follow(request, owner, found, deadline, durable=False)))

        groups = self.together(keys)
        await _all(read_at(self._slots.owner(keys[group[0]]), group) for group in groups)
        return parts

    def _server_at(self, address: Address) -> Server:
        node = self._nodes.get(address) or self._add(address)
        node.used = True
        return node.server

    async def _execute_at(
        self, address: Address, requests: Sequence[Request], deadline: float, *, durable: bool
    ) -> Sequence[Replies]:
        return await self._server_at(address).execute(requests, deadline, durable=durable)

    async def _follow(
        self, request: Request, address: Address, replies: Replies, deadline: float, *, durable: bool
    ) -> Replies:
        """Sends a request to the node that its replies redirect it to, until one executes it."""
        key, commands = request
        for _ in range(REDIRECTIONS):
            redirection = _redirection(replies)
            if redirection is None:
                return replies
            repeated = replies.repeated
            # Without a host it is the same host, at another port.
            address = Address(redirection.host or address.host, redirection.port)
            if isinstance(redirection, MovedError):
                self._slots.move(key, address)
                self._trouble.set()
                (replies,) = await self._execute_at(address, [request], deadline, durable=durable)
            else:
                asking = [each for command in commands for each in (("ASKING",), command)]
                (replies,) = await self._execute_at(address, [(key, asking)], deadline, durable=durable)
                replies = replace(replies, values=replies.values[1::2])
            # The first sending may have been executed where the slot was then.
            replies = replace(replies, repeated=replies.repeated or repeated)
        if _redirection(replies):
            raise StoreUnavailable(
                "the nodes of the cluster redirect to each other without end", StoreProblem.SLOT_UNCOVERED
            )
        return replies

    def _add(self, address: Address) -> _Node:
        logger.info("cluster node added: %s", address)
        node = self._nodes[address] = self._new_node(address)
        node.server.begin()
        return node

    def _new_node(self, address: Address) -> _Node:
        connect_to_it = self._connector_to(address)

        async def connect() -> AbstractConnection:
            connection = await connect_to_it()
            try:
                # This node may have stalled and been replaced without knowing it. The other nodes know.
                await self._read_views(self._timeout_seconds * REFRESH_FRACTION, but=address)
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
            return connection

        def changed(connected: bool) -> None:
            node.connected = connected
            self._trouble.set()
            self._report()

        server = Server.at(
            connect,
            timeout_seconds=self._timeout_seconds,
            on_change=changed,
            replica_acks=self._replica_acks,
            observer=self._observer,
        )
        node = _Node(server)
        return node

    def _report(self) -> None:
        """Reports whether all slots can be reached, if that has changed."""
        complete = not self._slots.uncovered() and all(
            owner in self._nodes and self._nodes[owner].connected for owner in self._slots.owners()
        )
        if complete is not self._complete:
            self._complete = complete
            self._on_change(complete)

    async def _read_first_map(self) -> None:
        """Asks all seeds for their view. Raises StoreUnavailable if there is none, or slots are uncovered."""
        errors = await self._ask_seeds(SEED_TIMEOUT_SECONDS)
        if len(errors) == len(self._seeds):
            # A refusal says most about what to do.
            raise next((error for error in errors if isinstance(error, StoreRefused)), errors[0])
        if missing := self._slots.uncovered():
            raise StoreUnavailable(
                f"the cluster is not complete: {missing} of {REDIS_CLUSTER_HASH_SLOTS} slots are on no node that is "
                "up, says CLUSTER NODES",
                StoreProblem.SLOT_UNCOVERED,
            )

    async def _ask_seeds(self, timeout_seconds: float) -> Sequence[BaseException]:
        """Learns from all seeds that answer in time. Returns what was wrong with the others."""
        reading = (_view_of(address, connect, timeout_seconds) for address, connect in self._seeds.items())
        views = await asyncio.gather(*reading, return_exceptions=True)
        self._slots.learn(chain.from_iterable(view.claims for view in views if isinstance(view, View)))
        return [view for view in views if isinstance(view, BaseException)]

    async def _keep_refreshing(self) -> None:
        """Refreshes the map at once when something happens, and otherwise now and then."""
        while True:
            # Trouble hits many callers at once, and one refresh is enough for all of them.
            await asyncio.sleep(REFRESH_PAUSE_IN_TROUBLE_SECONDS)
            if self._complete:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(REFRESH_PAUSE_SECONDS):
                        await self._trouble.wait()
            self._trouble.clear()
            try:
                await self._refresh()
            except Exception:
                logger.exception("defect in refreshing the map of the cluster; going on with what is known")

    async def _refresh(self) -> None:
        """Learns of changes, connects to nodes that have received slots, and drops those that have none."""
        if not await self._read_views(self._timeout_seconds):
            # All known nodes may have been replaced while none of them could be reached.
            await self._ask_seeds(self._timeout_seconds)
        owners = self._slots.owners()
        for address in owners - self._nodes.keys():
            self._add(address)
        for address in self._nodes.keys() - owners:
            if self._nodes[address].used:
                # It is receiving its first slot, or has just given away its last.
                self._nodes[address].used = False
            else:
                logger.info("cluster node dropped, it has no slots any more: %s", address)
                await self._nodes.pop(address).server.stop()
        self._report()

    async def _read_views(self, timeout_seconds: float, *, but: Address | None = None) -> bool:
        """Asks all nodes for their view, or all but one; skips those that do not answer. Returns whether any did."""
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        learnt: set[Claim] = set()

        async def read_view(address: Address, node: _Node) -> None:
            with contextlib.suppress(StoreUnavailable, Overloaded):
                (replies,) = await node.server.execute([("", [("CLUSTER", "NODES")])], deadline)
                # Nearly all nodes say the same, and there are many slots.
                claims = View.read(replies.get(0, bytes), address).claims - learnt
                learnt.update(claims)
                self._slots.learn(claims)

        await asyncio.gather(*(read_view(address, node) for address, node in self._nodes.items() if address != but))
        return bool(learnt)


async def _all(coroutines: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Awaits all at once; a single one without the cost of `gather`."""
    pending = list(coroutines)
    if len(pending) == 1:
        await pending[0]
    else:
        await asyncio.gather(*pending)


async def _view_of(seed: Address, connect: Connector, timeout_seconds: float) -> View:
    try:
        async with asyncio.timeout(timeout_seconds):
            connection = await connect()
            try:
                await connection.send_command("CLUSTER", "NODES")
                return View.read(await connection.read_response(disable_decoding=True), seed)
            finally:
                await connection.disconnect(nowait=True)
    except ResponseError as error:
        raise StoreRefused(
            f"{seed} refused CLUSTER NODES ({described(error)}): check that the user may run it"
        ) from error
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"no answer at {seed} ({type(error).__name__})", StoreProblem.CANNOT_CONNECT) from error


def _redirection(replies: Replies) -> AskError | None:
    """Returns the reply that redirects a request to another node; MovedError is a kind of AskError."""
    return next((value for value in replies.values if isinstance(value, AskError)), None)
