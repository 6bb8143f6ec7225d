"""Slots: how many calls are accepted. Each slot asks the core for one call at a time.

A call holds its slot until it is answered. A call for which there is no slot waits in the core, where it counts towards
its connection's limit of calls in flight. The core refuses calls above that limit as it reads them, before they are
calls to us. Anywhere later, refusing would cost about as much as answering.

A stream lasts, and so does a call that waits for something, perhaps for its caller's own request. Those give their
slots up, so that other calls are accepted beside them.
"""

import asyncio
from collections.abc import Callable
from math import inf
from typing import Any

from catraca_server.api.engine.completions import Completions


class Slot:
    """Room for one call that has been accepted."""

    __slots__ = ("_given_up", "_slots", "observed", "on_release", "taken_at_seconds")

    def __init__(self, slots: "Slots") -> None:
        self.taken_at_seconds = inf
        """When the call that holds it came in, by the loop's clock; infinity if no call does."""
        self.on_release: Callable[[], None] | None = None
        """Called once when the call that holds it, or has given it up, is over."""
        self.observed: Any = None
        """What the observer returned for the call that holds it, or has given it up."""
        self._slots = slots
        self._given_up = False

    def release(self) -> None:
        """Asks for the next call, after the one that held the slot was answered."""
        self.taken_at_seconds = inf
        on_release = self.on_release
        if on_release is not None:
            self.on_release = None
            on_release()
        if not self._given_up:
            self._slots.ask(self)

    def give_up(self) -> None:
        """Opens another slot in place of this one, which ends with its call."""
        if not self._given_up:
            self._given_up = True
            self._slots.replace(self)

    def on_call(self, event: Any) -> None:
        """Accepts the call that was asked for."""
        self._slots.take(self, event)


class Slots:
    """All slots of a server."""

    def __init__(
        self,
        server: Any,
        completions: Completions,
        handle: Callable[[Slot, Any], None],
        count: int,
        hold_limit_seconds: float,
    ) -> None:
        self.count = count
        self.hold_limit_seconds = hold_limit_seconds
        self._check_seconds = hold_limit_seconds / 4
        self._server = server
        self._completions = completions
        self._handle = handle
        self._open: set[Slot] = set()
        self._check: asyncio.TimerHandle | None = None
        self._closed = False
        self._free = 0

    @property
    def taken(self) -> int:
        """How many slots are held by calls."""
        return sum(slot.taken_at_seconds != inf for slot in self._open)

    def open(self) -> None:
        """Begins to ask for calls."""
        for _ in range(self.count):
            self._open_one()
        self._check_later()

    def close(self) -> None:
        """Asks for no more calls. The core completes the outstanding requests without a call."""
        self._closed = True
        if self._check is not None:
            self._check.cancel()
        self._completions.shedding.close()

    def ask(self, slot: Slot) -> None:
        """Asks for a call."""
        if not self._closed:
            self._server.request_call(self._completions.queue, self._completions.queue, slot.on_call)
            self._completions.due += 1
            self._free += 1

    def take(self, slot: Slot, event: Any) -> None:
        """Hands a call on. When the server stops, the event has none."""
        if event.success:
            slot.taken_at_seconds = self._completions.now_seconds
            self._free -= 1
            if not self._free:
                self._completions.shedding.slots_ran_out = True
            self._handle(slot, event)

    def replace(self, slot: Slot) -> None:
        """Opens a slot in place of one that is given up."""
        self._open.discard(slot)
        self._open_one()

    def give_up_held_too_long(self, now_seconds: float) -> None:
        """Gives up the slots that calls have held for longer than the limit, and opens others."""
        taken_before = now_seconds - self.hold_limit_seconds
        for slot in [slot for slot in self._open if slot.taken_at_seconds < taken_before]:
            slot.give_up()

    def _open_one(self) -> None:
        slot = Slot(self)
        self._open.add(slot)
        self.ask(slot)

    def _check_later(self) -> None:
        # One timer for all slots, because a timer for each call would add to the cost of every call.
        self._check = asyncio.get_running_loop().call_later(self._check_seconds, self._check_now)

    def _check_now(self) -> None:
        self.give_up_held_too_long(asyncio.get_running_loop().time())
        self._completions.shedding.look(self._check_seconds)
        self._check_later()
