"""Something else under the key of a user's index: no wrong response, and other users are not affected."""

from collections.abc import AsyncIterator, Awaitable

import pytest
from tests.support.inprocess import serving
from tests.support.spoiling import login, records, sessions_on
from tests.support.valkey import Valkey

from catraca import AsyncSessionClient, errors


@pytest.fixture
async def sessions(valkey: Valkey) -> AsyncIterator[AsyncSessionClient]:
    """A client of a service on a real Valkey that is empty."""
    async with sessions_on(valkey) as client:
        yield client


INDEX = "user-sessions:12345"


async def assert_unavailable(*calls: Awaitable[object]) -> None:
    """Asserts that each call is UNAVAILABLE."""
    for call in calls:
        with pytest.raises(errors.Unavailable) as caught:
            await call
        assert caught.value.reason == "STORE_UNAVAILABLE"


async def listed(sessions: AsyncSessionClient, user_id: str = "12345", page_size: int = 0) -> list[str]:
    """Returns the ids of a user's sessions."""
    return [each.session_id async for each in sessions.list_sessions(user_id, page_size=page_size)]


@pytest.mark.parametrize("words", [("SET", "x"), ("LPUSH", "x"), ("SADD", "x"), ("HSET", "x", "y")], ids=str)
async def test_an_index_of_another_type(
    words: tuple[str, ...], valkey: Valkey, sessions: AsyncSessionClient, caplog: pytest.LogCaptureFixture
) -> None:
    """What needs the index is unavailable for that user only; everything works again once the key is gone."""
    mine = await login(sessions)
    valkey.command("DEL", INDEX)
    valkey.command(words[0], INDEX, *words[1:])
    valkey.command("PEXPIRE", INDEX, 3_600_000)
    await assert_unavailable(login(sessions), listed(sessions), sessions.revoke_user_sessions("12345"))
    assert await sessions.validate(mine.token)
    assert (await sessions.update(mine.session.session_id, attributes={})).attributes == {}
    assert await sessions.validate((await sessions.rotate(mine.token)).token)
    other = await login(sessions, "another")
    assert await listed(sessions, "another") == [other.session.session_id]
    assert "connection closed" not in caplog.text
    valkey.command("DEL", INDEX)
    again = await login(sessions)
    assert await listed(sessions) == [again.session.session_id]


async def test_logging_out_does_not_need_the_index(valkey: Valkey, sessions: AsyncSessionClient) -> None:
    """A session ends by its token and by its id, whatever is in place of the index."""
    first, second = await login(sessions), await login(sessions)
    valkey.command("SET", INDEX, "x", "PX", 3_600_000)
    assert await sessions.revoke(token=first.token)
    assert await sessions.revoke(session_id=second.session.session_id)
    assert not any(await sessions.validate_batch([first.token, second.token]))


async def test_an_index_without_expiry_gets_one(valkey: Valkey, sessions: AsyncSessionClient) -> None:
    """An expiry that somebody removed is back after the next login."""
    await login(sessions)
    assert valkey.command("PERSIST", INDEX) == 1
    await login(sessions)
    assert 0 < valkey.command("PTTL", INDEX) <= 3_600_000


async def test_entries_of_no_session(valkey: Valkey, sessions: AsyncSessionClient) -> None:
    """Whatever they name, with whatever score, the user's sessions are listed and ended as if they were not there."""
    first = await login(sessions)
    newest = 2 * int(valkey.command("TIME")[0]) * 1_000_000 + 10**9 + 1
    garbage = [
        b"",
        b"x",
        b"0" * 22,
        "é".encode(),
        b"\xff\xfe",
        b"../../etc/passwd",
        b"*",
        INDEX.encode(),
        b"x" * 99_999,
    ]
    for session_id, number in zip(garbage, [0, 1, 0.5, 1.5, -0.5, 3, -3, newest - 2, newest], strict=True):
        valkey.command("ZADD", INDEX, number, session_id)
    second = await login(sessions)
    ids = [second.session.session_id, first.session.session_id]
    for page_size in (1, 2, 50):
        assert await listed(sessions, page_size=page_size) == ids
    assert await sessions.revoke_user_sessions("12345", except_session_id=ids[0]) == 1
    assert await listed(sessions) == ids[:1]
    assert await sessions.revoke_user_sessions("12345") == 1
    assert records(valkey) == {}


@pytest.mark.parametrize("score", ["inf", "-inf", "1e300", "-1e300", "1e19"])
async def test_entries_with_a_score_that_no_clock_yields(
    score: str, valkey: Valkey, sessions: AsyncSessionClient, caplog: pytest.LogCaptureFixture
) -> None:
    """What needs the index is unavailable for that user, and the rest works."""
    mine = await login(sessions)
    valkey.command("ZADD", INDEX, score, "0" * 22)
    await assert_unavailable(login(sessions), sessions.revoke_user_sessions("12345"))
    if not score.startswith("-"):
        await assert_unavailable(listed(sessions, page_size=1))
    assert await sessions.validate(mine.token)
    assert await sessions.revoke(token=mine.token)
    assert "defect" not in caplog.text
    assert "connection closed" not in caplog.text
    valkey.command("DEL", INDEX)
    again = await login(sessions)
    assert await listed(sessions) == [again.session.session_id]


@pytest.mark.parametrize("state", ["committed", "reserved", "evicting"])
async def test_entries_of_a_session_of_another_user(state: str, valkey: Valkey, sessions: AsyncSessionClient) -> None:
    """It is not listed among this user's sessions, not ended with them, and not evicted for them."""
    other = await login(sessions, "another")

    def add_entry() -> None:
        now = 2 * int(valkey.command("TIME")[0]) * 1_000_000
        score = {"committed": now + 1, "reserved": now, "evicting": -now - 1}[state]
        valkey.command("ZADD", INDEX, score, other.session.session_id)

    add_entry()
    mine = await login(sessions)
    assert await listed(sessions) == [mine.session.session_id]
    add_entry()
    assert await sessions.revoke_user_sessions("12345") == 1
    add_entry()
    async with (
        serving(store_url=valkey.url, store_timeout="10s", max_sessions_per_user="1") as target,
        AsyncSessionClient(target, timeout=20) as limited,
    ):
        evicted = [(await login(limited)).evicted_session_ids for _ in range(2)]
    assert [len(each) for each in evicted] == [0, 1]
    assert other.session.session_id not in evicted[1]
    assert await sessions.validate(other.token)
    assert await listed(sessions, "another") == [other.session.session_id]
