"""What a session is, how long it lives, and who may pass. No I/O: time comes in as an argument.

All times are Unix milliseconds of the store's clock, the only clock that decides, and all spans are milliseconds.
"""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cached_property

from catraca_server.tokens import Credential, brought_token_fault

USER_ID_MAX_BYTES = 256
ATTRIBUTES_MAX_ENTRIES = 64
ATTRIBUTE_KEY_MAX_BYTES = 128
ATTRIBUTE_VALUE_MAX_BYTES = 4096
ATTRIBUTES_MAX_BYTES = 16384
BATCH_MAX = 1000

TOUCH_INTERVAL_MAX = 60_000
_TOUCHES_PER_IDLE_TIMEOUT = 20


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


MALFORMED = Verdict(None, InvalidReason.MALFORMED)


def judge(check: Check, credential: Credential, live: Live | None, now: int) -> Verdict:
    """Decides whether `credential`, read from `check.token`, opens what the store has under its session id."""
    if live is None or not credential.opens(live.session.digest):
        return Verdict(None, InvalidReason.NOT_FOUND)
    if now >= live.session.absolute_expire_time:
        # The store drops it by itself; this is for the moment in which it has not yet.
        return Verdict(None, InvalidReason.NOT_FOUND)
    if check.user_id and check.user_id != live.session.user_id:
        return Verdict(None, InvalidReason.USER_MISMATCH)
    return Verdict(live, cache_ttl=live.cache_ttl(now))


@dataclass(frozen=True, slots=True)
class Policy:
    """What an operator decides about lifetimes; in milliseconds."""

    default_ttl: int
    default_idle_timeout: int
    max_ttl: int


@dataclass(frozen=True, slots=True)
class NewSession:
    """A login: what a caller asks to have created. None: the policy's default."""

    user_id: str
    ttl: int | None = None
    idle_timeout: int | None = None
    """Zero: none."""
    attributes: Mapping[str, str] = field(default_factory=dict, repr=False)
    token: str = field(default="", repr=False)
    """Brought by the caller; empty: mint one."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A field that breaks its rule; the path is as in the API. Quotes no value: it may be a secret."""

    field: str
    description: str


class InvalidRequest(Exception):
    """The request breaks rules of the API; without violations, it is no request at all."""

    def __init__(self, *violations: Violation) -> None:
        super().__init__()
        self.violations = violations


class SessionNotFound(Exception):
    """There is no session of this id: it never existed, has expired or was revoked."""


class TokenInUse(Exception):
    """The brought token already names a live session."""


def violations_of_login(new: NewSession, policy: Policy) -> list[Violation]:
    """Returns all that is wrong with a login."""
    faults = {
        "user_id": _user_id_fault(new.user_id),
        "ttl": _ttl_fault(new.ttl, policy),
        "idle_timeout": _idle_timeout_fault(new.idle_timeout, policy),
        "attributes": _attributes_fault(new.attributes),
        "token": brought_token_fault(new.token) if new.token else None,
    }
    return [Violation(name, fault) for name, fault in faults.items() if fault]


def violations_of_check(check: Check, path: str = "") -> list[Violation]:
    """Returns all that is wrong with a question; `path` is where in the request it stands."""
    violations = []
    if not check.token:
        violations.append(Violation(f"{path}token", "must be set"))
    if check.user_id and (fault := _user_id_fault(check.user_id)):
        violations.append(Violation(f"{path}user_id", fault))
    return violations


def _user_id_fault(user_id: str) -> str | None:
    if not 1 <= len(user_id.encode()) <= USER_ID_MAX_BYTES:
        return f"must be 1 to {USER_ID_MAX_BYTES} bytes of UTF-8"
    if not user_id.isprintable() and any(unicodedata.category(char) == "Cc" for char in user_id):
        return "must not contain control characters"
    return None


def _ttl_fault(ttl: int | None, policy: Policy) -> str | None:
    if ttl is None:
        return None
    if ttl <= 0:
        return "must be positive"
    if ttl > policy.max_ttl:
        return f"must be at most {policy.max_ttl / 1000:g}s, the longest this server is configured for"
    return None


def _idle_timeout_fault(idle_timeout: int | None, policy: Policy) -> str | None:
    if idle_timeout is None:
        return None
    if idle_timeout < 0:
        return "must not be negative; zero means no idle timeout"
    if idle_timeout > policy.max_ttl:
        return f"must be at most {policy.max_ttl / 1000:g}s, the longest ttl this server is configured for"
    return None


def _attributes_fault(attributes: Mapping[str, str]) -> str | None:
    if len(attributes) > ATTRIBUTES_MAX_ENTRIES:
        return f"must have at most {ATTRIBUTES_MAX_ENTRIES} entries"
    total = 0
    for key, value in attributes.items():
        key_size, value_size = len(key.encode()), len(value.encode())
        if not 1 <= key_size <= ATTRIBUTE_KEY_MAX_BYTES:
            return f"must have keys of 1 to {ATTRIBUTE_KEY_MAX_BYTES} bytes"
        if value_size > ATTRIBUTE_VALUE_MAX_BYTES:
            return f"must have values of at most {ATTRIBUTE_VALUE_MAX_BYTES} bytes"
        total += key_size + value_size
    if total > ATTRIBUTES_MAX_BYTES:
        return f"must be at most {ATTRIBUTES_MAX_BYTES} bytes together, keys and values added up"
    return None
