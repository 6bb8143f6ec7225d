"""The feed under faults: what is acknowledged is in it, and a watch never silently skips what may be lost."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.support.backends import Backend, Operations, Stores, a_call
from tests.support.cluster import Cluster
from tests.support.operations import service_on
from tests.support.sentinel import Sentinels
from tests.support.valkey import Valkey
from tests.support.waiting import TIMEOUT_SECONDS

from catraca_server.domain.commands import NewSession, Update
from catraca_server.domain.errors import EtagMismatch, TokenInUse
from catraca_server.domain.events import (
    BEFORE_ALL,
    EndCause,
    EventType,
    FeedEntry,
    Position,
    ResetReason,
    SessionEvent,
    revoked,
)
from catraca_server.domain.validation import ValidationRequest
from catraca_server.operations.users import REPEATED_WITHIN_MS, Login
from catraca_server.operations.watch_buffer import Item, Opened, Reset, WatchBuffer
from catraca_server.operations.watching import Watching
from catraca_server.redis.link import Link, Request
from catraca_server.redis.replies import Replies
from catraca_server.store import Overloaded, StoreProblem, StoreUnavailable
from catraca_server.store.feed import RedisFeed
from catraca_server.store.keys import Keys

FEED = Keys().feed()


class FeedCut(Link):
    """A link on which every request about the feed fails, as if the node that has it were down; all others succeed."""

    def __init__(self, inner: Link, failure: Exception) -> None:
        self._inner = inner
        self._failure = failure

    async def execute(
        self, requests: Sequence[Request], deadline: float, *, durable: bool = False
    ) -> Sequence[Replies]:
        """Executes requests, or fails."""
        if any(key == FEED for key, _ in requests):
            raise self._failure
        return await self._inner.execute(requests, deadline, durable=durable)


async def events(feed: RedisFeed) -> list[SessionEvent]:
    """Returns all that is in the feed."""
    end = await feed.end(a_call())
    reading = await feed.read(Position(end.epoch, BEFORE_ALL), 1000, a_call())
    return [entry.event for entry in reading.entries]


@pytest.mark.parametrize(
    "failure", [StoreUnavailable("down", StoreProblem.CANNOT_CONNECT), Overloaded()], ids=["down", "overloaded"]
)
async def test_what_cannot_be_told_is_not_acknowledged(backend: Backend, failure: Exception) -> None:
    """The change is made, the call is UNAVAILABLE; when it is repeated, its event is appended."""
    async with backend.link() as link:
        made = Stores.over(link, has_info=False)
        whole = Operations.over(made, rotation_grace_ms=60_000)
        cut = Operations.over(Stores.over(FeedCut(link, failure)), rotation_grace_ms=60_000)
        login = await whole.users.create(NewSession("ana"), a_call())
        other = await whole.users.create(NewSession("ana"), a_call())
        session_id, etag = login.stored.session.session_id, login.stored.session.etag
        update = Update(session_id, etag=etag, entries={"a": "b"})
        for attempt in (
            cut.users.create(NewSession("bia"), a_call()),
            cut.sessions.update(update, a_call()),
            cut.sessions.rotate(login.token, a_call()),
            cut.sessions.revoke_token(login.token, a_call()),
            cut.sessions.revoke_token(login.token, a_call()),
            cut.sessions.revoke(session_id, a_call()),
            cut.users.revoke("ana", "", a_call()),
        ):
            with pytest.raises(StoreUnavailable):
                await attempt
        for token in (login.token, other.token):
            (validation,) = await whole.sessions.validate([ValidationRequest(token)], a_call())
            assert validation.stored is None, "the session has ended all the same"
        assert {event.type for event in await events(made.feed)} == {EventType.CREATED}
        assert not await whole.sessions.revoke_token(login.token, a_call())
        assert (await events(made.feed))[-1] == revoked(session_id, "", EndCause.REQUEST)
        assert not await whole.sessions.revoke(session_id, a_call())
        assert (await events(made.feed))[-1] == revoked(session_id, "", EndCause.REQUEST)
        assert await whole.users.revoke("ana", "", a_call()) == 0
        assert (await events(made.feed))[-1] == revoked("", "ana", EndCause.USER_REQUEST)


async def test_a_repeated_change_is_told(backend: Backend) -> None:
    """Also if it finds itself done: a rotation inside the grace, and an update whose etag it has changed itself."""
    failure = StoreUnavailable("down", StoreProblem.CANNOT_CONNECT)
    async with backend.link() as link:
        made = Stores.over(link, has_info=False)
        whole = Operations.over(made, rotation_grace_ms=60_000)
        cut = Operations.over(Stores.over(FeedCut(link, failure)), rotation_grace_ms=60_000)
        login = await whole.users.create(NewSession("ana"), a_call())
        session_id = login.stored.session.session_id
        with pytest.raises(StoreUnavailable):
            await cut.sessions.rotate(login.token, a_call())
        rotation = await whole.sessions.rotate(login.token, a_call())
        assert (await events(made.feed))[-1] == SessionEvent(EventType.ROTATED, session_id, "ana")
        update = Update(session_id, etag=rotation.stored.session.etag, entries={"a": "b"})
        with pytest.raises(StoreUnavailable):
            await cut.sessions.update(update, a_call())
        with pytest.raises(EtagMismatch):
            await whole.sessions.update(update, a_call())
        assert (await events(made.feed))[-1] == SessionEvent(EventType.UPDATED, session_id, "ana")


async def test_a_repeated_login_is_told(backend: Backend) -> None:
    """If it is refused because the token names the session that the earlier call made: soon after it, for its user."""
    failure = StoreUnavailable("down", StoreProblem.CANNOT_CONNECT)
    async with backend.link() as link:
        made = Stores.over(link, has_info=False)
        whole, cut = Operations.over(made), Operations.over(Stores.over(FeedCut(link, failure)))
        brought = NewSession("ana", token="a-token-that-was-brought")
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await cut.users.create(brought, a_call())
        with pytest.raises(TokenInUse):
            await whole.users.create(replace(brought, user_id="bia"), a_call())
        assert await events(made.feed) == []
        for times in (1, 2):
            with pytest.raises(TokenInUse):
                await whole.users.create(brought, a_call())
            (stored,) = (await whole.users.page("ana", None, 10, a_call())).sessions
            created = SessionEvent(EventType.CREATED, stored.session.session_id, "ana")
            assert await events(made.feed) == [created] * times
        await backend.travel(REPEATED_WITHIN_MS + 1)
        with pytest.raises(TokenInUse):
            await whole.users.create(brought, a_call())
        assert len(await events(made.feed)) == 2


async def test_a_login_that_finds_its_token_taken_tells_of_it(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the earlier call wrote the session after this one had looked for it."""
    failure = StoreUnavailable("down", StoreProblem.CANNOT_CONNECT)
    brought = NewSession("ana", token="a-token-that-was-brought")
    async with backend.link() as link:
        made, late = Stores.over(link, has_info=False), Stores.over(link, has_info=False)
        cut = Operations.over(Stores.over(FeedCut(link, failure)))
        reserve = late.index.reserve

        async def reserve_late(*args: Any, **options: Any) -> Any:
            with contextlib.suppress(StoreUnavailable):
                await cut.users.create(brought, a_call())
            return await reserve(*args, **options)

        monkeypatch.setattr(late.index, "reserve", reserve_late)
        with pytest.raises(TokenInUse):
            await Operations.over(late).users.create(brought, a_call())
        (event,) = await events(made.feed)
        assert (event.type, event.user_id) == (EventType.CREATED, "ana")


async def test_an_end_is_told_when_memory_is_full(own_valkey: Valkey) -> None:
    """As it is made then."""
    async with service_on(own_valkey.url, store_timeout="5s") as service:
        login = await service.create()
        own_valkey.command("DEL", FEED)
        own_valkey.command("CONFIG", "SET", "maxmemory", "1")
        assert await service.revoke(login)
        session_id = login.stored.session.session_id
        assert await events(service.stores.feed) == [revoked(session_id, "ana", EndCause.REQUEST)]


@asynccontextmanager
async def watched(feed: RedisFeed) -> AsyncIterator[WatchBuffer]:
    """Watches a feed."""
    watching = Watching(feed, timeout_seconds=1)
    buffer = WatchBuffer()
    await watching.join(buffer, None, ())
    assert isinstance(await buffer.take(), Opened)
    yield buffer
    await watching.stop()


async def reset_of(buffer: WatchBuffer) -> ResetReason:
    """Waits for a reset, and returns its reason."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not isinstance(item := await buffer.take(), Reset):
            pass
    return item.reason


def is_revocation_of(login: Login, items: Sequence[Item]) -> bool:
    """Whether the last of these is the end of a session."""
    session_id = login.stored.session.session_id
    return any(
        isinstance(item, FeedEntry) and item.event.type is EventType.REVOKED and item.event.session_id == session_id
        for item in items[-1:]
    )


async def revocation_of(login: Login, buffer: WatchBuffer) -> None:
    """Waits until the end of a session is told."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not is_revocation_of(login, [await buffer.take()]):
            pass


async def test_a_restarted_store_is_another_epoch(own_valkey: Valkey) -> None:
    """It may have lost what it had not written to its disk; and what comes afterwards is told."""
    async with service_on(own_valkey.url, store_timeout="1s") as service, watched(service.stores.feed) as buffer:
        login = await service.create()
        assert isinstance(await buffer.take(), FeedEntry)
        before = await service.stores.feed.end(a_call())
        own_valkey.kill()
        own_valkey.start()
        assert await reset_of(buffer) is ResetReason.EPOCH_CHANGED
        assert (await service.stores.feed.end(a_call())).epoch != before.epoch
        await service.revoke(login)
        item = await asyncio.wait_for(buffer.take(), TIMEOUT_SECONDS)
        assert isinstance(item, FeedEntry)
        assert item.event.type is EventType.REVOKED


async def test_a_failover_is_another_epoch(tmp_path: Path) -> None:
    """Although the new primary has the same entries."""
    with Sentinels(tmp_path) as sentinels:
        async with service_on(sentinels.url) as service, watched(service.stores.feed) as buffer:
            await service.create()
            assert isinstance(await buffer.take(), FeedEntry)
            await asyncio.to_thread(sentinels.fail_over)
            assert await reset_of(buffer) is ResetReason.EPOCH_CHANGED


async def test_a_primary_of_a_cluster_is_replaced(valkey_cluster: Cluster) -> None:
    """The node that has the feed is lost, and perhaps events with it: a reset. And the watch goes on."""
    await asyncio.to_thread(valkey_cluster.renew)
    async with service_on(valkey_cluster.url, store_timeout="1s") as service, watched(service.stores.feed) as buffer:
        lost = valkey_cluster.node_of(FEED)
        login = await service.create()
        while valkey_cluster.node_of(f"session:{login.stored.session.session_id}") is lost:
            login = await service.create()
        lost.kill()
        await asyncio.to_thread(valkey_cluster.wait_for_takeover, lost)
        assert await reset_of(buffer) is ResetReason.EPOCH_CHANGED
        await service.recovered(login.token)
        assert await service.revoke(login)
        await revocation_of(login, buffer)


async def test_the_feed_moves_to_another_node(valkey_cluster: Cluster) -> None:
    """While its slot moves nothing is missed in silence: what was acknowledged comes, or a reset after it."""
    await asyncio.to_thread(valkey_cluster.renew)
    prefix = "{moving}"
    key = Keys(prefix).feed()
    target = next(node for node in valkey_cluster.primaries if node is not valkey_cluster.node_of(key))
    move = valkey_cluster.moving(key, target)
    async with (
        service_on(valkey_cluster.url, prefix=prefix, store_timeout="2s") as service,
        watched(service.stores.feed) as buffer,
    ):
        logins: list[Login] = []
        for step in (move.begin, partial(move.move_keys, key), move.move_keys, move.move_keys, move.end):
            logins += [await service.create() for _ in range(3)]
            await asyncio.to_thread(step)
            logins += [await service.create() for _ in range(3)]
        assert await service.revoke(logins[0])
        seen: list[Item] = []
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not is_revocation_of(logins[0], seen[-1:]):
                seen.append(await buffer.take())
        resets = [at for at, item in enumerate(seen) if isinstance(item, Reset)]
        assert resets, "the feed is another node's, which may not have all of it"
        after = [item.event.session_id for item in seen[resets[-1] :] if isinstance(item, FeedEntry)]
        before = [item.event.session_id for item in seen[: resets[0]] if isinstance(item, FeedEntry)]
        ids = [each.stored.session.session_id for each in logins]
        assert before == ids[: len(before)], "in order, and none left out"
        assert [*after[:-1]] == ids[len(ids) - len(after) + 1 :]


async def test_a_closed_connection_is_not(own_valkey: Valkey) -> None:
    """The watch goes on without a reset."""
    async with service_on(own_valkey.url, store_timeout="5s") as service, watched(service.stores.feed) as buffer:
        for _ in range(5):
            own_valkey.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await service.create()
            assert isinstance(await asyncio.wait_for(buffer.take(), TIMEOUT_SECONDS), FeedEntry)
