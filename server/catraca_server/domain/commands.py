"""What callers may ask for, and what is wrong with what they ask. No I/O."""

import hashlib
import unicodedata
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from catraca_server.domain.session import Check, Live, Session
from catraca_server.domain.tokens import brought_token_fault

USER_ID_MAX_BYTES = 256
ATTRIBUTES_MAX_ENTRIES = 64
ATTRIBUTE_KEY_MAX_BYTES = 128
ATTRIBUTE_VALUE_MAX_BYTES = 4096
ATTRIBUTES_MAX_BYTES = 16384
BATCH_MAX = 1000
MASK_PATHS_MAX = 256
"""Enough to set as many attributes as there may be and remove as many others."""
PAGE_SIZE_DEFAULT = 50
PAGE_SIZE_MAX = 500
PAGE_MAX_BYTES = 2 << 20
"""Of records, after which a page ends early: clients take messages of 4 MiB unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What an operator decides; spans in milliseconds."""

    default_ttl: int
    default_idle_timeout: int
    max_ttl: int
    rotation_grace: int = 30_000
    max_sessions_per_user: int = 0
    """Zero: no limit."""
    evict_oldest: bool = True
    """What to do with one session more than the limit: revoke the oldest, or (False) reject the new one."""


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


class EtagMismatch(Exception):
    """The session is no longer at the version that the request names."""


class SessionLimitReached(Exception):
    """The user has as many sessions as there may be, and the policy is to reject one more."""


class SessionNotFound(Exception):
    """There is no session of this id: it never existed, has expired or was revoked."""


class TokenInUse(Exception):
    """The brought token already names a live session."""


class TokenReused(Exception):
    """The token was rotated out and its grace is over; its session has just been revoked."""


@dataclass(frozen=True, slots=True)
class Update:
    """What a caller asks to have changed of a session. None: leave it."""

    session_id: str
    etag: str = ""
    """Empty: whatever version it has."""
    attributes: Mapping[str, str] | None = field(default=None, repr=False)
    """These replace all."""
    entries: Mapping[str, str | None] = field(default_factory=dict, repr=False)
    """These are set one by one, after that; None removes one."""
    absolute_expire_time: int | None = None
    idle_timeout: int | None = None
    """Zero: none."""

    def applied_to(self, live: Live, now: int, policy: Policy) -> Live:
        """Returns what becomes of a live session, its activity unchanged. Raises EtagMismatch, InvalidRequest."""
        before = live.session
        if self.etag and self.etag != before.etag:
            raise EtagMismatch
        attributes = dict(before.attributes if self.attributes is None else self.attributes)
        for key, value in self.entries.items():
            if value is None:
                attributes.pop(key, None)
            else:
                attributes[key] = value
        after = replace(
            before.unsalted(now),
            attributes=attributes,
            absolute_expire_time=self.absolute_expire_time or before.absolute_expire_time,
            idle_timeout=before.idle_timeout if self.idle_timeout is None else self.idle_timeout,
            version=before.version + 1,
        )
        if violations := self._violations(live, after, now, policy):
            raise InvalidRequest(*violations)
        keeps_times = self.absolute_expire_time is None and self.idle_timeout is None
        expiry = live.expiry if keeps_times else after.expiry_if_active_at(live.last_active_time)
        return Live(after, expiry, live.stored_as)

    def _violations(self, live: Live, after: Session, now: int, policy: Policy) -> list[Violation]:
        end = self.absolute_expire_time
        idle_fault = _idle_timeout_fault(self.idle_timeout, policy)
        if not idle_fault and self.idle_timeout and live.last_active_time + self.idle_timeout <= now:
            idle_fault = "must be longer than the session has been idle already; to end it, revoke it"
        faults = {
            "session.absolute_expire_time": end is not None and _end_fault(end, now, policy),
            "session.idle_timeout": idle_fault,
            "session.attributes": _attributes_fault(after.attributes),
        }
        return [Violation(name, fault) for name, fault in faults.items() if fault]


class PageToken:
    """Where a page of a user's sessions begins, as callers hand it back: opaque, and good for that user only."""

    @staticmethod
    def write(before: int, user_id: str) -> str:
        """Returns the page token for the page of entries before that number."""
        number = before.to_bytes(8)
        return urlsafe_b64encode(number + PageToken._mark(number, user_id)).decode()

    @staticmethod
    def read(text: str, user_id: str) -> int:
        """Returns the number in a page token. Raises InvalidRequest."""
        try:
            data = urlsafe_b64decode(text.encode())
        except ValueError:
            data = b""
        number = data[:8]
        if data != number + PageToken._mark(number, user_id):
            raise InvalidRequest(Violation("page_token", "must be the next_page_token of a page of the same user"))
        return int.from_bytes(number)

    @staticmethod
    def _mark(number: bytes, user_id: str) -> bytes:
        return hashlib.sha256(number + user_id.encode()).digest()[:10]


def page_size(asked: int) -> int:
    """Returns how many sessions a page may hold. Raises InvalidRequest."""
    if asked < 0:
        raise InvalidRequest(Violation("page_size", "must not be negative"))
    return min(asked or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)


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


def violations_of_user(user_id: str) -> list[Violation]:
    """Returns what is wrong with a user id."""
    fault = _user_id_fault(user_id)
    return [Violation("user_id", fault)] if fault else []


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


def _end_fault(end: int, now: int, policy: Policy) -> str | None:
    if end <= now:
        return "must be in the future; to end a session, revoke it"
    if end - now > policy.max_ttl:
        return f"must be at most {policy.max_ttl / 1000:g}s away, the longest ttl of this server"
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
