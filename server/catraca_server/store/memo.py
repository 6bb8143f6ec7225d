"""The records as they were last parsed, so that one that has not changed is not parsed again.

It decides nothing: it returns a session only for a record that Redis has just sent, byte for byte the same. It holds
digests, as the sessions in it do, so it has no way to show its contents.
"""

from catraca_server.domain.session import Session, StoredSession

MEMO_MAX_BYTES = 32 << 20
"""In the memory of one process: some 12,000 sessions of a few attributes."""

_SESSION_BYTES = 1_500
"""What a parsed session takes besides its texts."""

_COPIES = 5
"""How many copies of its texts are kept: the record, parsed, as a message, and room for Unicode."""


class Memo:
    """Sessions by id, as they were last read: each one with its record and expiry.

    There are two generations. When the younger one reaches half of what may be kept, it becomes the older one. The
    previous older one is dropped: nothing in it has been read since.
    """

    __slots__ = ("_max_bytes", "_old", "_young", "_young_bytes")

    def __init__(self, max_bytes: int = MEMO_MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._young: dict[str, StoredSession] = {}
        self._old: dict[str, StoredSession] = {}
        self._young_bytes = 0

    def known(self, session_id: str, record: object, expiry_ms: object) -> StoredSession | None:
        """Returns a session, if it is known and has exactly this record and expiry."""
        stored = self._young.get(session_id) or self._promoted(session_id)
        if stored is not None and stored.record == record and stored.expiry_ms == expiry_ms:
            return stored
        return None

    def session(self, session_id: str, record: bytes) -> Session | None:
        """Returns the session in exactly this record, if that is known."""
        stored = self._young.get(session_id) or self._promoted(session_id)
        return stored.session if stored is not None and stored.record == record else None

    def keep(self, stored: StoredSession) -> None:
        """Keeps a session, in place of an earlier reading of it."""
        session_id = stored.session.session_id
        self._old.pop(session_id, None)
        before = self._young.get(session_id)
        if before is not None:
            self._young_bytes -= _size(before)
        elif self._young_bytes >= self._max_bytes // 2:
            self._old, self._young, self._young_bytes = self._young, {}, 0
        self._young[session_id] = stored
        self._young_bytes += _size(stored)

    def _promoted(self, session_id: str) -> StoredSession | None:
        stored = self._old.get(session_id)
        if stored is not None:
            self.keep(stored)
        return stored


def _size(stored: StoredSession) -> int:
    return _SESSION_BYTES + _COPIES * len(stored.record)
