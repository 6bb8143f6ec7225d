"""The reader of the feed, over a feed that the test controls and with a clock that stands still unless it is moved."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from catraca_server.domain.call import Call
from catraca_server.domain.events import (
    BEFORE_ALL,
    EntryId,
    EventType,
    FeedEntry,
    Position,
    ResetReason,
    SessionEvent,
)
from catraca_server.operations import watching as module
from catraca_server.operations.watch_buffer import Item, Opened, Reset, WatchBuffer
from catraca_server.operations.watching import Watching
from catraca_server.store import FeedReading, Overloaded, StoreProblem, StoreUnavailable

FIRST, SECOND = b"1st-reign", b"2nd-reign"


class FakeFeed:
    """A feed in memory."""

    on_append: Callable[[], None]

    def __init__(self) -> None:
        self.epoch = FIRST
        self.entries: list[FeedEntry] = []
        self.trimmed_to = 0
        self.failure: Exception | None = None
        self.readings = 0
        self.during: Callable[[], None] = lambda: None
        """Called while a reading is under way, after the store has replied."""

    def add(self, count: int = 1) -> None:
        """Appends events, here or elsewhere."""
        for _ in range(count):
            number = len(self.entries) + 1
            event = SessionEvent(EventType.CREATED, f"session-{number}", "ana")
            self.entries.append(FeedEntry(Position(self.epoch, EntryId(1, number)), event))

    async def append(self, events: Sequence[SessionEvent], call: Call) -> None:
        """Is not used."""
        raise NotImplementedError

    async def end(self, _call: Call) -> Position:
        """Returns where it ends."""
        await self._replies()
        return self._end()

    async def read(self, after: Position, count: int, _call: Call, *, until: EntryId | None = None) -> FeedReading:
        """Reads on."""
        epoch, number = self.epoch, after.entry_id.number
        stop = len(self.entries) if until is None else until.number
        found = self.entries[number : min(stop, number + count)]
        await self._replies()
        if epoch != after.epoch:
            return FeedReading(after, (), ResetReason.EPOCH_CHANGED, at_end=False)
        if number < self.trimmed_to:
            return FeedReading(after, (), ResetReason.TRIMMED, at_end=False)
        end = found[-1].position if found else after
        return FeedReading(end, found, None, at_end=number + len(found) >= stop)

    def _end(self) -> Position:
        return Position(self.epoch, EntryId(1, len(self.entries)) if self.entries else BEFORE_ALL)

    async def _replies(self) -> None:
        self.readings += 1
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        self.during()


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Returns the seconds."""
        return self.now


class Bench:
    """A reader, its feed, its clock, and those who watch."""

    def __init__(self, watching: Watching, feed: FakeFeed, clock: Clock) -> None:
        self.watching = watching
        self.feed = feed
        self.clock = clock

    async def watch(self, after: Position | None = None, entries_max: int = 10_000) -> WatchBuffer:
        """Begins a watch."""
        buffer = WatchBuffer(entries_max)
        await self.watching.join(buffer, after, ())
        return buffer

    async def read(self) -> None:
        """Waits until all that was appended by now has been read."""
        await self.watching.join(buffer := WatchBuffer(), None, ())
        self.watching.leave(buffer)

    async def took(self, buffer: WatchBuffer) -> list[Item]:
        """Returns all that has come so far."""
        await self.read()
        items: list[Item] = []
        while True:
            taking = asyncio.ensure_future(buffer.take())
            await asyncio.sleep(0)
            if not taking.done():
                taking.cancel()
                return items
            items.append(await taking)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    """A reader over an empty feed."""
    feed, clock = FakeFeed(), Clock()
    watching = Watching(feed, timeout_seconds=1, watches_max=50, clock=clock)
    yield Bench(watching, feed, clock)
    await watching.stop()
    assert [task for task in asyncio.all_tasks() if task.get_name() == "feed-reader"] == []


def numbers(items: Sequence[Item]) -> list[int]:
    """Returns which events are among items."""
    return [item.position.entry_id.number for item in items if isinstance(item, FeedEntry)]


async def test_all_get_all_events_in_order(bench: Bench) -> None:
    """From when they came on; one reader reads for all of them."""
    bench.feed.add(3)
    first = await bench.watch()
    bench.feed.add(2)
    second = await bench.watch()
    bench.feed.add(module.READ_COUNT + 1)
    assert numbers(await bench.took(first)) == [*range(4, module.READ_COUNT + 7)]
    items = await bench.took(second)
    assert items[0] == Opened(bench.feed.entries[4].position)
    assert numbers(items) == [*range(6, module.READ_COUNT + 7)]
    assert items[-1] is bench.feed.entries[-1], "shared, so that it is rendered once"


async def test_it_goes_on_where_it_was(bench: Bench) -> None:
    """With a position, what has happened since comes first; nothing twice, nothing out of order."""
    bench.feed.add(2 * module.READ_COUNT)
    after = bench.feed.entries[9].position
    buffer = await bench.watch(after)
    bench.feed.add(5)
    items = await bench.took(buffer)
    assert items[0] == Opened(after)
    assert numbers(items) == [*range(11, 2 * module.READ_COUNT + 6)]


async def test_nothing_is_lost_between_the_past_and_the_present(bench: Bench) -> None:
    """Events that come while the past is read come behind it."""
    other = await bench.watch()
    bench.feed.add(3 * module.READ_COUNT)
    await bench.read()
    bench.feed.during = bench.feed.add
    buffer = await bench.watch(Position(FIRST, BEFORE_ALL))
    await bench.read()
    bench.feed.during = lambda: None
    assert numbers(await bench.took(buffer)) == [*range(1, len(bench.feed.entries) + 1)]
    assert numbers(await bench.took(other)) == [*range(1, len(bench.feed.entries) + 1)]


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (Position(SECOND, EntryId(1, 3)), ResetReason.EPOCH_CHANGED),
        (Position(FIRST, EntryId(1, 1)), ResetReason.TRIMMED),
        (Position(FIRST, EntryId(1, 99_999)), ResetReason.TRIMMED),
        (Position(FIRST, EntryId(1, 5)), ResetReason.TRIMMED),
    ],
    ids=["of another primary", "trimmed", "ahead of the feed", "too far behind"],
)
async def test_where_it_cannot_go_on_it_is_reset(bench: Bench, after: Position, reason: ResetReason) -> None:
    """To where the feed is now, right after that it is open; then it goes on."""
    bench.feed.add(6 + module.HISTORY_MAX)
    bench.feed.trimmed_to = 2
    buffer = await bench.watch(after)
    now = bench.feed.entries[-1].position
    bench.feed.add()
    assert await bench.took(buffer) == [Opened(now), Reset(now, reason), bench.feed.entries[-1]]


@pytest.mark.parametrize("reason", [ResetReason.TRIMMED, ResetReason.EPOCH_CHANGED])
async def test_what_the_reader_may_have_missed_is_a_reset(bench: Bench, reason: ResetReason) -> None:
    """For all who watch, to where the feed is then."""
    bench.feed.add(3)
    buffers = [await bench.watch() for _ in range(3)]
    bench.feed.add(3)
    if reason is ResetReason.TRIMMED:
        bench.feed.trimmed_to = 5
    else:
        bench.feed.epoch = SECOND
    await bench.read()
    now = Position(bench.feed.epoch, EntryId(1, 6))
    bench.feed.add()
    for buffer in buffers:
        assert (await bench.took(buffer))[1:] == [Reset(now, reason), bench.feed.entries[-1]]


async def test_a_slow_one_slows_nobody(bench: Bench) -> None:
    """It is reset; the others get everything."""
    slow, other = await bench.watch(entries_max=10), await bench.watch()
    bench.feed.add(100)
    assert numbers(await bench.took(other)) == [*range(1, 101)]
    assert (await bench.took(slow))[1:] == [Reset(bench.feed.entries[-1].position, ResetReason.SLOW_CONSUMER)]


async def test_the_age_counts_from_the_beginning_of_a_reading_to_the_end(bench: Bench) -> None:
    """Neither a reading that failed nor one that is not at the end makes it younger."""
    begun = bench.clock.now
    await bench.watch()
    assert bench.watching.read_to_end_at == begun
    bench.clock.now += 7
    assert bench.watching.age_seconds == 7
    bench.feed.failure = StoreUnavailable("down", StoreProblem.CANNOT_CONNECT)
    with pytest.raises(StoreUnavailable):
        await bench.watch()
    assert bench.watching.read_to_end_at == begun
    bench.feed.failure = None
    before_the_end: list[float] = []

    def take_a_second() -> None:
        before_the_end.append(bench.watching.read_to_end_at)
        bench.clock.now += 1

    bench.feed.during = take_a_second
    bench.feed.add(2 * module.READ_COUNT + 1)
    await bench.read()
    assert before_the_end == [begun] * 3, "while it is still reading"
    assert bench.watching.age_seconds == 1


@pytest.mark.parametrize(
    "failure", [StoreUnavailable("down", StoreProblem.CANNOT_CONNECT), Overloaded(), ZeroDivisionError()], ids=repr
)
async def test_the_reader_outlives_whatever_fails(bench: Bench, failure: Exception) -> None:
    """Who watches goes on watching, and misses nothing; who comes meanwhile is told."""
    buffer = await bench.watch()
    bench.feed.failure = failure
    with pytest.raises(type(failure)):
        await bench.watch()
    bench.feed.add(2)
    bench.feed.failure = None
    assert numbers(await bench.took(buffer)) == [1, 2]


async def test_one_whose_past_cannot_be_read_does_not_begin(bench: Bench) -> None:
    """It is told, and gets nothing from then on."""
    bench.feed.add(3)
    keeps = await bench.watch()

    def fail() -> None:
        bench.feed.failure = StoreUnavailable("down", StoreProblem.CANNOT_CONNECT)

    bench.feed.during = fail
    with pytest.raises(StoreUnavailable):
        await bench.watch(Position(FIRST, BEFORE_ALL))
    bench.feed.during, bench.feed.failure = lambda: None, None
    await bench.read()
    bench.watching.leave(keeps)
    assert not bench.watching._watches


async def test_nothing_is_read_while_nobody_watches(bench: Bench) -> None:
    """The reader ends with the last watch, and begins again with the next."""
    assert bench.feed.readings == 0
    buffer = await bench.watch()
    assert bench.watching._reading is not None
    bench.watching.leave(buffer)
    await asyncio.wait_for(bench.watching._reading, 20)
    readings = bench.feed.readings
    bench.feed.add(3)
    bench.feed.on_append()
    assert bench.feed.readings == readings
    buffer = await bench.watch()
    bench.feed.add()
    assert numbers(await bench.took(buffer)) == [4]


async def test_an_append_of_this_process_is_read_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not wait for the next poll; one that comes during a reading does not, either."""
    monkeypatch.setattr(module, "POLL_PAUSE_SECONDS", 3600)
    buffer = await bench.watch()
    assert isinstance(await buffer.take(), Opened)
    for _ in range(3):
        bench.feed.add()
        bench.feed.on_append()
        assert isinstance(await asyncio.wait_for(buffer.take(), 20), FeedEntry)

    def once() -> None:
        bench.feed.during = lambda: None
        bench.feed.add()
        bench.feed.on_append()

    bench.feed.during = once
    bench.feed.add()
    bench.feed.on_append()
    for _ in range(2):
        assert isinstance(await asyncio.wait_for(buffer.take(), 20), FeedEntry)


async def test_others_are_polled_for(bench: Bench) -> None:
    """What another process appends comes without a sign."""
    buffer = await bench.watch()
    assert isinstance(await buffer.take(), Opened)
    bench.feed.add()
    assert isinstance(await asyncio.wait_for(buffer.take(), 20), FeedEntry)


async def test_too_many_are_refused(bench: Bench) -> None:
    """Those that come while others are still coming, too."""
    buffers = [WatchBuffer() for _ in range(60)]
    done = await asyncio.gather(*(bench.watching.join(buffer, None, ()) for buffer in buffers), return_exceptions=True)
    assert [type(each) for each in done] == [type(None)] * 50 + [Overloaded] * 10
    bench.watching.leave(buffers[0])
    await bench.watch()
