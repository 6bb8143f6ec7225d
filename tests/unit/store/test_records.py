"""Records: what is written can be read back, or is not written at all."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, strategies as st

from catraca_server.domain.commands import NewSession, Update
from catraca_server.domain.errors import InvalidRequest
from catraca_server.domain.limits import LAST_MOMENT_MS, Policy
from catraca_server.domain.session import RotatedToken, Session, StoredSession
from catraca_server.domain.tokens import Tokens
from catraca_server.setting_values import Duration
from catraca_server.settings import LIFETIME_MAX
from catraca_server.store.records import UnstorableSession, decode, encode

NOW_MS = 1_790_000_000_000
LIFETIME_MAX_MS = Duration.parse(LIFETIME_MAX).ms
SESSION = Session(
    session_id="0" * 22,
    user_id="12345",
    digest="d" * 43,
    attributes={"device": "phone"},
    create_time_ms=NOW_MS,
    absolute_expire_time_ms=NOW_MS + 3_600_000,
    idle_timeout_ms=0,
)

TIMES = ("create_time_ms", "absolute_expire_time_ms", "idle_timeout_ms")

# Half of a surrogate pair is text to Python, and to nobody else.
texts = st.text(st.characters(codec=None, exclude_categories=[]), max_size=20) | st.sampled_from(["", "\ud800", "\x00"])
numbers = (
    st.integers(-1, 2)
    | st.integers(NOW_MS - 1000, NOW_MS + LIFETIME_MAX_MS)
    | st.integers(LAST_MOMENT_MS - 2, LAST_MOMENT_MS + 2)
    | st.integers()
)
sessions = st.builds(
    Session,
    session_id=texts,
    user_id=texts,
    digest=texts,
    attributes=st.dictionaries(texts, texts, max_size=4),
    create_time_ms=numbers,
    absolute_expire_time_ms=numbers,
    idle_timeout_ms=numbers,
    version=numbers,
    rotated_tokens=st.lists(st.builds(RotatedToken, texts, numbers, texts), max_size=3).map(tuple),
)


@given(sessions)
@example(SESSION)
@example(replace(SESSION, user_id="\ud800"))
@example(replace(SESSION, attributes={"\udfff": ""}))
@example(replace(SESSION, rotated_tokens=(RotatedToken("d", NOW_MS, "\ud800"),)))
@example(replace(SESSION, create_time_ms=LAST_MOMENT_MS + 1))
def test_what_is_encoded_can_be_decoded(session: Session) -> None:
    """Whatever a session holds, either `encode` refuses it or `decode` returns the same session."""
    try:
        record = encode(session)
    except UnstorableSession:
        return
    assert decode(record) == session


@pytest.mark.parametrize(
    "changes",
    [
        {"user_id": ""},
        {"user_id": "\ud800"},
        {"digest": "é"},
        {"attributes": {"key": "\ud800"}},
        {"attributes": {"\ud800": "value"}},
        {"version": 0},
        {"version": LAST_MOMENT_MS + 1},
        *(
            {name: value}
            for name in ("create_time_ms", "idle_timeout_ms")
            for value in (-1, LAST_MOMENT_MS + 1, 10**30)
        ),
        {"absolute_expire_time_ms": -1},
        {"absolute_expire_time_ms": LAST_MOMENT_MS + 1},
        {"create_time_ms": 1.5},
        {"create_time_ms": True},
        {"rotated_tokens": (RotatedToken("d", LAST_MOMENT_MS + 1, ""),)},
        {"rotated_tokens": (RotatedToken("é", NOW_MS, ""),)},
        {"rotated_tokens": (RotatedToken("d", NOW_MS, "\ud800"),)},
    ],
    ids=str,
)
def test_what_cannot_be_stored_is_refused(changes: dict[str, Any]) -> None:
    """Each of these would be an unreadable record."""
    with pytest.raises(UnstorableSession):
        encode(replace(SESSION, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        dict.fromkeys(TIMES, LAST_MOMENT_MS),
        dict.fromkeys(TIMES, 0),
        {"version": LAST_MOMENT_MS},
        {"attributes": {}},
        {"user_id": "\x00\x7f\u2028\U0010ffff"},
    ],
    ids=str,
)
def test_the_extremes_are_stored(changes: dict[str, Any]) -> None:
    """The last values that a record can hold come back."""
    session = replace(SESSION, **changes)
    assert decode(encode(session)) == session


spans = st.none() | st.integers(-1, LIFETIME_MAX_MS + 1) | st.sampled_from([1, LIFETIME_MAX_MS, 10**15])
clocks = (
    st.integers(0, LAST_MOMENT_MS)
    | st.integers(LAST_MOMENT_MS - LIFETIME_MAX_MS - 5, LAST_MOMENT_MS)
    | st.integers(LAST_MOMENT_MS - 600_000, LAST_MOMENT_MS)
)


@given(
    now_ms=clocks,
    ttl_ms=spans,
    idle_timeout_ms=spans,
    defaults=st.tuples(st.integers(1, LIFETIME_MAX_MS), st.integers(0, LIFETIME_MAX_MS)),
    grace_ms=st.integers(0, 300_000),
)
def test_every_login_that_is_accepted_can_be_stored(
    now_ms: int, ttl_ms: int | None, idle_timeout_ms: int | None, defaults: tuple[int, int], grace_ms: int
) -> None:
    """Whatever the settings, the request and the clock: refused with the field's name, or stored, rotated or not."""
    policy = Policy(default_ttl_ms=defaults[0], default_idle_timeout_ms=defaults[1], max_ttl_ms=LIFETIME_MAX_MS)
    new = NewSession("12345", ttl_ms=ttl_ms, idle_timeout_ms=idle_timeout_ms)
    if violations := new.violations(policy):
        assert {each.field for each in violations} <= {"ttl", "idle_timeout"}
        return
    credential = Tokens(bytes).read(Tokens(bytes).mint())
    assert credential is not None
    if now_ms + (defaults[0] if ttl_ms is None else ttl_ms) > LAST_MOMENT_MS:
        with pytest.raises(InvalidRequest) as caught:
            new.start(credential, now_ms, policy)
        assert [each.field for each in caught.value.violations] == ["ttl"]
        return
    session = new.start(credential, now_ms, policy)
    assert decode(encode(session)) == session
    assert now_ms < session.expiry_if_active_at(now_ms) <= session.absolute_expire_time_ms
    rotated = session.rotate("e" * 43, "salt", grace_ms=grace_ms, now_ms=now_ms)
    assert decode(encode(rotated)) == rotated


@given(now_ms=clocks, end_ms=numbers, idle_timeout_ms=st.none() | numbers)
def test_every_update_that_is_accepted_can_be_stored(now_ms: int, end_ms: int, idle_timeout_ms: int | None) -> None:
    """Refused with the field's name, or stored."""
    policy = Policy(default_ttl_ms=1, default_idle_timeout_ms=0, max_ttl_ms=LIFETIME_MAX_MS)
    session = replace(SESSION, create_time_ms=now_ms, absolute_expire_time_ms=min(now_ms + 1000, LAST_MOMENT_MS))
    before = StoredSession(session, session.expiry_if_active_at(now_ms), b"")
    update = Update(session.session_id, absolute_expire_time_ms=end_ms, idle_timeout_ms=idle_timeout_ms)
    try:
        after = update.apply(before, now_ms, policy)
    except InvalidRequest as error:
        refused = {each.field for each in error.violations}
    else:
        refused = set()
        assert decode(encode(after.session)) == after.session
        assert after.expiry_ms <= after.session.absolute_expire_time_ms
    assert refused <= {"session.absolute_expire_time", "session.idle_timeout"}
