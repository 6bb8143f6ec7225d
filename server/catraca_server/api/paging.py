"""Pages of a user's sessions: how large they are, and where the next one begins."""

import hashlib
from base64 import urlsafe_b64decode, urlsafe_b64encode

from catraca_server.domain.errors import InvalidRequest, Violation

PAGE_SIZE_DEFAULT = 50
PAGE_SIZE_MAX = 500

_SEQUENCE_BYTES = 8
_MARK_BYTES = 10


def page_size(requested: int) -> int:
    """Returns how many sessions a page may hold. Raises InvalidRequest."""
    if requested < 0:
        raise InvalidRequest(Violation("page_size", "must not be negative"))
    return min(requested or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)


def write_page_token(before: int, user_id: str) -> str:
    """Returns an opaque page token: the page of logins before this sequence, good for this user only."""
    sequence = before.to_bytes(_SEQUENCE_BYTES)
    return urlsafe_b64encode(sequence + _mark(sequence, user_id)).decode()


def read_page_token(text: str, user_id: str) -> int:
    """Returns the sequence in a page token. Raises InvalidRequest."""
    try:
        data = urlsafe_b64decode(text.encode())
    except ValueError:
        data = b""
    before = int.from_bytes(data[:_SEQUENCE_BYTES])
    # Compared as text: decoding skips what does not belong there, and takes `+` for `-`.
    if len(data) < _SEQUENCE_BYTES or text != write_page_token(before, user_id):
        raise InvalidRequest(Violation("page_token", "must be the next_page_token of a page of the same user"))
    return before


def _mark(sequence: bytes, user_id: str) -> bytes:
    return hashlib.sha256(sequence + user_id.encode()).digest()[:_MARK_BYTES]
