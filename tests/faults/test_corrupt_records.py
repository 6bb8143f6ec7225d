"""Something else under a session's key than its record: never valid, never a defect, and logged."""

import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from tests.support.spoiling import login, records, sessions_on
from tests.support.valkey import Valkey

from catraca import AsyncSessionClient, InvalidReason, Login, errors

Record = dict[str, Any]
ROTATED: Record = {"digest": "d" * 43, "grace_until": 4_000_000_000_000, "salt": "s" * 22}


def changed(**fields: Any) -> Callable[[Record], bytes]:
    """Spoils a record by changing fields."""
    return lambda record: json.dumps(record | fields).encode()


def without(field: str) -> Callable[[Record], bytes]:
    """Spoils a record by leaving out a field."""
    return lambda record: json.dumps({name: value for name, value in record.items() if name != field}).encode()


def as_is(data: bytes) -> Callable[[Record], bytes]:
    """Replaces a record."""
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
"""Invalid values of each field of a record."""

ROTATED_FIELDS: dict[str, tuple[Any, ...]] = {
    "digest": (None, 1, "é", "\ud800", []),
    "grace_until": (None, "1", 1.5, True, -1, 10**15, 2**63, 10**30),
    "salt": (None, 1, [], {}, True, "\ud800"),
}
"""Invalid values of each field of a rotated token."""

SPOILED: dict[str, Callable[[Record], bytes]] = {
    "empty": as_is(b""),
    "not JSON": as_is(b"session"),
    "half a record": lambda record: json.dumps(record).encode()[:-20],
    "two records": lambda record: json.dumps(record).encode() * 2,
    "not UTF-8": as_is(b'{"user_id":"\xff\xfe"}'),
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
        f"rotated {name} {value!r}": changed(retired=[ROTATED, ROTATED | {name: value}])
        for name, values in ROTATED_FIELDS.items()
        for value in values
    },
    **{
        f"rotated without {name}": changed(retired=[{key: each for key, each in ROTATED.items() if key != name}])
        for name in ("digest", "grace_until")
    },
}


@pytest.fixture
async def sessions(valkey: Valkey) -> AsyncIterator[AsyncSessionClient]:
    """A client of a service on a real Valkey that is empty."""
    async with sessions_on(valkey) as client:
        yield client


async def assert_gone(sessions: AsyncSessionClient, spoiled: Login, caplog: pytest.LogCaptureFixture) -> None:
    """Asserts that no RPC finds a session, that this is logged each time, and that nothing of the record is."""
    good = await login(sessions, "another")
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        denied = await sessions.validate(spoiled.token)
        assert (bool(denied), denied.reason) == (False, InvalidReason.NOT_FOUND)
        batch = await sessions.validate_batch([good.token, spoiled.token, good.token])
        assert [bool(each) for each in batch] == [True, False, True]
        with pytest.raises(errors.SessionNotFound):
            await sessions.get(spoiled.session.session_id)
        with pytest.raises(errors.SessionNotFound):
            await sessions.update(spoiled.session.session_id, attributes={})
        with pytest.raises(errors.SessionNotFound):
            await sessions.rotate(spoiled.token)
        assert not await sessions.revoke(token=spoiled.token)
        assert [each async for each in sessions.list_sessions("12345")] == []
    logged = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(logged) == 7
    assert all(f"unreadable record: session {spoiled.session.session_id}: " in each.getMessage() for each in logged)
    assert "12345" not in caplog.text
    assert "phone" not in caplog.text


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED.keys())
async def test_a_spoiled_record_is_not_a_session(
    spoil: Callable[[Record], bytes], valkey: Valkey, sessions: AsyncSessionClient, caplog: pytest.LogCaptureFixture
) -> None:
    """A token of a record that breaks any rule is not valid."""
    spoiled = await login(sessions)
    key = f"session:{spoiled.session.session_id}"
    assert valkey.command("SET", key, spoil(json.loads(valkey.command("GET", key))), "KEEPTTL")
    await assert_gone(sessions, spoiled, caplog)


@pytest.mark.parametrize(
    "words", [("LPUSH", "x"), ("SADD", "x"), ("HSET", "x", "y"), ("ZADD", "1", "x"), ("XADD", "*", "x", "y")], ids=str
)
async def test_a_key_of_another_type_is_not_a_session(
    words: tuple[str, ...], valkey: Valkey, sessions: AsyncSessionClient, caplog: pytest.LogCaptureFixture
) -> None:
    """With a list, set, hash, sorted set or stream under its key, a token is not valid."""
    replaced = await login(sessions)
    key = f"session:{replaced.session.session_id}"
    valkey.command("DEL", key)
    valkey.command(words[0], key, *words[1:])
    valkey.command("PEXPIRE", key, 3_600_000)
    await assert_gone(sessions, replaced, caplog)
    assert await sessions.revoke(session_id=replaced.session.session_id)
    assert not valkey.command("EXISTS", key)


async def test_a_record_without_expiry_is_not_a_session(valkey: Valkey, sessions: AsyncSessionClient) -> None:
    """A record whose expiry somebody removed is not valid forever, and reading it does not restore the expiry."""
    persisted = await login(sessions)
    key = f"session:{persisted.session.session_id}"
    assert valkey.command("PERSIST", key) == 1
    assert not await sessions.validate(persisted.token)
    with pytest.raises(errors.SessionNotFound):
        await sessions.get(persisted.session.session_id)
    assert valkey.command("PTTL", key) == -1
    valkey.command("DEL", key)


async def test_a_record_past_its_deadline_is_not_a_session(valkey: Valkey, sessions: AsyncSessionClient) -> None:
    """Past its absolute deadline, also if the store has kept it."""
    kept = await login(sessions)
    key = f"session:{kept.session.session_id}"
    record = json.loads(valkey.command("GET", key))
    past = record | {"login_at": record["login_at"] - 7_200_000, "absolute_expire_at": record["login_at"] - 1}
    valkey.command("SET", key, json.dumps(past), "KEEPTTL")
    assert not await sessions.validate(kept.token)


async def test_an_expiry_that_somebody_moved(valkey: Valkey, sessions: AsyncSessionClient) -> None:
    """An expiry beyond the absolute deadline does not prolong a session, and its times stay consistent."""
    moved = await login(sessions)
    valkey.command("EXPIRE", f"session:{moved.session.session_id}", 100 * 365 * 86_400)
    session = await sessions.require(moved.token)
    assert session.absolute_expire_time == moved.session.absolute_expire_time
    assert session.expire_time <= session.absolute_expire_time
    assert session.create_time <= session.last_active_time <= session.absolute_expire_time


async def test_a_record_of_another_session_is_unavailable(
    valkey: Valkey, sessions: AsyncSessionClient, caplog: pytest.LogCaptureFixture
) -> None:
    """A record that names another session is UNAVAILABLE and logged as critical; other sessions are not affected."""
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
    """By its id and with its user's sessions, so that no record is left; the session that it names stays."""
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
    """Puts this before a record's own fields."""
    return lambda record: b"{" + text.encode() + b"," + json.dumps(record).encode()[1:]


ODD: dict[str, Callable[[Record], bytes]] = {
    "spread out": lambda record: json.dumps(record, indent=8).encode().replace(b"\n", b"\r\n"),
    "escaped": lambda record: json.dumps(record).encode().replace(b'"12345"', rb'"\u00312\u003345"'),
    "two user ids": preceded_by('"user_id":"another"'),
    "deep": preceded_by('"more":' + "[" * 900 + "]" * 900),
    "infinite": preceded_by('"more":[1e999,NaN,Infinity,-Infinity]'),
    "long": preceded_by('"more":' + "9" * 4000),
    "odd characters": preceded_by(r'"":"\u0000\ud83d\ude00\/","more":"' + "\x7f\u2028\ufeff" + '"'),
}


@pytest.mark.parametrize("write", ODD.values(), ids=ODD.keys())
async def test_whatever_is_valid_can_be_ended(
    write: Callable[[Record], bytes], valkey: Valkey, sessions: AsyncSessionClient
) -> None:
    """However a record is written: a session that is valid for a user ends when that user is logged out everywhere."""
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
async def test_an_unreadable_record_keeps_no_other_session_alive(
    words: tuple[str, ...], valkey: Valkey, sessions: AsyncSessionClient
) -> None:
    """Logging out everywhere skips what cannot be read, and ends all other sessions."""
    logins = [await login(sessions) for _ in range(3)]
    key = f"session:{logins[1].session.session_id}"
    valkey.command("DEL", key)
    valkey.command(words[0], key, *words[1:])
    valkey.command("PEXPIRE", key, 3_600_000)
    assert await sessions.revoke_user_sessions("12345") == 2
    assert not any(await sessions.validate_batch(each.token for each in logins))


async def rotated(valkey: Valkey, sessions: AsyncSessionClient, **fields: Any) -> tuple[Login, str]:
    """Rotates the token of a new session and changes what its record says of the old one; returns both."""
    old = await login(sessions)
    new = (await sessions.rotate(old.token)).token
    key = f"session:{old.session.session_id}"
    record = json.loads(valkey.command("GET", key))
    record["retired"][0].update(fields)
    valkey.command("SET", key, json.dumps(record), "KEEPTTL")
    return old, new


@pytest.mark.parametrize("digest", ["", "d", "d" * 5000])
async def test_a_rotated_token_with_another_digest(digest: str, valkey: Valkey, sessions: AsyncSessionClient) -> None:
    """The old token is unknown then, and the new one stays valid."""
    old, new = await rotated(valkey, sessions, digest=digest)
    assert (await sessions.validate(old.token)).reason is InvalidReason.NOT_FOUND
    with pytest.raises(errors.SessionNotFound):
        await sessions.rotate(old.token)
    assert await sessions.validate(new)
    assert (await sessions.rotate(new)).session.session_id == old.session.session_id


@pytest.mark.parametrize("salt", ["", "s" * 22, "é"])
async def test_a_salt_that_does_not_yield_the_current_token(
    salt: str, valkey: Valkey, sessions: AsyncSessionClient, caplog: pytest.LogCaptureFixture
) -> None:
    """A rotation fails rather than return a token that is not valid, and not as a defect of the server."""
    old, new = await rotated(valkey, sessions, salt=salt)
    assert (await sessions.validate(old.token)).token_rotated
    with pytest.raises(errors.CatracaError) as caught:
        await sessions.rotate(old.token)
    assert caught.value.reason != "INTERNAL"
    assert "defect" not in caplog.text
    assert await sessions.validate(new)
