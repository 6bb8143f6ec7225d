"""The right of a near cache to answer: granted by pongs, for a time that is counted from before the ping was sent."""

import math
import threading

LEASE_SECONDS = 2.0
"""How long a proof lasts: who knew the feed to its end at a moment vouches for answers until so much later."""
PING_SECONDS = 0.7
"""How often a proof is asked for: two of three pings may get lost without a gap."""

_PINGS_OUT = 64
"""How many pings may be unanswered; those before them are forgotten."""


class Lease:
    """Until when a near cache may answer. Every time is by a clock that only measures durations."""

    __slots__ = ("_lock", "_pings", "until")

    def __init__(self) -> None:
        self.until = -math.inf
        self._lock = threading.Lock()
        self._pings: dict[int, float] = {}

    def ping(self, nonce: int, now: float) -> None:
        """Notes a ping that is about to be sent. `now` must be from before it is."""
        with self._lock:
            self._pings[nonce] = now
            if len(self._pings) > _PINGS_OUT:
                del self._pings[next(iter(self._pings))]

    def pong(self, nonce: int, age_seconds: float) -> None:
        """Takes a proof: when the ping left, less `age_seconds`, every event was on its way to here or here already."""
        with self._lock:
            sent_at = self._pings.pop(nonce, None)
        if sent_at is None:
            return  # of another stream, or answered before
        if age_seconds < 0:
            return  # it would tell of the future
        # A weaker proof takes nothing from a stronger one.
        self.until = max(self.until, sent_at - age_seconds + LEASE_SECONDS)

    def forget_pings(self) -> None:
        """Gives up the pings of a stream that has ended."""
        with self._lock:
            self._pings.clear()

    def end(self) -> None:
        """Gives up every proof, also those on their way: what they were about is no longer the feed."""
        self.forget_pings()
        self.until = -math.inf

    def age(self, now: float) -> float | None:
        """Returns how old the newest proof is; None without one."""
        return None if self.until == -math.inf else now - (self.until - LEASE_SECONDS)
