"""Makes a server with this on its path break a promise about the feed: BROKEN_SERVER says which."""

import asyncio
import os
from collections.abc import Sequence

from catraca_server.domain.call import Call
from catraca_server.domain.events import EventType, SessionEvent
from catraca_server.store.feed import RedisFeed

LATE_SECONDS = 12.0

append = RedisFeed.append
tasks: set[asyncio.Task[None]] = set()


async def append_no_ends(feed: RedisFeed, events: Sequence[SessionEvent], call: Call) -> None:
    """Tells of everything but ends."""
    if told := [each for each in events if each.type is not EventType.REVOKED]:
        await append(feed, told, call)


async def append_late(feed: RedisFeed, events: Sequence[SessionEvent], call: Call) -> None:
    """Tells long after the acknowledgement."""
    del call

    async def tell() -> None:
        await asyncio.sleep(LATE_SECONDS)
        await append(feed, events, Call(asyncio.get_running_loop().time() + 5))

    task = asyncio.create_task(tell())
    tasks.add(task)
    task.add_done_callback(tasks.discard)


if broken := os.environ.get("BROKEN_SERVER"):
    # Not as a plain assignment, which type checkers refuse for methods.
    setattr(RedisFeed, "append", {"silent": append_no_ends, "late": append_late}[broken])  # noqa: B010
