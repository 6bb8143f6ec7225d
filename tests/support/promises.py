"""What a response may say about a session, given what is known about it, whatever happens to its store."""

import time
from dataclasses import dataclass, field
from enum import Enum, auto

from catraca import Session

STEP = "step"
"""The attribute that counts a session's updates."""

_SAFE_GRACE_SECONDS = 15.0
"""For how long a token that may have been rotated out is used: presented after its grace, it ends its session."""


class Breach(Enum):
    """A promise that was broken."""

    LOST = auto()
    """An acknowledged session was not valid, and nobody had begun to end it."""
    REVIVED = auto()
    """A session whose end had been acknowledged was valid."""
    OTHERS = auto()
    """A response named another user or another session."""
    OUTDATED = auto()
    """A response did not have what an acknowledged update had written."""
    FAILED = auto()
    """A status that no fault of the store excuses."""


class Fate(Enum):
    """What is known of a session."""

    ALIVE = auto()
    UNKNOWN = auto()
    """Its end has begun and was not acknowledged; or a promise about it was broken, which is reported once."""
    ENDED = auto()


@dataclass(slots=True, eq=False)
class Known:
    """A session as its caller knows it. Its `STEP` counts its updates."""

    user_id: str
    session_id: str
    token: str = field(repr=False)
    fate: Fate = Fate.ALIVE
    updates_begun: int = 0
    updates_acknowledged: int = 0
    rotating_since: float | None = None
    """Since when it is unknown whether the token has been rotated out."""

    @property
    def usable(self) -> bool:
        """Whether the token can be presented without ending its session."""
        return self.rotating_since is None or time.monotonic() < self.rotating_since + _SAFE_GRACE_SECONDS


def breach_in(found: Session | None, known: Known, before: Known) -> Breach | None:
    """Returns which promise a response breaks, given what is known now and what was known before the call."""
    if found is None:
        return Breach.LOST if known.fate is Fate.ALIVE else None
    if (found.user_id, found.session_id) != (known.user_id, known.session_id):
        return Breach.OTHERS
    if before.fate is Fate.ENDED:
        return Breach.REVIVED
    is_up_to_date = before.updates_acknowledged <= int(found.attributes.get(STEP, -1)) <= known.updates_begun
    return None if is_up_to_date else Breach.OUTDATED
