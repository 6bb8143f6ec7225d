"""What a token is worth: the decision about a token, given what the store has under its session id."""

from dataclasses import dataclass, field  # not frozen: thousands of these are made in a moment, at a third of the cost
from enum import Enum, auto

from catraca_server.domain.session import StoredSession
from catraca_server.domain.tokens import Credential


class InvalidReason(Enum):
    """Why a token is not valid; the names are the API's."""

    NOT_FOUND = auto()
    MALFORMED = auto()
    USER_MISMATCH = auto()
    TOKEN_REUSED = auto()


@dataclass(slots=True)
class ValidationRequest:
    """The question: is this token good, and does it belong to `user_id`, if that is set?"""

    token: str = field(repr=False)
    user_id: str = ""
    skip_touch: bool = False
    """A probe: it does not count as activity."""


@dataclass(slots=True)
class Validation:
    """The answer: a live session, or the reason why the token is not valid."""

    stored: StoredSession | None
    reason: InvalidReason | None = None
    cache_ttl_ms: int = 0
    """How long a near cache may reuse this answer; zero: it may not."""
    token_rotated: bool = False
    """The token has been rotated out and is still inside its grace."""


MALFORMED = Validation(None, InvalidReason.MALFORMED)


class TokenStatus(Enum):
    """What a token is to the session that it names."""

    CURRENT = auto()
    IN_GRACE = auto()
    REUSED = auto()
    UNKNOWN = auto()


def token_status(credential: Credential, stored: StoredSession | None, now_ms: int) -> TokenStatus:
    """Decides what `credential` is to the session that the store has under its id."""
    # The store drops a session at its absolute deadline by itself; this covers the moment before it has.
    if stored is None or now_ms >= stored.session.absolute_expire_time_ms:
        return TokenStatus.UNKNOWN
    if credential.proves(stored.session.secret_hash):
        return TokenStatus.CURRENT
    for rotated in stored.session.rotated_tokens:
        if credential.opens(rotated.digest):
            return TokenStatus.IN_GRACE if now_ms < rotated.grace_end_ms else TokenStatus.REUSED
    return TokenStatus.UNKNOWN


def validate(
    request: ValidationRequest, credential: Credential, stored: StoredSession | None, now_ms: int
) -> Validation:
    """Decides whether `credential`, read from the request's token, opens what the store has under its session id."""
    status = token_status(credential, stored, now_ms)
    if stored is None or status is TokenStatus.UNKNOWN:
        return Validation(None, InvalidReason.NOT_FOUND)
    if status is TokenStatus.REUSED:
        return Validation(None, InvalidReason.TOKEN_REUSED)
    if request.user_id and request.user_id != stored.session.user_id:
        return Validation(None, InvalidReason.USER_MISMATCH)
    if status is TokenStatus.IN_GRACE:
        # A near cache must not reuse this: it would not notice the end of the grace.
        return Validation(stored, token_rotated=True)
    return Validation(stored, None, stored.cache_ttl_ms(now_ms))
