"""Login attempts: the state table of `attempts.py`, and that Python and the scripts calculate alike."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import fakeredis
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from tests.support.backends import Backend, Stores, a_call, stores
from tests.support.valkey import Valkey

from catraca_server.domain.session import Session
from catraca_server.store import Creation, IndexEntries, IndexEntry, scripts
from catraca_server.store.attempts import (
    ATTEMPT_LIFETIME_MS,
    WRITE_WINDOW_MS,
    committed_score,
    is_tombstone,
    moved,
    sequence_at,
    tombstone,
)

NOW_MS = 1_790_000_000_000
ID, USER = "0" * 21 + "1", "ana"
HOUR = 3_600_000

EXACT_CLOCK_US = 2**52 - 1
"""Scores are doubles: up to here (the year 2112) a sequence and the number after it differ."""

clocks = st.integers(1, EXACT_CLOCK_US)
user_ids = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=64)


# What a score says


@pytest.mark.parametrize(
    ("score", "sequence", "committed"),
    [(2, 2, False), (3, 2, True), (-2, 2, False), (-3, 2, True)],
    ids=["reserved or written", "committed", "evicting, not committed", "evicting, committed"],
)
def test_a_score_tells_the_sequence_and_whether_it_is_committed(score: int, sequence: int, committed: bool) -> None:
    """A committed score is odd, an evicting one negative, and the sequence is the same in all states."""
    entry = IndexEntry(ID, score)
    assert (entry.sequence, entry.is_committed) == (sequence, committed)


@given(clocks)
def test_a_sequence_stays_the_same_through_all_states(clock_us: int) -> None:
    """Whatever happens to an entry, it belongs to the same login."""
    sequence = sequence_at(clock_us)
    scores = [sequence, committed_score(sequence), -sequence, -committed_score(sequence)]
    assert {IndexEntry(ID, score).sequence for score in scores} == {sequence}
    assert [IndexEntry(ID, score).is_committed for score in scores] == [False, True, False, True]


@given(clocks, clocks)
def test_later_logins_have_larger_sequences(one_us: int, other_us: int) -> None:
    """Also against what is committed: logins of different microseconds never share a number."""
    if one_us < other_us:
        assert committed_score(sequence_at(one_us)) < sequence_at(other_us)


@pytest.mark.parametrize("sign", [1, -1], ids=["", "evicting"])
@pytest.mark.parametrize("age_ms", [0, WRITE_WINDOW_MS, ATTEMPT_LIFETIME_MS, ATTEMPT_LIFETIME_MS + 1, HOUR])
def test_when_a_login_is_over(age_ms: int, sign: int) -> None:
    """Reserved, it may be under way for its lifetime, which is longer than it may take; committed, it is over."""
    sequence = sequence_at((NOW_MS - age_ms) * 1000)
    reserved, committed = IndexEntry(ID, sign * sequence), IndexEntry(ID, sign * committed_score(sequence))
    is_recent = age_ms <= ATTEMPT_LIFETIME_MS
    assert reserved.is_recent(NOW_MS) is committed.is_recent(NOW_MS) is is_recent
    assert reserved.is_over(NOW_MS) is not is_recent
    assert committed.is_over(NOW_MS)
    assert WRITE_WINDOW_MS < ATTEMPT_LIFETIME_MS


@given(clocks, st.integers(-HOUR, HOUR), st.booleans(), st.sampled_from([1, -1]))
def test_a_moved_score_is_of_the_same_state(clock_us: int, shift_ms: int, is_committed: bool, sign: int) -> None:
    """It is what the login would have, had it been so much later."""
    later_us = clock_us + shift_ms * 1000
    if later_us > 0:
        sequences = (sequence_at(clock_us), sequence_at(later_us))
        score, later = (sign * (committed_score(each) if is_committed else each) for each in sequences)
        assert moved(score, shift_ms) == later


# Python and Lua

_CHECK_LUA = """
local text = tombstone(ARGV[1], ARGV[2])
return {
  as_text(sequence_at(tonumber(ARGV[3]))),
  as_text(committed(tonumber(ARGV[1]))),
  as_text(committed(-tonumber(ARGV[1]))),
  text,
  is_tombstone(text) and 1 or 0,
  is_tombstone(ARGV[4]) and 1 or 0,
  covers(tonumber(ARGV[1]), tonumber(ARGV[1])) and 1 or 0,
  covers(tonumber(ARGV[1]), tonumber(ARGV[1]) + 2) and 1 or 0,
  covers(sequence_at(clock_us()) - 2, 2) and 1 or 0,
  covers(sequence_at(clock_us() + 3600000000), 2) and 1 or 0,
}
"""

Run = Callable[..., Any]


@pytest.fixture(params=["fakeredis", "valkey"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Runs a command, on fakeredis and on a real Valkey."""
    if request.param == "fakeredis":
        with fakeredis.FakeStrictRedis() as client:
            yield client.execute_command
    else:
        valkey: Valkey = request.getfixturevalue("valkey")
        yield valkey.command


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(clock_us=clocks, user_id=user_ids)
def test_python_and_lua_agree(run: Run, clock_us: int, user_id: str) -> None:
    """On sequences, committed and evicting scores and tombstones, byte for byte but for how JSON escapes a text."""
    sequence = sequence_at(clock_us)
    python_tombstone = tombstone(sequence, user_id)
    script = scripts.load("attempts") + _CHECK_LUA.encode()
    args = (str(sequence), user_id, str(clock_us), python_tombstone)
    reserved, committed, evicting, lua_tombstone, *checks = run("EVAL", script, 0, *args)
    assert int(reserved) == sequence
    assert int(committed) == committed_score(sequence)
    assert int(evicting) == -committed_score(sequence)
    assert is_tombstone(lua_tombstone)
    assert json.loads(lua_tombstone) == json.loads(python_tombstone) == {"void": sequence, "user_id": user_id}
    assert checks[:2] == [1, 1], "each is a tombstone to the other"
    assert checks[2:] == [1, 0, 1, 0], "it covers its own login and earlier ones, unless it is ahead of the clock"


@given(user_ids)
def test_a_tombstone_is_not_a_record(user_id: str) -> None:
    """Nor a record a tombstone, whatever the user id is."""
    assert is_tombstone(tombstone(2, user_id))
    assert not is_tombstone(json.dumps({"id": ID, "user_id": user_id, "void": 2}).encode())


# The state table

RESERVED, WRITTEN, COMMITTED, EVICTING, GONE = "reserved", "written", "committed", "evicting", "gone"
EVICTING_RESERVED, BURIED = "evicting, reserved", "gone, with a tombstone"


@dataclass
class Attempt:
    """A login that is taken through its states, one step at a time."""

    backend: Backend
    made: Stores
    session: Session
    entry: IndexEntry | None = None

    async def reserve(self) -> None:
        """Reserves its place in the index."""
        reservation = await self.made.index.reserve(self.session, limit=0, evict_oldest=False, call=a_call())
        self.entry = reservation.entry

    async def write(self) -> None:
        """Writes its session."""
        assert self.entry is not None
        await self.made.sessions.create(self.session, self.entry, a_call())

    async def commit(self) -> None:
        """Commits."""
        assert self.entry is not None
        await self.made.index.commit(USER, self.entry, a_call())

    async def evict(self) -> None:
        """Is chosen to make room for another login, which then gives up its own place."""
        other = replace(self.session, session_id="0" * 22)
        reservation = await self.made.index.reserve(other, limit=1, evict_oldest=True, call=a_call())
        assert reservation.entry is not None
        await self.made.index.remove(USER, [reservation.entry], a_call())

    async def end(self) -> None:
        """Is ended by its entry, which is removed then."""
        entry = await self.made.index.entry(USER, ID, a_call())
        assert entry is not None
        entries = IndexEntries(await self.backend.now(), [entry])
        assert await self.made.sessions.end(USER, entries, a_call()) == [ID]
        await self.made.index.remove(USER, [entry], a_call())

    async def expire(self) -> None:
        """Its session ends by itself."""
        await self.backend.command("DEL", f"session:{ID}")

    async def grow_old(self) -> None:
        """Time passes, until it can no longer be under way."""
        await self.backend.travel(ATTEMPT_LIFETIME_MS + 1)

    async def state(self) -> str:
        """Returns the state by what is in the store, read without any help of the code under test."""
        score = await self.backend.command("ZSCORE", f"user-sessions:{USER}", ID)
        held = await self.backend.command("GET", f"session:{ID}")
        if score is None:
            return BURIED if held is not None and held.startswith(b'{"void":') else GONE
        number = int(float(score))
        if number < 0:
            return EVICTING if number % 2 or held else EVICTING_RESERVED
        if number % 2:
            return COMMITTED
        return WRITTEN if held else RESERVED


STEPS_TO: dict[str, tuple[str, ...]] = {
    RESERVED: ("reserve",),
    WRITTEN: ("reserve", "write"),
    COMMITTED: ("reserve", "write", "commit"),
    EVICTING_RESERVED: ("reserve", "evict"),
    EVICTING: ("reserve", "write", "commit", "evict"),
    BURIED: ("reserve", "write", "commit", "end"),
    GONE: ("reserve", "write", "commit", "grow_old", "end"),
}


@pytest.mark.parametrize("unopened_backend", ["fakeredis", "valkey"], indirect=True)
@pytest.mark.parametrize(
    ("before", "step", "after"),
    [
        (RESERVED, "write", WRITTEN),
        (RESERVED, "evict", EVICTING_RESERVED),
        (RESERVED, "end", BURIED),
        (WRITTEN, "commit", COMMITTED),
        (WRITTEN, "evict", EVICTING),
        (WRITTEN, "end", BURIED),
        (WRITTEN, "reserve", WRITTEN),
        (COMMITTED, "commit", COMMITTED),
        (COMMITTED, "expire", COMMITTED),
        (COMMITTED, "evict", EVICTING),
        (COMMITTED, "end", BURIED),
        (COMMITTED, "write", COMMITTED),
        (EVICTING_RESERVED, "write", EVICTING),
        (EVICTING_RESERVED, "commit", EVICTING),
        (EVICTING_RESERVED, "end", BURIED),
        (EVICTING, "commit", EVICTING),
        (EVICTING, "end", BURIED),
        (EVICTING, "expire", EVICTING),
        (EVICTING, "reserve", WRITTEN),
        (BURIED, "write", BURIED),
        (BURIED, "commit", BURIED),
        (BURIED, "reserve", RESERVED),
        (BURIED, "grow_old", GONE),
        (GONE, "reserve", RESERVED),
        (GONE, "commit", GONE),
        (GONE, "write", GONE),
    ],
)
async def test_each_step_from_each_state(backend: Backend, before: str, step: str, after: str) -> None:
    """As the table in `attempts.py` says; a step that comes too late changes nothing."""
    async with stores(backend) as made:
        now = await backend.now()
        session = Session(
            session_id=ID,
            user_id=USER,
            digest="d" * 43,
            attributes={},
            create_time_ms=now,
            absolute_expire_time_ms=now + HOUR,
            idle_timeout_ms=0,
        )
        attempt = Attempt(backend, made, session)
        for each in STEPS_TO[before]:
            await getattr(attempt, each)()
        assert await attempt.state() == before
        await getattr(attempt, step)()
        held = await backend.command("GET", f"session:{ID}")
        if (before, step) == (BURIED, "reserve"):
            assert held is not None
            assert is_tombstone(held), "what keeps the earlier login from writing stays"
            outcome, _ = await made.sessions.create(session, attempt.entry or IndexEntry(ID, 0), a_call())
            assert outcome is Creation.CREATED, "and does not keep this one from it"
            after = WRITTEN
        assert await attempt.state() == after
