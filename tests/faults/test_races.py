"""200 operations of all kinds at once on one user, from three servers: each session's history must be linearizable."""

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import pytest
from tests.support.backends import Backend, Operations, Stores, a_call
from tests.support.history import Call, Checker

from catraca_server.domain.commands import NewSession, Update
from catraca_server.domain.errors import EtagMismatch, SessionNotFound
from catraca_server.domain.session import StoredSession
from catraca_server.domain.validation import InvalidReason, ValidationRequest
from catraca_server.operations.users import Login
from catraca_server.redis.link import Link, Request
from catraca_server.redis.replies import Replies

SEEDS = 300 if "CATRACA_TEST_LONG" in os.environ else 12
SERVERS, SESSIONS, PER_SESSION, LOGINS, LISTS, LOGOUTS = 3, 14, 12, 16, 8, 8
GONE = "gone"
MISMATCH = "etag mismatch"


class State(NamedTuple):
    """A session as the sequential model has it."""

    alive: bool = False
    tokens: tuple[str, ...] = ()
    """The first is the one it began with, the last the one it has."""
    version: int = 1
    entries: frozenset[str] = frozenset()


class View(NamedTuple):
    """A session as a response shows it."""

    version: int
    entries: frozenset[str]


def model(state: State, call: Call) -> State | None:  # noqa: C901, PLR0911  one case per operation
    """What a session does if everything happens one after the other."""
    gone = not state.alive
    seen = View(state.version, state.entries)
    match call.name:
        case "create":
            return State(alive=True, tokens=(call.result,)) if state == State() else None
        case "validate":
            expected = (GONE,) if gone else (seen, call.argument != state.tokens[-1])
            return state if call.result == expected else None
        case "get":
            return state if call.result == (GONE if gone else seen) else None
        case "rotate" if gone:
            return state if call.result == GONE else None
        case "rotate" if call.argument == state.tokens[-1]:
            # The model cannot know the new token, only that it is new.
            if call.result in (GONE, *state.tokens):
                return None
            return state._replace(tokens=(*state.tokens, call.result), version=state.version + 1)
        case "rotate":
            return state if call.result == state.tokens[-1] else None
        case "update":
            key, only_first = call.argument
            if gone:
                return state if call.result == GONE else None
            if only_first and state.version != 1:
                return state if call.result == MISMATCH else None
            after = state._replace(version=state.version + 1, entries=state.entries | {key})
            return after if call.result == View(after.version, after.entries) else None
        case "revoke":
            return state._replace(alive=False) if call.result is state.alive else None
        case "log out everywhere":
            return state._replace(alive=False)
        case _:
            raise AssertionError(call.name)


def is_read(call: Call) -> bool:
    """Whether a call changed nothing."""
    return call.name in ("validate", "get") or call.result in (GONE, MISMATCH)


class Delaying(Link):
    """A link that delays its callers by a random number of turns of the loop, before and after each exchange."""

    def __init__(self, inner: Link, dice: random.Random) -> None:
        self._inner = inner
        self._dice = dice

    async def execute(
        self, requests: Sequence[Request], deadline: float, *, durable: bool = False
    ) -> Sequence[Replies]:
        """Executes them, sooner or later."""
        await self._delay()
        replies = await self._inner.execute(requests, deadline, durable=durable)
        await self._delay()
        return replies

    async def _delay(self) -> None:
        for _ in range(self._dice.choice((0, 0, 1, 3, 20))):
            await asyncio.sleep(0)


@dataclass
class Race:
    """Operations over several servers, and their results."""

    servers: list[Operations]
    dice: random.Random
    calls: dict[str, list[Call]] = field(default_factory=dict)
    """Calls about one session, by its id."""
    user_wide: list[Call] = field(default_factory=list)
    ended: int = 0
    """How many ends were reported."""

    async def record(self, calls: list[Call], name: str, argument: object, work: Awaitable[object]) -> None:
        """Waits for an operation and records its result."""
        called = time.monotonic()
        result: object
        try:
            result = await work
        except SessionNotFound:
            result = GONE
        except EtagMismatch:
            result = MISMATCH
        calls.append(Call(name, argument, result, called, time.monotonic()))

    async def create(self) -> Login:
        """Creates a session."""
        called = time.monotonic()
        login = await self.dice.choice(self.servers).users.create(NewSession("ana"), a_call())
        self.calls[login.stored.session.session_id] = [Call("create", None, login.token, called, time.monotonic())]
        return login

    async def list_sessions(self) -> dict[str, View]:
        """Lists the user's sessions."""
        page = await self.dice.choice(self.servers).users.page("ana", None, 100, a_call())
        return {stored.session.session_id: _seen(stored) for stored in page.sessions}

    async def log_out(self, spared: str) -> None:
        """Ends all sessions but one."""
        ended = await self.dice.choice(self.servers).users.revoke("ana", spared, a_call())
        self.ended += ended

    def history(self, session_id: str) -> list[Call]:
        """Returns all calls about a session; a listing counts as a read of this session alone."""
        listings = [
            replace(call, name="get", result=call.result.get(session_id, GONE)) if call.name == "list" else call
            for call in self.user_wide
            if call.argument != session_id
        ]
        return self.calls[session_id] + listings

    def on_session(self, login: Login) -> Awaitable[None]:
        """Returns a random operation on one session."""
        do = self.dice.choice(self.servers)
        session_id, token = login.stored.session.session_id, login.token
        key, only_first = f"key-{self.dice.random()}", self.dice.random() < 0.3
        etag = login.stored.session.etag if only_first else ""
        name, argument, work = self.dice.choice(
            [
                ("validate", token, _validated(do, token)),
                ("get", None, _got(do, session_id)),
                ("rotate", token, _rotated(do, token)),
                ("rotate", token, _rotated(do, token)),
                ("update", (key, only_first), _updated(do, Update(session_id, etag, entries={key: "v"}))),
                ("update", (key, only_first), _updated(do, Update(session_id, etag, entries={key: "v"}))),
                *self.dice.choice(
                    [
                        [],
                        [("revoke", None, lambda: do.sessions.revoke(session_id, a_call()))],
                        [("revoke", None, lambda: do.sessions.revoke_token(token, a_call()))],
                    ]
                ),
            ]
        )
        return self.record(self.calls[session_id], name, argument, work())


def _seen(stored: StoredSession) -> View:
    return View(stored.session.version, frozenset(stored.session.attributes))


def _validated(do: Operations, token: str) -> Callable[[], Awaitable[object]]:
    async def work() -> object:
        (validation,) = await do.sessions.validate([ValidationRequest(token)], a_call())
        if validation.stored is None:
            assert validation.reason is InvalidReason.NOT_FOUND
            return (GONE,)
        return _seen(validation.stored), validation.token_rotated

    return work


def _got(do: Operations, session_id: str) -> Callable[[], Awaitable[object]]:
    async def work() -> object:
        return _seen(await do.sessions.get(session_id, a_call()))

    return work


def _rotated(do: Operations, token: str) -> Callable[[], Awaitable[object]]:
    async def work() -> object:
        return (await do.sessions.rotate(token, a_call())).token

    return work


def _updated(do: Operations, update: Update) -> Callable[[], Awaitable[object]]:
    async def work() -> object:
        return _seen(await do.sessions.update(update, a_call()))

    return work


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_every_history_is_linearizable(backend: Backend, seed: int) -> None:
    """As if each operation had happened at one moment, one after the other; and each session ended once."""
    dice = random.Random(seed)  # noqa: S311  it has to be repeatable
    async with AsyncExitStack() as stack:
        servers = []
        for _ in range(SERVERS):
            delaying = Delaying(await stack.enter_async_context(backend.link()), dice)
            servers.append(Operations.over(Stores.over(delaying)))
        race = Race(servers, dice)
        logins = [await race.create() for _ in range(SESSIONS)]
        spared = logins[0].stored.session.session_id
        work: list[Awaitable[object]] = [race.on_session(login) for login in logins for _ in range(PER_SESSION)]
        work += [race.create() for _ in range(LOGINS)]
        work += [race.record(race.user_wide, "list", None, race.list_sessions()) for _ in range(LISTS)]
        if dice.random() < 0.5:
            work += [
                race.record(race.user_wide, "log out everywhere", spared, race.log_out(spared)) for _ in range(LOGOUTS)
            ]
        dice.shuffle(work)
        await asyncio.gather(*work)
        await race.record(race.user_wide, "list", None, race.list_sessions())

        alive = 0
        for session_id, calls in race.calls.items():
            await race.record(calls, "get", None, _got(servers[0], session_id)())
            alive += calls[-1].result != GONE
            history = race.history(session_id)
            assert Checker(model, State(), is_read).is_linearizable(history), history
            race.ended += sum(call.name == "revoke" and call.result for call in calls)
        assert race.ended + alive == SESSIONS + LOGINS, "an end that was reported twice, or not at all"


def test_the_checker_finds_impossible_histories() -> None:
    """A token that is valid after its revocation had returned; while they overlap, either result is possible."""
    start = State(alive=True, tokens=("t",))
    valid = (View(1, frozenset()), False)
    revoke = Call("revoke", None, result=True, called=1, returned=2)
    for called, result, possible in ((1.5, valid, True), (1.5, (GONE,), True), (3, valid, False), (3, (GONE,), True)):
        history = [revoke, Call("validate", "t", result, called, 4)]
        assert Checker(model, start, is_read).is_linearizable(history) is possible
    lost = [Call("update", (key, False), View(2, frozenset({key})), 1, 2) for key in "ab"]
    assert not Checker(model, start, is_read).is_linearizable(lost)
