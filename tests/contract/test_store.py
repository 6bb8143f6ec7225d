"""What `SessionStore` promises, on every backend, and both ways of learning an expiry."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from tests.support.backends import Backend, session_store
from tests.support.waiting import eventually_async

from catraca_server.domain import ATTRIBUTES_MAX_ENTRIES, Live, Session
from catraca_server.store import SessionStore, StoreUnavailable

ID = "0000000000000000000001"
OTHER_ID = "0000000000000000000002"
HOUR = 3_600_000


@pytest.fixture(params=[True, False], ids=["PEXPIRETIME", "PTTL"])
async def store(request: pytest.FixtureRequest, backend: Backend) -> AsyncIterator[SessionStore]:
    """The store on a backend, as on Redis 7 and later and as on Redis 6.2."""
    async with session_store(backend, tells_expiry=request.param) as opened:
        yield opened


def soon() -> float:
    """Returns a deadline that no test gets near to."""
    return asyncio.get_running_loop().time() + 30


async def a_session(backend: Backend, session_id: str = ID, **changes: object) -> Session:
    """Returns a session that begins now and may last for an hour."""
    now = await backend.now()
    fields = {
        "session_id": session_id,
        "user_id": "12345",
        "digest": "d" * 43,
        "attributes": {"device": "phone"},
        "create_time": now,
        "absolute_expire_time": now + HOUR,
        "idle_timeout": HOUR // 2,
    }
    return Session(**{**fields, **changes})  # type: ignore[arg-type]  # the tests' own changes


async def created(store: SessionStore, session: Session, expiry: int | None = None) -> Live:
    """Creates a session and returns it as the store has it."""
    live = await store.create(session, expiry or session.expiry_if_active_at(session.create_time), soon())
    assert live is not None
    return live


async def read(store: SessionStore, session_id: str = ID) -> Live | None:
    """Reads one session."""
    return (await store.read([session_id], soon())).found[0]


async def test_now_is_the_stores_clock(backend: Backend, store: SessionStore) -> None:
    """`now` answers what TIME answers."""
    before = await backend.now()
    now = await store.now(soon())
    assert before <= now <= await backend.now()


async def test_a_created_session_is_read_as_it_was_written(backend: Backend, store: SessionStore) -> None:
    """Reading gives the session, the expiry and the bytes that creating wrote."""
    live = await created(store, await a_session(backend))
    found = await read(store)
    assert found is not None
    assert found.session == live.session
    assert found.stored_as == live.stored_as
    # Where the store tells only the time left, the milliseconds that it took to answer are missing.
    assert live.expiry - 1000 < found.expiry <= live.expiry


async def test_text_of_any_kind_survives(backend: Backend, store: SessionStore) -> None:
    """User ids and attributes come back as they were, at their largest and beyond ASCII."""
    attributes = {f"clé {at} 🗝": "valor\n\0" * 20 for at in range(ATTRIBUTES_MAX_ENTRIES)}
    session = await a_session(backend, user_id="usuário ✓ " + "x" * 200, attributes=attributes)
    await created(store, session)
    found = await read(store)
    assert found is not None
    assert found.session == session


async def test_the_record_is_json_that_a_person_can_read(backend: Backend, store: SessionStore) -> None:
    """GET session:<id> shows who, since when and until when, and no more of the token than its digest."""
    session = await a_session(backend)
    await created(store, session)
    record = json.loads(await backend.command("GET", f"session:{ID}"))
    assert record["session_id"] == ID
    assert record["user_id"] == "12345"
    assert record["login_at"] == session.create_time
    assert record["token_digest"] == session.digest
    assert record["attributes"] == {"device": "phone"}


async def test_an_id_is_taken_once(backend: Backend, store: SessionStore) -> None:
    """A second creation under a taken id says so and changes nothing, however many try at once."""
    sessions = [await a_session(backend, user_id=f"user-{at}") for at in range(20)]
    outcomes = await asyncio.gather(*(store.create(each, each.absolute_expire_time, soon()) for each in sessions))
    winners = [live for live in outcomes if live is not None]
    assert len(winners) == 1
    found = await read(store)
    assert found is not None
    assert found.session == winners[0].session


async def test_every_key_expires(backend: Backend, store: SessionStore) -> None:
    """No key is ever without an expiry, and none lasts beyond what was asked for."""
    await created(store, await a_session(backend))
    live = await read(store)
    assert live is not None
    await store.touch([(live, live.expiry + 1000)], soon())
    ttls = await backend.keys()
    assert list(ttls) == [f"session:{ID}"]
    assert all(0 < ttl <= HOUR for ttl in ttls.values())


async def test_a_session_ends_by_itself(backend: Backend, store: SessionStore) -> None:
    """After its expiry the store has nothing left of it."""
    session = await a_session(backend)
    await created(store, session, expiry=session.create_time + 50)
    await backend.travel(60)

    async def gone() -> bool:
        return await read(store) is None and not await backend.keys()

    await eventually_async(gone, "the session is gone")


async def test_even_the_shortest_session_has_an_expiry(backend: Backend, store: SessionStore) -> None:
    """An expiry a millisecond away, or already past, is never taken for none."""
    for distance in (1, 0, -HOUR):
        session = await a_session(backend)
        await created(store, session, expiry=session.create_time + distance)
        assert all(ttl >= 0 for ttl in (await backend.keys()).values())
        await backend.travel(10)
        await eventually_async(lambda: _is_gone(store), "the session is gone")


async def _is_gone(store: SessionStore) -> bool:
    return await read(store) is None


async def test_many_are_read_at_once_in_order(backend: Backend, store: SessionStore) -> None:
    """Each answer is for the id at its place: found, not there, or asked for twice."""
    for at in range(50):
        await created(store, await a_session(backend, f"{at:022}", user_id=f"user-{at}"))
    ids = [f"{at:022}" for at in (*range(0, 100, 3), 3, 3)]
    found = (await store.read(ids, soon())).found
    for session_id, live in zip(ids, found, strict=True):
        if int(session_id) < 50:
            assert live is not None
            assert (live.session.session_id, live.session.user_id) == (session_id, f"user-{int(session_id)}")
        else:
            assert live is None


async def test_a_touch_moves_the_expiry_later(backend: Backend, store: SessionStore) -> None:
    """A touch changes the expiry and not a byte of the record."""
    session = await a_session(backend)
    await created(store, session, expiry=session.create_time + 10_000)
    live = await read(store)
    assert live is not None
    record = await backend.command("GET", f"session:{ID}")
    assert await store.touch([(live, session.create_time + 20_000)], soon()) == [True]
    assert await backend.command("PEXPIRETIME", f"session:{ID}") == session.create_time + 20_000
    assert await backend.command("GET", f"session:{ID}") == record


async def test_a_late_touch_never_shortens(backend: Backend, store: SessionStore) -> None:
    """Of two touches that overtake each other the later expiry stays."""
    session = await a_session(backend)
    live = await created(store, session, expiry=session.create_time + 20_000)
    assert await store.touch([(live, session.create_time + 10_000)], soon()) == [True]
    assert await backend.command("PEXPIRETIME", f"session:{ID}") == session.create_time + 20_000


async def test_a_touch_never_brings_back(backend: Backend, store: SessionStore) -> None:
    """Touching a session that is gone says so and leaves nothing behind."""
    live = await created(store, await a_session(backend))
    assert await store.delete(ID, soon())
    assert await store.touch([(live, live.expiry + 1000)], soon()) == [False]
    assert await backend.keys() == {}


async def test_a_touch_of_what_has_changed_does_nothing(backend: Backend, store: SessionStore) -> None:
    """A touch that was decided on an older record must not stretch the newer one."""
    session = await a_session(backend)
    live = await created(store, session, expiry=session.create_time + 10_000)
    await backend.command("SET", f"session:{ID}", live.stored_as.replace(b"phone", b"radio"), "KEEPTTL")
    assert await store.touch([(live, session.create_time + 20_000)], soon()) == [False]
    assert await backend.command("PEXPIRETIME", f"session:{ID}") == session.create_time + 10_000


async def test_touches_go_together_and_are_judged_apart(backend: Backend, store: SessionStore) -> None:
    """One touch among many that comes too late says so for itself only."""
    first = await created(store, await a_session(backend))
    second = await created(store, await a_session(backend, OTHER_ID))
    await store.delete(ID, soon())
    done = await store.touch([(live, live.expiry + 1000) for live in (first, second, first)], soon())
    assert done == [False, True, False]


async def test_a_deletion_is_told_once(backend: Backend, store: SessionStore) -> None:
    """Of many deletions of one session exactly one did it."""
    await created(store, await a_session(backend))
    assert sum(await asyncio.gather(*(store.delete(ID, soon()) for _ in range(20)))) == 1
    assert await read(store) is None


async def test_prefixes_keep_services_apart(backend: Backend) -> None:
    """Two services with different prefixes share a database and see nothing of each other."""
    async with session_store(backend, prefix="a:") as one, session_store(backend, prefix="b:") as other:
        await created(one, await a_session(backend))
        assert await read(other) is None
        assert not await other.delete(ID, soon())
        assert list(await backend.keys()) == [f"a:session:{ID}"]


async def test_a_deadline_that_has_passed_is_no_answer(store: SessionStore) -> None:
    """Too late is "unknown", not "not there"."""
    with pytest.raises(StoreUnavailable):
        await store.read([ID], asyncio.get_running_loop().time() - 1)
