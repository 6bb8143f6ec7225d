"""The feed, on every backend: a chain of events that shows when a link is missing."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.support.backends import Backend, Stores, a_call, stores

from catraca_server.domain.events import (
    BEFORE_ALL,
    EndCause,
    EntryId,
    EventType,
    Position,
    ResetReason,
    SessionEvent,
    revoked,
)
from catraca_server.store import feed as module
from catraca_server.store.feed import RedisFeed
from catraca_server.store.keys import Keys

KEY = Keys().feed()
EVENTS = [
    SessionEvent(EventType.CREATED, "0" * 22, "ana"),
    SessionEvent(EventType.UPDATED, "0" * 22, "ana"),
    SessionEvent(EventType.ROTATED, "0" * 22, "ana"),
    *(revoked("1" * 22, "josé 🦊 \t\"'", cause) for cause in EndCause),
    revoked("", "ana", EndCause.USER_REQUEST),
    revoked("2" * 22, "", EndCause.REQUEST),
]


@pytest.fixture
async def made(backend: Backend) -> AsyncIterator[Stores]:
    """The store on each backend."""
    async with stores(backend) as opened:
        yield opened


@pytest.fixture
def feed(made: Stores) -> RedisFeed:
    """The feed on each backend, empty."""
    return made.feed


def numbered(count: int, first: int = 0) -> list[SessionEvent]:
    """Returns events that can be told apart."""
    return [SessionEvent(EventType.CREATED, str(number), "ana") for number in range(first, first + count)]


async def test_events_come_back_as_they_were_appended(backend: Backend, feed: RedisFeed) -> None:
    """In order, each with an id of its own and the store's time; and what is read goes on from there."""
    start = await feed.end(a_call())
    assert start.entry_id == BEFORE_ALL
    before = await backend.now()
    await feed.append(EVENTS[:4], a_call())
    for event in EVENTS[4:]:
        await feed.append([event], a_call())
    after = await backend.now()
    reading = await feed.read(start, 100, a_call())
    assert [entry.event for entry in reading.entries] == EVENTS
    ids = [entry.position.entry_id for entry in reading.entries]
    assert ids == sorted(set(ids))
    assert all(before <= entry_id.ms <= after + 1 for entry_id in ids)
    assert (reading.lost, reading.at_end) == (None, True)
    assert reading.position == reading.entries[-1].position == await feed.end(a_call())
    again = await feed.read(reading.position, 100, a_call())
    assert again == (reading.position, [], None, True)


async def test_it_is_read_in_pages(feed: RedisFeed) -> None:
    """Each begins where the one before ended, and only the last one is at the end; also up to a given entry."""
    position = await feed.end(a_call())
    await feed.append(numbered(10), a_call())
    seen, pages = [], []
    until = None
    for _ in range(5):
        reading = await feed.read(position, 4, a_call())
        assert reading.lost is None
        seen += [entry.event.session_id for entry in reading.entries]
        pages.append((len(reading.entries), reading.at_end))
        if len(pages) == 1:
            until = reading.entries[2].position.entry_id
            part = await feed.read(position, 4, a_call(), until=until)
            assert ([entry.event.session_id for entry in part.entries], part.at_end) == (["0", "1", "2"], True)
        position = reading.position
        if reading.at_end:
            break
    assert seen == [str(number) for number in range(10)]
    assert pages[:2] == [(4, False), (4, False)]
    assert pages[-1][1]


async def test_appends_at_once_make_one_chain(feed: RedisFeed) -> None:
    """However many append, what is read has no gap."""
    start = await feed.end(a_call())
    await asyncio.gather(*(feed.append(numbered(2, 2 * at), a_call()) for at in range(50)))
    reading = await feed.read(start, 1000, a_call())
    assert reading.lost is None
    seen = [int(entry.event.session_id) for entry in reading.entries]
    assert sorted(seen) == [*range(100)]
    assert all(first + 1 == second for first, second in zip(seen[::2], seen[1::2], strict=True))


async def test_what_was_trimmed_is_missed(backend: Backend, feed: RedisFeed) -> None:
    """Whoever was behind is told; whoever was not goes on."""
    start = await feed.end(a_call())
    await feed.append(numbered(5), a_call())
    entries = (await feed.read(start, 10, a_call())).entries
    await backend.command("XTRIM", KEY, "MINID", _text(entries[3].position))
    for behind in (start, entries[0].position, entries[1].position):
        assert (await feed.read(behind, 10, a_call())).lost is ResetReason.TRIMMED
    # The entry itself is no longer there, but the one that follows it is.
    reading = await feed.read(entries[2].position, 10, a_call())
    assert (reading.lost, list(reading.entries)) == (None, list(entries[3:]))


@pytest.mark.parametrize("what", ["an entry in between", "the last entries", "everything", "everything, and more"])
async def test_what_was_deleted_is_missed(backend: Backend, feed: RedisFeed, what: str) -> None:
    """Also if nothing has been appended since."""
    start = await feed.end(a_call())
    await feed.append(numbered(5), a_call())
    entries = (await feed.read(start, 10, a_call())).entries
    after = entries[1].position
    if what == "an entry in between":
        await backend.command("XDEL", KEY, _text(entries[2].position))
    elif what == "the last entries":
        await backend.command("XDEL", KEY, *(_text(entry.position) for entry in entries))
    else:
        await backend.command("DEL", KEY)
        # A clock that stands still would give the same ids again.
        await backend.travel(1)
    if what == "everything, and more":
        await feed.append(numbered(5, 5), a_call())
    assert (await feed.read(after, 10, a_call())).lost is ResetReason.TRIMMED


async def test_entries_of_others_are_missed(
    backend: Backend, feed: RedisFeed, caplog: pytest.LogCaptureFixture
) -> None:
    """What somebody wrote by hand is not an event, and does not keep the reader from going on behind it."""
    start = await feed.end(a_call())
    await feed.append(numbered(1), a_call())
    await backend.command("XADD", KEY, "*", "some", "thing")
    assert (await feed.read(start, 10, a_call())).lost is ResetReason.TRIMMED
    assert "unreadable entry in the feed" in caplog.text
    end = await feed.end(a_call())
    await feed.append(numbered(1, 1), a_call())
    assert [entry.event.session_id for entry in (await feed.read(end, 10, a_call())).entries] == ["1"]


async def test_it_is_trimmed_by_age(backend: Backend, feed: RedisFeed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries are kept as long as promised, and not much longer."""
    await feed.append(numbered(300), a_call())
    await feed.append(numbered(1), a_call())
    assert await backend.command("XLEN", KEY) == 301
    monkeypatch.setattr(module, "KEEP_MS", -3_600_000)
    await feed.append(numbered(1), a_call())
    # Redis drops whole blocks of a hundred.
    assert await backend.command("XLEN", KEY) <= 101


async def test_it_is_trimmed_by_number(backend: Backend, feed: RedisFeed, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds about as many as promised, however many come."""
    monkeypatch.setattr(module, "ENTRIES_MAX", 100)
    for at in range(10):
        await feed.append(numbered(50, 50 * at), a_call())
    assert 100 <= await backend.command("XLEN", KEY) <= 200


async def test_it_has_an_expiry(backend: Backend, feed: RedisFeed) -> None:
    """A day after the last entry, each time anew."""
    for _ in range(2):
        await feed.append(numbered(1), a_call())
        assert (await backend.keys())[KEY] > 23 * 3_600_000
        await backend.command("PEXPIRE", KEY, 1000)


async def test_another_epoch_is_noticed(feed: RedisFeed) -> None:
    """Whatever the id says."""
    await feed.append(numbered(3), a_call())
    end = await feed.end(a_call())
    for entry_id in (BEFORE_ALL, end.entry_id, EntryId(2**62, 0)):
        reading = await feed.read(Position(bytes(8), entry_id), 10, a_call())
        assert (reading.lost, reading.entries) == (ResetReason.EPOCH_CHANGED, ())


async def test_servers_agree_about_the_epoch(backend: Backend) -> None:
    """A position is as good for another server on the same store."""
    async with stores(backend) as one, stores(backend) as other:
        if backend.has_info:
            assert await one.feed.end(a_call()) == await other.feed.end(a_call())


async def test_it_says_that_it_has_appended(feed: RedisFeed) -> None:
    """Once for each append."""
    heard: list[None] = []
    feed.on_append = lambda: heard.append(None)
    await feed.append(EVENTS, a_call())
    await feed.append(EVENTS[:1], a_call())
    assert len(heard) == 2


def _text(position: Position) -> str:
    return "-".join(map(str, position.entry_id))
