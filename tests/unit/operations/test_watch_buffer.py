"""The events held for a watch: in order, bounded, and none skipped silently."""

import asyncio

import pytest

from catraca_server.domain.events import EntryId, EventType, FeedEntry, Position, ResetReason, SessionEvent
from catraca_server.operations.watch_buffer import Item, Opened, Pong, Reset, WatchBuffer

EPOCH = b"the-same"


def at(number: int) -> Position:
    """Returns a position."""
    return Position(EPOCH, EntryId(1, number))


def entry(number: int, event_type: EventType = EventType.CREATED) -> FeedEntry:
    """Returns an entry."""
    return FeedEntry(at(number), SessionEvent(event_type, f"session-{number}", "ana"))


async def taken(buffer: WatchBuffer) -> list[Item]:
    """Takes out all there is."""
    items: list[Item] = []
    while True:
        taking = asyncio.ensure_future(buffer.take())
        await asyncio.sleep(0)
        if not taking.done():
            taking.cancel()
            return items
        items.append(await taking)


async def test_the_order() -> None:
    """That it is open, what has happened before, what came meanwhile, what comes afterwards."""
    buffer = WatchBuffer()
    buffer.offer([entry(3)], at(3))
    assert await taken(buffer) == [], "it has not begun"
    buffer.begin(at(0), [entry(1), entry(2)], None)
    buffer.offer([entry(4)], at(4))
    assert await taken(buffer) == [Opened(at(0)), entry(1), entry(2), entry(3), entry(4)]


async def test_a_reset_at_the_beginning() -> None:
    """It comes right after that the watch is open."""
    buffer = WatchBuffer()
    buffer.offer([entry(3)], at(3))
    reset = Reset(at(2), ResetReason.TRIMMED)
    buffer.begin(at(2), (), reset)
    assert await taken(buffer) == [Opened(at(2)), reset, entry(3)]


async def test_only_some_types() -> None:
    """Others are left out, of the past as well."""
    buffer = WatchBuffer()
    buffer.filter({EventType.REVOKED})
    both = [entry(1), entry(2, EventType.REVOKED)]
    buffer.begin(at(0), both, None)
    buffer.offer([entry(3), entry(4, EventType.REVOKED)], at(4))
    assert await taken(buffer) == [Opened(at(0)), both[1], entry(4, EventType.REVOKED)]


@pytest.mark.parametrize("begun", [True, False])
async def test_one_who_is_slow_is_reset(begun: bool) -> None:
    """To where the feed was read to; it goes on from there, and is never more than the bound."""
    buffer = WatchBuffer(entries_max=3)
    if begun:
        buffer.begin(at(0), [entry(1)], None)
    buffer.offer([entry(number) for number in (2, 3, 4)], at(4))
    buffer.offer([entry(5)], at(5))
    buffer.offer([entry(6)], at(6))
    if not begun:
        buffer.begin(at(0), [entry(1)], None)
    past = [] if begun else [entry(1)]
    assert await taken(buffer) == [Opened(at(0)), *past, Reset(at(5), ResetReason.SLOW_CONSUMER), entry(6)]
    buffer.offer([entry(7)], at(7))
    assert await taken(buffer) == [entry(7)]


async def test_a_slow_one_of_few_types() -> None:
    """What is left out does not count, and the reset is to where the feed was read to all the same."""
    buffer = WatchBuffer(entries_max=1)
    buffer.filter({EventType.REVOKED})
    buffer.begin(at(0), (), None)
    buffer.offer([entry(number) for number in range(1, 9)], at(8))
    buffer.offer([entry(9, EventType.REVOKED)], at(9))
    assert await taken(buffer) == [Opened(at(0)), entry(9, EventType.REVOKED)]
    buffer.offer([entry(10, EventType.REVOKED), entry(11, EventType.REVOKED), entry(12)], at(12))
    assert await taken(buffer) == [Reset(at(12), ResetReason.SLOW_CONSUMER)]


async def test_many_resets_are_bounded() -> None:
    """The last one stays."""
    buffer = WatchBuffer(entries_max=2)
    buffer.begin(at(0), (), None)
    for number in range(1, 10):
        buffer.reset(Reset(at(number), ResetReason.EPOCH_CHANGED))
    assert (await taken(buffer))[-1] == Reset(at(9), ResetReason.EPOCH_CHANGED)


async def test_a_pong_comes_behind_what_was_known() -> None:
    """And is as old as the reading that it follows; the next ping has to wait until it has been taken."""
    buffer = WatchBuffer(entries_max=2)
    buffer.begin(at(0), (), None)
    buffer.offer([entry(1)], at(1))
    pinging = asyncio.create_task(buffer.ping(7, 10.5))
    await asyncio.sleep(0)
    buffer.offer([entry(2)], at(2))
    assert not pinging.done()
    # That the buffer is dropped drops no pong, nor lets it overtake the reset.
    assert await taken(buffer) == [Opened(at(0)), Reset(at(2), ResetReason.SLOW_CONSUMER), Pong(7, 10.5)]
    await pinging


async def test_whether_more_follows() -> None:
    """Only if the next item can be taken without waiting."""
    buffer = WatchBuffer()
    more = [buffer.has_more]
    buffer.offer([entry(1)], at(1))
    more.append(buffer.has_more)
    buffer.begin(at(0), (), None)
    for _ in range(2):
        await buffer.take()
        more.append(buffer.has_more)
    assert more == [False, False, True, False], "empty; not begun; opened, and the event is left; all taken"


async def test_a_failure_comes_at_once() -> None:
    """Whatever else is left; the first one counts."""
    buffer = WatchBuffer()
    buffer.begin(at(0), (), None)
    taking = asyncio.create_task(taken(buffer))
    await taking
    waiting = asyncio.create_task(buffer.take())
    await asyncio.sleep(0)
    buffer.fail(KeyError())
    buffer.fail(ValueError())
    with pytest.raises(KeyError):
        await waiting
    buffer.offer([entry(1)], at(1))
    with pytest.raises(KeyError):
        await buffer.take()
