"""What records said when they were last read, so that one that has not changed is not parsed again.

It decides nothing: a session is returned only to who has just received its record, byte for byte, from Redis. It holds
digests, as the sessions in it do, so it has no way to show what is in it.
"""

from catraca_server.domain.session import Session, StoredSession

MEMO_MAX_BYTES = 32 << 20
"""Of the memory of one process: some 12,000 sessions of a few attributes."""

_SESSION_BYTES = 1_500
"""What a parsed session takes beside its texts."""

_COPIES = 5
"""How often its texts are there: the record, parsed, as a message, and room for what Unicode takes."""


class Memo:
    """Sessions by id, as they were last read: each one with its record and expiry.

    They are in two generations. When the younger one is half of what may be kept it becomes the older one, and what was
    there, and not read since, is dropped.
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
        """Returns what exactly this record says, if that is known."""
        stored = self._young.get(session_id) or self._promoted(session_id)
        return stored.session if stored is not None and stored.record == record else None

    def keep(self, stored: StoredSession) -> None:
        """Keeps a session instead of what is known of it."""
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
