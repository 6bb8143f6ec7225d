"""What happens to sessions, and where it stands in the feed. `operations/ending.py` is the one place that ends them."""

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple


class EventType(Enum):
    """What happened to a session; the names are the API's. A session that expires makes no event."""

    CREATED = auto()
    UPDATED = auto()
    ROTATED = auto()
    REVOKED = auto()


class EndCause(Enum):
    """Why a session was ended; the names are the API's. A session that expires is not ended by anybody."""

    REQUEST = auto()
    """Its own logout, or an operator's revocation."""
    USER_REQUEST = auto()
    """All sessions of its user were revoked."""
    LIMIT = auto()
    """It was evicted to make room for a new login."""
    TOKEN_REUSE = auto()
    """A rotated-out token was presented after its grace."""


@dataclass(frozen=True, slots=True)
class SessionEvent:
    """Something that happened to a session."""

    type: EventType
    session_id: str
    """Empty: it speaks for all sessions of the user."""
    user_id: str
    """Empty: not known."""
    cause: EndCause | None = None
    """Of REVOKED, and of nothing else."""
    repeated: bool = field(default=False, compare=False)
    """Whether the call that tells of it changed nothing: an earlier one did, and may not have been able to tell."""


def revoked(session_id: str, user_id: str, cause: EndCause, *, repeated: bool = False) -> SessionEvent:
    """Returns the event of an end."""
    return SessionEvent(EventType.REVOKED, session_id, user_id, cause, repeated)


class EntryId(NamedTuple):
    """Names an entry of the feed. Those of later entries are greater."""

    ms: int
    """The store's clock when the entry was written, in Unix milliseconds."""
    number: int
    """Counts the entries of one millisecond."""


BEFORE_ALL = EntryId(0, 0)
"""Before the first entry that a feed ever had."""


EPOCH_BYTES = 8


class Position(NamedTuple):
    """A place in the feed: right after an entry."""

    epoch: bytes
    """Names the reign of one primary. In another reign the same id may be another entry, and later ids may be lower."""
    entry_id: EntryId


@dataclass(slots=True)
class FeedEntry:
    """An event as the feed has it."""

    position: Position
    """Right after it."""
    event: SessionEvent
    rendered: bytes = field(default=b"", repr=False)
    """As it is sent: written once, for all who watch."""


class ResetReason(Enum):
    """Why events may have been missed; the names are the API's."""

    TRIMMED = auto()
    """What follows the position is no longer in the feed."""
    EPOCH_CHANGED = auto()
    """The feed is another primary's."""
    SLOW_CONSUMER = auto()
    """Who watches takes events more slowly than they come."""
