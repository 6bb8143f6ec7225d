"""The memo of records: only what Redis just answered, byte for byte, and bounded."""

from dataclasses import replace

from catraca_server.domain.session import Session, StoredSession
from catraca_server.store.memo import Memo

RECORD = b"r" * 250


def stored(number: int = 0, *, expiry_ms: int = 5, record: bytes = RECORD) -> StoredSession:
    """Returns a session as it was read."""
    session = Session(
        session_id=f"{number:022d}",
        user_id="ana",
        digest="digest of a secret",
        attributes={"device": "phone"},
        create_time_ms=1,
        absolute_expire_time_ms=9,
        idle_timeout_ms=0,
    )
    return StoredSession(session, expiry_ms, record)


def test_what_has_not_changed_is_known() -> None:
    """The same record with the same expiry is the very same session."""
    memo, one = Memo(), stored()
    memo.keep(one)
    assert memo.known(one.session.session_id, bytes([*RECORD]), 5) is one
    assert memo.session(one.session.session_id, RECORD) is one.session


def test_what_has_changed_is_not_known() -> None:
    """Another record, another expiry, another id, or nothing: none of them is what was read before."""
    memo, one = Memo(), stored()
    memo.keep(one)
    session_id = one.session.session_id
    for record, expiry_ms in ((RECORD + b" ", 5), (RECORD[:-1], 5), (RECORD, 6), (None, 5), (RECORD, -2), (1, 5)):
        assert memo.known(session_id, record, expiry_ms) is None
    assert memo.known("1" * 22, RECORD, 5) is None
    assert memo.session(session_id, RECORD[:-1]) is None
    # With another expiry the record says the same.
    assert memo.session(session_id, RECORD) is one.session


def test_a_session_is_kept_once() -> None:
    """What is read later takes the place of what was read before."""
    memo, one = Memo(), stored()
    later = replace(one, expiry_ms=6)
    for each in (one, later):
        memo.keep(each)
    assert memo.known(one.session.session_id, RECORD, 5) is None
    assert memo.known(one.session.session_id, RECORD, 6) is later


def test_it_is_bounded() -> None:
    """However many sessions and versions are read, it keeps about as many bytes as it may, and the latest of them."""
    memo = Memo(max_bytes=100_000)
    for number in range(10_000):
        memo.keep(stored(number))
        memo.keep(stored(number, record=RECORD * 2))
    kept = {**memo._old, **memo._young}
    assert 5 <= len(kept) == len(memo._young) + len(memo._old) <= 100_000 // len(RECORD * 2)
    assert memo.session(f"{9_999:022d}", RECORD * 2)
    assert not memo.session(f"{0:022d}", RECORD * 2)


def test_what_is_used_stays() -> None:
    """A session that is read again and again is not dropped for those that are read once."""
    memo, hot = Memo(max_bytes=100_000), stored(0)
    memo.keep(hot)
    for number in range(1, 10_000):
        memo.keep(stored(number))
        assert memo.known(hot.session.session_id, RECORD, 5) is hot


def test_it_shows_nothing() -> None:
    """It holds digests, and neither it nor what it holds has a text that quotes one."""
    memo = Memo()
    memo.keep(stored())
    assert "digest of" not in repr(memo) + repr(memo.known(f"{0:022d}", RECORD, 5))
