"""A link to a Redis Cluster: each key is on the primary that has its slot, and slots move.

Which primary has which slot is read from the nodes (CLUSTER NODES) and kept as a map. Views of different nodes differ
while something happens; of two claims to a slot the one of the higher configuration epoch is the newer, as the nodes
themselves decide it. A node that answers MOVED or ASK has done nothing, so the question is put to the one it names.
"""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

from redis.asyncio.connection import AbstractConnection
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, MovedError, RedisError, ResponseError

from catraca_server.redis.dialer import Address, StoreRefused
from catraca_server.redis.link import Question, Server
from catraca_server.redis.multiplexer import START_PATIENCE, Answer, Connector
from catraca_server.store import Overloaded, StoreUnavailable

logger = logging.getLogger(__name__)

LOOK_PAUSE = 1.0
"""Seconds between two looks at the cluster while nothing is known to be wrong."""

LOOK_PAUSE_IN_TROUBLE = 0.1
"""Seconds between two looks while a node is lost, or a slot is nobody's."""

LOOK_PART = 0.4
"""Of the timeout, for a look while a node is being connected to, which has to be done within the timeout."""

SEED_PATIENCE = START_PATIENCE / 2
"""Seconds for the seeds to answer, so that one that says nothing leaves time for the rest of the start."""

REDIRECTIONS = 5
"""Times that one question follows MOVED or ASK: more only if the nodes disagree."""


class Claim(NamedTuple):
    """What a node says of a primary."""

    owner: Address
    epoch: int
    """The primary's configuration epoch."""
    slots: tuple[range, ...]


@dataclass(frozen=True, slots=True)
class View:
    """What one node says of who has which slots."""

    claims: frozenset[Claim]
    """Of primaries that are not known to have failed."""

    @classmethod
    def read(cls, text: bytes, asked: Address) -> "View":
        """Reads a reply to CLUSTER NODES, which the node at `asked` gave. Raises StoreUnavailable."""
        try:
            lines = [line.split() for line in text.decode().splitlines()]
            return cls(frozenset(_claim(words, asked) for words in lines if _may_be_asked(words[2].split(","))))
        except (UnicodeDecodeError, ValueError, IndexError) as error:
            raise StoreUnavailable("a reply to CLUSTER NODES that is none") from error


@dataclass(slots=True)
class _Node:
    server: Server
    found: bool = True
    asked: bool = True
    """Whether it was asked about a key since the last look."""


@dataclass(slots=True)
class _Slots:
    """Who has which slot, as far as is known."""

    owners: list[Address | None] = field(default_factory=lambda: [None] * REDIS_CLUSTER_HASH_SLOTS)
    epochs: list[int] = field(default_factory=lambda: [-1] * REDIS_CLUSTER_HASH_SLOTS)

    def learn(self, claims: Iterable[Claim]) -> None:
        """Takes over what is not older than what is known."""
        for owner, epoch, slots in claims:
            for slot in chain.from_iterable(slots):
                if epoch >= self.epochs[slot]:
                    self.owners[slot], self.epochs[slot] = owner, epoch


class Cluster:
    """A link to all primaries of a cluster.

    `seeds` are nodes to ask about it first, whatever their role; `connector_to` makes a connector to a primary.
    `on_change` is told when all slots can be asked about (True) and when some cannot (False).
    """

    def __init__(
        self,
        seeds: Mapping[Address, Connector],
        connector_to: Callable[[Address], Connector],
        *,
        timeout: float,
        on_change: Callable[[bool], None],
        replica_acks: int = 0,
    ) -> None:
        self.waits = replica_acks > 0
        self._seeds = seeds
        self._connector_to = connector_to
        self._timeout = timeout
        self._on_change = on_change
        self._replica_acks = replica_acks
        self._slots = _Slots()
        self._nodes: dict[Address, _Node] = {}
        self._complete = False
        self._trouble = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connects to every primary. Raises StoreUnavailable, also if slots are missing, or TimeoutError."""
        async with asyncio.timeout(START_PATIENCE):
            await self._first_look()
            # One after the other, for the first reason why one cannot be used.
            for address in sorted(self._owners()):
                node = self._nodes[address] = self._made(address)
                await node.server.start()
            # What the seeds said may have been old.
            await self._refresh()
        self._looking = asyncio.create_task(self._keep_looking(), name="cluster-look")

    async def stop(self) -> None:
        """Closes all connections. What still waits is failed."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        await asyncio.gather(*(node.server.stop() for node in self._nodes.values()))

    async def ask(self, questions: Sequence[Question], deadline: float, *, durable: bool = False) -> Sequence[Answer]:
        """Asks each question of the node that has its key, all nodes at once."""
        owners = [self._owner(key) for key, _ in questions]
        by_owner: dict[Address, list[int]] = defaultdict(list)
        for at, owner in enumerate(owners):
            by_owner[owner].append(at)

        async def ask_owner(owner: Address, places: Sequence[int]) -> None:
            asked = [questions[at] for at in places]
            answers.update(zip(places, await self._ask_node(owner, asked, deadline, durable=durable), strict=True))

        async def follow(at: int) -> None:
            answers[at] = await self._follow(questions[at], owners[at], answers[at], deadline, durable=durable)

        answers: dict[int, Answer] = {}
        await _all(ask_owner(owner, places) for owner, places in by_owner.items())
        await _all(follow(at) for at, answer in answers.items() if _redirection(answer))
        return [answers[at] for at in range(len(questions))]

    async def _ask_node(
        self, address: Address, questions: Sequence[Question], deadline: float, *, durable: bool
    ) -> Sequence[Answer]:
        node = self._nodes.get(address) or self._join(address)
        node.asked = True
        return await node.server.ask(questions, deadline, durable=durable)

    async def _follow(
        self, question: Question, asked: Address, answer: Answer, deadline: float, *, durable: bool
    ) -> Answer:
        """Puts a question to the node that its answer sends it to, until one has an answer."""
        key, commands = question
        for _ in range(REDIRECTIONS):
            redirection = _redirection(answer)
            if redirection is None:
                return answer
            # Without a host it is the one that was asked, at another port.
            asked = Address(redirection.host or asked.host, redirection.port)
            if isinstance(redirection, MovedError):
                self._slots.owners[key_slot(key.encode())] = asked
                self._trouble.set()
                (answer,) = await self._ask_node(asked, [question], deadline, durable=durable)
            else:
                asking = [word for command in commands for word in (("ASKING",), command)]
                (answer,) = await self._ask_node(asked, [(key, asking)], deadline, durable=durable)
                answer = Answer(answer.now, answer.replies[1::2], answer.source)
        if _redirection(answer):
            raise StoreUnavailable("the nodes of the cluster send from one to the other")
        return answer

    def _owner(self, key: str) -> Address:
        owner = self._slots.owners[key_slot(key.encode())]
        if owner is None:
            raise StoreUnavailable("no node has the slot")
        return owner

    def _join(self, address: Address) -> _Node:
        logger.info("node %s has joined", address)
        node = self._nodes[address] = self._made(address)
        node.server.begin()
        return node

    def _made(self, address: Address) -> _Node:
        connect_to_it = self._connector_to(address)

        async def connect() -> AbstractConnection:
            connection = await connect_to_it()
            try:
                # It may have slept and been replaced, and does not know: the others do.
                await self._look(self._timeout * LOOK_PART, but=address)
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
            return connection

        def changed(found: bool) -> None:
            node.found = found
            self._trouble.set()
            self._tell()

        server = Server.at(connect, timeout=self._timeout, on_change=changed, replica_acks=self._replica_acks)
        node = _Node(server)
        return node

    def _owners(self) -> set[Address]:
        return {owner for owner in self._slots.owners if owner is not None}

    def _tell(self) -> None:
        """Says whether all slots can be asked about, if that has changed."""
        complete = None not in self._slots.owners and all(
            owner in self._nodes and self._nodes[owner].found for owner in self._owners()
        )
        if complete is not self._complete:
            self._complete = complete
            self._on_change(complete)

    async def _first_look(self) -> None:
        """Asks all seeds for their view. Raises StoreUnavailable if there is none, or slots are missing."""
        errors = await self._ask_seeds(SEED_PATIENCE)
        if len(errors) == len(self._seeds):
            # What says most about what to do.
            raise next((error for error in errors if isinstance(error, StoreRefused)), errors[0])
        if missing := self._slots.owners.count(None):
            raise StoreUnavailable(
                f"the cluster is not complete: {missing} of {REDIS_CLUSTER_HASH_SLOTS} slots are on no node that is "
                "up, as CLUSTER NODES tells"
            )

    async def _ask_seeds(self, patience: float) -> Sequence[BaseException]:
        """Learns from all seeds that answer in time. Returns what was wrong with the others."""
        asking = (_view_of(*seed, patience) for seed in self._seeds.items())
        views = await asyncio.gather(*asking, return_exceptions=True)
        self._slots.learn(chain.from_iterable(view.claims for view in views if isinstance(view, View)))
        return [view for view in views if isinstance(view, BaseException)]

    async def _keep_looking(self) -> None:
        """Looks at once when something happens, else now and then."""
        while True:
            # Whatever happens, happens to many at once; one look is enough for all.
            await asyncio.sleep(LOOK_PAUSE_IN_TROUBLE)
            if self._complete:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_PAUSE):
                        await self._trouble.wait()
            self._trouble.clear()
            try:
                await self._refresh()
            except Exception:
                logger.exception("defect in looking at the cluster; going on with what is known")

    async def _refresh(self) -> None:
        """Learns of changes, connects to nodes that have got slots, and lets go of those that have none."""
        if not await self._look(self._timeout):
            # All that was known may have been replaced while nobody could look.
            await self._ask_seeds(self._timeout)
        owners = self._owners()
        for address in owners - self._nodes.keys():
            self._join(address)
        for address in self._nodes.keys() - owners:
            if self._nodes[address].asked:
                # It is getting its first slot, or has just given away its last.
                self._nodes[address].asked = False
            else:
                logger.info("node %s has no slots any more", address)
                await self._nodes.pop(address).server.stop()
        self._tell()

    async def _look(self, timeout: float, *, but: Address | None = None) -> bool:
        """Asks all nodes for their view, or all but one. One that does not answer has none. Whether any has."""
        deadline = asyncio.get_running_loop().time() + timeout
        learnt: set[Claim] = set()

        async def look_at(address: Address, node: _Node) -> None:
            with contextlib.suppress(StoreUnavailable, Overloaded):
                (answer,) = await node.server.ask([("", [("CLUSTER", "NODES")])], deadline)
                # Nearly all say the same, and there are many slots.
                claims = View.read(answer.reply(0, bytes), address).claims - learnt
                learnt.update(claims)
                self._slots.learn(claims)

        await asyncio.gather(*(look_at(address, node) for address, node in self._nodes.items() if address != but))
        return bool(learnt)


async def _all(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Does all at once; one alone without the cost of that."""
    todo = list(work)
    if len(todo) == 1:
        await todo[0]
    else:
        await asyncio.gather(*todo)


async def _view_of(seed: Address, connect: Connector, patience: float) -> View:
    try:
        async with asyncio.timeout(patience):
            connection = await connect()
            try:
                await connection.send_command("CLUSTER", "NODES")
                return View.read(await connection.read_response(disable_decoding=True), seed)
            finally:
                await connection.disconnect(nowait=True)
    except ResponseError as error:
        raise StoreRefused(f"{seed} refused CLUSTER NODES ({error}): check that the user may run it") from error
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"no answer at {seed} ({type(error).__name__})") from error


def _redirection(answer: Answer) -> AskError | None:
    """Returns what sends an answer's question elsewhere; MovedError is a kind of AskError."""
    return next((reply for reply in answer.replies if isinstance(reply, AskError)), None)


def _may_be_asked(flags: Sequence[str]) -> bool:
    """Whether a node is a primary, and not known to have failed; `fail?` is what one node alone thinks of it."""
    return "master" in flags and not {"fail", "noaddr", "handshake"}.intersection(flags)


def _claim(words: Sequence[str], asked: Address) -> Claim:
    """Reads `id ip:port@bus,hostname flags primary ping pong epoch link slot slot…`."""
    return Claim(_address(words[1], asked), int(words[6]), tuple(_slots(word) for word in words[8:] if word[0] != "["))


def _address(word: str, asked: Address) -> Address:
    """Reads `ip:port@bus,hostname`; a node that has not been met yet does not know its own ip."""
    host, _, port = word.partition(",")[0].partition("@")[0].rpartition(":")
    return Address(host or asked.host, int(port))


def _slots(word: str) -> range:
    """Reads `5` or `0-5460`."""
    first, _, last = word.partition("-")
    return range(int(first), int(last or first) + 1)
