"""Cursors: places in the feed, as callers keep them."""

import hashlib
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode

from catraca_server.domain.errors import InvalidRequest, Violation
from catraca_server.domain.events import EPOCH_BYTES, EntryId, Position

_LAYOUT = struct.Struct(f">{EPOCH_BYTES}sQQ")
_MARK_BYTES = 6


def write_cursor(position: Position) -> str:
    """Returns an opaque cursor."""
    data = _LAYOUT.pack(position.epoch, *position.entry_id)
    return urlsafe_b64encode(data + _mark(data)).decode()


def read_cursor(text: str) -> Position:
    """Returns the place that a cursor stands for. Raises InvalidRequest."""
    try:
        epoch, ms, number = _LAYOUT.unpack_from(urlsafe_b64decode(text.encode()))
    except (ValueError, struct.error):
        epoch, ms, number = bytes(EPOCH_BYTES), 0, 0
    position = Position(epoch, EntryId(ms, number))
    if text != write_cursor(position):
        raise InvalidRequest(Violation("start.cursor", "must be a cursor that this service has returned"))
    return position


def _mark(data: bytes) -> bytes:
    return hashlib.sha256(b"cursor" + data).digest()[:_MARK_BYTES]
