"""More calls than may be in flight: those over the limit are refused at once, all others are answered."""

import asyncio
import selectors
import time
from contextlib import closing
from pathlib import Path

from bench.http2 import Call, Connection, framed, header_block
from tests.support.proxy import Proxy
from tests.support.service import ServeProcess
from tests.support.valkey import Valkey
from tests.support.waiting import TIMEOUT_SECONDS

from catraca import AsyncSessionClient
from catraca.v1 import session_service_pb2 as pb
from catraca_server.api.engine.server import SLOTS

LIMIT = 250
"""Calls that a connection may have in flight, unless set otherwise."""

_REFUSED_STREAM = 7


class Flood(Connection):
    """A connection that ignores how many calls the server allows."""

    def __init__(self, port: int) -> None:
        self.selector = selectors.DefaultSelector()
        self.responses: list[pb.ValidateSessionResponse] = []
        self.resets: list[int] = []
        super().__init__(port, self.selector)

    def on_answer(self, stream: int, call: Call, trailers: bytes) -> None:  # noqa: D102  as its base says
        message = call.message()
        assert message is not None, trailers
        self.responses.append(pb.ValidateSessionResponse.FromString(message))

    def on_reset(self, stream: int, call: Call, code: int) -> None:  # noqa: D102  as its base says
        self.resets.append(code)

    def begin(self, port: int, token: str, calls: int) -> None:
        """Begins this many validations at once."""
        headers = header_block("/catraca.v1.SessionService/ValidateSession", port, timeout="60S")
        request = framed(pb.ValidateSessionRequest(token=token).SerializeToString())
        for _ in range(calls):
            self.open(headers, request, time.monotonic())
        self.flush()

    def begin_without_requests(self, port: int, calls: int) -> None:
        """Begins calls and sends no request for any."""
        headers = header_block("/catraca.v1.SessionService/ValidateSession", port, timeout="60S")
        for _ in range(calls):
            self.open(headers, b"", time.monotonic())
        self.flush()

    def wait_for(self, *, resets: int = 0, responses: int = 0) -> None:
        """Waits until at least this many calls have ended each way."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while len(self.resets) < resets or len(self.responses) < responses:
            assert time.monotonic() < deadline, f"{len(self.resets)} resets, {len(self.responses)} responses"
            for key, events in self.selector.select(0.1):
                key.data.on_ready(events)

    def close(self) -> None:  # noqa: D102  as its base says
        super().close()
        self.selector.close()


async def test_a_flood_is_refused_and_the_rest_is_answered(valkey: Valkey, tmp_path: Path) -> None:
    """While the store does not reply, a connection keeps as many calls as it may; no call is lost."""
    async with (
        Proxy(valkey.socket, tmp_path / "proxy.sock") as proxy,
        ServeProcess(store_url=proxy.url, store_timeout="30s") as process,
        AsyncSessionClient(process.target, timeout=30) as sessions,
    ):
        port = int(process.target.rpartition(":")[2])
        token = (await sessions.create("12345")).token
        with closing(await asyncio.to_thread(Flood, port)) as flood:
            assert flood.most_streams == LIMIT
            proxy.hold()
            flood.begin(port, token, 20 * LIMIT)
            # The engine accepts one more.
            await asyncio.to_thread(flood.wait_for, resets=19 * LIMIT - 1)
            assert set(flood.resets) == {_REFUSED_STREAM}
            assert not flood.responses
            proxy.release()
            await asyncio.to_thread(flood.wait_for, responses=20 * LIMIT - len(flood.resets))
            assert all(response.valid for response in flood.responses)
            assert LIMIT <= len(flood.responses) <= LIMIT + 1
            flood.begin(port, token, 1)
            await asyncio.to_thread(flood.wait_for, responses=len(flood.responses) + 1)
        assert await sessions.validate(token)


async def test_calls_without_a_request_delay_nobody(valkey: Valkey) -> None:
    """As many as there are slots, and none of them ends; all other calls are answered soon."""
    async with (
        ServeProcess(store_url=valkey.url) as process,
        AsyncSessionClient(process.target, timeout=TIMEOUT_SECONDS) as sessions,
    ):
        port = int(process.target.rpartition(":")[2])
        token = (await sessions.create("12345")).token
        with closing(await asyncio.to_thread(Flood, port)) as flood:
            flood.begin_without_requests(port, SLOTS)
            # Nothing shows whether they have arrived: the first responses may be from before.
            for _ in range(50):
                assert await sessions.validate(token)
                await asyncio.sleep(0.01)
