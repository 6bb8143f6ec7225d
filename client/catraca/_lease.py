"""The right of a near cache to answer: granted by pongs, and counted from before the ping was sent."""

import math
import threading

LEASE_SECONDS = 2.0
"""How long a proof lasts: from the moment at which the whole feed was known."""
PING_SECONDS = 0.7
"""How often a ping asks for a proof: two of three pings may get lost without a gap."""

_PINGS_OUT = 64
"""How many pings may be unanswered; older ones are forgotten."""


class Lease:
    """Until when a near cache may answer. Every time is by a clock that only measures durations."""

    __slots__ = ("_lock", "_pings", "until")

    def __init__(self) -> None:
        self.until = -math.inf
        self._lock = threading.Lock()
        self._pings: dict[int, float] = {}

    def ping(self, nonce: int, now: float) -> None:
        """Notes a ping that is about to be sent. `now` must be read before it is sent."""
        with self._lock:
            self._pings[nonce] = now
            if len(self._pings) > _PINGS_OUT:
                del self._pings[next(iter(self._pings))]

    def pong(self, nonce: int, age_seconds: float) -> None:
        """Takes a proof: all events up to `age_seconds` before the ping was sent have come ahead of the pong."""
        with self._lock:
            sent_at = self._pings.pop(nonce, None)
        if sent_at is None:
            return  # of another stream, or answered already
        if age_seconds < 0:
            return  # a claim about the future
        # A weaker proof does not shorten a stronger one.
        self.until = max(self.until, sent_at - age_seconds + LEASE_SECONDS)

    def forget_pings(self) -> None:
        """Gives up the pings of a stream that has ended."""
        with self._lock:
            self._pings.clear()

    def end(self) -> None:
        """Gives up every proof, including those on their way: the feed they were about is gone."""
        self.forget_pings()
        self.until = -math.inf

    def age(self, now: float) -> float | None:
        """Returns how old the newest proof is; None without one."""
        return None if self.until == -math.inf else now - (self.until - LEASE_SECONDS)
