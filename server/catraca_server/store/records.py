"""A session's record as Redis has it: JSON that a person can read with `GET session:<id>`, and no secret in it."""

import json
from typing import Any

from catraca_server.domain.session import Retired, Session

_LAST_MOMENT = 253_402_300_799_999
"""Unix milliseconds of the end of the year 9999, beyond which the API has no time."""


class UnreadableRecord(Exception):
    """What is under the key is no session's record. The text never quotes it."""


def encode(session: Session) -> bytes:
    """Returns the record; fields beyond these are another version's, and are ignored when it is read.

    Names are short because there are millions of them: up to 251 bytes take 64 less of the store's memory than more.
    """
    record: dict[str, Any] = {
        "id": session.session_id,
        "user_id": session.user_id,
        "login_at": session.create_time,
        "absolute_expire_at": session.absolute_expire_time,
        "idle_ms": session.idle_timeout,
        "digest": session.digest,
        "version": session.version,
    }
    if session.retired:
        record["retired"] = [
            {"digest": each.digest, "grace_until": each.grace_until, **({"salt": each.salt} if each.salt else {})}
            for each in session.retired
        ]
    if session.attributes:
        record["attributes"] = dict(session.attributes)
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()


def decode(data: bytes) -> Session:
    """Reads a record. Raises UnreadableRecord."""
    try:
        record = json.loads(data.decode())
        if b"\\u" in data:
            # An escape can stand for half a character, which no message can carry.
            json.dumps(record, ensure_ascii=False).encode()
        session = Session(
            session_id=record["id"],
            user_id=record["user_id"],
            digest=record["digest"],
            attributes=record.get("attributes", {}),
            create_time=record["login_at"],
            absolute_expire_time=record["absolute_expire_at"],
            idle_timeout=record["idle_ms"],
            version=record["version"],
            retired=tuple(
                Retired(each["digest"], each["grace_until"], each.get("salt", "")) for each in record.get("retired", ())
            ),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UnreadableRecord(type(error).__name__) from None
    if not _well_formed(session):
        raise UnreadableRecord("a field is not what it should be")
    return session


def _well_formed(session: Session) -> bool:
    numbers = (session.create_time, session.absolute_expire_time, session.idle_timeout, session.version)
    return (
        type(session.session_id) is type(session.user_id) is type(session.digest) is str
        and session.user_id != ""
        and session.digest.isascii()
        and all(type(number) is int and 0 <= number <= _LAST_MOMENT for number in numbers)
        and session.version > 0
        and type(session.attributes) is dict
        and all(
            type(each.digest) is type(each.salt) is str
            and each.digest.isascii()
            and type(each.grace_until) is int
            and 0 <= each.grace_until <= _LAST_MOMENT
            for each in session.retired
        )
        and all(type(value) is str for value in session.attributes.values())
    )
