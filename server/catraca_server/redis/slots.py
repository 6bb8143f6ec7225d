"""Which node of a cluster has which slots, according to the nodes.

The nodes' views differ while something changes. Of two claims to a slot, the one with the higher configuration epoch is
the newer one, which is how the nodes themselves decide.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from catraca_server.redis.errors import StoreProblem, StoreUnavailable
from catraca_server.redis.url import Address


class Claim(NamedTuple):
    """What a node says about a primary."""

    owner: Address
    epoch: int
    """The primary's configuration epoch."""
    slots: tuple[range, ...]


@dataclass(frozen=True, slots=True)
class View:
    """What one node says about which node has which slots."""

    claims: frozenset[Claim]
    """Of primaries that are not known to have failed."""

    @classmethod
    def read(cls, text: bytes, replied_by: Address) -> "View":
        """Reads a reply to CLUSTER NODES. Raises StoreUnavailable."""
        try:
            lines = [line.split() for line in text.decode().splitlines()]
            return cls(frozenset(_claim(fields, replied_by) for fields in lines if _is_primary(fields[2].split(","))))
        except (UnicodeDecodeError, ValueError, IndexError) as error:
            raise StoreUnavailable("malformed CLUSTER NODES reply", StoreProblem.MALFORMED_REPLY) from error


@dataclass(slots=True)
class SlotMap:
    """Which node has which slot, as far as is known."""

    _owners: list[Address | None] = field(default_factory=lambda: [None] * REDIS_CLUSTER_HASH_SLOTS)
    _epochs: list[int] = field(default_factory=lambda: [-1] * REDIS_CLUSTER_HASH_SLOTS)

    def learn(self, claims: Iterable[Claim]) -> None:
        """Takes over each claim that is not older than what is known."""
        for owner, epoch, slots in claims:
            for slot in chain.from_iterable(slots):
                if epoch >= self._epochs[slot]:
                    self._owners[slot], self._epochs[slot] = owner, epoch

    def move(self, key: str, owner: Address) -> None:
        """Takes over what MOVED says about a key's slot."""
        self._owners[key_slot(key.encode())] = owner

    def owner(self, key: str) -> Address:
        """Returns the node that has a key's slot. Raises StoreUnavailable if there is none."""
        owner = self._owners[key_slot(key.encode())]
        if owner is None:
            raise StoreUnavailable("no node serves the slot", StoreProblem.SLOT_UNCOVERED)
        return owner

    def owners(self) -> set[Address]:
        """Returns all nodes that have slots."""
        return {owner for owner in self._owners if owner is not None}

    def uncovered(self) -> int:
        """Returns how many slots no node has."""
        return self._owners.count(None)


def _is_primary(flags: Sequence[str]) -> bool:
    """Whether a node is a primary that is not known to have failed; `fail?` is what one node alone suspects."""
    return "master" in flags and not {"fail", "noaddr", "handshake"}.intersection(flags)


def _claim(fields: Sequence[str], replied_by: Address) -> Claim:
    """Reads `id ip:port@bus,hostname flags primary ping pong epoch link slot slot…`."""
    slots = tuple(_slots(each) for each in fields[8:] if each[0] != "[")
    return Claim(_address(fields[1], replied_by), int(fields[6]), slots)


def _address(text: str, replied_by: Address) -> Address:
    """Reads `ip:port@bus,hostname`; a node that no other has met yet does not know its own ip."""
    host, _, port = text.partition(",")[0].partition("@")[0].rpartition(":")
    return Address(host or replied_by.host, int(port))


def _slots(text: str) -> range:
    """Reads `5` or `0-5460`."""
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)
