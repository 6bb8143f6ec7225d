"""A session's record as Redis has it: JSON that a person can read with `GET session:<id>`, and no secret in it."""

import json
from typing import Any

from catraca_server.domain.limits import LAST_MOMENT_MS
from catraca_server.domain.session import RotatedToken, Session


class UnreadableRecord(Exception):
    """What is under the key is not a session's record. The text never quotes it."""


class UnstorableSession(Exception):
    """A session whose record could not be read back. Reaching this is a defect: requests are checked earlier."""


def encode(session: Session) -> bytes:
    """Returns the record. Raises UnstorableSession if `decode` would refuse it.

    Names are short because there are millions of them: records of up to 251 bytes take 64 bytes less of the store's
    memory than larger ones.
    """
    if not _is_well_formed(session):
        raise UnstorableSession
    record: dict[str, Any] = {
        "id": session.session_id,
        "user_id": session.user_id,
        "login_at": session.create_time_ms,
        "absolute_expire_at": session.absolute_expire_time_ms,
        "idle_ms": session.idle_timeout_ms,
        "digest": session.digest,
        "version": session.version,
    }
    if session.rotated_tokens:
        record["retired"] = [
            {"digest": each.digest, "grace_until": each.grace_end_ms, **({"salt": each.salt} if each.salt else {})}
            for each in session.rotated_tokens
        ]
    if session.attributes:
        record["attributes"] = dict(session.attributes)
    try:
        return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        # A lone surrogate, which no message can carry.
        raise UnstorableSession from None


def decode(data: bytes) -> Session:
    """Reads a record. It may have fields of a later version, which are ignored. Raises UnreadableRecord."""
    try:
        record = json.loads(data.decode())
        if b"\\u" in data:
            # An escape can stand for a lone surrogate, which no message can carry.
            json.dumps(record, ensure_ascii=False).encode()
        session = Session(
            session_id=record["id"],
            user_id=record["user_id"],
            digest=record["digest"],
            attributes=record.get("attributes", {}),
            create_time_ms=record["login_at"],
            absolute_expire_time_ms=record["absolute_expire_at"],
            idle_timeout_ms=record["idle_ms"],
            version=record["version"],
            rotated_tokens=tuple(
                RotatedToken(each["digest"], each["grace_until"], each.get("salt", ""))
                for each in record.get("retired", ())
            ),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UnreadableRecord(type(error).__name__) from None
    if not _is_well_formed(session):
        raise UnreadableRecord("a field has the wrong type or is out of range")
    return session


def _is_well_formed(session: Session) -> bool:
    numbers = (session.create_time_ms, session.absolute_expire_time_ms, session.idle_timeout_ms, session.version)
    return (
        type(session.session_id) is type(session.user_id) is type(session.digest) is str
        and session.user_id != ""
        and session.digest.isascii()
        and all(type(number) is int and 0 <= number <= LAST_MOMENT_MS for number in numbers)
        and session.version > 0
        and isinstance(session.attributes, dict)
        and all(
            type(each.digest) is type(each.salt) is str
            and each.digest.isascii()
            and type(each.grace_end_ms) is int
            and 0 <= each.grace_end_ms <= LAST_MOMENT_MS
            for each in session.rotated_tokens
        )
        and all(type(value) is str for value in session.attributes.values())
    )
