"""What `UserIndex` promises, on every backend."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.support.backends import Backend, a_call, stores

from catraca_server.domain.session import Session
from catraca_server.store import IndexEntry, Reservation, UserIndex
from catraca_server.store.attempts import sequence_at

HOUR = 3_600_000
USER = "usuário {com} espaços"


@pytest.fixture
async def index(backend: Backend) -> AsyncIterator[UserIndex]:
    """The index on each backend."""
    async with stores(backend) as opened:
        yield opened.index


def an_id(at: int) -> str:
    """Returns a session id."""
    return f"{at:022}"


async def a_session(backend: Backend, at: int, ttl: int = HOUR) -> Session:
    """Returns a session of USER."""
    now = await backend.now()
    return Session(
        session_id=an_id(at),
        user_id=USER,
        digest="d",
        attributes={},
        create_time_ms=now,
        absolute_expire_time_ms=now + ttl,
        idle_timeout_ms=0,
    )


async def reserve(index: UserIndex, session: Session, *, limit: int = 0, evict_oldest: bool = False) -> Reservation:
    """Reserves a place for a session."""
    return await index.reserve(session, limit=limit, evict_oldest=evict_oldest, call=a_call())


async def reserved(index: UserIndex, backend: Backend, count: int) -> list[IndexEntry]:
    """Reserves places, one after the other, and returns their entries."""
    entries = []
    for at in range(count):
        entry = (await reserve(index, await a_session(backend, at))).entry
        assert entry is not None
        entries.append(entry)
    return entries


async def test_sequences_grow(backend: Backend, index: UserIndex) -> None:
    """Each login has a larger sequence than all before it, also within one tick of the clock."""
    scores = [entry.score for entry in await reserved(index, backend, 20)]
    assert scores == sorted(set(scores))
    assert abs(scores[0] - sequence_at(await backend.now() * 1000)) < sequence_at(HOUR * 1000)


async def test_newest_first_page_by_page(backend: Backend, index: UserIndex) -> None:
    """Pages follow one another without a gap and without an overlap."""
    entries = await reserved(index, backend, 7)
    first = await index.newest(USER, None, 3, a_call())
    second = await index.newest(USER, first.entries[-1].score, 3, a_call())
    third = await index.newest(USER, second.entries[-1].score, 3, a_call())
    assert [*first.entries, *second.entries, *third.entries] == entries[::-1]
    assert (await index.newest("nobody", None, 3, a_call())).entries == []


async def test_at_the_limit_nothing_is_reserved(backend: Backend, index: UserIndex) -> None:
    """The reservation names the sessions that are there."""
    entries = await reserved(index, backend, 3)
    full = await reserve(index, await a_session(backend, 3), limit=3)
    assert full.entry is None
    assert sorted(full.others.entries, key=lambda entry: entry.score) == entries
    assert len((await index.newest(USER, None, 9, a_call())).entries) == 3


async def test_the_oldest_become_evicting_to_make_room(backend: Backend, index: UserIndex) -> None:
    """They no longer count, but stay in the index; each login names them until they are removed."""
    entries = await reserved(index, backend, 3)
    fourth = await reserve(index, await a_session(backend, 3), limit=3, evict_oldest=True)
    assert [(each.session_id, each.score) for each in fourth.evicting.entries] == [(an_id(0), -entries[0].score)]
    fifth = await reserve(index, await a_session(backend, 4), limit=3, evict_oldest=True)
    assert {each.session_id for each in fifth.evicting.entries} == {an_id(0), an_id(1)}
    assert [each.session_id for each in (await index.newest(USER, None, 9, a_call())).entries] == [
        an_id(4),
        an_id(3),
        an_id(2),
    ]
    everything = await index.session_ids(USER, a_call())
    assert sorted(everything) == [an_id(at) for at in range(5)]
    entries_found = await index.entries(USER, [*everything, "another"], a_call())
    assert {each.session_id for each in entries_found.entries if each.score < 0} == {an_id(0), an_id(1)}
    assert len(entries_found.entries) == 5
    await index.remove(USER, fifth.evicting.entries, a_call())
    sixth = await reserve(index, await a_session(backend, 5), limit=4)
    assert sixth.entry is not None
    assert sixth.evicting.entries == []


async def test_concurrent_logins_evict_exactly(backend: Backend, index: UserIndex) -> None:
    """Each makes another session evicting: neither too few nor too many."""
    await reserved(index, backend, 5)
    sessions = [await a_session(backend, 100 + at) for at in range(30)]
    await asyncio.gather(*(reserve(index, each, limit=5, evict_oldest=True) for each in sessions))
    assert len((await index.newest(USER, None, 99, a_call())).entries) == 5


async def test_a_session_that_is_reserved_again_counts_once(backend: Backend, index: UserIndex) -> None:
    """The session of a brought token that is brought again becomes the newest, and takes no second place."""
    await reserved(index, backend, 3)
    again = await reserve(index, await a_session(backend, 0), limit=3)
    assert again.entry is not None
    newest = await index.newest(USER, None, 9, a_call())
    assert [each.session_id for each in newest.entries] == [an_id(0), an_id(2), an_id(1)]


async def test_an_entry_that_was_reserved_anew_is_not_removed(backend: Backend, index: UserIndex) -> None:
    """Removing an ended session leaves the entry of a new one with the same id, evicting or not."""
    (old,) = await reserved(index, backend, 1)
    new = (await reserve(index, await a_session(backend, 0))).entry
    assert new is not None
    await index.remove(USER, [old], a_call())
    assert await index.entry(USER, an_id(0), a_call()) == new
    await index.remove(USER, [IndexEntry(new.session_id, -new.score)], a_call())
    assert await index.entry(USER, an_id(0), a_call()) is None
    assert await backend.keys() == {}, "an empty index is gone"


async def test_an_entry_that_was_committed_meanwhile_is_not_removed(backend: Backend, index: UserIndex) -> None:
    """A caller that read a reserved entry does not know that its session has been written since."""
    (entry,) = await reserved(index, backend, 1)
    assert await index.commit(USER, entry, a_call())
    await index.remove(USER, [entry], a_call())
    committed = await index.entry(USER, an_id(0), a_call())
    assert committed is not None
    await index.remove(USER, [committed], a_call())
    assert not await index.commit(USER, entry, a_call())
    assert await backend.keys() == {}


async def test_a_login_that_comes_too_late_leaves_nothing(backend: Backend, index: UserIndex) -> None:
    """An index always has an expiry, also with a session that would have ended before it began."""
    await reserve(index, await a_session(backend, 0, ttl=-HOUR))
    assert all(ttl > 0 for ttl in (await backend.keys()).values())


async def test_the_index_lasts_as_long_as_its_last_session(backend: Backend, index: UserIndex) -> None:
    """It expires with the latest deadline, whatever the order of logins; extending never makes that earlier."""
    await reserve(index, await a_session(backend, 0, ttl=HOUR))
    await reserve(index, await a_session(backend, 1, ttl=HOUR // 2))
    (ttl,) = (await backend.keys()).values()
    assert HOUR - 60_000 < ttl <= HOUR + 1
    await index.extend(await a_session(backend, 1, ttl=2 * HOUR), a_call())
    await index.extend(await a_session(backend, 0, ttl=HOUR), a_call())
    (ttl,) = (await backend.keys()).values()
    # A millisecond more, because Redis counts from the beginning of the command.
    assert 2 * HOUR - 60_000 < ttl <= 2 * HOUR + 1


async def test_extending_restores_an_entry(backend: Backend, index: UserIndex) -> None:
    """A session that the index does not have is in it again, with an expiry."""
    await index.extend(await a_session(backend, 7), a_call())
    assert [each.session_id for each in (await index.newest(USER, None, 9, a_call())).entries] == [an_id(7)]
    assert all(ttl > 0 for ttl in (await backend.keys()).values())
