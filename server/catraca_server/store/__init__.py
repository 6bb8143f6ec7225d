"""The store's face: what the operations ask of it, and what it promises. One implementation serves every Redis.

Promises common to all methods of `SessionStore`:

- `deadline` is a time of the event loop's clock (`loop.time()`). A method answers by then or raises.
- `StoreUnavailable` means that nothing is known: of a read, what is there; of a write, whether it was done. Repeating
  either is safe.
- A request whose connection to Redis was closed is repeated, and the first sending may have been executed. Where a
  repeated write cannot tell its own work from that of another call, it is `StoreUnavailable`; a wrong answer it never
  is. Reading, touching, entering, settling, extending and forgetting come to the same when they are repeated.
- Each change to a session is one atomic step on one key, and every key has an expiry at every instant.
- Answers come from the primary, and were read after the question was asked.
- `NotDurable` means that fewer replicas than the operator wants have a change. Creations and ends, of sessions and of
  entries that are about to be, do not return before enough have it, nor do those that find it done already.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from catraca_server.domain.session import Live, Session
from catraca_server.redis.errors import (
    NotDurable as NotDurable,
    Overloaded as Overloaded,
    StoreProblem as StoreProblem,
    StoreUnavailable as StoreUnavailable,
)


class Look(NamedTuple):
    """What the store had under a session's key."""

    now: int
    """Its clock when it began to answer, in Unix milliseconds."""
    live: Live | None
    """None: there is no session."""
    gone: bool
    """Whether there is nothing. What is there and cannot be read may be a session of another version of catraca."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A session as its user's index has it. It may have ended since, or be about to be written."""

    session_id: str
    number: int
    """Tells the attempts to create a session apart, and later ones from earlier ones; see `enter.lua`."""

    @property
    def attempt(self) -> int:
        """The number that it was entered with."""
        return abs(self.number) & ~1

    def is_recent(self, now: int) -> bool:
        """Whether it was entered so lately that the attempt may be under way; `now` in milliseconds."""
        return now - self.attempt // 2000 <= ATTEMPT_LASTS

    def is_settled(self, now: int) -> bool:
        """Whether its session, if it is not there, will not be written any more either."""
        return bool(self.number & 1) or not self.is_recent(now)


@dataclass(frozen=True, slots=True)
class Entries:
    """A part of a user's index."""

    now: int
    """The store's clock when it answered, in Unix milliseconds."""
    found: Sequence[Entry]


@dataclass(frozen=True, slots=True)
class Entrance:
    """What came of entering a session into its user's index."""

    entry: Entry | None
    """None: the user is at the limit, and nothing was entered."""
    marked: Sequence[Entry]
    """Sessions that have to end before this one may be written."""
    others: Entries
    """If the user is at the limit, the sessions that make it so (the oldest thousand); else a few at random."""


class Creation(Enum):
    """What came of writing a new session."""

    CREATED = "created"
    FOUND = "found"
    """The very same record was there when the request was repeated: written by its first sending, or by another call
    that brought the same token, for the same session, in the same millisecond."""
    TAKEN = "taken"
    """Another session has the id."""
    VOID = "void"
    """It was revoked before it was written."""
    LATE = "late"
    """It was given up before it was written."""


ATTEMPT_MAY_WRITE = 5_000
"""Milliseconds from its start during which an attempt to create a session may write it."""

ATTEMPT_LASTS = 8_000
"""Milliseconds for which everybody else takes an attempt to be under way: longer, so that nobody is wrong."""


class SessionStore(Protocol):
    """Keeps sessions until they expire."""

    async def create(
        self, session: Session, expiry: int, attempt: int, written_by: int, deadline: float
    ) -> tuple[Creation, Live]:
        """Writes a session under an id that is free, by `written_by` (a time of the store) or not at all.

        `attempt` is the number of the session's entry in its user's index, which comes first: so that whoever revokes
        all that is in the index reaches this session too, be it written already or not.
        """

    async def read(self, session_ids: Sequence[str], deadline: float) -> Sequence[Look]:
        """Reads sessions, in that order. What is under a key and is no session is logged as an error.

        Raises StoreUnavailable, and closes the connection, if an answer names another session than was asked for.
        """

    async def touch(self, touches: Sequence[tuple[Live, int]], deadline: float) -> Sequence[bool]:
        """Moves each session's expiry to a later one, if it still is what was read.

        False where the record has changed or is gone: then nothing was done. An expiry is never moved to an earlier
        time, so touches that overtake each other do no harm.
        """

    async def replace(
        self, before: Live, after: Live, deadline: float, *, durable: bool = True, exclusive: bool = False
    ) -> Live | None:
        """Writes a session's next version if it still is what was read, and None, and nothing changes, if it is not.

        If `after` has another expiry it is written too, unless the session was touched since it was read. What is not
        `durable` does not wait for replicas. `exclusive`: of several calls that write the very same version only one
        may be told that it did.
        """

    async def delete(self, session_id: str, deadline: float) -> bool:
        """Deletes what is under a session's key, be it a session or not. Whether there was something."""

    async def kill(self, user_id: str, entries: Entries, deadline: float) -> Sequence[str]:
        """Ends the sessions of a user that are in these entries, written already or about to be.

        Returns the ids of those that this call ended; of all calls that end a session exactly one does.
        """

    async def confirm(self, session_ids: Sequence[str], deadline: float) -> None:
        """Makes sure that what was read of these sessions lasts: that replicas have it, if they have to.

        Whoever acknowledges what another call has done, and perhaps could not acknowledge, does this first.
        """


class UserIndex(Protocol):
    """Names the sessions of each user: every live one, and perhaps some that have ended.

    A session is entered before it is written and taken out after it is gone, so that whoever ends all sessions that
    are named misses none, whatever crashes in between. What has ended without being taken out is found at random by
    later logins; the index as a whole expires with the last deadline of the sessions that it ever named.
    """

    async def enter(self, session: Session, *, limit: int, mark_oldest: bool, deadline: float) -> Entrance:
        """Enters a session that is about to be written. `limit`: how many the user may have; zero: any number.

        At the limit it either marks the oldest, as many as it takes, or enters nothing.
        """

    async def settle(self, user_id: str, entry: Entry, deadline: float) -> bool:
        """Says of an entry that its session has been written: from then on, where there is none it has ended.

        False if the session is not in the index any more.
        """

    async def extend(self, session: Session, deadline: float) -> None:
        """Makes the index last until a session's absolute deadline, before the session gets it."""

    async def entry(self, user_id: str, session_id: str, deadline: float) -> Entry | None:
        """Returns the entry of a session, if there is one."""

    async def newest(self, user_id: str, before: int | None, count: int, deadline: float) -> Entries:
        """Returns entries that are not marked, newest first, of numbers less than `before` if that is given."""

    async def session_ids(self, user_id: str, deadline: float) -> Sequence[str]:
        """Returns the ids of all sessions that are in the index, marked or not."""

    async def entries(self, user_id: str, session_ids: Sequence[str], deadline: float) -> Entries:
        """Returns the entries of these sessions, of those that are in the index."""

    async def forget(self, user_id: str, entries: Sequence[Entry], deadline: float) -> None:
        """Takes out sessions that have ended; those that were entered anew or settled since then stay."""
