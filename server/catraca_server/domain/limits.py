"""What the operator's policy and the API's field rules allow."""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

USER_ID_MAX_BYTES = 256
ATTRIBUTES_MAX_ENTRIES = 64
ATTRIBUTE_KEY_MAX_BYTES = 128
ATTRIBUTE_VALUE_MAX_BYTES = 4096
ATTRIBUTES_MAX_BYTES = 16384
BATCH_MAX_REQUESTS = 1000
MASK_MAX_PATHS = 256
"""Enough to set as many attributes as a session may have and to remove as many others."""

LAST_MOMENT_MS = 253_402_300_799_999
"""Unix milliseconds of the end of the year 9999. The API's Timestamp ends there, and so does every record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What an operator decides about sessions."""

    default_ttl_ms: int
    default_idle_timeout_ms: int
    """Zero: no idle timeout."""
    max_ttl_ms: int
    rotation_grace_ms: int = 30_000
    max_sessions_per_user: int = 0
    """Zero: no limit."""
    evict_oldest: bool = True
    """At the limit: evict the oldest session, or (False) reject the new login."""


def format_duration(milliseconds: int) -> str:
    """Returns a duration as operators write it, in its largest whole unit: `30d`, `90s`, `250ms`."""
    for unit, size_ms in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds % size_ms == 0:
            return f"{milliseconds // size_ms}{unit}" if milliseconds else "0s"
    return f"{milliseconds}ms"


def user_id_fault(user_id: str) -> str | None:
    """Says which rule a user id breaks; None: it breaks none."""
    if not 1 <= len(user_id.encode()) <= USER_ID_MAX_BYTES:
        return f"must be 1 to {USER_ID_MAX_BYTES} bytes of UTF-8"
    if not user_id.isprintable() and any(unicodedata.category(char) == "Cc" for char in user_id):
        return "must not contain control characters"
    return None


def ttl_fault(ttl_ms: int, policy: Policy) -> str | None:
    """Says what is wrong with the ttl of a new session."""
    if ttl_ms <= 0:
        return "must be positive"
    if ttl_ms > policy.max_ttl_ms:
        return f"must be at most {format_duration(policy.max_ttl_ms)}, this server's longest ttl"
    return None


def absolute_expire_time_fault(absolute_expire_time_ms: int, now_ms: int, policy: Policy) -> str | None:
    """Says what is wrong with the new absolute deadline of a live session."""
    if absolute_expire_time_ms <= now_ms:
        return "must be in the future; to end a session, revoke it"
    if absolute_expire_time_ms - now_ms > policy.max_ttl_ms:
        return f"must be at most {format_duration(policy.max_ttl_ms)} away, this server's longest ttl"
    return end_fault(absolute_expire_time_ms)


def end_fault(absolute_expire_time_ms: int) -> str | None:
    """Says whether a session would outlast what a record, and the API, can hold."""
    return "must end by the year 9999" if absolute_expire_time_ms > LAST_MOMENT_MS else None


def idle_timeout_fault(idle_timeout_ms: int, policy: Policy) -> str | None:
    """Says what is wrong with an idle timeout."""
    if idle_timeout_ms < 0:
        return "must not be negative; zero means no idle timeout"
    if idle_timeout_ms > policy.max_ttl_ms:
        return f"must be at most {format_duration(policy.max_ttl_ms)}, this server's longest ttl"
    return None


def attributes_fault(attributes: Mapping[str, str]) -> str | None:
    """Says which limit the attributes of a session exceed."""
    if len(attributes) > ATTRIBUTES_MAX_ENTRIES:
        return f"must have at most {ATTRIBUTES_MAX_ENTRIES} entries"
    total_bytes = 0
    for key, value in attributes.items():
        key_bytes, value_bytes = len(key.encode()), len(value.encode())
        if not 1 <= key_bytes <= ATTRIBUTE_KEY_MAX_BYTES:
            return f"must have keys of 1 to {ATTRIBUTE_KEY_MAX_BYTES} bytes"
        if value_bytes > ATTRIBUTE_VALUE_MAX_BYTES:
            return f"must have values of at most {ATTRIBUTE_VALUE_MAX_BYTES} bytes"
        total_bytes += key_bytes + value_bytes
    if total_bytes > ATTRIBUTES_MAX_BYTES:
        return f"must be at most {ATTRIBUTES_MAX_BYTES} bytes in total, keys and values added up"
    return None
