"""Serves the page of metrics over HTTP: one page, one request a connection, and nothing else."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from catraca_server.listening import why_refused
from catraca_server.observe.numbers import CONTENT_TYPE, Snapshot, page

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 5.0
"""For a request and its answer. A slower connection is closed."""

_HEAD_MAX_BYTES = 8192


@asynccontextmanager
async def serving_page(host: str, port: int, snapshot: Callable[[], Awaitable[Snapshot]]) -> AsyncIterator[None]:
    """Serves `/metrics` in the body. Raises CannotListen."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with asyncio.timeout(TIMEOUT_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(await _answer(head.split(b"\r\n", 1)[0], snapshot))
                await writer.drain()
        writer.close()

    try:
        server = await asyncio.start_server(answer, host, port, limit=_HEAD_MAX_BYTES)
    except OSError:
        raise why_refused(host, port) from None
    logger.info("metrics on http://%s:%d/metrics", host, port)
    try:
        yield
    finally:
        server.close()


async def _answer(line: bytes, snapshot: Callable[[], Awaitable[Snapshot]]) -> bytes:
    method, _, rest = line.partition(b" ")
    if method not in {b"GET", b"HEAD"}:
        return _response("405 Method Not Allowed", b"only GET\n")
    if rest.partition(b" ")[0].partition(b"?")[0] != b"/metrics":
        return _response("404 Not Found", b"it is at /metrics\n")
    response = _response("200 OK", page(await snapshot()).encode())
    return response if method == b"GET" else response[: response.index(b"\r\n\r\n") + 4]


def _response(status: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
