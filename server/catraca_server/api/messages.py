"""Writes sessions and validations as messages, most of them without creating a message object.

Validations outnumber everything else, and most are about a session that has not changed since the last one. So the
bytes of a valid response are kept with the session, and each response is assembled from them: the fields of a message
may simply be concatenated. protobuf itself would write the same bytes, except for the order of attributes.
"""

from collections.abc import Iterable, Sequence

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from catraca.v1 import session_pb2, session_service_pb2 as pb
from catraca_server.domain.session import TOUCH_INTERVAL_MAX_MS, StoredSession
from catraca_server.domain.validation import InvalidReason, Validation

_REASONS = {reason: pb.InvalidReason.Value(f"INVALID_REASON_{reason.name}") for reason in InvalidReason}
_INVALID = {
    reason: pb.ValidateSessionResponse(invalid_reason=_REASONS[reason]).SerializeToString() for reason in _REASONS
}
_VALID = pb.ValidateSessionResponse(valid=True).SerializeToString()
_TOKEN_ROTATED = pb.ValidateSessionResponse(token_rotated=True).SerializeToString()


def write_session(stored: StoredSession, message: session_pb2.Session) -> None:
    """Fills in a message in place. Creating its parts and copying them in would take three times as long."""
    session = stored.session
    message.session_id = session.session_id
    message.user_id = session.user_id
    message.attributes.update(session.attributes)
    _write(session.create_time_ms, message.create_time)
    _write(stored.last_active_time_ms, message.last_active_time)
    _write(stored.expire_time_ms, message.expire_time)
    _write(session.absolute_expire_time_ms, message.absolute_expire_time)
    if session.idle_timeout_ms:
        _write(session.idle_timeout_ms, message.idle_timeout)
    message.etag = session.etag


def validation_response(validation: Validation) -> bytes:
    """Returns a ValidateSessionResponse."""
    stored = validation.stored
    if stored is None:
        assert validation.reason is not None, "a validation has a session or a reason"
        return _INVALID[validation.reason]
    valid = stored.rendered or _render(stored)
    if validation.token_rotated:
        return valid + _cache_ttl(validation.cache_ttl_ms) + _TOKEN_ROTATED
    return valid + _cache_ttl(validation.cache_ttl_ms)


def batch_response(responses: Sequence[bytes]) -> bytes:
    """Returns a BatchValidateSessionsResponse of these responses."""
    parts: list[bytes] = []
    heads = _HEADS
    for response in responses:
        size = len(response)
        parts.append(heads[size] if size < len(heads) else _head(1, size))
        parts.append(response)
    return b"".join(parts)


def _render(stored: StoredSession) -> bytes:
    """Writes the part of a valid response that does not change, and keeps it with the session."""
    response = pb.ValidateSessionResponse(valid=True)
    write_session(stored, response.session)
    rendered = response.SerializeToString()
    stored.keep_rendered(rendered)
    return rendered


def _cache_ttl(milliseconds: int) -> bytes:
    whole = milliseconds // 1000
    # More than the largest touch interval only if an operator has changed the expiry by hand.
    seconds = _SECONDS[whole] if whole < len(_SECONDS) else Duration(seconds=whole).SerializeToString()
    nanos = _NANOS[milliseconds % 1000]
    return _CACHE_TTL_HEADS[len(seconds) + len(nanos)] + seconds + nanos


def _write(milliseconds: int, message: Timestamp | Duration) -> None:
    message.seconds, milliseconds = divmod(milliseconds, 1000)
    message.nanos = milliseconds * 1_000_000


def _head(field: int, size: int) -> bytes:
    """Returns the tag and the length of a field that is a message of `size` bytes."""
    return _varint(field << 3 | 2) + _varint(size)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _durations(durations: Iterable[Duration]) -> tuple[bytes, ...]:
    return tuple(duration.SerializeToString() for duration in durations)


_CACHE_TTL_HEADS = tuple(_head(4, size) for size in range(32))
"""The tag and length of `cache_ttl`, by the size of the duration."""
_SECONDS = _durations(Duration(seconds=seconds) for seconds in range(TOUCH_INTERVAL_MAX_MS // 1000 + 1))
_NANOS = _durations(Duration(nanos=milliseconds * 1_000_000) for milliseconds in range(1000))
_HEADS = tuple(_head(1, size) for size in range(1024))
"""The tag and length of a response in a batch, by its size."""
