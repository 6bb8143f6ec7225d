"""What happens to sessions, and where it stands in the feed. `operations/ending.py` is the one place that ends them."""

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple


class EventType(Enum):
    """What happened to a session; the names are the API's. There is no event for a session that expires."""

    CREATED = auto()
    UPDATED = auto()
    ROTATED = auto()
    REVOKED = auto()


class EndCause(Enum):
    """Why a session was ended; the names are the API's. A session that expires has no cause."""

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
    """Empty: the event is about all sessions of the user."""
    user_id: str
    """Empty: not known."""
    cause: EndCause | None = None
    """Set for REVOKED, and for nothing else."""
    repeated: bool = field(default=False, compare=False)
    """Whether an earlier call made the change, and may have failed to report it; this call changed nothing."""


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
    """Names the time under one primary. In another epoch the same id may be another entry, and later ids lower."""
    entry_id: EntryId


@dataclass(slots=True)
class FeedEntry:
    """An event as the feed has it."""

    position: Position
    """Right after it."""
    event: SessionEvent
    rendered: bytes = field(default=b"", repr=False)
    """The event as it is sent: serialized once, for all watches."""


class ResetReason(Enum):
    """Why events may have been missed; the names are the API's."""

    TRIMMED = auto()
    """What follows the position is no longer in the feed."""
    EPOCH_CHANGED = auto()
    """The feed is now that of another primary."""
    SLOW_CONSUMER = auto()
    """The watch takes events more slowly than they come."""
