"""What happens to sessions. `operations/ending.py` is the one place that reports an end."""

from dataclasses import dataclass
from enum import Enum, auto


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
class Ended:
    """A session that was ended. Of all calls that end a session at the same time, exactly one reports it."""

    session_id: str
    user_id: str
    cause: EndCause
