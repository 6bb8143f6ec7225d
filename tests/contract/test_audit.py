"""The audit gets the events that the feed gets, no more and no less, and who caused them."""

from collections.abc import AsyncIterator

import pytest
from tests.support.backends import Backend, Operations, Stores, a_call, stores

from catraca_server.domain.audit import CallerRefused
from catraca_server.domain.call import Call, Caller
from catraca_server.domain.commands import NewSession, Update
from catraca_server.domain.errors import EtagMismatch
from catraca_server.domain.events import EndCause, EventType, SessionEvent
from catraca_server.domain.validation import InvalidReason, ValidationRequest
from catraca_server.store import StoreProblem, StoreUnavailable

WEB = Caller("web")


class Heard:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.events: list[SessionEvent] = []
        self.callers: set[str] = set()

    def session_changed(self, event: SessionEvent, call: Call) -> None:
        """Remembers it."""
        self.events.append(event)
        self.callers.add(call.caller.name)

    def caller_refused(self, refused: CallerRefused) -> None:
        """Is not part of this."""

    def invalid_tokens(self, caller: str, count: int) -> None:
        """Nor is this."""


@pytest.fixture
async def made(backend: Backend) -> AsyncIterator[Stores]:
    """The store on each backend."""
    async with stores(backend) as opened:
        yield opened


def call() -> Call:
    """Returns a call of a caller with a name."""
    return Call(a_call().deadline, WEB, "request-1")


async def test_the_audit_hears_what_the_feed_is_told(made: Stores) -> None:
    """In every operation that changes a session, once each; what only tells again says so."""
    heard = Heard()
    operations = Operations.over(made, audit=heard, max_sessions_per_user=2, rotation_grace_ms=0)
    sessions, users = operations.sessions, operations.users
    start = await made.feed.end(call())
    first = await users.create(NewSession("ana"), call())
    second = await users.create(NewSession("ana"), call())
    third = await users.create(NewSession("ana"), call())
    assert list(third.evicted_session_ids) == [first.stored.session.session_id]
    session_id = second.stored.session.session_id
    await sessions.update(Update(session_id, entries={"a": "b"}), call())
    with pytest.raises(EtagMismatch):
        await sessions.update(Update(session_id, etag=second.stored.session.etag), call())
    await sessions.rotate(second.token, call())
    (validation,) = await sessions.validate([ValidationRequest(second.token)], call())
    assert validation.reason is InvalidReason.TOKEN_REUSED
    assert await sessions.revoke(third.stored.session.session_id, call())
    assert not await sessions.revoke(third.stored.session.session_id, call())
    await users.create(NewSession("ana"), call())
    assert await users.revoke("ana", "", call()) == 1
    reading = await made.feed.read(start, 100, call())
    told = [entry.event for entry in reading.entries]
    assert heard.events == told
    assert [(event.type, event.cause, event.repeated) for event in heard.events] == [
        (EventType.CREATED, None, False),
        (EventType.CREATED, None, False),
        (EventType.REVOKED, EndCause.LIMIT, False),
        (EventType.CREATED, None, False),
        (EventType.UPDATED, None, False),
        (EventType.UPDATED, None, True),
        (EventType.ROTATED, None, False),
        (EventType.REVOKED, EndCause.TOKEN_REUSE, False),
        (EventType.REVOKED, EndCause.REQUEST, False),
        (EventType.REVOKED, EndCause.REQUEST, True),
        (EventType.CREATED, None, False),
        (EventType.REVOKED, EndCause.USER_REQUEST, False),
        (EventType.REVOKED, EndCause.USER_REQUEST, False),
    ]
    assert heard.callers == {"web"}


async def test_it_hears_also_of_what_the_feed_cannot_be_told(made: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """The change has been made."""

    async def refuse(*_: object) -> None:
        raise StoreUnavailable("no room for the feed", StoreProblem.FULL)

    monkeypatch.setattr(made.feed, "append", refuse)
    heard = Heard()
    operations = Operations.over(made, audit=heard)
    with pytest.raises(StoreUnavailable):
        await operations.users.create(NewSession("ana"), call())
    assert [event.type for event in heard.events] == [EventType.CREATED]
