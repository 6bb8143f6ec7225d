"""What a session is, how long it lives, and who may pass. No I/O: time comes in as an argument.

All times are Unix milliseconds of the store's clock, the only clock that decides, and all spans are milliseconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from functools import cached_property

from catraca_server.domain.tokens import Credential

TOUCH_INTERVAL_MAX = 60_000
RETIRED_MAX = 32
"""Rotated-out tokens of a session that are recognised, so that presenting one late is noticed."""

_TOUCHES_PER_IDLE_TIMEOUT = 20


@dataclass(frozen=True, slots=True)
class Retired:
    """A token that was rotated out."""

    digest: str = field(repr=False)
    grace_until: int
    """It is valid before this moment; from then on presenting it is reuse."""
    salt: str = field(repr=False)
    """With the token itself it yields the next one. Empty once the grace is over: then nobody may."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """A session's record: all that is known of it but its activity, which the expiry tells (see `Live`)."""

    session_id: str
    user_id: str
    digest: str = field(repr=False)
    """Of the token's secret; see `tokens`."""
    attributes: Mapping[str, str] = field(repr=False)
    create_time: int
    absolute_expire_time: int
    idle_timeout: int
    """Zero: none."""
    version: int = 1
    """Counts updates and rotations."""
    retired: tuple[Retired, ...] = field(default=(), repr=False)
    """Oldest first."""

    @property
    def etag(self) -> str:
        """Changes with every version, and differs between two sessions that one brought token opened in turn."""
        return f"{self.create_time:x}-{self.version:x}"

    @cached_property
    def touch_interval(self) -> int:
        """Activity within so long of the last that was written down is not written down."""
        if not self.idle_timeout:
            return TOUCH_INTERVAL_MAX
        return max(1, min(TOUCH_INTERVAL_MAX, self.idle_timeout // _TOUCHES_PER_IDLE_TIMEOUT))

    def expiry_if_active_at(self, moment: int) -> int:
        """Returns when the store must drop this session if it is last active at `moment`.

        A touch may change nothing but the expiry, so the expiry has to tell two things: when the session ends, and when
        it was last active. While the idle deadline is the earlier one, it tells both. Under the absolute deadline it
        would stand still, so there it stops short of it, by one millisecond for each mark (a touch interval, but at
        least a second) that lies between the activity and the deadline. A session of 24 hours that is never used ends
        1.4 seconds early for it; one that is in use ends within a millisecond of its deadline, and none ends late.
        """
        marks_left = -(-(self.absolute_expire_time - moment) // self._mark)
        under_absolute = max(self.absolute_expire_time - marks_left, moment + 1)
        if not self.idle_timeout:
            return under_absolute
        return min(moment + self.idle_timeout, under_absolute)

    def last_active_given(self, expiry: int) -> int:
        """The inverse of `expiry_if_active_at`: exact, or early by less than a mark under the absolute deadline."""
        by_absolute = self.absolute_expire_time - (self.absolute_expire_time - expiry) * self._mark
        if self.idle_timeout:
            by_absolute = max(by_absolute, expiry - self.idle_timeout)
        return max(by_absolute, self.create_time)

    def rotated(self, digest: str, salt: str, grace: int, now: int) -> "Session":
        """Returns this session with another token; the one it has is valid for `grace` milliseconds more."""
        retired = (*self.unsalted(now).retired, Retired(self.digest, now + grace, salt))
        return replace(self, digest=digest, retired=retired[-RETIRED_MAX:], version=self.version + 1)

    def unsalted(self, now: int) -> "Session":
        """Returns this session without the salts that no token inside its grace needs, or itself if there are none."""
        in_grace = [each.grace_until > now for each in self.retired]
        # A token yields the next one, and so on to the last: the first one inside its grace needs all from there on.
        over = in_grace.index(True) if True in in_grace else len(in_grace)
        if not any(each.salt for each in self.retired[:over]):
            return self
        return replace(self, retired=(*(replace(each, salt="") for each in self.retired[:over]), *self.retired[over:]))

    @property
    def _mark(self) -> int:
        return max(1000, self.touch_interval)


@dataclass(frozen=True)
class Live:
    """A session that the store has, with the expiry it has there."""

    session: Session
    expiry: int
    stored_as: bytes = field(repr=False, compare=False)
    """The record as the store has it: what a conditional change compares with."""

    @cached_property
    def last_active_time(self) -> int:
        """When it was last active, as far as that was written down."""
        return self.session.last_active_given(self.expiry)

    @property
    def expire_time(self) -> int:
        """When it ends if nothing more happens."""
        if not self.session.idle_timeout:
            return self.session.absolute_expire_time
        return min(self.session.absolute_expire_time, self.last_active_time + self.session.idle_timeout)

    def touch_due(self, now: int) -> bool:
        """Whether activity now has to be written down."""
        return now >= self.last_active_time + self.session.touch_interval

    def cache_ttl(self, now: int) -> int:
        """How long an answer of now may be reused: until activity has to be written down again, or the session ends."""
        return max(0, min(self.last_active_time + self.session.touch_interval, self.expiry) - now)


class InvalidReason(Enum):
    """Why a token is not valid; the names are the API's."""

    NOT_FOUND = auto()
    MALFORMED = auto()
    USER_MISMATCH = auto()
    TOKEN_REUSED = auto()


@dataclass(frozen=True, slots=True)
class Check:
    """A question: is this token good, is it `user_id`'s (if that is set), and is asking activity?"""

    token: str = field(repr=False)
    user_id: str = ""
    skip_touch: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to a `Check`: a live session, or the reason why not."""

    live: Live | None
    reason: InvalidReason | None = None
    cache_ttl: int = 0
    rotated: bool = False
    """The token has been rotated out and is still inside its grace."""


MALFORMED = Verdict(None, InvalidReason.MALFORMED)


class Standing(Enum):
    """What a token is to the session that it names."""

    CURRENT = auto()
    IN_GRACE = auto()
    REUSED = auto()
    UNKNOWN = auto()


def standing(credential: Credential, live: Live | None, now: int) -> Standing:
    """Decides what `credential` is to the session that the store has under its id."""
    # The store drops a session at its absolute deadline by itself; this is for the moment in which it has not yet.
    if live is None or now >= live.session.absolute_expire_time:
        return Standing.UNKNOWN
    if credential.opens(live.session.digest):
        return Standing.CURRENT
    for retired in live.session.retired:
        if credential.opens(retired.digest):
            return Standing.IN_GRACE if now < retired.grace_until else Standing.REUSED
    return Standing.UNKNOWN


def judge(check: Check, credential: Credential, live: Live | None, now: int) -> Verdict:
    """Decides whether `credential`, read from `check.token`, opens what the store has under its session id."""
    stands = standing(credential, live, now)
    if live is None or stands is Standing.UNKNOWN:
        return Verdict(None, InvalidReason.NOT_FOUND)
    if stands is Standing.REUSED:
        return Verdict(None, InvalidReason.TOKEN_REUSED)
    if check.user_id and check.user_id != live.session.user_id:
        return Verdict(None, InvalidReason.USER_MISMATCH)
    if stands is Standing.IN_GRACE:
        # Not to be reused by a near cache: it would not notice the end of the grace.
        return Verdict(live, rotated=True)
    return Verdict(live, cache_ttl=live.cache_ttl(now))
