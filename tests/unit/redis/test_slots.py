"""Replies to CLUSTER NODES, as Redis 6.2, Redis 7 and Valkey write them."""

import pytest

from catraca_server.redis.errors import StoreUnavailable
from catraca_server.redis.slots import Claim, View
from catraca_server.redis.url import Address

SEED = Address("10.0.0.9", 7009)

REDIS_6 = b"""\
07c3 127.0.0.1:30004@31004 slave e7d1 0 1426238317239 4 connected
67ed 127.0.0.1:30002@31002 master - 0 1426238316232 2 connected 5461-10922
292f 127.0.0.1:30003@31003 master,fail? - 0 1426238318243 3 connected 10923-16383
6ec2 127.0.0.1:30005@31005 master,fail - 1426238316232 0 5 disconnected 9 10-12
e7d1 :30001@31001 myself,master - 0 0 1 connected 0-5459 5460 [93->-67ed] [77-<-292f]
824f :0@0 master,noaddr - 1426238316232 0 6 disconnected 20-30
0000 127.0.0.1:30009@31009 handshake - 0 0 0 disconnected
"""
REDIS_7 = b"""\
67ed 10.0.0.1:6379@16379,one.example master - 0 1426238316232 2 connected 0-16383
07c3 10.0.0.2:6379@16379,two.example slave 67ed 0 1426238317239 2 connected
"""
VALKEY_9 = b"""\
67ed 2001:db8::1:6379@16379,one.example,shard-id=69bc080733d1355567173199 myself,master - 0 0 7 connected 1 3-4
07c3 2001:db8::2:6379@16379,,shard-id=69bc080733d1355567173188 master - 0 1426238317239 8 connected
"""


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        (
            REDIS_6,
            {
                Claim(Address("127.0.0.1", 30002), 2, (range(5461, 10923),)),
                Claim(Address("127.0.0.1", 30003), 3, (range(10923, 16384),)),
                Claim(Address("10.0.0.9", 30001), 1, (range(5460), range(5460, 5461))),
            },
        ),
        (REDIS_7, {Claim(Address("10.0.0.1", 6379), 2, (range(16384),))}),
        (
            VALKEY_9,
            {
                Claim(Address("2001:db8::1", 6379), 7, (range(1, 2), range(3, 5))),
                Claim(Address("2001:db8::2", 6379), 8, ()),
            },
        ),
        (b"", set()),
    ],
    ids=["Redis 6.2", "Redis 7", "Valkey 9", "nothing"],
)
def test_a_view_is_read(text: bytes, claims: set[Claim]) -> None:
    """A view has the primaries that are up, with their slots; slots that are moving still belong to their source."""
    assert View.read(text, SEED).claims == claims


@pytest.mark.parametrize(
    "text",
    [
        b"\xff",
        b"what?",
        b"\n",
        b"a b master",
        b"67ed :@ master - 0 0 7 connected",
        b"67ed h:1 master - 0 0 x connected",
        b"67ed h:1 master - 0 0 7 connected x-y",
    ],
)
def test_a_malformed_view_is_refused(text: bytes) -> None:
    """It says nothing about the cluster."""
    with pytest.raises(StoreUnavailable):
        View.read(text, SEED)
