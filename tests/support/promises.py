"""What a session must be by what is known of it, whatever its store goes through."""

import time
from dataclasses import dataclass
from enum import Enum, auto

from catraca import Session

STEP = "step"
"""The attribute that counts a session's updates."""

_TRUSTED_GRACE = 15.0
"""Seconds for which a token that may have been rotated out is used: presented after its grace it ends its session."""


class Breach(Enum):
    """A promise that was broken."""

    LOST = auto()
    """An acknowledged session was told to be not valid, and nobody had begun to end it."""
    REVIVED = auto()
    """A session whose end had been acknowledged was told to be valid."""
    OTHERS = auto()
    """An answer named another user or another session."""
    OUTDATED = auto()
    """An answer did not have what an acknowledged update had written."""
    FAILED = auto()
    """A status that no fault of a store excuses."""


class Fate(Enum):
    """What is known of a session."""

    ALIVE = auto()
    UNKNOWN = auto()
    """Its end has begun and was not acknowledged; or a promise about it was broken, which is told once."""
    ENDED = auto()


@dataclass(slots=True, eq=False)
class Known:
    """A session as its caller knows it. Its `STEP` counts its updates."""

    user_id: str
    session_id: str
    token: str
    fate: Fate = Fate.ALIVE
    tried: int = 0
    acknowledged: int = 0
    rotating_since: float | None = None
    """Since when it is unknown whether the token has been rotated out."""

    @property
    def usable(self) -> bool:
        """Whether the token can be presented without harm."""
        return self.rotating_since is None or time.monotonic() < self.rotating_since + _TRUSTED_GRACE


def breach_in(found: Session | None, known: Known, asked: Known) -> Breach | None:
    """Returns which promise an answer breaks, by what is known now and by what was when it was asked for."""
    if found is None:
        return Breach.LOST if known.fate is Fate.ALIVE else None
    if (found.user_id, found.session_id) != (known.user_id, known.session_id):
        return Breach.OTHERS
    if asked.fate is Fate.ENDED:
        return Breach.REVIVED
    is_up_to_date = asked.acknowledged <= int(found.attributes.get(STEP, -1)) <= known.tried
    return None if is_up_to_date else Breach.OUTDATED
