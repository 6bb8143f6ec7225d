"""A proxy in front of a store, which delays, holds, loses and breaks traffic as networks do."""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.waiting import eventually_async

from catraca_server.redis.url import StoreUrl

_HOST = "127.0.0.1"
_CHUNK = 1 << 16
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Proxy:
    """Passes traffic on to a store's Unix socket or TCP port, in both directions.

    It listens on the Unix socket `listen` or, without one, on a TCP port of loopback. `delay` returns the seconds by
    which each piece of a reply is delayed; None: no delay. With `tls`, its port speaks TLS, and the store need not.
    """

    def __init__(
        self,
        upstream: Path | int,
        listen: Path | None = None,
        *,
        delay: Callable[[], float] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.url = ""
        """Its store URL."""
        self.delay = delay
        self.accepted = 0
        """Connections accepted so far."""
        self.held = b""
        """What clients have sent since `hold`."""
        self._upstream = upstream
        self._listen = listen
        self._tls = tls
        self._passing = asyncio.Event()
        self._passing.set()
        self._refusing = False
        self._losing_replies = False
        self._clients: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        return len(self._clients)

    def hold(self) -> None:
        """From now on nothing gets through in either direction, and nothing is closed."""
        self._passing.clear()

    async def holding(self, text: bytes) -> None:
        """Waits until it holds something that contains this text."""

        async def is_held() -> bool:
            return text in self.held

        await eventually_async(is_held, f"{text!r} is on its way to the store")

    def release(self) -> None:
        """Lets everything through again, first what was held."""
        self.held = b""
        self._passing.set()

    def refuse(self, refusing: bool) -> None:
        """Closes new connections at once, or no longer."""
        self._refusing = refusing

    def lose_replies(self, losing: bool) -> None:
        """Drops the store's replies, or no longer."""
        self._losing_replies = losing

    def reset(self) -> None:
        """Resets every connection."""
        for writer in list(self._clients):
            _break(writer)

    def half_close(self) -> None:
        """Closes the direction towards the client of every connection, and leaves the other open."""
        for writer in self._clients:
            writer.write_eof()

    async def __aenter__(self) -> Self:
        if self._listen is None:
            self._server = await asyncio.start_server(self._serve, _HOST, 0, ssl=self._tls)
            self.url = (
                f"{'redis' if self._tls is None else 'rediss'}://{_HOST}:{self._server.sockets[0].getsockname()[1]}"
            )
        else:
            self._server = await asyncio.start_unix_server(self._serve, self._listen)
            self.url = str(StoreUrl.at_socket(str(self._listen)))
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if not self._refusing:
                self.accepted += 1
                self._clients.add(writer)
                await self._connect(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # broken by either side, as tests want
        finally:
            self._clients.discard(writer)
            self._tasks.discard(task)
            _break(writer)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        replies, requests = await self._open()
        ways = (
            asyncio.create_task(self._pass(reader, requests)),
            asyncio.create_task(self._pass_back(replies, writer)),
        )
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Before anything is awaited, where this may be cancelled once more.
            requests.close()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._upstream, int):
            opening = asyncio.create_task(asyncio.open_connection(_HOST, self._upstream))
        else:
            opening = asyncio.create_task(asyncio.open_unix_connection(self._upstream))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            # The connection is not needed any more, and still has to be closed.
            with contextlib.suppress(OSError):
                (await opening)[1].close()
            raise

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            if not self._passing.is_set():
                self.held += data
                await self._passing.wait()
            writer.write(data)
            await writer.drain()

    async def _pass_back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            await self._passing.wait()
            if self.delay is not None:
                await asyncio.sleep(self.delay())
            if not self._losing_replies:
                writer.write(data)
                await writer.drain()


def _break(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        # A reset rather than an orderly end, where the transport has one.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()
