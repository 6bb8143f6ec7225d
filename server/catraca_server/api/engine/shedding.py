"""Load shedding: of more calls than can be answered, most are refused at once, so that the others are answered in time.

Clients hold back what is over the limit of their connection and send the oldest first. When more comes than can be
answered, what they send has next to no time left, and nearly all work is in vain. The way out is to refuse so much, and
so fast, that nobody waits for long. Only the core refuses fast enough: while it reads the headers of a call on a
connection that has as many calls as its limit. It counts a call until we let go of it. So we keep calls for a while
after they have been answered: clients still see the whole limit, and less of it is let in.
"""

from collections import deque
from typing import Any

_TOO_MANY = 0.5
"""This share of calls that end at the last moment: where too many come it is nearly all, and elsewhere hardly any."""

_LAST_MOMENT_SECONDS = 0.1
"""Before the deadline. A call that ends then, or later, was waited for about as long as its caller would, most of it at
the client. Who leaves earlier has reasons of their own."""

_FEWEST_CALLS = 20
"""The share of fewer calls says nothing."""

_GROWTH = 1.05
"""Slow, because what has gathered at the clients by the time that callers are late again is lost."""

_KEPT_MOST = 4_000
"""Of all connections together. A call takes about 20 KB."""


class Shedding:
    """Decides how many calls of each connection are let in, and keeps answered ones accordingly.

    `limit` is how many calls a connection may have in flight, as its client knows; 0 without a limit: all are let in.
    """

    def __init__(self, limit: int) -> None:
        self.let_in = float(limit)
        """How many calls of a connection are let in."""
        self.slots_ran_out = False
        """Set when all slots are taken: calls may be waiting."""
        self.seconds = 0.0
        """For how long fewer calls were let in because callers were late."""
        self._limit = limit
        self._ended = self._late = 0
        self._active = False
        # By connection. Those that had no answer between two looks are forgotten: they may be gone.
        self._kept: dict[bytes, deque[Any]] = {}
        self._kept_before: dict[bytes, deque[Any]] = {}

    def on_end(self, seconds_left: float) -> None:
        """Counts a call that has ended so long before its deadline, with an answer or without one.

        The core does not tell of those whose callers leave while they wait for a slot.
        """
        self._ended += 1
        if seconds_left < _LAST_MOMENT_SECONDS:
            self._late += 1

    def on_answered(self, call: Any, seconds_left: float) -> None:
        """Takes a call of the core that was answered so long before its deadline. Nothing else needs it any more."""
        self.on_end(seconds_left)
        if self._active:
            self._keep(call)

    def look(self, seconds: float) -> None:
        """Looks at what has become of the calls since it last looked, so many seconds ago: about an eighth."""
        if self.let_in < self._limit / 2:
            self.seconds += seconds
        # Calls may also be late because of the store. As long as there is a slot, to let fewer in would not help.
        late = self._ended >= _FEWEST_CALLS and self._late > self._ended * _TOO_MANY
        if late and self.slots_ran_out and self.let_in:
            # With one call of each of many connections all slots can be taken. Then none, every other time.
            let_in = max(self.let_in / 2, 1.0) if self.let_in > 1 else 0.0
        else:
            most = self._limit / 2 if self.slots_ran_out else self._limit
            let_in = min(max(self.let_in * _GROWTH, 1.0), most)
        self.slots_ran_out = False
        self._ended = self._late = 0
        if self.let_in:
            self._kept_before, self._kept = self._kept, {}
        self.let_in = let_in
        self._active = let_in < self._limit
        for kept in (*self._kept.values(), *self._kept_before.values()):
            self._let_go(kept)

    def close(self) -> None:
        """Keeps nothing any more."""
        self._active = False
        self._kept, self._kept_before = {}, {}

    def _keep(self, call: Any) -> None:
        connection = call.peer()
        kept = self._kept.get(connection)
        if kept is None:
            kept = self._kept[connection] = self._kept_before.pop(connection, deque())
        kept.append(call)
        self._let_go(kept)

    def _let_go(self, kept: deque[Any]) -> None:
        """Lets go of those kept for a connection that are too many."""
        most = min(self._limit - int(self.let_in), _KEPT_MOST // (len(self._kept) + len(self._kept_before)))
        while len(kept) > most:
            kept.popleft()
