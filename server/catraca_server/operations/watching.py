"""The one reader of the feed in a process, and how what it reads gets to all who watch.

While anybody watches it reads on some fifty times a second, at once after an append of this process, and not at all
otherwise. Each reading goes over the same link as everything else, so what happens to the store is handled there. A
reading that came to the end of the feed proves that everything appended before it was begun has been read: that moment
is what pongs tell.

Nobody waits for who is slow (`watch_buffer`), and nothing is passed over in silence: whatever may have been missed is a
reset.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence

from catraca_server.domain.call import Call
from catraca_server.domain.events import EventType, FeedEntry, Position, ResetReason
from catraca_server.operations.watch_buffer import Reset, WatchBuffer
from catraca_server.store import Feed, Overloaded, StoreUnavailable

logger = logging.getLogger(__name__)

POLL_PAUSE_SECONDS = 0.02
"""From one reading to the next: others append, too."""

APPENDED_PAUSE_SECONDS = 0.002
"""From one reading to the next, if this process has appended: so that many appends are one reading."""

FAILED_PAUSE_SECONDS = 0.1
"""From a reading that failed to the next."""

READ_COUNT = 500
"""Entries in one reading: they take milliseconds, and delay nobody else."""

HISTORY_MAX = 10_000
"""Entries that a watch may be behind when it begins."""

WATCHES_MAX = 10_000
"""Watches in one process: some 250 MB."""

# On Linux and macOS this clock keeps running while the machine is suspended. The event loop's clock does not.
_SUSPEND_COUNTING_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def suspend_counting_time() -> float:
    """Returns the seconds of a clock that also counts the time for which the machine is suspended, if there is one."""
    return time.clock_gettime(_SUSPEND_COUNTING_CLOCK)


class Watching:
    """Reads the feed for all who watch. `timeout_seconds` is what the store has for each reading.

    `clock` gives the seconds that ages are made of. It has to count suspension as the clients' clocks do: events that
    other servers append meanwhile have not been read here.
    """

    def __init__(
        self,
        feed: Feed,
        *,
        timeout_seconds: float,
        watches_max: int = WATCHES_MAX,
        clock: Callable[[], float] = suspend_counting_time,
    ) -> None:
        self.clock = clock
        self.read_to_end_at = 0.0
        """When the last reading that came to the end of the feed was begun, by that clock."""
        self._feed = feed
        self._timeout_seconds = timeout_seconds
        self._watches_max = watches_max
        self._watches: set[WatchBuffer] = set()
        self._joining = 0
        self._waiting: list[asyncio.Future[None]] = []
        """For a reading that has not begun yet."""
        self._position: Position | None = None
        self._reading: asyncio.Task[None] | None = None
        self._begun_at = 0.0
        """When the last reading was begun, by the loop's clock: only for the pause after it."""
        self._appended = False
        self._paused: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        feed.on_append = self._read_soon

    @property
    def age_seconds(self) -> float:
        """How long ago the reading began that last came to the end of the feed; 0 while nobody watches."""
        return self.clock() - self.read_to_end_at if self._watches else 0.0

    @property
    def watches(self) -> int:
        """How many there are."""
        return len(self._watches)

    async def join(self, buffer: WatchBuffer, after: Position | None, types: Collection[EventType]) -> None:
        """Begins a watch: fills a buffer with what happens from now on, or after a position, until it leaves.

        Raises StoreUnavailable, and Overloaded if there are too many.
        """
        if len(self._watches) + self._joining >= self._watches_max:
            raise Overloaded
        self._joining += 1
        try:
            await self._next_reading()
            assert self._position is not None, "a reading has just come to the end"
            # From here on the buffer gets what is read after this position, and nothing else is read in between.
            position = self._position
            buffer.filter(types)
            self._watches.add(buffer)
        finally:
            self._joining -= 1
        try:
            if after is None or after == position:
                buffer.begin(position, (), None)
                return
            history = await self._history(after, position)
        except BaseException:
            self._watches.discard(buffer)
            raise
        if isinstance(history, ResetReason):
            buffer.begin(position, (), Reset(position, history))
        else:
            buffer.begin(after, history, None)

    def leave(self, buffer: WatchBuffer) -> None:
        """Ends a watch."""
        self._watches.discard(buffer)

    async def stop(self) -> None:
        """Reads no more."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _history(self, after: Position, until: Position) -> Sequence[FeedEntry] | ResetReason:
        """Reads what is between two positions, or says why it cannot."""
        if after.epoch != until.epoch:
            return ResetReason.EPOCH_CHANGED
        history: list[FeedEntry] = []
        while after != until:
            reading = await self._feed.read(after, READ_COUNT, self._call(), until=until.entry_id)
            if reading.lost is not None:
                return reading.lost
            history += reading.entries
            if len(history) > HISTORY_MAX or (reading.at_end and reading.position != until):
                return ResetReason.TRIMMED
            after = reading.position
        return history

    async def _next_reading(self) -> None:
        """Waits until a reading that begins from now on has come to the end. Raises StoreUnavailable."""
        if self._reading is None or self._reading.done():
            self._position = None
            self._reading = asyncio.create_task(self._keep_reading(), name="feed-reader")
        read = asyncio.get_running_loop().create_future()
        self._waiting.append(read)
        self._read_soon()
        await read

    async def _keep_reading(self) -> None:
        loop = asyncio.get_running_loop()
        waiting: list[asyncio.Future[None]] = []
        while self._watches or self._joining:
            self._begun_at, self._appended = loop.time(), False
            begun_at = self.clock()
            if not waiting:
                waiting, self._waiting = self._waiting, []
            failure: Exception | None = None
            at_end = False
            try:
                at_end = await self._read()
            except (StoreUnavailable, Overloaded) as error:
                failure = error
            except Exception as error:
                logger.exception("defect in reading the feed; going on")
                failure = error
            if at_end:
                self.read_to_end_at = begun_at
            if at_end or failure is not None:
                _resolve(waiting, failure)
                await self._pause(POLL_PAUSE_SECONDS if at_end else FAILED_PAUSE_SECONDS)

    async def _read(self) -> bool:
        """Reads on, and hands out what was read. Returns whether it came to the end."""
        position = self._position
        if position is None:
            self._position = await self._feed.end(self._call())
            return True
        reading = await self._feed.read(position, READ_COUNT, self._call())
        if reading.lost is not None:
            self._position = await self._feed.end(self._call())
            logger.warning("events may have been missed, all watches are reset: %s", reading.lost.name)
            for buffer in self._watches:
                buffer.reset(Reset(self._position, reading.lost))
            return True
        self._position = reading.position
        if reading.entries:
            for buffer in self._watches:
                buffer.offer(reading.entries, reading.position)
        return reading.at_end

    def _call(self) -> Call:
        return Call(asyncio.get_running_loop().time() + self._timeout_seconds)

    def _read_soon(self) -> None:
        """Has the next reading begin soon."""
        if not self._appended:
            self._appended = True
            if self._paused is not None:
                self._wake_at(self._begun_at + APPENDED_PAUSE_SECONDS)

    async def _pause(self, seconds: float) -> None:
        self._paused = asyncio.get_running_loop().create_future()
        self._wake_at(self._begun_at + (APPENDED_PAUSE_SECONDS if self._appended else seconds))
        try:
            await self._paused
        finally:
            self._paused = None
            if self._timer is not None:
                self._timer.cancel()

    def _wake_at(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(when, self._wake)

    def _wake(self) -> None:
        if self._paused is not None and not self._paused.done():
            self._paused.set_result(None)


def _resolve(waiting: list[asyncio.Future[None]], failure: Exception | None) -> None:
    """Tells those that wait for a reading what came of it."""
    for read in waiting:
        if read.done():
            continue  # its caller has left
        if failure is None:
            read.set_result(None)
        elif isinstance(failure, StoreUnavailable):
            # One for each: a raised exception collects the frames that it passes.
            read.set_exception(StoreUnavailable(failure.detail, failure.problem))
        else:
            read.set_exception(type(failure)())
    waiting.clear()
