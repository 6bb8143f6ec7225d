"""A client with a near cache that only watches: `python -m bench.watching_client TARGET`. Ended by a signal."""

import asyncio
import sys

from catraca import AsyncSessionClient


async def _watch(target: str) -> None:
    async with AsyncSessionClient(target, near_cache=True, timeout=10) as sessions:
        await sessions.validate("an-unknown-token")
        while not (stats := sessions.near_cache_stats()) or not stats.watching:  # noqa: ASYNC110  no event for it
            await asyncio.sleep(0.05)
        print("watching", flush=True)
        await asyncio.Event().wait()


asyncio.run(_watch(sys.argv[1]))
