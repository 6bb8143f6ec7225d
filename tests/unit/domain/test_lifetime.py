"""How long a session lives, and how its expiry tells its last activity."""

from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from catraca_server.domain.session import Session, StoredSession

BIRTH = 1_790_000_000_000
SECOND, MINUTE, HOUR, DAY = 1000, 60_000, 3_600_000, 86_400_000

spans = st.integers(1, 40 * DAY)
idle_timeouts = st.one_of(st.just(0), st.integers(1, 40 * DAY), st.integers(1, 10 * SECOND))


def a_session(ttl: int = DAY, idle_timeout: int = 30 * MINUTE) -> Session:
    """Returns a session that begins at BIRTH."""
    return Session(
        session_id="0" * 22,
        user_id="12345",
        digest="d",
        attributes={},
        create_time_ms=BIRTH,
        absolute_expire_time_ms=BIRTH + ttl,
        idle_timeout_ms=idle_timeout,
    )


def live_at(session: Session, moment: int) -> StoredSession:
    """Returns the session as the store has it after activity at `moment`."""
    return StoredSession(session, session.expiry_if_active_at(moment), b"")


@pytest.mark.parametrize(
    ("idle_timeout", "interval"),
    [(0, MINUTE), (DAY, MINUTE), (20 * MINUTE, MINUTE), (MINUTE, 3 * SECOND), (SECOND, 50), (19, 1), (1, 1)],
)
def test_the_touch_interval(idle_timeout: int, interval: int) -> None:
    """It is min(60 s, idle_timeout / 20), a minute without an idle timeout, and never zero."""
    assert a_session(idle_timeout=idle_timeout).touch_interval_ms == interval


@given(ttl=spans, idle_timeout=idle_timeouts, age=st.floats(0, 1, exclude_max=True))
def test_a_session_ends_in_time(ttl: int, idle_timeout: int, age: float) -> None:
    """After activity it ends at the earlier deadline, or before it by less than a minute, and never late."""
    session = a_session(ttl, idle_timeout)
    moment = BIRTH + int(ttl * age)
    expiry = session.expiry_if_active_at(moment)
    deadline = session.absolute_expire_time_ms
    if idle_timeout:
        deadline = min(deadline, moment + idle_timeout)
    assert moment < expiry <= deadline
    assert deadline - expiry < MINUTE


@given(ttl=spans, idle_timeout=idle_timeouts, age=st.floats(0, 1, exclude_max=True))
def test_the_expiry_tells_the_last_activity(ttl: int, idle_timeout: int, age: float) -> None:
    """It is read back from the expiry: never later than it was, and at most a step earlier."""
    session = a_session(ttl, idle_timeout)
    moment = BIRTH + int(ttl * age)
    read_back = session.last_active_given(session.expiry_if_active_at(moment))
    # With less than a step to live, an expiry is too near to tell the millisecond.
    assert BIRTH <= read_back <= max(moment, session.absolute_expire_time_ms)
    if session.absolute_expire_time_ms - moment > max(SECOND, session.touch_interval_ms):
        assert moment - max(SECOND, session.touch_interval_ms) < read_back <= moment


@given(ttl=spans, idle_timeout=idle_timeouts, ages=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_more_activity_never_ends_a_session_earlier(ttl: int, idle_timeout: int, ages: tuple[float, float]) -> None:
    """Later activity gives the same expiry or a later one."""
    session = a_session(ttl, idle_timeout)
    earlier, later = sorted(BIRTH + int(age * (ttl - 1)) for age in ages)
    assert session.expiry_if_active_at(earlier) <= session.expiry_if_active_at(later)


def test_while_the_idle_deadline_is_the_earlier_the_expiry_is_exact() -> None:
    """Far from the absolute deadline the expiry is the last activity plus the idle timeout, to the millisecond."""
    session = a_session(ttl=DAY, idle_timeout=30 * MINUTE)
    for moment in (BIRTH, BIRTH + 1, BIRTH + 12 * HOUR):
        stored = live_at(session, moment)
        assert stored.expiry_ms == moment + 30 * MINUTE == stored.expire_time_ms
        assert stored.last_active_time_ms == moment


def test_how_early_an_unused_session_ends() -> None:
    """A day that is never used ends 1.44 s early; one that is used until the end, a millisecond."""
    session = a_session(ttl=DAY, idle_timeout=0)
    assert session.absolute_expire_time_ms - session.expiry_if_active_at(BIRTH) == 1440
    assert session.absolute_expire_time_ms - session.expiry_if_active_at(BIRTH + DAY - MINUTE) == 1


@given(ttl=spans, idle_timeout=idle_timeouts, age=st.floats(0, 1, exclude_max=True))
def test_activity_within_the_touch_interval_is_not_recorded(ttl: int, idle_timeout: int, age: float) -> None:
    """A touch is due a touch interval after the last one; under the absolute deadline at most a step before that."""
    session = a_session(ttl, idle_timeout)
    moment = BIRTH + int(ttl * age)
    stored = live_at(session, moment)
    assert stored.touch_due(max(moment, stored.last_active_time_ms) + session.touch_interval_ms)
    if stored.last_active_time_ms == moment:
        assert not stored.touch_due(moment + session.touch_interval_ms - 1)


@given(ttl=spans, idle_timeout=idle_timeouts, age=st.floats(0, 1, exclude_max=True), wait=st.integers(0, 2 * MINUTE))
def test_a_validation_is_never_cached_past_the_next_touch_or_the_end(
    ttl: int, idle_timeout: int, age: float, wait: int
) -> None:
    """`cache_ttl` ends neither after the touch interval, nor after the session, and is not negative."""
    session = a_session(ttl, idle_timeout)
    moment = BIRTH + int(ttl * age)
    stored = live_at(session, moment)
    now = moment + wait
    cache_ttl = stored.cache_ttl_ms(now)
    assert 0 <= cache_ttl <= session.touch_interval_ms
    assert not cache_ttl or now + cache_ttl <= stored.expiry_ms
    assert not cache_ttl or now + cache_ttl <= stored.last_active_time_ms + session.touch_interval_ms


def test_the_etag_tells_versions_and_sessions_apart() -> None:
    """It changes with the version, and a session that a brought token opens anew does not repeat an old one."""
    session = a_session()
    etags = {each.etag for each in (session, replace(session, version=2), replace(session, create_time_ms=BIRTH + 1))}
    assert len(etags) == 3
