"""What one who watches is to be sent, in order: bounded, so that a slow one costs others nothing.

It does no I/O and knows no clock.
"""

import asyncio
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from catraca_server.domain.events import EventType, FeedEntry, Position, ResetReason

ENTRIES_MAX = 4_096
"""Events that may wait for one who watches. They are shared by all, so what this costs are the references."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The watch has begun."""

    position: Position
    """What follows it comes next."""


@dataclass(frozen=True, slots=True)
class Reset:
    """Events may have been missed."""

    position: Position
    """What follows it comes next."""
    reason: ResetReason


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a ping: all events that were read by then come before it."""

    nonce: int
    read_to_end_at: float
    """When the last reading that came to the end of the feed was begun, by the clock of `Watching`."""


Item: TypeAlias = Opened | FeedEntry | Reset | Pong


class WatchBuffer:
    """Filled from the feed, and emptied by whoever sends what is in it.

    Nothing is handed out before `begin`; until then, events that come are held.
    """

    __slots__ = ("_begun", "_entries_max", "_failure", "_first", "_items", "_pong_sent", "_types", "_wake")

    def __init__(self, entries_max: int = ENTRIES_MAX) -> None:
        self._entries_max = entries_max
        self._types: Collection[EventType] = ()
        self._first: deque[Item] = deque()
        """What comes before the events that are read from now on; bounded by whoever begins."""
        self._items: deque[Item] = deque()
        self._begun = False
        self._failure: Exception | None = None
        self._wake: asyncio.Future[None] | None = None
        self._pong_sent: asyncio.Future[None] | None = None

    def filter(self, types: Collection[EventType]) -> None:
        """Lets only events of these types in; of all, if there are none."""
        self._types = types

    def begin(self, position: Position, history: Sequence[FeedEntry], reset: Reset | None) -> None:
        """Begins to hand out: that the watch is open, what has happened since its position, then what is held."""
        self._first.append(Opened(position))
        if reset is not None:
            self._first.append(reset)
        self._first += [entry for entry in history if self._wants(entry)]
        self._begun = True
        self._wake_up()

    def offer(self, entries: Sequence[FeedEntry], end: Position) -> None:
        """Appends events, up to a position in the feed. If they are too many, a reset to there takes their place."""
        self._items += [entry for entry in entries if self._wants(entry)] if self._types else entries
        if len(self._items) > self._entries_max:
            self._drop(Reset(end, ResetReason.SLOW_CONSUMER))
        self._wake_up()

    def reset(self, reset: Reset) -> None:
        """Appends a reset."""
        self._items.append(reset)
        if len(self._items) > self._entries_max:
            self._drop(reset)
        self._wake_up()

    async def ping(self, nonce: int, read_to_end_at: float) -> None:
        """Appends a pong. Returns once it has been taken out, so that there is never more than one."""
        self._items.append(Pong(nonce, read_to_end_at))
        self._pong_sent = asyncio.get_running_loop().create_future()
        self._wake_up()
        await self._pong_sent

    def fail(self, error: Exception) -> None:
        """Has `take` raise this, whatever is left."""
        if self._failure is None:
            self._failure = error
        self._wake_up()

    async def take(self) -> Item:
        """Takes out what is next, and waits for it if there is nothing."""
        while True:
            if self._failure is not None:
                raise self._failure
            if self._begun and (queue := self._first or self._items):
                item = queue.popleft()
                if type(item) is Pong and self._pong_sent is not None and not self._pong_sent.done():
                    self._pong_sent.set_result(None)
                return item
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake

    @property
    def has_more(self) -> bool:
        """Whether another item can be taken without waiting."""
        return self._begun and bool(self._first or self._items)

    def _wants(self, entry: FeedEntry) -> bool:
        return not self._types or entry.event.type in self._types

    def _drop(self, reset: Reset) -> None:
        """Drops all events for a reset. What has been promised otherwise, a pong or that the watch is open, stays."""
        opened = [item for item in self._first if type(item) is Opened]
        pongs = [item for item in self._items if type(item) is Pong]
        self._first = deque(opened)
        self._items = deque([reset, *pongs])

    def _wake_up(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
