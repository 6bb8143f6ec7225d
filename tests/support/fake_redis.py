"""A server that speaks enough of Redis' protocol to reply in ways that no real one does."""

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from catraca_server.redis.url import StoreUrl

OK = b"+OK\r\n"
NIL = b"$-1\r\n"
HANG_UP = b""" closes the connection instead of replying """


def bulk(data: bytes) -> bytes:
    """Returns a string as a reply."""
    return b"$%d\r\n%s\r\n" % (len(data), data)


def array(*items: bytes) -> bytes:
    """Returns an array of replies as a reply."""
    return b"*%d\r\n%s" % (len(items), b"".join(items))


def integer(number: int) -> bytes:
    """Returns a number as a reply."""
    return b":%d\r\n" % number


REPLICATION_ID = "0123456789abcdef" * 2 + "01234567"
"""The `master_replid` of a fake, from which the epoch of its feed comes."""


class FakeRedis:
    """Listens on a Unix socket. `reply_to` returns a reply to a command, or None to leave it to the defaults.

    By default it is a primary of a supported version, without keys. `info` changes the reply to INFO. An empty reply
    means no reply, and HANG_UP closes the connection.
    """

    def __init__(
        self,
        listen: Path,
        reply_to: Callable[[list[bytes]], bytes | None] | None = None,
        *,
        info: Mapping[str, str] | None = None,
    ) -> None:
        self.url = str(StoreUrl.at_socket(str(listen)))
        self.info = {"redis_version": "7.4.0", "role": "master", "master_replid": REPLICATION_ID, **(info or {})}
        self.commands: list[list[bytes]] = []
        """All commands so far."""
        self.connected = 0
        """Connections accepted so far."""
        self._listen = listen
        self._reply_to = reply_to
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        return len(self._tasks)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, self._listen)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes all connections and stops listening."""
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connected += 1
        try:
            while True:
                command = await _command(reader)
                self.commands.append(command)
                reply = self._reply_to(command) if self._reply_to else None
                if reply is HANG_UP:
                    break
                writer.write(self._default(command) if reply is None else reply)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has gone, or the test is over
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    def _default(self, command: list[bytes]) -> bytes:
        match command[0].upper():
            case b"INFO":
                return bulk("\r\n".join(f"{name}:{value}" for name, value in self.info.items()).encode())
            case b"TIME":
                now = time.time_ns() // 1000
                return array(bulk(b"%d" % (now // 1_000_000)), bulk(b"%d" % (now % 1_000_000)))
            case b"GET":
                return NIL
            case b"PEXPIRETIME" | b"PTTL":
                return integer(-2)
            case b"CLIENT" | b"SELECT" | b"AUTH":
                return OK
        return b"-ERR unknown command\r\n"


async def _command(reader: asyncio.StreamReader) -> list[bytes]:
    count = int((await reader.readuntil(b"\r\n"))[1:])
    args = []
    for _ in range(count):
        length = int((await reader.readuntil(b"\r\n"))[1:])
        args.append((await reader.readexactly(length + 2))[:-2])
    return args
