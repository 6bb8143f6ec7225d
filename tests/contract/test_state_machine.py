"""Sessions against a plain model, over long random lives: create, validate, touch, expire, revoke.

The model knows the guarantees and not how they are kept: a session is alive until the earlier of its deadlines, and may
end up to a touch interval before its idle deadline. Where both outcomes are right the model learns which one it was.
"""

import asyncio
import os
import secrets
import zlib
from collections.abc import Awaitable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from enum import Enum, auto
from typing import ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from tests.support.backends import Backend, fake_backend, session_store, valkey_backend
from tests.support.valkey import Valkey

from catraca_server.domain import Check, InvalidReason, Live, NewSession, Policy, SessionNotFound, TokenInUse, Verdict
from catraca_server.sessions import Sessions
from catraca_server.tokens import Tokens, _base62

SECOND, MINUTE, HOUR, DAY = 1000, 60_000, 3_600_000, 86_400_000
LONG = "CATRACA_TEST_LONG" in os.environ
USERS = ("ana", "bia", "caio")
BROUGHT = tuple(f"brought-token-number-{at}" for at in range(3))
_T = TypeVar("_T")


class Life(Enum):
    """What a session must be now."""

    ALIVE = auto()
    DEAD = auto()
    EITHER = auto()


@dataclass
class Expected:
    """A session as the model knows it. Moments are intervals, because a real store's clock does not wait for us."""

    token: str
    user_id: str
    session_id: str
    ttl: int
    idle_timeout: int
    born: tuple[int, int]
    active: tuple[int, int]
    over: bool = False

    @property
    def touch_interval(self) -> int:
        """min(60 s, idle_timeout / 20), as guaranteed."""
        return min(MINUTE, self.idle_timeout // 20) if self.idle_timeout else MINUTE

    def life(self, now: tuple[int, int]) -> Life:
        """Whether it must be alive, must be dead, or may be either."""
        ends = [at + self.ttl for at in self.born]
        # The expiry stops short of the absolute deadline by less than a thousandth of the life that is left.
        early = self.ttl // 1000 + 2
        if self.idle_timeout:
            ends = [min(end, at + self.idle_timeout) for end, at in zip(ends, self.active, strict=True)]
            early = max(early, self.touch_interval + 2)
        if self.over or now[0] > ends[1]:
            return Life.DEAD
        return Life.ALIVE if now[1] < ends[0] - early else Life.EITHER


class SessionMachine(RuleBasedStateMachine):
    """Drives `Sessions` over one backend."""

    backend: ClassVar[Backend]
    runner: ClassVar[asyncio.Runner]
    moves_past: ClassVar[bool]
    """Whether time passes by moving what is stored into the past."""

    sessions_made = Bundle("sessions_made")

    def __init__(self) -> None:
        super().__init__()
        self.travelled = 0
        self.stack = AsyncExitStack()
        self.known: list[Expected] = []

    def run(self, work: Awaitable[_T]) -> _T:
        """Runs a coroutine to its end."""

        async def waited() -> _T:
            return await work

        return self.runner.run(waited())

    def timed(self, work: Awaitable[_T]) -> tuple[_T, tuple[int, int]]:
        """Runs an operation and returns between which moments it happened."""
        before = self.now()
        result = self.run(work)
        return result, (before, self.now())

    def now(self) -> int:
        """Returns the time as the model counts it."""
        return self.run(self.backend.now()) + self.offset

    @property
    def offset(self) -> int:
        """What to add to a moment from the store to get the model's."""
        return self.travelled if self.moves_past else 0

    @property
    def deadline(self) -> float:
        """Returns a deadline that is never reached."""
        return self.runner.get_loop().time() + 30

    @initialize()
    def open(self) -> None:
        """Starts with an empty store."""
        self.run(self.backend.command("FLUSHALL"))
        store = self.run(self.stack.enter_async_context(session_store(self.backend)))
        policy = Policy(default_ttl=DAY, default_idle_timeout=30 * MINUTE, max_ttl=30 * DAY)
        self.sessions = Sessions(store, Tokens(secrets.token_bytes), policy)

    def teardown(self) -> None:
        """Closes the store."""
        self.run(self.stack.aclose())

    @rule(
        target=sessions_made,
        user_id=st.sampled_from(USERS),
        ttl=st.sampled_from([500, 5 * SECOND, MINUTE, HOUR, DAY, 30 * DAY]),
        idle_timeout=st.sampled_from([0, 200, 5 * SECOND, MINUTE, 20 * MINUTE, 2 * HOUR, 30 * DAY]),
        brought=st.sampled_from(("", "", *BROUGHT)),
    )
    def create(self, user_id: str, ttl: int, idle_timeout: int, brought: str) -> Expected:
        """Logs somebody in, sometimes with a token that is in use."""
        new = NewSession(user_id, ttl, idle_timeout, {"user": user_id}, brought)
        holder = next((each for each in self.known if brought and each.token == brought and not each.over), None)
        before = self.now()
        try:
            login = self.run(self.sessions.create(new, self.deadline))
        except TokenInUse:
            assert holder is not None
            assert holder.life((before, self.now())) is not Life.DEAD
            # Real time decides whether we get here, so it must not decide how many sessions there are to draw from.
            return holder
        moment = (before, self.now())
        if holder is not None:
            assert holder.life(moment) is not Life.ALIVE, "a live session's token was given to another"
            holder.over = True
        assert login.live.session.user_id == user_id
        expected = Expected(
            login.token, user_id, login.live.session.session_id, ttl, idle_timeout, born=moment, active=moment
        )
        self.known.append(expected)
        return expected

    @rule(
        asked=st.lists(
            st.tuples(sessions_made, st.sampled_from(["nobody", "owner", "other"]), st.booleans()),
            min_size=1,
            max_size=4,
        )
    )
    def validate(self, asked: list[tuple[Expected, str, bool]]) -> None:
        """Asks about one token or several, also twice about one, for the right user and for another."""
        checks = [Check(each.token, self.user_named(each, whose), skip_touch) for each, whose, skip_touch in asked]
        verdicts, moment = self.timed(self.sessions.validate(checks, self.deadline))
        for (expected, whose, _), verdict in zip(asked, verdicts, strict=True):
            self.learn(self.current(expected), verdict, whose == "other", moment)
        # In one batch a probe may be answered before or after the activity of another check of the same token.
        were_active = {each.token: self.current(each).active for each, _, _ in asked}
        for (expected, _, skip_touch), verdict in zip(asked, verdicts, strict=True):
            if verdict.live is not None and not skip_touch:
                self.current(expected).active = moment
        for (expected, _, _), verdict in zip(asked, verdicts, strict=True):
            if verdict.live is not None:
                self.agrees(self.current(expected), verdict.live, were_active[expected.token])
                assert 0 <= verdict.cache_ttl <= max(1, self.current(expected).touch_interval)

    def user_named(self, expected: Expected, whose: str) -> str:
        """Returns the user that a check names."""
        other = USERS[(USERS.index(self.current(expected).user_id) + 1) % len(USERS)]
        return {"nobody": "", "owner": self.current(expected).user_id, "other": other}[whose]

    def current(self, expected: Expected) -> Expected:
        """Returns the last session that this one's token opened: a brought token may have been brought again."""
        return next(each for each in reversed(self.known) if each.token == expected.token)

    def learn(self, expected: Expected, verdict: Verdict, other_user: bool, moment: tuple[int, int]) -> None:
        """Checks an answer against what the model knows, and learns from it what it could not know."""
        life = expected.life(moment)
        if verdict.reason is InvalidReason.NOT_FOUND:
            assert life is not Life.ALIVE, "a live session was denied"
            expected.over = True
            return
        assert life is not Life.DEAD, "a dead session was let through"
        if other_user:
            assert verdict == Verdict(None, InvalidReason.USER_MISMATCH)
        else:
            assert verdict.live is not None

    def agrees(self, expected: Expected, live: Live, was_active: tuple[int, int]) -> None:
        """Checks what is told of a live session that was last active at `was_active` or at what is known now."""
        session = live.session
        assert (session.session_id, session.user_id) == (expected.session_id, expected.user_id)
        assert session.attributes == {"user": expected.user_id}
        assert expected.born[0] <= session.create_time + self.offset <= expected.born[1]
        assert session.absolute_expire_time - session.create_time == expected.ttl
        assert live.expire_time <= session.absolute_expire_time
        assert live.expiry <= live.expire_time
        told = live.last_active_time + self.offset
        mark = max(SECOND, expected.touch_interval)
        if expected.born[0] + expected.ttl - expected.active[1] > mark:
            assert was_active[0] - mark - 1 <= told <= expected.active[1]

    @rule(expected=sessions_made)
    def get(self, expected: Expected) -> None:
        """Reads a session by its id, which is no activity."""
        expected = self.current(expected)
        before = self.now()
        try:
            live = self.run(self.sessions.get(expected.session_id, self.deadline))
        except SessionNotFound:
            assert expected.life((before, self.now())) is not Life.ALIVE
            expected.over = True
        else:
            assert expected.life((before, self.now())) is not Life.DEAD
            self.agrees(expected, live, expected.active)

    @rule(expected=sessions_made, by_token=st.booleans())
    def revoke(self, expected: Expected, by_token: bool) -> None:
        """Ends a session; whether there was one must be true."""
        expected = self.current(expected)
        if by_token:
            revoked, moment = self.timed(self.sessions.revoke_token(expected.token, self.deadline))
        else:
            revoked, moment = self.timed(self.sessions.revoke(expected.session_id, self.deadline))
        assert expected.life(moment) is not (Life.DEAD if revoked else Life.ALIVE)
        expected.over = True

    @rule(expected=sessions_made, revoking=st.booleans())
    def forge(self, expected: Expected, revoking: bool) -> None:
        """Presents the public id with a made-up secret: that opens nothing, and ends nothing."""
        body = expected.session_id + _base62(secrets.randbits(256), 43)
        forged = f"ctr_{body}{_base62(zlib.crc32(body.encode()), 6)}"
        if revoking:
            assert not self.run(self.sessions.revoke_token(forged, self.deadline))
        else:
            (verdict,) = self.run(self.sessions.validate([Check(forged)], self.deadline))
            assert verdict == Verdict(None, InvalidReason.NOT_FOUND)

    @rule(
        span=st.sampled_from([1, 30, 100, SECOND, 3 * SECOND, 20 * SECOND, MINUTE, 5 * MINUTE, HOUR, 5 * HOUR, 9 * DAY])
    )
    def wait(self, span: int) -> None:
        """Lets time pass."""
        self.run(self.backend.travel(span))
        self.travelled += span

    @rule(expected=sessions_made, distance=st.sampled_from([-70 * SECOND, -1 * SECOND, -1, 1, 2 * SECOND]))
    def wait_for_a_deadline(self, expected: Expected, distance: int) -> None:
        """Lets time pass until about a session's end."""
        end = expected.born[0] + expected.ttl
        if expected.idle_timeout:
            end = min(end, expected.active[0] + expected.idle_timeout)
        span = end + distance - self.now()
        if span > 0:
            self.wait(span)

    @invariant()
    def every_key_expires(self) -> None:
        """No key is without an expiry."""
        assert all(ttl >= 0 for ttl in self.run(self.backend.keys()).values())


@pytest.fixture(params=["fakeredis", "valkey"])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[SessionMachine]]:
    """The machine over each backend, in an event loop of its own."""
    valkey: Valkey | None = request.getfixturevalue("valkey") if request.param == "valkey" else None
    made = fake_backend(monkeypatch) if valkey is None else valkey_backend(valkey)
    with asyncio.Runner() as own_runner:

        class OverThisBackend(SessionMachine):
            backend = made
            runner = own_runner
            moves_past = valkey is not None

        yield OverThisBackend
        own_runner.run(made.close())


def test_sessions_do_what_the_model_says(machine: type[SessionMachine]) -> None:
    """Whatever is done in whatever order: no live session is denied, no dead one let through."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=3000 if LONG else 300,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
