"""Crashes before and after every command to the store, of every operation: whatever is promised holds afterwards."""

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import cast

import pytest
from tests.support.backends import Backend, Operations, Stores, a_call

from catraca_server.domain.commands import NewSession, Update
from catraca_server.domain.errors import SessionLimitReached, SessionNotFound, TokenInUse
from catraca_server.domain.events import BEFORE_ALL, EndCause, EventType, Position, SessionEvent, revoked
from catraca_server.domain.validation import InvalidReason, Validation, ValidationRequest
from catraca_server.operations.users import Login
from catraca_server.redis.link import Link, Request
from catraca_server.redis.replies import Replies
from catraca_server.store.keys import Keys
from catraca_server.store.records import UnreadableRecord, decode
from catraca_server.store.user_index import RedisUserIndex

LIMIT = 3
MINUTE, HOUR = 60_000, 3_600_000
BROUGHT = "a-token-that-was-brought"


class Crash(BaseException):
    """The server has crashed. A BaseException, so that the server itself does not catch it."""


class Crashing(Link):
    """A link whose server crashes after the store has replied to so many requests, also within one exchange."""

    def __init__(self, inner: Link, requests: int) -> None:
        self._inner = inner
        self._left = requests

    async def execute(
        self, requests: Sequence[Request], deadline: float, *, durable: bool = False
    ) -> Sequence[Replies]:
        """Executes requests, or crashes."""
        sent, self._left = requests[: max(self._left, 0)], self._left - len(requests)
        replies = await self._inner.execute(sent, deadline, durable=durable) if sent else []
        if self._left < 0:
            raise Crash
        return replies


@dataclass
class Scene:
    """The sessions before an operation: three of a user at the limit, one of them rotated, and one of another user."""

    logins: list[Login]
    rotated: str
    other: Login

    @property
    def ids(self) -> list[str]:
        """The ids of that user's sessions."""
        return [login.stored.session.session_id for login in self.logins]


def operations_over(link: Link, *, evict_oldest: bool = True) -> Operations:
    """Returns the operations over a link that may crash."""
    return Operations.over(
        Stores.over(link), max_sessions_per_user=LIMIT, evict_oldest=evict_oldest, rotation_grace_ms=MINUTE
    )


async def set_the_scene(backend: Backend, operations: Operations) -> Scene:
    """Creates sessions, all acknowledged, and lets some time pass."""
    logins = [await operations.users.create(NewSession("ana"), a_call()) for _ in range(LIMIT)]
    other = await operations.users.create(NewSession("bia"), a_call())
    rotation = await operations.sessions.rotate(logins[1].token, a_call())
    await backend.travel(2 * MINUTE)
    return Scene(logins, rotation.token, other)


async def told(link: Link) -> list[SessionEvent]:
    """Returns all events in the feed."""
    feed = Stores.over(link, has_info=False).feed
    end = await feed.end(a_call())
    reading = await feed.read(Position(end.epoch, BEFORE_ALL), 1000, a_call())
    assert reading.lost is None
    return [entry.event for entry in reading.entries]


Step = Callable[[Operations, Scene], Awaitable[object]]
STEPS: dict[str, Step] = {
    "log in at the limit": lambda do, _: do.users.create(NewSession("ana"), a_call()),
    "log in below the limit": lambda do, _: do.users.create(NewSession("bia"), a_call()),
    "bring a token": lambda do, _: do.users.create(NewSession("ana", token=BROUGHT), a_call()),
    "validate and touch": lambda do, scene: do.sessions.validate([ValidationRequest(scene.logins[0].token)], a_call()),
    "present a rotated token": lambda do, scene: do.sessions.validate(
        [ValidationRequest(scene.logins[1].token)], a_call()
    ),
    "rotate": lambda do, scene: do.sessions.rotate(scene.logins[0].token, a_call()),
    "extend": lambda do, scene: do.sessions.update(
        Update(
            scene.logins[0].stored.session.session_id,
            absolute_expire_time_ms=scene.logins[0].stored.session.absolute_expire_time_ms + HOUR,
        ),
        a_call(),
    ),
    "revoke by id": lambda do, scene: do.sessions.revoke(scene.logins[0].stored.session.session_id, a_call()),
    "revoke by token": lambda do, scene: do.sessions.revoke_token(scene.logins[0].token, a_call()),
    "log out everywhere": lambda do, scene: do.users.revoke("ana", scene.logins[2].stored.session.session_id, a_call()),
    "list": lambda do, _: do.users.page("ana", None, 10, a_call()),
}
MAY_END = {
    "log in at the limit": {0},
    "bring a token": {0},
    "present a rotated token": {1},
    "revoke by id": {0},
    "revoke by token": {0},
    "log out everywhere": {0, 1},
}
"""Which of the user's sessions an operation is to end: no crash in it may end another."""

TELLS: dict[str, Callable[[Scene], SessionEvent]] = {
    "log in at the limit": lambda scene: revoked(scene.ids[0], "ana", EndCause.LIMIT),
    "bring a token": lambda scene: revoked(scene.ids[0], "ana", EndCause.LIMIT),
    "present a rotated token": lambda scene: revoked(scene.ids[1], "ana", EndCause.TOKEN_REUSE),
    "rotate": lambda scene: SessionEvent(EventType.ROTATED, scene.ids[0], "ana"),
    "extend": lambda scene: SessionEvent(EventType.UPDATED, scene.ids[0], "ana"),
    "revoke by id": lambda scene: revoked(scene.ids[0], "ana", EndCause.REQUEST),
    "revoke by token": lambda scene: revoked(scene.ids[0], "ana", EndCause.REQUEST),
    "log out everywhere": lambda _: revoked("", "ana", EndCause.USER_REQUEST),
}
"""An event that an operation appends when nothing goes wrong."""

TELLS_OF_THE_GONE = {
    "revoke by id": lambda scene: revoked(scene.ids[0], "", EndCause.REQUEST),
    "revoke by token": lambda scene: revoked(scene.ids[0], "", EndCause.REQUEST),
}
"""The same, from a call that finds the session gone."""


async def live_sessions(backend: Backend) -> dict[str, str]:
    """Returns the ids of all live sessions and whose they are, as the store has them."""
    found = {}
    for key in await backend.command("KEYS", "session:*"):
        try:
            session = decode(await backend.command("GET", key))
        except UnreadableRecord:
            continue  # a tombstone
        found[session.session_id] = session.user_id
    return found


async def everything_holds(backend: Backend, link: Link) -> None:
    """Asserts the promises about what is stored."""
    assert all(ttl >= 0 for ttl in (await backend.keys()).values()), "a key without an expiry"
    live = await live_sessions(backend)
    index = RedisUserIndex(link, Keys())
    for session_id, user_id in live.items():
        assert await index.entry(user_id, session_id, a_call()), "the index misses a live session"
    for user_id in set(live.values()):
        assert list(live.values()).count(user_id) <= LIMIT, "more live sessions than allowed"


@pytest.mark.parametrize("step", STEPS)
async def test_a_crash_at_any_point_breaks_no_promise(backend: Backend, step: str) -> None:
    """After a crash and a restart nothing is lost, nothing comes back, and nothing is missed."""
    async with backend.link() as link:
        healthy = operations_over(link)
        for requests in count():
            await backend.command("FLUSHALL")
            scene = await set_the_scene(backend, healthy)
            try:
                await STEPS[step](operations_over(Crashing(link, requests)), scene)
            except Crash:
                await everything_holds(backend, link)
            else:
                assert requests > 0, "an operation without a request to the store"
                return

            # Acknowledged sessions that nobody has ended live on.
            tokens = [scene.logins[0].token, scene.rotated, scene.logins[2].token]
            kept = [token for place, token in enumerate(tokens) if place not in MAY_END.get(step, set())]
            for token in (*kept, scene.other.token):
                (validation,) = await healthy.sessions.validate([ValidationRequest(token)], a_call())
                assert validation.stored is not None, "a session was lost"

            # The limit holds for more logins, and logging out everywhere reaches all sessions.
            await healthy.users.create(NewSession("ana"), a_call())
            await healthy.users.create(NewSession("bia"), a_call())
            await everything_holds(backend, link)
            await healthy.users.revoke("ana", "", a_call())
            assert "ana" not in (await live_sessions(backend)).values(), "logging out everywhere missed a session"


@pytest.mark.parametrize("step", STEPS)
async def test_repeating_what_crashed_is_safe(backend: Backend, step: str) -> None:
    """The operation is repeated after a crash at any point: it succeeds, and everything holds."""
    async with backend.link() as link:
        healthy = operations_over(link)
        for requests in count():
            await backend.command("FLUSHALL")
            scene = await set_the_scene(backend, healthy)
            try:
                await STEPS[step](operations_over(Crashing(link, requests)), scene)
            except Crash:
                # What was done before the crash stays done.
                with contextlib.suppress(TokenInUse, SessionNotFound):
                    await STEPS[step](healthy, scene)
                await everything_holds(backend, link)
            else:
                return


async def is_acknowledged(step: str, operations: Operations, scene: Scene) -> bool:
    """Repeats an operation. Whether its caller is told that what it is about has been done."""
    try:
        result = await STEPS[step](operations, scene)
    except (TokenInUse, SessionNotFound):
        return False
    if step == "present a rotated token":
        (validation,) = cast("list[Validation]", result)
        return validation.reason is InvalidReason.TOKEN_REUSED
    return True


@pytest.mark.parametrize("step", sorted(TELLS))
async def test_whoever_is_told_of_a_change_can_rely_on_its_event(backend: Backend, step: str) -> None:
    """Also if a call that crashed made the change, and it is a repeated call that is answered."""
    async with backend.link() as link:
        healthy = operations_over(link)
        for requests in count():
            await backend.command("FLUSHALL")
            scene = await set_the_scene(backend, healthy)
            created = {SessionEvent(EventType.CREATED, session_id, "ana") for session_id in scene.ids}
            assert created <= set(await told(link)), "a login that nobody was told of"
            try:
                await STEPS[step](operations_over(Crashing(link, requests)), scene)
                crashed, acknowledged = False, True
            except Crash:
                crashed, acknowledged = True, await is_acknowledged(step, healthy, scene)
            expected = {TELLS[step](scene)}
            if step in TELLS_OF_THE_GONE:
                expected.add(TELLS_OF_THE_GONE[step](scene))
            assert not acknowledged or expected & set(await told(link)), "a change that is not in the feed"
            if not crashed:
                return


async def test_a_login_with_a_brought_token_is_told_when_it_is_repeated(backend: Backend) -> None:
    """Whatever the first call did before it crashed; the repeated one may be refused for that."""
    async with backend.link() as link:
        healthy, refused = operations_over(link), 0
        for requests in count():
            await backend.command("FLUSHALL")
            scene = await set_the_scene(backend, healthy)
            try:
                await STEPS["bring a token"](operations_over(Crashing(link, requests)), scene)
            except Crash:
                try:
                    await STEPS["bring a token"](healthy, scene)
                except TokenInUse:
                    refused += 1
            else:
                assert refused, "no crash after the session was written"
                return
            (brought,) = (await live_sessions(backend)).keys() - {*scene.ids, scene.other.stored.session.session_id}
            assert SessionEvent(EventType.CREATED, brought, "ana") in await told(link)


async def test_a_crashed_login_does_not_keep_others_out_for_long(backend: Backend) -> None:
    """With `reject`, a crashed login takes up room only until it could no longer write."""
    async with backend.link() as link:
        healthy = operations_over(link, evict_oldest=False)
        for requests in count():
            await backend.command("FLUSHALL")
            for _ in range(LIMIT - 1):
                await healthy.users.create(NewSession("ana"), a_call())
            try:
                await operations_over(Crashing(link, requests), evict_oldest=False).users.create(
                    NewSession("ana"), a_call()
                )
            except Crash:
                await backend.travel(MINUTE)
            else:
                return
            if len(await live_sessions(backend)) < LIMIT:
                await healthy.users.create(NewSession("ana"), a_call())
            else:
                with pytest.raises(SessionLimitReached):
                    await healthy.users.create(NewSession("ana"), a_call())
