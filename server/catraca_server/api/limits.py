"""How much a caller may do: calls at a time, and calls a second. Decided in front of every handler, in no time.

Without it one caller that was taken over, or goes round in circles, could use up what all others need.
"""

from collections.abc import Callable

from catraca_server.api.engine import StatusError
from catraca_server.api.statuses import status_of
from catraca_server.domain.call import Caller
from catraca_server.store import Overloaded

BURST_SECONDS = 1.0
"""Calls that were not made are saved for so long: callers do not spread theirs evenly."""

_OVERLOADED = status_of(Overloaded())


class CallerLimits:
    """Counts the calls of each caller, whatever connections and credentials they come by. 0: no limit.

    `now` returns seconds of a clock that only runs forward.
    """

    def __init__(self, *, max_calls: int, max_rate: int, now: Callable[[], float]) -> None:
        self._max_calls = max_calls
        self._max_rate = max_rate
        self._now = now
        self._accounts: dict[str, _Account] = {}

    def admit(self, caller: Caller) -> Callable[[], None]:
        """Counts a call, and returns what to call when it is over. Raises StatusError: the caller has too many."""
        account = self._accounts.get(caller.name)
        if account is None:
            # There are as many as the callers file names: who has no role does not get here.
            account = self._accounts[caller.name] = _Account(self._now(), self._max_rate)
        if self._max_calls and account.calls >= self._max_calls:
            raise StatusError(_OVERLOADED)
        if self._max_rate and not account.take(self._now(), self._max_rate):
            raise StatusError(_OVERLOADED)
        account.calls += 1
        return account.end


class _Account:
    """The calls of a caller: those in flight, and those it may still begin (a token bucket)."""

    __slots__ = ("_as_of", "_left", "calls")

    def __init__(self, now: float, rate: int) -> None:
        self.calls = 0
        self._as_of = now
        self._left = rate * BURST_SECONDS

    def take(self, now: float, rate: int) -> bool:
        """Takes one call, if there is one left."""
        left = min(rate * BURST_SECONDS, self._left + (now - self._as_of) * rate)
        self._as_of = now
        taken = left >= 1
        self._left = left - 1 if taken else left
        return taken

    def end(self) -> None:
        """A call is over."""
        self.calls -= 1
