"""Many calls at once through one asynchronous client: they take turns, so that no server has to refuse any."""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from tests.support.service import ServeProcess

from catraca import AsyncSessionClient, _core, errors


@pytest.fixture
def silent() -> Iterator[str]:
    """An address at which somebody takes connections and never says anything."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


async def test_a_burst_is_answered() -> None:
    """More at once than a server allows on a connection: each gets its answer, without a retry."""
    async with (
        ServeProcess(store_url="memory:", store_timeout="30s") as process,
        AsyncSessionClient(process.target, timeout=60) as sessions,
    ):
        token = (await sessions.create("12345")).token
        answers = await asyncio.gather(*(sessions.validate(token) for _ in range(2000)))
        assert all(answers)


async def test_who_has_no_turn_in_time_is_told(silent: str) -> None:
    """Waiting for a turn is within the timeout; what is known is nothing, as with any call without an answer."""
    async with AsyncSessionClient(silent, timeout=60, coalesce=False) as sessions:
        first = [asyncio.create_task(sessions.validate("x" * 20)) for _ in range(_core.CALLS_AT_A_TIME)]
        await asyncio.sleep(0)
        begun = time.monotonic()
        with pytest.raises(errors.Unavailable, match=r"not sent within 0\.2 s"):
            await sessions.validate("x" * 20, timeout=0.2)
        assert time.monotonic() - begun >= 0.2
        first.pop().cancel()
        with pytest.raises(errors.Unavailable, match="DEADLINE_EXCEEDED"):
            await sessions.validate("x" * 20, timeout=0.2)
        for each in first:
            each.cancel()
        await asyncio.gather(*first, return_exceptions=True)


async def test_who_waits_for_a_turn_is_told_of_the_close(silent: str) -> None:
    """Like whoever has no turn in time: nothing is known."""
    sessions = AsyncSessionClient(silent, timeout=60, coalesce=False)
    calls = [asyncio.create_task(sessions.validate("x" * 20)) for _ in range(_core.CALLS_AT_A_TIME + 1)]
    await asyncio.sleep(0)
    await sessions.close()
    *_, waiting = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(waiting, errors.Unavailable)
