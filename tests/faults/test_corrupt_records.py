"""What is stored as a session and is none: never valid, never a defect, and told on the log."""

import json
import logging
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any, cast

import pytest
from tests.support.inprocess import serving
from tests.support.valkey import Valkey

from catraca import AsyncSessionClient, InvalidReason, Login, errors

Record = dict[str, Any]
OTHER_ID = "0000000000000000000001"


def changed(**fields: Any) -> Callable[[Record], bytes]:
    """Returns how to spoil a record by changing fields."""
    return lambda record: json.dumps(record | fields).encode()


def without(field: str) -> Callable[[Record], bytes]:
    """Returns how to spoil a record by leaving a field out."""
    return lambda record: json.dumps({name: value for name, value in record.items() if name != field}).encode()


def as_is(data: bytes) -> Callable[[Record], bytes]:
    """Returns how to put this in a record's place."""
    return lambda _: data


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
            "session_id",
            "user_id",
            "token_digest",
            "login_at",
            "absolute_expire_at",
            "idle_timeout_ms",
            "version",
        )
    },
    **{
        f"{name} {value!r}": changed(**{name: value})
        for name, values in {
            "session_id": (None, 1, []),
            "user_id": (None, 1, "", {}, ["12345"], "\ud800"),
            "token_digest": (None, 1, "é", "\ud800", []),
            "login_at": (None, "1", 1.5, True, -1, 10**15, 2**63, 10**30),
            "absolute_expire_at": (None, "1", 1.5, True, -1, 10**15, 2**63, 10**30),
            "idle_timeout_ms": (None, "1", 1.5, True, -1, 10**15, 2**63, 10**30),
            "version": (None, "1", 1.5, True, -1, 0),
            "attributes": (None, "x", 1, [], {"device": 1}, {"device": None}, {"device": "\ud800"}, {"\ud800": "x"}),
        }.items()
        for value in cast("tuple[Any, ...]", values)
    },
}


@pytest.fixture
async def sessions(valkey: Valkey) -> AsyncIterator[AsyncSessionClient]:
    """A client of a service on a real Valkey."""
    async with (
        serving(store_url=valkey.url, store_timeout="10s") as target,
        AsyncSessionClient(target, timeout=20) as client,
    ):
        yield client


async def login(sessions: AsyncSessionClient) -> Login:
    """Starts a session that lives long enough."""
    return await sessions.create("12345", ttl=timedelta(hours=1), attributes={"device": "phone"})


async def assert_gone(sessions: AsyncSessionClient, of: Login, caplog: pytest.LogCaptureFixture) -> None:
    """Asserts that a session counts as none wherever it is asked about, that this is told, and nothing of it quoted."""
    good = await login(sessions)
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        denied = await sessions.validate(of.token)
        assert (bool(denied), denied.reason) == (False, InvalidReason.NOT_FOUND)
        batch = await sessions.validate_batch([good.token, of.token, good.token])
        assert [bool(each) for each in batch] == [True, False, True]
        with pytest.raises(errors.SessionNotFound):
            await sessions.get(of.session.session_id)
        assert not await sessions.revoke(token=of.token)
    told = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(told) == 4
    assert all(f"what is stored as session {of.session.session_id} is none" in each.getMessage() for each in told)
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
    assert f"asked for session {mine.session.session_id}, was answered with" in caplog.text
    assert {each.levelno for each in caplog.records if "asked for session" in each.getMessage()} == {logging.CRITICAL}
    assert await sessions.validate(other.token)
    assert await sessions.revoke(session_id=mine.session.session_id)
    assert not await sessions.validate(mine.token)


async def test_a_record_of_a_later_version_is_read(valkey: Valkey, sessions: AsyncSessionClient) -> None:
    """Fields that this version does not know are ignored, and kept."""
    newer = await login(sessions)
    key = f"session:{newer.session.session_id}"
    record = json.loads(valkey.command("GET", key)) | {"rotated_at": 1, "more": {"a": [1, None]}}
    valkey.command("SET", key, json.dumps(record), "KEEPTTL")
    assert (await sessions.validate(newer.token)).session == newer.session
    assert json.loads(valkey.command("GET", key)) == record
