"""Connections of clients that can merely reach the port, and an honest caller beside them."""

import asyncio
import ssl
from contextlib import suppress
from typing import Any

import grpc
from tests.support.waiting import TIMEOUT_SECONDS

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
GROWTH_MAX_BYTES = 64 << 20
"""Room for thousands of connections, of some kilobytes each; far less than a leak of each frame would take."""


async def is_served(target: str, credentials: grpc.ChannelCredentials | None = None) -> bool:
    """Whether an honest caller on a connection of its own is answered."""
    own = [("grpc.use_local_subchannel_pool", 1)]
    channel = (
        grpc.aio.secure_channel(target, credentials, own) if credentials else grpc.aio.insecure_channel(target, own)
    )
    async with channel:
        check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        answer: bytes = await check(b"", timeout=TIMEOUT_SECONDS)
    return answer == b"\x08\x01"


async def connect(target: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Opens a bare connection."""
    host, port = target.rsplit(":", 1)
    return await asyncio.open_connection(host, int(port))


def client_hello() -> bytes:
    """Returns the beginning of a TLS handshake."""
    outgoing = ssl.MemoryBIO()
    context = ssl.create_default_context()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()
