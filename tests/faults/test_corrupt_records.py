"""What is stored as a session and is none: never valid, never a defect, and told on the log."""

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from tests.support.inprocess import serving
from tests.support.valkey import Valkey

from catraca import AsyncSessionClient, InvalidReason, Login, errors

Record = dict[str, Any]
RETIRED: Record = {"digest": "d" * 43, "grace_until": 4_000_000_000_000, "salt": "s" * 22}


def changed(**fields: Any) -> Callable[[Record], bytes]:
    """Returns how to spoil a record by changing fields."""
    return lambda record: json.dumps(record | fields).encode()


def without(field: str) -> Callable[[Record], bytes]:
    """Returns how to spoil a record by leaving a field out."""
    return lambda record: json.dumps({name: value for name, value in record.items() if name != field}).encode()


def as_is(data: bytes) -> Callable[[Record], bytes]:
    """Returns how to put this in a record's place."""
    return lambda _: data


FIELDS: dict[str, tuple[Any, ...]] = {
    "id": (None, 1, []),
    "user_id": (None, 1, "", {}, ["12345"], "\ud800"),
    "digest": (None, 1, "é", "\ud800", []),
    "login_at": (None, "1", 1.5, True, -1, 10**15, 2**63, 10**30),
    "absolute_expire_at": (None, "1", 1.5, True, -1, 10**15, 2**63, 10**30),
    "idle_ms": (None, "1", 1.5, True, -1, 10**15, 2**63, 10**30),
    "version": (None, "1", 1.5, True, -1, 0, 10**15, 2**63, 10**30),
    "retired": (None, 1, True, "x", {"digest": "d"}, [None], [1], ["x"], [[]], [{}]),
    "attributes": (None, "x", 1, [], {"device": 1}, {"device": None}, {"device": "\ud800"}, {"\ud800": "x"}),
}
"""What the fields of a record must not be."""

RETIRED_FIELDS: dict[str, tuple[Any, ...]] = {
    "digest": (None, 1, "é", "\ud800", []),
    "grace_until": (None, "1", 1.5, True, -1, 10**15, 2**63, 10**30),
    "salt": (None, 1, [], {}, True, "\ud800"),
}
"""And those of what it says of a token that was rotated out."""

SPOILED: dict[str, Callable[[Record], bytes]] = {
    "empty": as_is(b""),
    "no JSON": as_is(b"session"),
    "half a record": lambda record: json.dumps(record).encode()[:-20],
    "two records": lambda record: json.dumps(record).encode() * 2,
    "no UTF-8": as_is(b'{"user_id":"\xff\xfe"}'),
    "null": as_is(b"null"),
    "a number": as_is(b"1"),
    "NaN": as_is(b"NaN"),
    "a text": as_is(b'"session"'),
    "a list": as_is(b"[]"),
    "an empty object": as_is(b"{}"),
    "deep": as_is(b"[" * 100_000),
    "deep inside": lambda record: json.dumps(record).encode()[:-1] + b',"x":' + b'{"x":' * 100_000,
    "a number of 5,000 digits": lambda record: json.dumps(record).encode()[:-1] + b',"version":' + b"9" * 5000 + b"}",
    **{
        f"without {name}": without(name)
        for name in (
            "id",
            "user_id",
            "digest",
            "login_at",
            "absolute_expire_at",
            "idle_ms",
            "version",
        )
    },
    **{f"{name} {value!r}": changed(**{name: value}) for name, values in FIELDS.items() for value in values},
    **{
        f"retired {name} {value!r}": changed(retired=[RETIRED, RETIRED | {name: value}])
        for name, values in RETIRED_FIELDS.items()
        for value in values
    },
    **{
        f"retired without {name}": changed(retired=[{key: each for key, each in RETIRED.items() if key != name}])
        for name in ("digest", "grace_until")
    },
}


@pytest.fixture
async def sessions(valkey: Valkey) -> AsyncIterator[AsyncSessionClient]:
    """A client of a service on a real Valkey that is empty."""
    valkey.command("FLUSHALL")
    async with (
        serving(store_url=valkey.url, store_timeout="10s") as target,
        AsyncSessionClient(target, timeout=20) as client,
    ):
        yield client


async def login(sessions: AsyncSessionClient, user_id: str = "12345") -> Login:
    """Starts a session that lives long enough."""
    return await sessions.create(user_id, ttl=timedelta(hours=1), attributes={"device": "phone"})


def records(valkey: Valkey) -> dict[bytes, bytes]:
    """Returns what stands under the keys of sessions, but for the notes that one must not be written any more."""
    held = {key: valkey.command("GET", key) for key in valkey.command("KEYS", "session:*")}
    return {key: record for key, record in held.items() if not record.startswith(b'{"void":')}


async def assert_gone(sessions: AsyncSessionClient, of: Login, caplog: pytest.LogCaptureFixture) -> None:
    """Asserts that a session counts as none wherever it is asked about, that this is told, and nothing of it quoted."""
    good = await login(sessions, "another")
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        denied = await sessions.validate(of.token)
        assert (bool(denied), denied.reason) == (False, InvalidReason.NOT_FOUND)
        batch = await sessions.validate_batch([good.token, of.token, good.token])
        assert [bool(each) for each in batch] == [True, False, True]
        with pytest.raises(errors.SessionNotFound):
            await sessions.get(of.session.session_id)
        with pytest.raises(errors.SessionNotFound):
            await sessions.update(of.session.session_id, attributes={})
        with pytest.raises(errors.SessionNotFound):
            await sessions.rotate(of.token)
        assert not await sessions.revoke(token=of.token)
        assert [each async for each in sessions.list_sessions("12345")] == []
    told = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(told) == 7
    assert all(f"unreadable record: session {of.session.session_id}: " in each.getMessage() for each in told)
    assert "12345" not in caplog.text
    assert "phone" not in caplog.text


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED.keys())
async def test_a_spoiled_record_is_no_session(
    spoil: Callable[[Record], bytes], valkey: Valkey, sessions: AsyncSessionClient, caplog: pytest.LogCaptureFixture
) -> None:
    """A record that breaks any of its rules opens nothing."""
    spoiled = await login(sessions)
    key = f"session:{spoiled.session.session_id}"
    assert valkey.command("SET", key, spoil(json.loads(valkey.command("GET", key))), "KEEPTTL")
    await assert_gone(sessions, spoiled, caplog)


@pytest.mark.parametrize(
    "words", [("LPUSH", "x"), ("SADD", "x"), ("HSET", "x", "y"), ("ZADD", "1", "x"), ("XADD", "*", "x", "y")], ids=str
)
async def test_a_key_of_another_type_is_no_session(
    words: tuple[str, ...], valkey: Valkey, sessions: AsyncSessionClient, caplog: pytest.LogCaptureFixture
) -> None:
    """A list, set, hash, sorted set or stream under the key opens nothing."""
    replaced = await login(sessions)
    key = f"session:{replaced.session.session_id}"
    valkey.command("DEL", key)
    valkey.command(words[0], key, *words[1:])
    valkey.command("PEXPIRE", key, 3_600_000)
    await assert_gone(sessions, replaced, caplog)
    assert await sessions.revoke(session_id=replaced.session.session_id)
    assert not valkey.command("EXISTS", key)


async def test_a_record_without_expiry_is_no_session(valkey: Valkey, sessions: AsyncSessionClient) -> None:
    """A record whose expiry somebody took away does not pass for ever, nor does looking at it bring one back."""
    persisted = await login(sessions)
    key = f"session:{persisted.session.session_id}"
    assert valkey.command("PERSIST", key) == 1
    assert not await sessions.validate(persisted.token)
    with pytest.raises(errors.SessionNotFound):
        await sessions.get(persisted.session.session_id)
    assert valkey.command("PTTL", key) == -1
    valkey.command("DEL", key)


async def test_a_record_past_its_absolute_end_is_no_session(valkey: Valkey, sessions: AsyncSessionClient) -> None:
    """A record that the store has kept past its absolute end opens nothing."""
    kept = await login(sessions)
    key = f"session:{kept.session.session_id}"
    record = json.loads(valkey.command("GET", key))
    past = record | {"login_at": record["login_at"] - 7_200_000, "absolute_expire_at": record["login_at"] - 1}
    valkey.command("SET", key, json.dumps(past), "KEEPTTL")
    assert not await sessions.validate(kept.token)


async def test_an_expiry_that_somebody_moved(valkey: Valkey, sessions: AsyncSessionClient) -> None:
    """An expiry beyond the session's absolute end does not prolong it, and its times can still be told."""
    moved = await login(sessions)
    valkey.command("EXPIRE", f"session:{moved.session.session_id}", 100 * 365 * 86_400)
    session = await sessions.require(moved.token)
    assert session.absolute_expire_time == moved.session.absolute_expire_time
    assert session.expire_time <= session.absolute_expire_time
    assert session.create_time <= session.last_active_time <= session.absolute_expire_time


async def test_a_record_of_another_session_is_no_answer(
    valkey: Valkey, sessions: AsyncSessionClient, caplog: pytest.LogCaptureFixture
) -> None:
    """A record that names another session is told as unknown and as critical; and soon all is well for the others."""
    mine, other = await login(sessions), await login(sessions)
    record = valkey.command("GET", f"session:{other.session.session_id}")
    valkey.command("SET", f"session:{mine.session.session_id}", record, "KEEPTTL")
    with pytest.raises(errors.Unavailable) as caught:
        await sessions.validate(mine.token)
    assert caught.value.reason == "STORE_UNAVAILABLE"
    with pytest.raises(errors.Unavailable):
        await sessions.get(mine.session.session_id)
    assert f"wrong record: read session {mine.session.session_id}, got session" in caplog.text
    assert {each.levelno for each in caplog.records if "wrong record" in each.getMessage()} == {logging.CRITICAL}
    assert await sessions.validate(other.token)


@pytest.mark.parametrize(
    "everywhere",
    [False, True],
    ids=["revoked", "logged out everywhere"],
)
async def test_a_record_of_another_session_can_be_ended(
    everywhere: bool, valkey: Valkey, sessions: AsyncSessionClient
) -> None:
    """By its id as by its user, so that no record is left; the session that it names stays."""
    mine, other = await login(sessions), await login(sessions, "another")
    key = f"session:{mine.session.session_id}"
    record = json.loads(valkey.command("GET", key)) | {"id": other.session.session_id}
    valkey.command("SET", key, json.dumps(record), "KEEPTTL")
    if everywhere:
        assert await sessions.revoke_user_sessions("12345") == 1
    else:
        assert await sessions.revoke(session_id=mine.session.session_id)
    assert list(records(valkey)) == [f"session:{other.session.session_id}".encode()]
    assert not await sessions.validate(mine.token)
    assert await sessions.validate(other.token)


async def test_a_record_of_a_later_version_is_read(valkey: Valkey, sessions: AsyncSessionClient) -> None:
    """Fields that this version does not know are ignored, and kept."""
    newer = await login(sessions)
    key = f"session:{newer.session.session_id}"
    record = json.loads(valkey.command("GET", key)) | {"rotated_at": 1, "more": {"a": [1, None]}}
    valkey.command("SET", key, json.dumps(record), "KEEPTTL")
    assert (await sessions.validate(newer.token)).session == newer.session
    assert json.loads(valkey.command("GET", key)) == record


def preceded_by(text: str) -> Callable[[Record], bytes]:
    """Returns how to write a record with this before its own fields."""
    return lambda record: b"{" + text.encode() + b"," + json.dumps(record).encode()[1:]


ODD: dict[str, Callable[[Record], bytes]] = {
    "spread out": lambda record: json.dumps(record, indent=8).encode().replace(b"\n", b"\r\n"),
    "escaped": lambda record: json.dumps(record).encode().replace(b'"12345"', rb'"\u00312\u003345"'),
    "user told twice": preceded_by('"user_id":"another"'),
    "deep": preceded_by('"more":' + "[" * 900 + "]" * 900),
    "infinite": preceded_by('"more":[1e999,NaN,Infinity,-Infinity]'),
    "long": preceded_by('"more":' + "9" * 4000),
    "odd texts": preceded_by(r'"":"\u0000\ud83d\ude00\/","more":"' + "\x7f\u2028\ufeff" + '"'),
}


@pytest.mark.parametrize("write", ODD.values(), ids=ODD.keys())
async def test_whatever_opens_can_be_ended(
    write: Callable[[Record], bytes], valkey: Valkey, sessions: AsyncSessionClient
) -> None:
    """However a record is written: what is read as a session of a user ends when that user is logged out everywhere."""
    odd = await login(sessions)
    key = f"session:{odd.session.session_id}"
    valkey.command("SET", key, write(json.loads(valkey.command("GET", key))), "KEEPTTL")
    assert (await sessions.validate(odd.token)).session == odd.session
    assert await sessions.revoke_user_sessions("12345") == 1
    assert not await sessions.validate(odd.token)


@pytest.mark.parametrize(
    "words",
    [("SET", "x"), ("LPUSH", "x")],
    ids=str,
)
async def test_what_is_no_session_keeps_no_other_alive(
    words: tuple[str, ...], valkey: Valkey, sessions: AsyncSessionClient
) -> None:
    """Logging out everywhere passes over what cannot be read, and ends what can."""
    logins = [await login(sessions) for _ in range(3)]
    key = f"session:{logins[1].session.session_id}"
    valkey.command("DEL", key)
    valkey.command(words[0], key, *words[1:])
    valkey.command("PEXPIRE", key, 3_600_000)
    assert await sessions.revoke_user_sessions("12345") == 2
    assert not any(await sessions.validate_batch(each.token for each in logins))


async def rotated(valkey: Valkey, sessions: AsyncSessionClient, **fields: Any) -> tuple[Login, str]:
    """Starts a session, rotates its token and changes what its record says of the old one; returns the new one too."""
    old = await login(sessions)
    new = (await sessions.rotate(old.token)).token
    key = f"session:{old.session.session_id}"
    record = json.loads(valkey.command("GET", key))
    record["retired"][0].update(fields)
    valkey.command("SET", key, json.dumps(record), "KEEPTTL")
    return old, new


@pytest.mark.parametrize("digest", ["", "d", "d" * 5000])
async def test_a_retired_token_that_nobody_has(digest: str, valkey: Valkey, sessions: AsyncSessionClient) -> None:
    """A record that says something else of the old token: that one opens nothing, and the new one all the same."""
    old, new = await rotated(valkey, sessions, digest=digest)
    assert (await sessions.validate(old.token)).reason is InvalidReason.NOT_FOUND
    with pytest.raises(errors.SessionNotFound):
        await sessions.rotate(old.token)
    assert await sessions.validate(new)
    assert (await sessions.rotate(new)).session.session_id == old.session.session_id


@pytest.mark.parametrize("salt", ["", "s" * 22, "é"])
async def test_a_salt_that_leads_nowhere(
    salt: str, valkey: Valkey, sessions: AsyncSessionClient, caplog: pytest.LogCaptureFixture
) -> None:
    """A record with another salt: no token is told that opens nothing, and it is no defect of the server."""
    old, new = await rotated(valkey, sessions, salt=salt)
    assert (await sessions.validate(old.token)).token_rotated
    with pytest.raises(errors.CatracaError) as caught:
        await sessions.rotate(old.token)
    assert caught.value.reason != "INTERNAL"
    assert "defect" not in caplog.text
    assert await sessions.validate(new)


# The index of a user's sessions

INDEX = "user-sessions:12345"


async def assert_unavailable(*calls: Awaitable[object]) -> None:
    """Asserts that each call is told that nothing is known."""
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
    """What needs it is unavailable for that user and for nobody else, and the rest works; all does once it is gone."""
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
    """A session ends by its token and by its id whatever stands in place of the index."""
    first, second = await login(sessions), await login(sessions)
    valkey.command("SET", INDEX, "x", "PX", 3_600_000)
    assert await sessions.revoke(token=first.token)
    assert await sessions.revoke(session_id=second.session.session_id)
    assert not any(await sessions.validate_batch([first.token, second.token]))


async def test_an_index_without_expiry_gets_one(valkey: Valkey, sessions: AsyncSessionClient) -> None:
    """An expiry that somebody took away is back after the next login."""
    await login(sessions)
    assert valkey.command("PERSIST", INDEX) == 1
    await login(sessions)
    assert 0 < valkey.command("PTTL", INDEX) <= 3_600_000


async def test_entries_that_name_no_session(valkey: Valkey, sessions: AsyncSessionClient) -> None:
    """Ids that are none, with any number: the user's sessions are listed and ended as if they were not there."""
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


@pytest.mark.parametrize("number", ["inf", "-inf", "1e300", "-1e300", "1e19"])
async def test_entries_with_a_number_that_is_none(
    number: str, valkey: Valkey, sessions: AsyncSessionClient, caplog: pytest.LogCaptureFixture
) -> None:
    """A number that no clock has told: what needs the index is unavailable for that user, and the rest works."""
    mine = await login(sessions)
    valkey.command("ZADD", INDEX, number, "0" * 22)
    await assert_unavailable(login(sessions), sessions.revoke_user_sessions("12345"))
    if not number.startswith("-"):
        await assert_unavailable(listed(sessions, page_size=1))
    assert await sessions.validate(mine.token)
    assert await sessions.revoke(token=mine.token)
    assert "defect" not in caplog.text
    assert "connection closed" not in caplog.text
    valkey.command("DEL", INDEX)
    again = await login(sessions)
    assert await listed(sessions) == [again.session.session_id]


@pytest.mark.parametrize("number", ["settled", "attempted", "marked"])
async def test_entries_that_name_a_session_of_another_user(
    number: str, valkey: Valkey, sessions: AsyncSessionClient
) -> None:
    """It is neither listed among this user's sessions, nor ended with them, nor to make room for them."""
    other = await login(sessions, "another")

    def enter() -> None:
        now = 2 * int(valkey.command("TIME")[0]) * 1_000_000
        score = {"settled": now + 1, "attempted": now, "marked": -now - 1}[number]
        valkey.command("ZADD", INDEX, score, other.session.session_id)

    enter()
    mine = await login(sessions)
    assert await listed(sessions) == [mine.session.session_id]
    enter()
    assert await sessions.revoke_user_sessions("12345") == 1
    enter()
    async with (
        serving(store_url=valkey.url, store_timeout="10s", max_sessions_per_user="1") as target,
        AsyncSessionClient(target, timeout=20) as limited,
    ):
        evicted = [(await login(limited)).evicted_session_ids for _ in range(2)]
    assert [len(each) for each in evicted] == [0, 1]
    assert other.session.session_id not in evicted[1]
    assert await sessions.validate(other.token)
    assert await listed(sessions, "another") == [other.session.session_id]
