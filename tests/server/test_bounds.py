"""What any client on the network can make the server hold: handshakes, headers, pings and frames are bounded."""

import asyncio
import os
import random
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc
import psutil
import pytest
from tests.support.door import CA, Door
from tests.support.inprocess import serving
from tests.support.strangers import GROWTH_MAX_BYTES, PREFACE, client_hello, connect, is_served
from tests.support.waiting import TIMEOUT_SECONDS

from catraca_server import core_options

LONG = bool(os.environ.get("CATRACA_TEST_LONG"))
SEEDS = range(2_000 if LONG else 100)
IDLE = 5_000 if LONG else 500


async def is_hung_up_on(target: str, sent: bytes) -> None:
    """Sends this and then nothing, and waits until the server hangs up."""
    reader, writer = await connect(target)
    writer.write(sent)
    with suppress(ConnectionError):
        await asyncio.wait_for(reader.read(-1), TIMEOUT_SECONDS)
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


@pytest.fixture
async def secured(door: Door, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """A service over TLS whose handshakes have half a second."""
    monkeypatch.setattr(core_options, "HANDSHAKE_TIMEOUT_MS", 500)
    async with door.serving() as target:
        yield target


@pytest.mark.parametrize("sent", ["nothing", "half a hello", "a hello and no more", "garbage", "records"])
async def test_handshakes_have_an_end(sent: str, secured: str) -> None:
    """Whoever does not go on with TLS is hung up on; others are served meanwhile."""
    hello = client_hello()
    chance = random.Random(sent)  # noqa: S311  it is to be the same in every run
    bodies = {
        "nothing": b"",
        "half a hello": hello[: len(hello) // 2],
        "a hello and no more": hello,
        "garbage": chance.randbytes(5000),
        "records": b"".join(struct.pack(">BHH", kind, 0x0303, 40) + chance.randbytes(40) for kind in (20, 21, 22, 23)),
    }
    waiting = [asyncio.create_task(is_hung_up_on(secured, bodies[sent])) for _ in range(20)]
    assert await is_served(secured, CA.channel_credentials())
    await asyncio.gather(*waiting)


async def test_headers_have_an_end() -> None:
    """Up to the limit a call is answered, above it refused, always; the connection is none the worse."""
    async with serving(store_url="memory:") as target, grpc.aio.insecure_channel(target) as channel:
        check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        for _ in range(20):
            assert await check(b"", metadata=(("long", "x" * (core_options.METADATA_MAX_BYTES - 1_000)),), timeout=10)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await check(b"", metadata=(("long", "x" * (core_options.METADATA_MAX_BYTES + 100)),), timeout=10)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def frames(seed: int) -> bytes:
    """Returns the beginning of a connection and frames of every kind, right in form and wrong in sense."""
    chance = random.Random(seed)  # noqa: S311  it is to be the same in every run
    sent = bytearray(PREFACE + struct.pack(">HBBBL", 0, 0, 4, 0, 0))
    for _ in range(chance.randrange(1, 60)):
        payload = chance.randbytes(chance.choice((0, 1, 4, 5, 6, 8, 9, 100, 2000)))
        kind = chance.choice((*range(10), 255))
        stream = chance.choice((0, 1, 2, 3, 5, 2**31 - 1))
        length = max(0, len(payload) + (0 if chance.random() < 0.9 else chance.randrange(-3, 4)))
        sent += struct.pack(">HBBBL", length >> 8, length & 0xFF, kind, chance.getrandbits(8), stream) + payload
    return bytes(sent)


async def test_random_frames(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever they are, others are served, nothing is a defect, and memory is bounded."""
    async with serving(store_url="memory:") as target:
        assert await is_served(target)
        before = psutil.Process().memory_info().rss
        for seed in SEEDS:
            _, writer = await connect(target)
            writer.write(frames(seed))
            with suppress(ConnectionError):
                await writer.drain()
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            if seed % 20 == 0:
                assert await is_served(target), seed
        assert await is_served(target)
        assert psutil.Process().memory_info().rss - before < GROWTH_MAX_BYTES
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


def ping(*, is_answer: bool = False, payload: bytes = b"12345678") -> bytes:
    """Returns a PING frame."""
    return struct.pack(">HBBBL", 0, 8, 6, int(is_answer), 0) + payload


async def test_pings_by_the_dozen() -> None:
    """Whoever pings more often than keepalive may is told so and hung up on; nobody else notices."""
    async with serving(store_url="memory:") as target:
        reader, writer = await connect(target)
        writer.write(PREFACE + struct.pack(">HBBBL", 0, 0, 4, 0, 0) + ping() * 12)
        with suppress(ConnectionError):
            assert b"too_many_pings" in await asyncio.wait_for(reader.read(-1), TIMEOUT_SECONDS)
        writer.close()
        assert await is_served(target)


async def test_a_connection_without_calls_ends_with_its_age() -> None:
    """The server says so, and hangs up."""
    async with serving(store_url="memory:", max_connection_age="200ms") as target:
        reader, writer = await connect(target)
        writer.write(PREFACE + struct.pack(">HBBBL", 0, 0, 4, 0, 0))
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await reader.readuntil(b"max_age")
            # It asks for a sign of life, and for want of one it waits for 20 s.
            header = await reader.readexactly(9)
            assert header[3] == 6
            writer.write(ping(is_answer=True, payload=await reader.readexactly(8)))
            assert b"max_age" in await reader.read(-1)
        writer.close()


async def test_idle_connections() -> None:
    """Hundreds that say nothing after their preface cost little, and others are served beside them."""
    async with serving(store_url="memory:") as target:
        before = psutil.Process().memory_info().rss
        writers = []
        for _ in range(IDLE):
            _, writer = await connect(target)
            writer.write(PREFACE + struct.pack(">HBBBL", 0, 0, 4, 0, 0))
            writers.append(writer)
        assert await is_served(target)
        assert psutil.Process().memory_info().rss - before < GROWTH_MAX_BYTES * (4 if LONG else 1)
        for writer in writers:
            writer.close()
        assert await is_served(target)
