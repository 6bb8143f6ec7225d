"""All operations against a simple model, in long random sequences, on every backend."""

import asyncio
import os
import secrets
import zlib
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from tests.support.backends import Backend, FakeBackend, Operations, stores
from tests.support.model import DAY, GRACE, HOUR, MINUTE, SECOND, Expected, Life, Moment, Users

from catraca_server.domain.call import Call
from catraca_server.domain.commands import NewSession, Update
from catraca_server.domain.encoding import base62
from catraca_server.domain.errors import (
    EtagMismatch,
    InvalidRequest,
    SessionLimitReached,
    SessionNotFound,
    TokenInUse,
    TokenReused,
)
from catraca_server.domain.session import StoredSession
from catraca_server.domain.validation import InvalidReason, Validation, ValidationRequest

LONG = "CATRACA_TEST_LONG" in os.environ
USERS = ("ana", "bia")
BROUGHT = tuple(f"brought-token-number-{at}" for at in range(3))
IDLE_TIMEOUTS = (0, 200, 5 * SECOND, MINUTE, 20 * MINUTE, 2 * HOUR, 30 * DAY)
_T = TypeVar("_T")


class SessionMachine(RuleBasedStateMachine):
    """Drives the operations over one backend."""

    backend: ClassVar[Backend]
    runner: ClassVar[asyncio.Runner]
    moves_past: ClassVar[bool]
    """Whether time passes by moving stored data into the past."""

    made = Bundle("made")

    def __init__(self) -> None:
        super().__init__()
        self.travelled = 0
        self.stack = AsyncExitStack()
        self.users = Users()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Runs a coroutine to its end."""
        return self.runner.run(work)

    def now(self) -> int:
        """Returns the time as the model counts it."""
        return self.run(self.backend.now()) + self.offset

    @property
    def offset(self) -> int:
        """What to add to a moment of the store to get the model's."""
        return self.travelled if self.moves_past else 0

    @property
    def call(self) -> Call:
        """Returns a call whose deadline is never reached."""
        return Call(deadline=self.runner.get_loop().time() + 60)

    @initialize(limit=st.sampled_from([0, 0, 1, 3]), evict=st.booleans())
    def open(self, limit: int, evict: bool) -> None:
        """Starts with an empty store, under some policy."""
        self.run(self.backend.command("FLUSHALL"))
        opened = self.run(self.stack.enter_async_context(stores(self.backend)))
        self.do = Operations.over(opened, max_sessions_per_user=limit, evict_oldest=evict, rotation_grace_ms=GRACE)

    def teardown(self) -> None:
        """Closes the store."""
        self.run(self.stack.aclose())

    @rule(
        target=made,
        user_id=st.sampled_from(USERS),
        ttl_ms=st.sampled_from([500, 5 * SECOND, MINUTE, HOUR, DAY, 30 * DAY]),
        idle_timeout_ms=st.sampled_from(IDLE_TIMEOUTS),
        brought=st.sampled_from(("", "", *BROUGHT)),
    )
    def create(self, user_id: str, ttl_ms: int, idle_timeout_ms: int, brought: str) -> Expected | None:
        """Logs a user in, sometimes with a token that is in use, sometimes over the limit."""
        new = NewSession(user_id, ttl_ms, idle_timeout_ms, {"user": user_id}, brought)
        holder = next((each for each in reversed(self.users.all) if brought and self.was_brought(each, brought)), None)
        before = self.now()
        try:
            login = self.run(self.do.users.create(new, self.call))
        except TokenInUse:
            assert holder is not None
            assert holder.life((before, self.now())) is not Life.DEAD
            return None
        except SessionLimitReached:
            self.was_full(user_id, (before, self.now()))
            return None
        now = (before, self.now())
        if holder is not None:
            assert holder.life(now) is not Life.ALIVE, "a token of a live session was accepted again"
            holder.over = True
        session = login.stored.session
        expected = Expected(
            session.session_id,
            user_id,
            login.token,
            {"user": user_id},
            session.create_time_ms + self.offset,
            session.absolute_expire_time_ms + self.offset,
            idle_timeout_ms,
            active=now,
        )
        assert before <= expected.born <= now[1]
        assert expected.end - expected.born == ttl_ms
        self.was_evicted(user_id, login.evicted_session_ids, now)
        self.users.all.append(expected)
        return expected

    @staticmethod
    def was_brought(expected: Expected, token: str) -> bool:
        """Whether a session began with this token."""
        return token in (expected.token, *(retired for retired, _ in expected.rotated_tokens))

    def was_full(self, user_id: str, now: Moment) -> None:
        """Checks a rejection: there are as many as allowed."""
        policy = self.do.policy
        assert policy.max_sessions_per_user
        assert not policy.evict_oldest
        _, most = self.users.count(user_id, now)
        assert most >= policy.max_sessions_per_user, "refused though there was room"

    def was_evicted(self, user_id: str, evicted: Any, now: Moment) -> None:
        """Checks an eviction: only at the limit, only as many as it takes, the oldest first."""
        limit = self.do.policy.max_sessions_per_user
        mine = self.users.of(user_id)
        alive = [each for each in mine if each.life(now) is Life.ALIVE]
        for session_id in evicted:
            gone = self.users.by_id(session_id)
            assert gone.user_id == user_id
            assert gone.life(now) is not Life.DEAD, "evicted what had ended"
            gone.over = True
        kept = [each for each in alive if not each.over]
        if limit:
            assert len(kept) < limit, "more live sessions than allowed"
            assert not evicted or self.do.policy.evict_oldest
        else:
            assert not evicted
        for session_id in evicted:
            assert all(mine.index(self.users.by_id(session_id)) < mine.index(each) for each in kept)

    @rule(
        chosen=st.lists(
            st.tuples(made, st.sampled_from(["nobody", "owner", "other"]), st.booleans(), st.integers(0, 3)),
            min_size=1,
            max_size=4,
        )
    )
    def validate(self, chosen: list[tuple[Expected | None, str, bool, int]]) -> None:
        """Validates tokens, current and rotated, for the right user and for another, several at once."""
        requests, about = [], []
        for made, whose, skip_touch, age in chosen:
            if made is not None:
                expected = self.users.by_id(made.session_id)
                other = USERS[1 - USERS.index(expected.user_id)]
                user_id = {"nobody": "", "owner": expected.user_id, "other": other}[whose]
                requests.append(ValidationRequest(self.token_of(expected, age), user_id, skip_touch))
                about.append(expected)
        before = self.now()
        validations = self.run(self.do.sessions.validate(requests, self.call))
        now = (before, self.now())
        # In one batch, requests about the same session may be validated before or after one of them has its effect.
        were_active = {each.session_id: each.active for each in about}
        reused = {each.session_id for each, validation in zip(about, validations, strict=True) if _is_reuse(validation)}
        for request, expected, validation in zip(requests, about, validations, strict=True):
            self.learn(request, expected, validation, now, in_doubt=expected.session_id in reused)
        for request, expected, validation in zip(requests, about, validations, strict=True):
            if validation.stored is not None and not request.skip_touch:
                expected.active = now
            if expected.session_id in reused:
                expected.over = True
        for expected, validation in zip(about, validations, strict=True):
            if validation.stored is not None:
                self.agrees(expected, validation.stored, were_active[expected.session_id])
                assert 0 <= validation.cache_ttl_ms <= max(1, expected.touch_interval_ms)

    @staticmethod
    def token_of(expected: Expected, age: int) -> str:
        """Returns the token that is so many rotations old, or the oldest."""
        tokens = [expected.token, *(token for token, _ in reversed(expected.rotated_tokens))]
        return tokens[min(age, len(tokens) - 1)]

    def learn(
        self, request: ValidationRequest, expected: Expected, validation: Validation, now: Moment, *, in_doubt: bool
    ) -> None:
        """Checks a validation against the model, which learns from it what it cannot know."""
        life, grace = expected.life(now), expected.grace(request.token, now)
        if validation.reason is InvalidReason.NOT_FOUND:
            assert life is not Life.ALIVE or in_doubt, "a live session was denied"
            if not in_doubt:  # else it is over after the whole batch
                expected.over = True
        elif _is_reuse(validation):
            assert life is not Life.DEAD
            assert grace in (Life.DEAD, Life.EITHER), "a token within its grace counted as reused"
        else:
            assert life is not Life.DEAD, "an ended session was valid"
            assert grace is not Life.DEAD, "a token was valid after its grace"
            if request.user_id not in ("", expected.user_id):
                assert validation == Validation(None, InvalidReason.USER_MISMATCH)
            else:
                assert validation.stored is not None
                assert validation.token_rotated == (request.token != expected.token)

    def agrees(self, expected: Expected, stored: StoredSession, was_active: Moment) -> None:
        """Checks a live session that was last active at `was_active`, or as is known now."""
        session = stored.session
        assert (session.session_id, session.user_id) == (expected.session_id, expected.user_id)
        assert session.attributes == expected.attributes
        assert session.version == expected.versions
        assert session.create_time_ms + self.offset == expected.born
        assert session.absolute_expire_time_ms + self.offset == expected.end
        assert session.idle_timeout_ms == expected.idle_timeout_ms
        assert stored.expiry_ms <= stored.expire_time_ms <= session.absolute_expire_time_ms
        recorded = stored.last_active_time_ms + self.offset
        if expected.end - expected.active[1] > expected.precision_ms:
            assert was_active[0] - expected.precision_ms - 1 <= recorded <= expected.active[1]

    @rule(made=made)
    def get(self, made: Expected | None) -> None:
        """Reads a session by its id, which is not activity."""
        if made is None:
            return
        expected = self.users.by_id(made.session_id)
        before = self.now()
        try:
            stored = self.run(self.do.sessions.get(expected.session_id, self.call))
        except SessionNotFound:
            self.ended(expected, (before, self.now()))
        else:
            assert expected.life((before, self.now())) is not Life.DEAD
            self.agrees(expected, stored, expected.active)

    def ended(self, expected: Expected, now: Moment) -> None:
        """Learns that a session has ended."""
        assert expected.life(now) is not Life.ALIVE, "a live session was not found"
        expected.over = True

    @rule(
        made=made,
        entries=st.dictionaries(st.sampled_from(["a", "b"]), st.sampled_from([None, "x", "y"]), max_size=2),
        end=st.sampled_from([None, None, SECOND, HOUR, 20 * DAY]),
        idle_timeout_ms=st.sampled_from([None, None, *IDLE_TIMEOUTS]),
        stale=st.booleans(),
    )
    def update(
        self,
        made: Expected | None,
        entries: dict[str, str | None],
        end: int | None,
        idle_timeout_ms: int | None,
        stale: bool,
    ) -> None:
        """Changes attributes and times, sometimes with the etag of another version."""
        if made is None:
            return
        expected = self.users.by_id(made.session_id)
        before = self.now()
        end = None if end is None else before + end
        etag = f"{expected.born - self.offset:x}-{expected.versions - stale:x}"
        stored_end = None if end is None else end - self.offset
        update = Update(expected.session_id, etag, None, entries, stored_end, idle_timeout_ms)
        try:
            stored = self.run(self.do.sessions.update(update, self.call))
        except SessionNotFound:
            self.ended(expected, (before, self.now()))
        except EtagMismatch:
            assert stale
        except InvalidRequest:
            # It has been idle for longer, or the deadline is no longer in the future.
            assert idle_timeout_ms is not None or end is not None
        else:
            now = (before, self.now())
            assert not stale
            assert expected.life(now) is not Life.DEAD
            expected.versions += 1
            expected.end = expected.end if end is None else end
            expected.idle_timeout_ms = expected.idle_timeout_ms if idle_timeout_ms is None else idle_timeout_ms
            # The activity is known as it was recorded.
            recorded = stored.last_active_time_ms + self.offset
            assert recorded <= expected.active[1] or expected.end - recorded < expected.precision_ms
            expected.active = (min(recorded, expected.active[0]), expected.active[1])
            for key, value in entries.items():
                expected.attributes.pop(key, None)
                if value is not None:
                    expected.attributes[key] = value
            self.agrees(expected, stored, expected.active)

    @rule(made=made, age=st.integers(0, 3))
    def rotate(self, made: Expected | None, age: int) -> None:
        """Rotates a token, current or rotated."""
        if made is None:
            return
        expected = self.users.by_id(made.session_id)
        token = self.token_of(expected, age)
        before = self.now()
        try:
            rotation = self.run(self.do.sessions.rotate(token, self.call))
        except SessionNotFound:
            self.ended(expected, (before, self.now()))
        except TokenReused:
            now = (before, self.now())
            assert expected.life(now) is not Life.DEAD
            assert expected.grace(token, now) in (Life.DEAD, Life.EITHER)
            expected.over = True
        else:
            now = (before, self.now())
            assert expected.life(now) is not Life.DEAD
            if token == expected.token:
                expected.rotate(rotation.token, now)
            else:
                assert expected.grace(token, now) is not Life.DEAD
                assert rotation.token == expected.token
            self.agrees(expected, rotation.stored, expected.active)

    @rule(made=made, by_token=st.booleans(), age=st.integers(0, 3))
    def revoke(self, made: Expected | None, by_token: bool, age: int) -> None:
        """Revokes a session; the result must say whether there was one."""
        if made is None:
            return
        expected = self.users.by_id(made.session_id)
        before = self.now()
        if by_token:
            revoked = self.run(self.do.sessions.revoke_token(self.token_of(expected, age), self.call))
        else:
            revoked = self.run(self.do.sessions.revoke(expected.session_id, self.call))
        assert expected.life((before, self.now())) is not (Life.DEAD if revoked else Life.ALIVE)
        expected.over = True

    @rule(user_id=st.sampled_from(USERS), spared=made)
    def revoke_user(self, user_id: str, spared: Expected | None) -> None:
        """Revokes all sessions of a user, or all but one."""
        before = self.now()
        least, most = self.users.count(user_id, (before, before))
        except_id = spared.session_id if spared is not None else ""
        revoked = self.run(self.do.users.revoke(user_id, except_id, self.call))
        spares = spared is not None and self.users.by_id(except_id).user_id == user_id
        assert least - spares <= revoked <= most
        for each in self.users.of(user_id):
            if each.session_id != except_id:
                each.over = True

    @rule(user_id=st.sampled_from(USERS), size=st.integers(1, 5))
    def list(self, user_id: str, size: int) -> None:
        """Lists a user's sessions page by page: all live ones and no others, newest first."""
        before = self.now()
        found: list[str] = []
        cursor = None
        while True:
            page = self.run(self.do.users.page(user_id, cursor, size, self.call))
            found += [stored.session.session_id for stored in page.sessions]
            cursor = page.next_before
            if cursor is None:
                break
        now = (before, self.now())
        mine = self.users.of(user_id)
        places = [mine.index(self.users.by_id(session_id)) for session_id in found]
        assert places == sorted(set(places), reverse=True)
        for at, each in enumerate(mine):
            assert each.life(now) is not (Life.DEAD if at in places else Life.ALIVE)

    @rule(made=made, revoking=st.booleans())
    def forge(self, made: Expected | None, revoking: bool) -> None:
        """Presents the public id with a made-up secret, which neither is valid nor ends the session."""
        if made is None:
            return
        body = made.session_id + base62(secrets.randbits(256), 43)
        forged = f"ctr_{body}{base62(zlib.crc32(body.encode()), 6)}"
        if revoking:
            assert not self.run(self.do.sessions.revoke_token(forged, self.call))
        else:
            (validation,) = self.run(self.do.sessions.validate([ValidationRequest(forged)], self.call))
            assert validation == Validation(None, InvalidReason.NOT_FOUND)

    @rule(
        span=st.sampled_from([1, 30, 100, SECOND, 3 * SECOND, 20 * SECOND, MINUTE, 5 * MINUTE, HOUR, 5 * HOUR, 9 * DAY])
    )
    def wait(self, span: int) -> None:
        """Lets time pass."""
        self.run(self.backend.travel(span))
        self.travelled += span

    @rule(made=made, distance=st.sampled_from([-70 * SECOND, -1 * SECOND, -1, 1, 2 * SECOND]), grace=st.booleans())
    def wait_for_a_deadline(self, made: Expected | None, distance: int, grace: bool) -> None:
        """Lets time pass until about the end of a session or of a grace."""
        if made is None:
            return
        end = made.end
        if grace and made.rotated_tokens:
            end = made.rotated_tokens[-1][1][0]
        elif made.idle_timeout_ms:
            end = min(end, made.active[0] + made.idle_timeout_ms)
        span = end + distance - self.now()
        if span > 0:
            self.wait(span)

    @invariant()
    def every_key_expires(self) -> None:
        """No key is without an expiry."""
        assert all(ttl >= 0 for ttl in self.run(self.backend.keys()).values())


def _is_reuse(validation: Validation) -> bool:
    return validation.reason is InvalidReason.TOKEN_REUSED


@pytest.fixture
def machine(unopened_backend: Backend) -> Iterator[type[SessionMachine]]:
    """The machine over each backend, in an event loop of its own."""
    with asyncio.Runner() as own_runner:

        class OverThisBackend(SessionMachine):
            backend = unopened_backend
            runner = own_runner
            moves_past = not isinstance(unopened_backend, FakeBackend)

        yield OverThisBackend
        own_runner.run(unopened_backend.close())


def test_sessions_do_what_the_model_says(machine: type[SessionMachine]) -> None:
    """Whatever is done in whatever order: no live session is denied, and no ended one is valid."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=3000 if LONG else 400,
            stateful_step_count=50,
            suppress_health_check=list(HealthCheck),
        ),
    )
