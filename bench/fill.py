"""Fills an embedded store with sessions through the server's own store layer, so that it holds what logins leave.

The rest of the server is left out: with it, this would take several times as long.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import mean

import redis
import uvloop

from bench.store import connect, server_binary
from catraca_server.domain.call import Call
from catraca_server.domain.session import Session
from catraca_server.domain.tokens import Tokens
from catraca_server.redis.dialer import RedisConnector
from catraca_server.redis.embedded import EmbeddedStore
from catraca_server.redis.link import Server
from catraca_server.redis.url import StoreUrl
from catraca_server.store.keys import Keys
from catraca_server.store.sessions import RedisSessionStore
from catraca_server.store.user_index import RedisUserIndex

# Each link has one login at a time. There are two, so that the store has work while replies on the other are read.
_WRITERS = 200
_LINKS = 2

_TIMEOUT_SECONDS = 60.0
_DAY_MS, _HALF_HOUR_MS = 86_400_000, 1_800_000
_KEYS = Keys()


@dataclass(frozen=True)
class Filled:
    """The sessions that were written. Bytes are of the store's memory, per session."""

    tokens: Sequence[str]
    """The tokens of some sessions, spread evenly over all."""
    seconds: float
    used_bytes: float
    """The growth of the store's used memory."""
    record_bytes: float
    """Of that, the MEMORY USAGE of the session's key; and below, of its user's index. The rest is for finding keys."""
    index_bytes: float


def fill(data_dir: Path, sessions: int, *, users: int, sample: int, progress: Callable[[int], None]) -> Filled:
    """Logs users in, one after the other and `sessions` times in all, and reports their number to `progress`."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_fill(data_dir, sessions, users, sample, progress))


async def _fill(data_dir: Path, sessions: int, users: int, sample: int, progress: Callable[[int], None]) -> Filled:
    async with AsyncExitStack() as stack:
        embedded = EmbeddedStore(data_dir, server_binary())
        await embedded.start()
        stack.push_async_callback(embedded.stop)
        store = stack.enter_context(closing(connect(embedded.url)))
        empty = _used_bytes(store)
        begin = time.monotonic()
        some = await _log_in(embedded.url, sessions, users, sessions // sample, progress)
        seconds = time.monotonic() - begin
        _await_rewrite(store)
        return Filled(
            tokens=[token for token, _ in some],
            seconds=seconds,
            used_bytes=(_used_bytes(store) - empty) / sessions,
            record_bytes=_mean_usage(store, (_KEYS.session(session.session_id) for _, session in some)),
            index_bytes=_mean_usage(store, (_KEYS.user_index(session.user_id) for _, session in some))
            * users
            / sessions,
        )


async def _log_in(
    url: StoreUrl, sessions: int, users: int, step: int, progress: Callable[[int], None]
) -> Sequence[tuple[str, Session]]:
    """Writes the sessions. Returns one of every `step`, with its token."""
    tokens = Tokens(secrets.token_bytes)
    numbers = iter(range(sessions))
    some: list[tuple[str, Session]] = []

    async def write(link: Server) -> None:
        for number in numbers:
            token = tokens.mint()
            session = _session(tokens, token, number % users)
            await _write(link, session)
            if number % step == 0:
                some.append((token, session))
                progress(number)

    async with AsyncExitStack() as stack, asyncio.TaskGroup() as writers:
        for _ in range(_LINKS):
            link = Server.at(RedisConnector(url), timeout_seconds=_TIMEOUT_SECONDS, on_change=lambda _: None)
            await link.start()
            stack.push_async_callback(link.stop)
            for _ in range(_WRITERS):
                writers.create_task(write(link))
    return some


def _session(tokens: Tokens, token: str, user: int) -> Session:
    credential = tokens.read(token)
    assert credential is not None, "minted"
    now = int(time.time() * 1000)
    return Session(
        session_id=credential.session_id,
        user_id=f"user-{user}",
        digest=credential.digest,
        attributes={"device": "phone", "plan": "family"},
        create_time_ms=now,
        absolute_expire_time_ms=now + _DAY_MS,
        idle_timeout_ms=_HALF_HOUR_MS,
    )


async def _write(link: Server, session: Session) -> None:
    """Does the part of a login after room was made for it; see `catraca_server.operations.users`."""
    store, index = RedisSessionStore(link, _KEYS, has_pexpiretime=True), RedisUserIndex(link, _KEYS)
    call = Call(deadline=inf)
    reservation = await index.reserve(session, limit=0, evict_oldest=False, call=call)
    assert reservation.entry is not None, "there is no limit"
    await store.create(session, reservation.entry, call)
    await index.commit(session.user_id, reservation.entry, call)


def _await_rewrite(store: redis.Redis) -> None:
    """Waits until the store has rewritten its append-only file, which it does as the file grows."""
    while store.info("persistence")["aof_rewrite_in_progress"]:
        time.sleep(0.1)


def _used_bytes(store: redis.Redis) -> int:
    return int(store.info("memory")["used_memory"])


def _mean_usage(store: redis.Redis, keys: Iterable[str]) -> float:
    return mean(store.memory_usage(key) or 0 for key in keys)
