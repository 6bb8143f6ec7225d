"""Login attempts: how a user's index numbers them, and the tombstone that keeps one from being written.

A login reserves its place in the user's index, writes the session, and commits. The session and the index are on two
keys, so nothing is atomic over both. The score of the index entry shows how far the login is known to have got:

========== ================== =========================== ================================================
state      score of the entry under the session's key     what comes next
========== ================== =========================== ================================================
reserved   sequence           nothing                     written; tombstone if it is ended first
written    sequence           the record                  committed; evicting; tombstone
committed  sequence + 1       the record; nothing once it evicting; gone
                              has ended
evicting   minus either       either                      gone, before the login that needs the room writes
gone       no entry           nothing, or a tombstone     a brought token may be reserved again
========== ================== =========================== ================================================

The *sequence* is twice the store's clock in microseconds when the login reserved its place, and grows with every login
of the user. So a sequence is even, and a committed score is odd.

A reserved login without a session may still be under way, for ATTEMPT_LIFETIME_MS. A call that ends it in that time
leaves a *tombstone* under the session's key, and the login finds that instead of a free key. The login itself gives up
earlier, after WRITE_WINDOW_MS.

Nothing else reads or writes these numbers: this module for Python, `scripts/attempts.lua` for the scripts.
"""

import json
from dataclasses import dataclass

WRITE_WINDOW_MS = 5_000
"""How long after its reservation a login may write its session."""

ATTEMPT_LIFETIME_MS = 8_000
"""How long other calls take a reserved login to be under way: longer than it can be, so that they are never wrong."""

SEQUENCE_LIMIT = 2**62
"""More than any clock yields. A score in Redis can be more than this, even infinite."""

_SEQUENCES_PER_MS = 2_000
_TOMBSTONE_PREFIX = b'{"void":'


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """A session as its user's index names it. It may have ended since, or not be written yet."""

    session_id: str
    score: int

    @property
    def sequence(self) -> int:
        """Tells logins of a user apart, and orders them."""
        return abs(self.score) & ~1

    @property
    def is_committed(self) -> bool:
        """Whether its session is known to have been written."""
        return bool(self.score & 1)

    def is_recent(self, now_ms: int) -> bool:
        """Whether it was reserved so recently that its login may still be under way."""
        return now_ms - self.sequence // _SEQUENCES_PER_MS <= ATTEMPT_LIFETIME_MS

    def is_over(self, now_ms: int) -> bool:
        """Whether its session, if it is absent, will not be written later either."""
        return self.is_committed or not self.is_recent(now_ms)


def sequence_at(clock_us: int) -> int:
    """Returns the sequence of a login that reserves its place at this time (Unix microseconds)."""
    return 2 * clock_us


def committed_score(sequence: int) -> int:
    """Returns the score of a committed login."""
    return sequence + 1


def moved(score: int, milliseconds: int) -> int:
    """Returns the score that the same login would have had this much later."""
    shift = milliseconds * _SEQUENCES_PER_MS
    return score + shift if score > 0 else score - shift


def tombstone(sequence: int, user_id: str) -> bytes:
    """Returns what keeps this user's logins up to this sequence from writing their session."""
    return json.dumps({"void": sequence, "user_id": user_id}, ensure_ascii=False, separators=(",", ":")).encode()


def is_tombstone(record: bytes) -> bool:
    """Whether what is under a session's key is a tombstone."""
    return record.startswith(_TOMBSTONE_PREFIX)
