"""The completion queue, and how its events get to the event loop.

One thread waits on the queue, without the GIL. It takes one event, wakes the loop and pauses. The loop takes the rest
itself, turn by turn, until nothing is left; only then does the thread wait again. So under load the loop never competes
with a thread for the GIL, and one wake-up brings any number of events. Nothing here needs a lock but the pause: all
events are handled on the loop.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from catraca_server.api.engine import core
from catraca_server.api.engine.observer import Observer
from catraca_server.api.engine.shedding import Shedding

logger = logging.getLogger(__name__)

Tag = Callable[[Any], None]
"""Handles an event: the core keeps the tag of an operation and returns it when the operation is complete."""

_EVENTS_A_TURN = 512
"""After this many events the loop may do other things."""

_EMPTY_POLLS = 2
"""After this many in a row the turn ends. A poll that reads from a connection brings nothing: the next one brings the
calls that were read. Ending at the first one would hand over the calls of many connections one by one."""

_EXIT_CHECK_SECONDS = 0.2
"""How often the waiting thread checks whether the interpreter is about to exit; the core wakes it as often anyway."""


class Completions:
    """Takes the core's completion events and has each one handled by its tag, on the loop."""

    def __init__(self, shedding: Shedding, observer: Observer | None = None) -> None:
        self.shedding = shedding
        self.observer = observer
        self.turn_began_seconds = 0.0
        """When the turn began, by a finer clock than the loop's; set only if there is an observer."""
        self.queue = core.CompletionQueue()
        self.now_seconds = 0.0
        """The loop's time when the turn began: the clock is read once for all events of a turn."""
        self.deadline_offset_seconds = 0.0
        """Added to a deadline of the core, which is a wall clock time, this gives a time of the loop's clock."""
        self.due = 0
        """How many events are still to come."""
        self.closed = False
        """No operation may be started any more."""
        self._after_turn: Callable[[], None]
        self._abandon: Callable[[], None]
        self._loop: asyncio.AbstractEventLoop
        self._first: Any = None
        self._pause = threading.Lock()  # held while the thread is to pause
        self._pause.acquire()
        self._loop_polls = False
        self._thread: threading.Thread | None = None
        self._ended: asyncio.Future[None]

    def start(self, after_turn: Callable[[], None], abandon: Callable[[], None]) -> None:
        """Starts the thread that waits for events, for the running loop.

        `after_turn` is called when the events of a turn have been handled. `abandon` is called by another thread if the
        loop ends before `close`.
        """
        self._after_turn, self._abandon = after_turn, abandon
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        # Not a daemon: a daemon thread that wakes up while the interpreter is being torn down can crash it.
        self._thread = threading.Thread(target=self._wait, name="grpc-completions", daemon=False)
        self._thread.start()

    def begin(self, call: Any, operations: tuple[Any, ...], tag: Tag) -> None:
        """Starts operations of a call; the tag is called when they are complete.

        If the call is over already, they complete without success. The core refuses at once only misuse, such as a
        second status. That is a defect in this package, and raises RuntimeError.
        """
        refused = call.start_server_batch(operations, tag)
        if refused:
            raise RuntimeError(f"the core refused an operation: error {refused}")
        self.due += 1

    def take_in(self) -> None:
        """Polls now: the core reads what has arrived on connections, and the events are handled."""
        self._handle(None)

    async def close(self) -> None:
        """Ends the thread. No events may be due any more."""
        self.closed = True
        self.queue.shutdown()
        if self._loop_polls:
            self._let_thread_poll()
        await self._ended
        assert self._thread is not None
        self._thread.join()

    def drain(self, seconds: float) -> bool:
        """Takes the events that are due without handling them. Returns whether all of them came in time."""
        until = time.time() + seconds
        while self.due and time.time() < until:
            if self.queue.poll(until).tag is not None:
                self.due -= 1
        return not self.due

    def _wait(self) -> None:
        if self._wait_until_shut_down():
            with suppress(RuntimeError):  # the loop has been closed in the middle of a stop
                self._loop.call_soon_threadsafe(self._ended.set_result, None)
        else:
            logger.warning("the event loop has ended before its server was stopped")
            self._first = None
            self._abandon()

    def _wait_until_shut_down(self) -> bool:
        """Wakes the loop whenever there is an event. Returns False if the loop ends first."""
        main, loop, pause = threading.main_thread(), self._loop, self._pause
        while main.is_alive() and not loop.is_closed():
            event = self.queue.poll(time.time() + _EXIT_CHECK_SECONDS)
            if event.tag is None:
                if event.completion_type == core.CompletionType.queue_shutdown:
                    return True
                continue
            # A reference to the event would keep its call alive, and the call its connection.
            self._first, event = event, None
            try:
                loop.call_soon_threadsafe(self._turn)
            except RuntimeError:  # the loop has been closed
                return False
            while not pause.acquire(timeout=_EXIT_CHECK_SECONDS):
                if loop.is_closed() or not main.is_alive():
                    return False
        return False

    def _turn(self) -> None:
        event, self._first = self._first, None
        if event is not None:
            self._loop_polls = True
        elif not self._loop_polls:
            return  # closed meanwhile
        self.now_seconds = self._loop.time()
        self.deadline_offset_seconds = self.now_seconds - time.time()
        if self.observer is not None:
            self.turn_began_seconds = time.perf_counter()
        handled = 0
        try:
            handled = self._handle(event)
            self._after_turn()
        except Exception:
            # Without a next turn the server would be dead.
            logger.exception("defect in the engine")
            handled = 1
        if handled:
            # One more poll before the thread takes over: calls were answered, so often there are more events by then.
            self._loop.call_soon(self._turn)
        elif self._loop_polls:
            self._let_thread_poll()

    def _handle(self, event: Any) -> int:
        """Handles this event, if any, and all others that are ready. Returns how many."""
        poll, handled, empty_polls = self.queue.poll, 0, 0
        while handled < _EVENTS_A_TURN and empty_polls < _EMPTY_POLLS:
            if event is None:
                event = poll(0)
            if (tag := event.tag) is None:
                empty_polls += 1
            else:
                empty_polls = 0
                self.due -= 1
                handled += 1
                tag(event)
            event = None
        return handled

    def _let_thread_poll(self) -> None:
        self._loop_polls = False
        self._pause.release()
