"""What `SessionStore` promises, on every backend, and both ways of learning an expiry."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from tests.support.backends import Backend, a_call, stores
from tests.support.waiting import eventually_async

from catraca_server.domain.limits import ATTRIBUTES_MAX_ENTRIES
from catraca_server.domain.session import Session, StoredSession
from catraca_server.store import Creation, IndexEntries, IndexEntry, Replacement, SessionStore, StoreUnavailable
from catraca_server.store.attempts import ATTEMPT_LIFETIME_MS, WRITE_WINDOW_MS, committed_score, sequence_at

ID = "0000000000000000000001"
OTHER_ID = "0000000000000000000002"
HOUR = 3_600_000
SEQUENCE = sequence_at(1_790_000_000_000_000)


@pytest.fixture(params=[True, False], ids=["PEXPIRETIME", "PTTL"])
async def store(request: pytest.FixtureRequest, backend: Backend) -> AsyncIterator[SessionStore]:
    """The store on a backend, as on Redis 7 and later and as on Redis 6.2."""
    async with stores(backend, has_pexpiretime=request.param) as opened:
        yield opened.sessions


async def a_session(backend: Backend, session_id: str = ID, **changes: object) -> Session:
    """Returns a session that begins now and may last for an hour."""
    now = await backend.now()
    fields = {
        "session_id": session_id,
        "user_id": "12345",
        "digest": "d" * 43,
        "attributes": {"device": "phone"},
        "create_time_ms": now,
        "absolute_expire_time_ms": now + HOUR,
        "idle_timeout_ms": HOUR // 2,
    }
    return Session(**{**fields, **changes})  # type: ignore[arg-type]  # the tests' own changes


async def create(store: SessionStore, session: Session, sequence: int = SEQUENCE) -> tuple[Creation, StoredSession]:
    """Writes a session for a login that reserved its place with this sequence."""
    return await store.create(session, IndexEntry(session.session_id, sequence), a_call())


async def created(store: SessionStore, session: Session) -> StoredSession:
    """Creates a session and returns it as the store has it."""
    outcome, stored = await create(store, session)
    assert outcome is Creation.CREATED
    return stored


async def read(store: SessionStore, session_id: str = ID) -> StoredSession | None:
    """Reads one session."""
    ((_, stored, _),) = await store.read([session_id], a_call())
    return stored


async def test_a_read_returns_the_stores_clock(backend: Backend, store: SessionStore) -> None:
    """`now_ms` is what TIME replies."""
    before = await backend.now()
    ((now, _, _),) = await store.read([ID], a_call())
    assert before <= now <= await backend.now()


async def test_a_created_session_is_read_as_it_was_written(backend: Backend, store: SessionStore) -> None:
    """Reading gives the session, the expiry and the bytes that creating wrote."""
    stored = await created(store, await a_session(backend))
    found = await read(store)
    assert found is not None
    assert found.session == stored.session
    assert found.record == stored.record
    # Without PEXPIRETIME the expiry is early by the time that the reply took.
    assert stored.expiry_ms - 1000 < found.expiry_ms <= stored.expiry_ms


async def test_text_of_any_kind_survives(backend: Backend, store: SessionStore) -> None:
    """User ids and attributes come back as they were, at their largest and beyond ASCII."""
    attributes = {f"clé {at} 🗝": "valor\n\0" * 20 for at in range(ATTRIBUTES_MAX_ENTRIES)}
    session = await a_session(backend, user_id="usuário ✓ " + "x" * 200, attributes=attributes)
    await created(store, session)
    found = await read(store)
    assert found is not None
    assert found.session == session


async def test_the_record_is_json_that_a_person_can_read(backend: Backend, store: SessionStore) -> None:
    """GET session:<id> shows the user and the times, and of the token only its digest."""
    session = await a_session(backend)
    await created(store, session)
    record = json.loads(await backend.command("GET", f"session:{ID}"))
    assert record["id"] == ID
    assert record["user_id"] == "12345"
    assert record["login_at"] == session.create_time_ms
    assert record["digest"] == session.digest
    assert record["attributes"] == {"device": "phone"}


async def test_an_id_can_be_taken_once(backend: Backend, store: SessionStore) -> None:
    """A second creation under a taken id says so and changes nothing, however many try at once."""
    sessions = [await a_session(backend, user_id=f"user-{at}") for at in range(20)]
    outcomes = await asyncio.gather(
        *(create(store, each, SEQUENCE + sequence_at(at)) for at, each in enumerate(sessions))
    )
    winners = [stored for outcome, stored in outcomes if outcome is Creation.CREATED]
    assert len(winners) == 1
    assert {outcome for outcome, _ in outcomes} == {Creation.CREATED, Creation.TAKEN}
    found = await read(store)
    assert found is not None
    assert found.session == winners[0].session


async def test_every_key_expires(backend: Backend, store: SessionStore) -> None:
    """No key is ever without an expiry, and none lasts beyond what was asked for."""
    await created(store, await a_session(backend))
    stored = await read(store)
    assert stored is not None
    await store.touch([replace(stored, expiry_ms=stored.expiry_ms + 1000)], a_call())
    ttls = await backend.keys()
    assert list(ttls) == [f"session:{ID}"]
    assert all(0 < ttl <= HOUR for ttl in ttls.values())


async def test_a_session_expires(backend: Backend, store: SessionStore) -> None:
    """After that the store has nothing of it."""
    session = await a_session(backend)
    await created(store, replace(session, idle_timeout_ms=50))
    await backend.travel(60)

    async def gone() -> bool:
        return await read(store) is None and not await backend.keys()

    await eventually_async(gone, "the session is gone")


async def test_even_the_shortest_session_has_an_expiry(backend: Backend, store: SessionStore) -> None:
    """Also one that is a millisecond away, or past."""
    for distance in (1, 0, -HOUR):
        session = await a_session(backend)
        await created(store, replace(session, absolute_expire_time_ms=session.create_time_ms + distance))
        assert all(ttl >= 0 for ttl in (await backend.keys()).values())
        await backend.travel(10)
        await eventually_async(lambda: _is_gone(store), "the session is gone")


async def _is_gone(store: SessionStore) -> bool:
    return await read(store) is None


async def test_many_are_read_at_once_in_order(backend: Backend, store: SessionStore) -> None:
    """Each result belongs to the id at its position: present, absent, or repeated."""
    for at in range(50):
        await created(store, await a_session(backend, f"{at:022}", user_id=f"user-{at}"))
    ids = [f"{at:022}" for at in (*range(0, 100, 3), 3, 3)]
    results = await store.read(ids, a_call())
    for session_id, (_, stored, absent) in zip(ids, results, strict=True):
        assert absent is (stored is None)
        if int(session_id) < 50:
            assert stored is not None
            assert (stored.session.session_id, stored.session.user_id) == (session_id, f"user-{int(session_id)}")
        else:
            assert stored is None


async def test_a_touch_moves_the_expiry_later(backend: Backend, store: SessionStore) -> None:
    """A touch changes the expiry and not a byte of the record."""
    session = await a_session(backend, idle_timeout_ms=10_000)
    await created(store, session)
    stored = await read(store)
    assert stored is not None
    record = await backend.command("GET", f"session:{ID}")
    assert await store.touch([replace(stored, expiry_ms=session.create_time_ms + 20_000)], a_call()) == [True]
    assert await backend.command("PEXPIRETIME", f"session:{ID}") == session.create_time_ms + 20_000
    assert await backend.command("GET", f"session:{ID}") == record


async def test_a_late_touch_never_shortens(backend: Backend, store: SessionStore) -> None:
    """Of two touches that overtake each other, the later expiry stays."""
    session = await a_session(backend, idle_timeout_ms=20_000)
    stored = await created(store, session)
    assert await store.touch([replace(stored, expiry_ms=session.create_time_ms + 10_000)], a_call()) == [True]
    assert await backend.command("PEXPIRETIME", f"session:{ID}") == session.create_time_ms + 20_000


async def test_a_touch_never_brings_a_session_back(backend: Backend, store: SessionStore) -> None:
    """Touching a session that is gone says so and leaves nothing behind."""
    stored = await created(store, await a_session(backend))
    assert await store.delete(ID, a_call())
    assert await store.touch([replace(stored, expiry_ms=stored.expiry_ms + 1000)], a_call()) == [False]
    assert await backend.keys() == {}


async def test_a_touch_of_what_has_changed_does_nothing(backend: Backend, store: SessionStore) -> None:
    """A touch that was decided on an older record must not stretch the newer one."""
    session = await a_session(backend, idle_timeout_ms=10_000)
    stored = await created(store, session)
    await backend.command("SET", f"session:{ID}", stored.record.replace(b"phone", b"radio"), "KEEPTTL")
    assert await store.touch([replace(stored, expiry_ms=session.create_time_ms + 20_000)], a_call()) == [False]
    assert await backend.command("PEXPIRETIME", f"session:{ID}") == session.create_time_ms + 10_000


async def test_each_touch_of_a_batch_has_its_own_result(backend: Backend, store: SessionStore) -> None:
    """One that comes too late fails alone."""
    first = await created(store, await a_session(backend))
    second = await created(store, await a_session(backend, OTHER_ID))
    await store.delete(ID, a_call())
    done = await store.touch(
        [replace(each, expiry_ms=each.expiry_ms + 1000) for each in (first, second, first)], a_call()
    )
    assert done == [False, True, False]


async def test_a_deletion_is_reported_once(backend: Backend, store: SessionStore) -> None:
    """Of many deletions of one session, exactly one reports it."""
    await created(store, await a_session(backend))
    assert sum(await asyncio.gather(*(store.delete(ID, a_call()) for _ in range(20)))) == 1
    assert await read(store) is None


async def test_a_late_login_writes_nothing(backend: Backend, store: SessionStore) -> None:
    """A login that got stuck for too long fails, and leaves nothing behind."""
    session = await a_session(backend, create_time_ms=await backend.now() - WRITE_WINDOW_MS - 1)
    outcome, _ = await create(store, session)
    assert outcome is Creation.LATE
    assert await backend.keys() == {}


async def test_a_replacement_is_written_whole_or_not_at_all(backend: Backend, store: SessionStore) -> None:
    """The next version replaces the one that was read, with the expiry it had; a second one on the same base fails."""
    session = await a_session(backend)
    before = await created(store, session)
    after = StoredSession(replace(session, attributes={"device": "tablet"}, version=2), before.expiry_ms, before.record)
    written = await store.replace(Replacement(before, after), a_call())
    assert written is not None
    assert await store.replace(Replacement(before, after), a_call()) is None
    found = await read(store)
    assert found is not None
    assert (found.session, found.record) == (after.session, written.record)
    assert await backend.command("PEXPIRETIME", f"session:{ID}") == before.expiry_ms


async def test_a_replacement_with_another_expiry(backend: Backend, store: SessionStore) -> None:
    """A new expiry is written with the record, unless the session was touched since it was read."""
    session = await a_session(backend, idle_timeout_ms=10_000)
    before = await created(store, session)
    after = StoredSession(
        replace(session, idle_timeout_ms=HOUR, version=2), session.create_time_ms + 30_000, before.record
    )
    await store.touch([replace(before, expiry_ms=session.create_time_ms + 20_000)], a_call())
    assert await store.replace(Replacement(before, after), a_call()) is None
    assert await backend.command("PEXPIRETIME", f"session:{ID}") == session.create_time_ms + 20_000
    touched = replace(before, expiry_ms=session.create_time_ms + 20_000)
    assert await store.replace(Replacement(touched, after), a_call()) is not None
    assert await backend.command("PEXPIRETIME", f"session:{ID}") == session.create_time_ms + 30_000


async def test_a_replacement_never_brings_a_session_back(backend: Backend, store: SessionStore) -> None:
    """Replacing a session that is gone, with or without a new expiry, leaves nothing behind."""
    before = await created(store, await a_session(backend))
    await store.delete(ID, a_call())
    assert await store.replace(Replacement(before, before), a_call()) is None
    assert (
        await store.replace(Replacement(before, replace(before, expiry_ms=before.expiry_ms + 1000)), a_call()) is None
    )
    assert await backend.keys() == {}


async def test_ending_ends_only_that_users_sessions(backend: Backend, store: SessionStore) -> None:
    """An entry of an index that names another user's session ends nothing."""
    await created(store, await a_session(backend))
    entries = IndexEntries(await backend.now(), [IndexEntry(ID, 1), IndexEntry(OTHER_ID, 2)])
    assert await store.end("somebody else", entries, a_call()) == []
    assert await store.end("12345", entries, a_call()) == [ID]
    assert await store.end("12345", entries, a_call()) == []
    assert await backend.keys() == {}


async def test_ending_a_login_that_is_under_way(backend: Backend, store: SessionStore) -> None:
    """A login that was ended before it wrote is refused, later ones are not, and its tombstone expires."""
    session = await a_session(backend)
    now_ms = session.create_time_ms
    sequence = sequence_at(now_ms * 1000)
    under_way = IndexEntries(now_ms, [IndexEntry(ID, sequence)])
    assert await store.end("12345", under_way, a_call()) == [ID]
    assert await store.end("12345", under_way, a_call()) == [], "reported once"
    assert await read(store) is None
    outcome, _ = await create(store, session, sequence)
    assert outcome is Creation.REVOKED
    assert await read(store) is None
    outcome, _ = await create(store, session, sequence + 2)
    assert outcome is Creation.CREATED, "a later login, as with a brought token"
    await store.delete(ID, a_call())
    await store.end("12345", under_way, a_call())
    await backend.travel(ATTEMPT_LIFETIME_MS + 1)
    assert await backend.keys() == {}


async def test_an_end_is_reported_once(backend: Backend, store: SessionStore) -> None:
    """Whether it was written just now or long ago, exactly one of the calls that end it reports it."""
    for score in (committed_score(0), sequence_at(await backend.now() * 1000)):
        await created(store, await a_session(backend))
        entries = IndexEntries(await backend.now(), [IndexEntry(ID, score)])
        results = await asyncio.gather(*(store.end("12345", entries, a_call()) for _ in range(20)))
        assert sum(map(len, results)) == 1


async def test_prefixes_keep_services_apart(backend: Backend) -> None:
    """Two services with different prefixes share a database and see nothing of each other."""
    async with stores(backend, prefix="a:") as one, stores(backend, prefix="b:") as other:
        await created(one.sessions, await a_session(backend))
        assert await read(other.sessions) is None
        assert not await other.sessions.delete(ID, a_call())
        assert list(await backend.keys()) == [f"a:session:{ID}"]


async def test_a_deadline_that_has_passed_is_unavailable(store: SessionStore) -> None:
    """That is not the same as an absent session."""
    with pytest.raises(StoreUnavailable):
        await store.read([ID], a_call(seconds=-1))
