"""A service on a real Valkey, whose keys a test spoils."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from tests.support.inprocess import serving
from tests.support.valkey import Valkey

from catraca import AsyncSessionClient, Login
from catraca_server.store.attempts import is_tombstone


@asynccontextmanager
async def sessions_on(valkey: Valkey) -> AsyncIterator[AsyncSessionClient]:
    """A client of a service on a real Valkey that is empty."""
    valkey.command("FLUSHALL")
    async with (
        serving(store_url=valkey.url, store_timeout="10s") as target,
        AsyncSessionClient(target, timeout=20) as client,
    ):
        yield client


async def login(sessions: AsyncSessionClient, user_id: str = "12345") -> Login:
    """Logs a user in for longer than any test takes."""
    return await sessions.create(user_id, ttl=timedelta(hours=1), attributes={"device": "phone"})


def records(valkey: Valkey) -> dict[bytes, bytes]:
    """Returns the values of session keys, without tombstones."""
    held = {key: valkey.command("GET", key) for key in valkey.command("KEYS", "session:*")}
    return {key: record for key, record in held.items() if not is_tombstone(record)}
