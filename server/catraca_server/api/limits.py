"""How much a caller may do: calls at a time, and calls a second. Decided before every handler, without waiting.

Without limits, one caller that is compromised, or stuck in a loop, could use up what all others need.
"""

from collections.abc import Callable

from catraca_server.api.engine import StatusError
from catraca_server.api.statuses import status_of
from catraca_server.domain.call import Caller
from catraca_server.store import Overloaded

BURST_SECONDS = 1.0
"""How long a caller may save up calls that it does not make: callers do not spread theirs evenly."""

_OVERLOADED = status_of(Overloaded())


class CallerLimits:
    """Counts the calls of each caller, across its connections and credentials. 0: no limit.

    `now` returns the seconds of a monotonic clock.
    """

    def __init__(self, *, max_calls: int, max_rate: int, now: Callable[[], float]) -> None:
        self._max_calls = max_calls
        self._max_rate = max_rate
        self._now = now
        self._accounts: dict[str, _Account] = {}

    def admit(self, caller: Caller) -> Callable[[], None]:
        """Counts a call. Returns a function to call when that is over. Raises StatusError: the caller has too many."""
        account = self._accounts.get(caller.name)
        if account is None:
            # The callers file bounds their number: callers without a role do not get here.
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
        """Counts the end of a call."""
        self.calls -= 1
