"""What a session is and how long it lives.

All times are Unix milliseconds of the store's clock, the only clock that decides.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from catraca_server.domain.limits import LAST_MOMENT_MS
from catraca_server.domain.tokens import hash_of

TOUCH_INTERVAL_MAX_MS = 60_000
ROTATED_TOKENS_MAX = 32
"""How many rotated tokens of a session are remembered, so that presenting one late is noticed."""

_TOUCHES_PER_IDLE_TIMEOUT = 20
_STEP_MIN_MS = 1000


@dataclass(frozen=True, slots=True)
class RotatedToken:
    """A token that a rotation replaced."""

    digest: str = field(repr=False)
    grace_end_ms: int
    """The token is valid before this moment; presenting it later is reuse."""
    salt: str = field(repr=False)
    """Turns the token itself into its successor. Empty once the grace is over, when no caller may have that."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """The contents of a session's record, without its activity: the expiry tells that (see `StoredSession`)."""

    session_id: str
    user_id: str
    digest: str = field(repr=False)
    """The digest of the token's secret; see `tokens`."""
    attributes: Mapping[str, str] = field(repr=False)
    create_time_ms: int
    absolute_expire_time_ms: int
    idle_timeout_ms: int
    """Zero: no idle timeout."""
    version: int = 1
    """Counts updates and rotations."""
    rotated_tokens: tuple[RotatedToken, ...] = field(default=(), repr=False)
    """Oldest first."""

    @property
    def etag(self) -> str:
        """Changes with every version, and differs between successive sessions of one brought token."""
        return f"{self.create_time_ms:x}-{self.version:x}"

    @cached_property
    def secret_hash(self) -> bytes:
        """The digest in the form that a credential is compared with."""
        return hash_of(self.digest)

    @cached_property
    def touch_interval_ms(self) -> int:
        """Activity within this time of the last touch is not recorded."""
        if not self.idle_timeout_ms:
            return TOUCH_INTERVAL_MAX_MS
        return max(1, min(TOUCH_INTERVAL_MAX_MS, self.idle_timeout_ms // _TOUCHES_PER_IDLE_TIMEOUT))

    def expiry_if_active_at(self, active_ms: int) -> int:
        """Returns when the store must drop this session if it is last active at `active_ms`.

        A touch may change nothing but the expiry, so the expiry must tell two things: when the session ends, and when
        it was last active. While the idle deadline is the earlier one, it tells both. The absolute deadline alone would
        tell nothing about activity. There the expiry stops short of the deadline, by one millisecond for each step (a
        touch interval, at least a second) between the activity and the deadline. A session of 24 hours that is never
        used ends 1.4 seconds early. One that is in use ends within a millisecond of its deadline. None ends late.
        """
        steps_left = -(-(self.absolute_expire_time_ms - active_ms) // self._step_ms)
        under_absolute_ms = max(self.absolute_expire_time_ms - steps_left, active_ms + 1)
        if not self.idle_timeout_ms:
            return under_absolute_ms
        return min(active_ms + self.idle_timeout_ms, under_absolute_ms)

    def last_active_given(self, expiry_ms: int) -> int:
        """The inverse of `expiry_if_active_at`: exact, or under the absolute deadline early by less than a step."""
        active_ms = self.absolute_expire_time_ms - (self.absolute_expire_time_ms - expiry_ms) * self._step_ms
        if self.idle_timeout_ms:
            active_ms = max(active_ms, expiry_ms - self.idle_timeout_ms)
        return max(active_ms, self.create_time_ms)

    def rotate(self, digest: str, salt: str, *, grace_ms: int, now_ms: int) -> "Session":
        """Returns this session with a new token; the current one stays valid for the grace."""
        rotated_tokens = (
            *self.without_expired_salts(now_ms).rotated_tokens,
            # At most the last moment that a record can hold. No session outlives that.
            RotatedToken(self.digest, min(now_ms + grace_ms, LAST_MOMENT_MS), salt),
        )
        return replace(
            self, digest=digest, rotated_tokens=rotated_tokens[-ROTATED_TOKENS_MAX:], version=self.version + 1
        )

    def without_expired_salts(self, now_ms: int) -> "Session":
        """Returns this session without the salts that no token within its grace needs; itself if there are none."""
        in_grace = [each.grace_end_ms > now_ms for each in self.rotated_tokens]
        # Each token yields its successor, up to the current one: the first one in its grace needs all salts from there.
        expired = in_grace.index(True) if True in in_grace else len(in_grace)
        if not any(each.salt for each in self.rotated_tokens[:expired]):
            return self
        cleared = (replace(each, salt="") for each in self.rotated_tokens[:expired])
        return replace(self, rotated_tokens=(*cleared, *self.rotated_tokens[expired:]))

    @property
    def _step_ms(self) -> int:
        return max(_STEP_MIN_MS, self.touch_interval_ms)


@dataclass(frozen=True)
class StoredSession:
    """A session as the store has it, with its expiry there."""

    session: Session
    expiry_ms: int
    record: bytes = field(repr=False, compare=False)
    """The record, byte for byte. A conditional change compares it with the one in the store."""
    rendered: bytes = field(default=b"", init=False, repr=False, compare=False)
    """The API's bytes for this session, kept because they never change. Empty at first. Only the API reads them."""

    def keep_rendered(self, rendered: bytes) -> None:
        """Keeps the API's bytes for this session."""
        object.__setattr__(self, "rendered", rendered)

    @cached_property
    def last_active_time_ms(self) -> int:
        """When the session was last active, as far as that was recorded."""
        return self.session.last_active_given(self.expiry_ms)

    @property
    def expire_time_ms(self) -> int:
        """When the session ends if nothing more happens."""
        if not self.session.idle_timeout_ms:
            return self.session.absolute_expire_time_ms
        return min(self.session.absolute_expire_time_ms, self.last_active_time_ms + self.session.idle_timeout_ms)

    @cached_property
    def touch_due_ms(self) -> int:
        """From when on activity must be recorded."""
        return self.last_active_time_ms + self.session.touch_interval_ms

    @cached_property
    def _reusable_until_ms(self) -> int:
        return min(self.touch_due_ms, self.expiry_ms)

    def touch_due(self, now_ms: int) -> bool:
        """Whether activity at `now_ms` must be recorded."""
        return now_ms >= self.touch_due_ms

    def touched(self, now_ms: int) -> "StoredSession":
        """Returns this session as a touch at `now_ms` leaves it."""
        return replace(self, expiry_ms=self.session.expiry_if_active_at(now_ms))

    def cache_ttl_ms(self, now_ms: int) -> int:
        """How long an answer given now may be reused: until a touch is due, or the session ends."""
        left_ms = self._reusable_until_ms - now_ms
        return max(0, left_ms)
