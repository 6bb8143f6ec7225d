"""What a watch yields: plain frozen dataclasses, built from messages."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TypeVar

from catraca.v1 import session_event_pb2 as events, session_service_pb2 as pb

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_Named = TypeVar("_Named", bound=Enum)


class SessionEventType(Enum):
    """What happened to a session."""

    UNSPECIFIED = 0
    """Something that this client does not know yet."""
    CREATED = 1
    """A login."""
    UPDATED = 2
    """Its attributes or its deadlines were changed."""
    ROTATED = 3
    """Its token was replaced."""
    REVOKED = 4
    """It was ended before it expired."""


class RevocationCause(Enum):
    """Why a session was ended."""

    UNSPECIFIED = 0
    """A cause that this client does not know yet."""
    REQUEST = 1
    """A logout, or an operator's revocation."""
    USER_REQUEST = 2
    """A logout everywhere."""
    LIMIT = 3
    """It made room for a new login."""
    TOKEN_REUSE = 4
    """A rotated token was presented after its grace."""


class WatchResetReason(Enum):
    """Why events may have been missed."""

    UNSPECIFIED = 0
    """A reason that this client does not know yet."""
    TRIMMED = 1
    """What follows the cursor is no longer in the feed."""
    EPOCH_CHANGED = 2
    """The store's primary has changed, and the feed with it."""
    SLOW_CONSUMER = 3
    """The events were read more slowly than they came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEvent:
    """Something that happened to a session. Carries no token."""

    type: SessionEventType
    cause: RevocationCause | None
    """Why the session ended, if it was revoked."""
    session_id: str
    """Which session; empty: all sessions of the user, except one that the caller may have spared."""
    user_id: str
    """Whose session; empty if that is no longer known."""
    event_time: datetime
    """When the event was written, by the store's clock, in UTC."""
    cursor: str
    """A watch with this cursor continues after this event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchOpened:
    """A stream of events was opened: the first, or one after a lost connection."""

    cursor: str
    """Events after this cursor follow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchReset:
    """Events may have been missed: drop whatever was derived from them."""

    reason: WatchResetReason
    cursor: str
    """Events after this cursor follow."""


def read_event(message: events.SessionEvent) -> SessionEvent:
    """Returns the event in a message."""
    type_ = _known(SessionEventType, message.type)
    time = message.event_time
    return SessionEvent(
        type=type_,
        cause=_known(RevocationCause, message.cause) if type_ is SessionEventType.REVOKED else None,
        session_id=message.session_id,
        user_id=message.user_id,
        event_time=_EPOCH + timedelta(0, time.seconds, time.nanos // 1000),
        cursor=message.cursor,
    )


def read_opened(message: pb.WatchOpened, *, cursor: str) -> WatchOpened:
    """Returns the opening in a message; its cursor is `cursor`, if the stream was to continue after that."""
    return WatchOpened(cursor=cursor or message.cursor)


def read_reset(message: pb.WatchReset) -> WatchReset:
    """Returns the reset in a message."""
    return WatchReset(reason=_known(WatchResetReason, message.reason), cursor=message.cursor)


def _known(names: type[_Named], number: int) -> _Named:
    try:
        return names(number)
    except ValueError:
        return names(0)
