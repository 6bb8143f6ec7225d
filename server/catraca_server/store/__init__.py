"""The store's contract: what the operations ask of a store, and what it promises.

One implementation serves every Redis.

Promises common to all methods:

- A method returns or raises by `call.deadline`.
- `StoreUnavailable` means that the outcome is not known: what a read would have found, or whether a write was done.
  Repeating either is safe.
- A request whose connection to Redis was closed is sent again, and the first sending may have been executed. Where a
  repeated write cannot tell its own work from that of another call, the method raises `StoreUnavailable`; it never
  returns a wrong answer. Reading, touching, reserving, committing, extending and removing have the same outcome when
  they are repeated.
- Each change to a session is one atomic step on one key, and every key has an expiry at every instant.
- Reads go to the primary, and happen after the method was called.
- `NotDurable` means that fewer replicas than the operator wants have a change. Methods that create, change or end a
  session, or reserve one, do not return before enough replicas have it; nor do those that find the change already made.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from catraca_server.domain.call import Call
from catraca_server.domain.events import EntryId, FeedEntry, Position, ResetReason, SessionEvent
from catraca_server.domain.session import Session, StoredSession
from catraca_server.redis.errors import NotDurable, Overloaded, StoreProblem, StoreUnavailable
from catraca_server.store.attempts import IndexEntry

__all__ = [
    "Appender",
    "Creation",
    "Feed",
    "FeedReading",
    "IndexEntries",
    "IndexEntry",
    "NotDurable",
    "Overloaded",
    "ReadResult",
    "Replacement",
    "Reservation",
    "SessionStore",
    "StoreProblem",
    "StoreUnavailable",
    "UserIndex",
]


class ReadResult(NamedTuple):
    """What the store had under a session's key."""

    now_ms: int
    """The store's clock when it began to reply, in Unix milliseconds."""
    stored: StoredSession | None
    """None: there is no session."""
    absent: bool
    """Whether there is nothing. A record that cannot be read is not absent: it may be a session of another version."""


class Replacement(NamedTuple):
    """A session as it was read, and the version that is to replace it."""

    before: StoredSession
    after: StoredSession


@dataclass(frozen=True, slots=True)
class IndexEntries:
    """Entries of a user's index."""

    now_ms: int
    """The store's clock when it replied, in Unix milliseconds."""
    entries: Sequence[IndexEntry]


@dataclass(frozen=True, slots=True)
class Reservation:
    """What came of reserving a session in its user's index."""

    entry: IndexEntry | None
    """None: the user is at the limit, and nothing was reserved."""
    evicting: IndexEntries
    """Sessions that have to end before this one may be written."""
    others: IndexEntries
    """If the user is at the limit, the sessions that make it so (the oldest thousand); else a few at random."""


class Creation(Enum):
    """What came of writing a new session."""

    CREATED = "created"
    FOUND = "found"
    """The very same record was there when the request was sent again: written by its first sending, or by another call
    that brought the same token for the same session in the same millisecond."""
    TAKEN = "taken"
    """Another session has the id."""
    REVOKED = "revoked"
    """The login was ended before its session was written."""
    LATE = "late"
    """The login took too long and was given up before its session was written."""


class FeedReading(NamedTuple):
    """What was read of the feed."""

    position: Position
    """Right after the last entry that was read, or where the reading began."""
    entries: Sequence[FeedEntry]
    """In the order of the feed."""
    lost: ResetReason | None
    """Why entries after the position may be missing, in which case there are none here; None: none is missing."""
    at_end: bool
    """Whether these are all there were."""


class SessionStore(Protocol):
    """Keeps sessions until they expire."""

    async def create(self, session: Session, entry: IndexEntry, call: Call) -> tuple[Creation, StoredSession]:
        """Writes a session under an id that is free, within the write window of its reservation or not at all.

        `entry` is its reservation in its user's index. It comes first, so that a call that ends all sessions in the
        index reaches this one too, whether it is written yet or not. Raises UnstorableSession.
        """

    async def read(self, session_ids: Sequence[str], call: Call) -> Sequence[ReadResult]:
        """Reads sessions, in that order. A record that cannot be read is logged as an error.

        Raises StoreUnavailable, and closes the connection, if a record names another session than was asked for.
        """

    def together(self, session_ids: Sequence[str]) -> Sequence[Sequence[int]]:
        """Returns which sessions to read together, by their positions: what is read together fails together.

        Raises StoreUnavailable if it is not known where one is.
        """

    async def touch(self, touched: Sequence[StoredSession], call: Call) -> Sequence[bool]:
        """Moves each session's expiry to the later one it has here, if its record is still the same.

        False where the record has changed or is gone: then nothing was done. An expiry is never moved to an earlier
        time, so touches that overtake each other do no harm.
        """

    async def replace(self, replacement: Replacement, call: Call, *, exclusive: bool = False) -> StoredSession | None:
        """Writes a session's next version if it is still as it was read. If not, changes nothing and returns None.

        If `after` has another expiry it is written too, unless the session was touched since it was read. `exclusive`:
        if several calls write the very same version, at most one of them gets it. Raises UnstorableSession.
        """

    async def tidy(self, replacements: Sequence[Replacement], call: Call) -> None:
        """Replaces many sessions in one exchange, without waiting for replicas; those that have changed stay."""

    async def delete(self, session_id: str, call: Call) -> bool:
        """Deletes what is under a session's key, whether it is a session or not. Returns whether anything was there."""

    async def end(self, user_id: str, entries: IndexEntries, call: Call) -> Sequence[str]:
        """Ends the sessions of a user that have these entries, whether they are written yet or not.

        Returns the ids of those that this call ended. Of all calls that end a session exactly one does.
        """

    async def ensure_replicated(self, session_ids: Sequence[str], call: Call) -> None:
        """Makes sure that what was read of these sessions lasts: that replicas have it, if they have to.

        A call does this before it acknowledges a change that another call made and may have failed to acknowledge.
        """


class UserIndex(Protocol):
    """Names the sessions of each user: every live one, and perhaps some that have ended.

    A session is reserved before it is written and removed after it has ended. So a call that ends all sessions in the
    index misses none, whatever crashes in between. Entries of ended sessions that were not removed are found at random
    by later logins; the index as a whole expires with the last deadline of the sessions that it ever named.
    """

    async def reserve(self, session: Session, *, limit: int, evict_oldest: bool, call: Call) -> Reservation:
        """Reserves a place for a session that is about to be written. `limit`: sessions a user may have; 0: any number.

        At the limit it either starts to evict the oldest, as many as needed, or reserves nothing.
        """

    async def commit(self, user_id: str, entry: IndexEntry, call: Call) -> bool:
        """Commits a login: its session has been written. If it is absent from then on, it has ended.

        False if the index no longer names the session.
        """

    async def extend(self, session: Session, call: Call) -> None:
        """Makes the index name a session and last until its absolute deadline, before the session gets that."""

    async def entry(self, user_id: str, session_id: str, call: Call) -> IndexEntry | None:
        """Returns the entry of a session, if there is one."""

    async def newest(self, user_id: str, before: int | None, count: int, call: Call) -> IndexEntries:
        """Returns entries that are not evicting, newest first; of sequences below `before`, if that is given."""

    async def session_ids(self, user_id: str, call: Call) -> Sequence[str]:
        """Returns the ids of all sessions in the index, evicting or not."""

    async def entries(self, user_id: str, session_ids: Sequence[str], call: Call) -> IndexEntries:
        """Returns the entries of those of these sessions that the index names."""

    async def remove(self, user_id: str, entries: Sequence[IndexEntry], call: Call) -> None:
        """Removes sessions that have ended; those reserved anew or committed since then stay."""


class Appender(Protocol):
    """Takes events of changes that have been made."""

    async def append(self, events: Sequence[SessionEvent], call: Call) -> None:
        """Appends events, in this order. Repeating it does no harm; it never raises Overloaded."""


class Feed(Appender, Protocol):
    """What happened to sessions, in the order in which it was appended, of the last ten minutes at least.

    (If there are very many events, it holds the last of them, up to a fixed number.) A change is made first, and its
    event is appended then. Once the change is acknowledged, the event is in the feed, but not necessarily on replicas:
    when the primary changes, all readers learn that events may have been lost.
    """

    on_append: Callable[[], None]
    """Called when this process has appended something. Other processes append, too."""

    async def end(self, call: Call) -> Position:
        """Returns where the feed ends."""

    async def read(self, after: Position, count: int, call: Call, *, until: EntryId | None = None) -> FeedReading:
        """Reads at most `count` entries after a position, up to and including `until`, if that is given.

        If entries that followed the position are no longer there, or never will be, `lost` says so.
        """
