"""A store with an earlier version's data: this version reads it as that one did, and writes the same bytes."""

import json
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.support.backends import Backend, Operations, Stores, a_call, stores

from catraca_server.domain.commands import NewSession
from catraca_server.domain.errors import SessionLimitReached, SessionNotFound, TokenInUse
from catraca_server.domain.validation import InvalidReason, Validation, ValidationRequest
from catraca_server.store import Creation, IndexEntry
from catraca_server.store.attempts import ATTEMPT_LIFETIME_MS, is_tombstone, tombstone
from catraca_server.store.records import decode, encode

DATA: dict[str, Any] = json.loads(Path(__file__).with_name("data").joinpath("store_5b53711.json").read_text("utf-8"))
ANA, ZOE = DATA["listed"]
CURRENT, IN_GRACE, REUSED, UNKNOWN = "current", "in grace", "reused", "unknown"


@dataclass(frozen=True)
class Filled:
    """A backend as the earlier version left it, and this version's operations on it."""

    backend: Backend
    made: Stores
    now_ms: int

    def operations(self, **policy: Any) -> Operations:
        """Returns the operations; keyword arguments are of the policy."""
        return Operations.over(self.made, **policy)

    def filled_in(self, template: str) -> str:
        """Returns a text of the data with its times filled in."""
        clocks = {"ms": self.now_ms, "sequence": 2 * self.now_ms * 1000}
        return re.sub(r"\$\{(ms|sequence):([+-]\d+)\}", lambda match: str(clocks[match[1]] + int(match[2])), template)

    def records(self) -> dict[str, bytes]:
        """Returns what is under the keys of sessions."""
        keys: Mapping[str, Mapping[str, str]] = DATA["keys"]
        return {name: self.filled_in(key["value"]).encode() for name, key in keys.items() if "value" in key}

    async def load(self) -> None:
        """Writes all keys of the data, with their expiries."""
        for name, record in self.records().items():
            await self.backend.command("SET", name, record)
        for name, key in DATA["keys"].items():
            for session_id, score in key.get("entries", {}).items():
                await self.backend.command("ZADD", name, self.filled_in(score), session_id)
            await self.backend.command("PEXPIREAT", name, self.filled_in(key["expires_at"]))


@pytest.fixture
async def filled(backend: Backend) -> AsyncIterator[Filled]:
    """Each backend as the earlier version left it."""
    async with stores(backend) as made:
        found = Filled(backend, made, await backend.now())
        await found.load()
        yield found


async def validated(operations: Operations, token: str) -> Validation:
    """Validates a token."""
    (validation,) = await operations.sessions.validate([ValidationRequest(token)], a_call())
    return validation


def tokens_of(name: str) -> list[str]:
    """Returns the tokens of a session, the current one last."""
    return list(DATA["sessions"][name]["tokens"])


def ids(*names: str) -> list[str]:
    """Returns the ids of sessions."""
    return [DATA["sessions"][name]["session_id"] for name in names]


@pytest.mark.parametrize("name", DATA["sessions"])
async def test_every_token_validates_as_before(filled: Filled, name: str) -> None:
    """Current, within its grace or unknown; and the session is the same, down to its etag."""
    operations = filled.operations()
    expected = DATA["sessions"][name]
    for token, status in expected["tokens"].items():
        if status == REUSED:
            continue
        validation = await validated(operations, token)
        if status == UNKNOWN:
            assert validation.reason is InvalidReason.NOT_FOUND
            continue
        assert validation.stored is not None
        assert validation.token_rotated is (status == IN_GRACE)
        session = validation.stored.session
        assert (session.session_id, session.user_id) == (expected["session_id"], expected["user_id"])
        assert (session.attributes, session.version) == (expected["attributes"], expected["version"])
        assert session.etag == f"{session.create_time_ms:x}-{expected['version']:x}"
        assert session.create_time_ms <= filled.now_ms < validation.stored.expire_time_ms


async def test_a_token_past_its_grace_revokes_its_session(filled: Filled) -> None:
    """It was rotated out by the earlier version, and no token of its session is valid after it was presented."""
    operations = filled.operations()
    reused, *others = tokens_of("rotated, after its grace")
    assert (await validated(operations, reused)).reason is InvalidReason.TOKEN_REUSED
    for token in (reused, *others):
        assert (await validated(operations, token)).reason is InvalidReason.NOT_FOUND
    assert ids("rotated, after its grace")[0] not in await filled.made.index.session_ids(ANA, a_call())


@pytest.mark.parametrize("name", ["rotated, within its grace", "rotated, after its grace"])
async def test_a_token_within_its_grace_yields_the_current_one(filled: Filled, name: str) -> None:
    """By the salts that the earlier version wrote; and the current one can be rotated on."""
    operations = filled.operations()
    *rotated, current = tokens_of(name)
    for token in rotated:
        if DATA["sessions"][name]["tokens"][token] == IN_GRACE:
            assert (await operations.sessions.rotate(token, a_call())).token == current
    renewed = (await operations.sessions.rotate(current, a_call())).token
    assert (await validated(operations, current)).token_rotated
    assert (await validated(operations, renewed)).stored is not None


@pytest.mark.parametrize("user_id", [ANA, ZOE])
async def test_sessions_are_listed_in_the_same_order(filled: Filled, user_id: str) -> None:
    """Newest first, committed or not, and none that is evicting; page by page as well."""
    operations = filled.operations()
    for size in (1, 2, 100):
        assert await operations.listed(user_id, size) == DATA["listed"][user_id]


@pytest.mark.parametrize("user_id", [ANA, ZOE])
async def test_logging_out_everywhere_reaches_all(filled: Filled, user_id: str) -> None:
    """What is committed, what is only written, what is evicting, and the login that has not written yet."""
    operations = filled.operations()
    sessions = [each for each in DATA["sessions"].values() if each["user_id"] == user_id]
    entries: dict[str, str] = DATA["keys"][f"user-sessions:{user_id}"]["entries"]
    assert await operations.users.revoke(user_id, "", a_call()) == len(entries)
    for session in sessions:
        for token in session["tokens"]:
            assert (await validated(operations, token)).reason is InvalidReason.NOT_FOUND
    assert not await operations.listed(user_id)
    assert await operations.users.revoke(user_id, "", a_call()) == 0


async def test_a_limit_counts_the_login_that_is_under_way(filled: Filled) -> None:
    """Three entries are reserved or committed: a fourth login evicts the oldest, and ends what was evicting."""
    operations = filled.operations(max_sessions_per_user=3)
    login = await operations.users.create(NewSession(ZOE), a_call())
    assert sorted(login.evicted_session_ids) == sorted(ids("evicting", "kept, oldest"))
    assert await operations.listed(ZOE) == [login.stored.session.session_id, *ids("kept, newest")]


async def test_a_limit_counts_a_login_that_is_over_no_longer(filled: Filled) -> None:
    """Then there is room for one more; only what was evicting ends."""
    await filled.backend.travel(ATTEMPT_LIFETIME_MS + 1)
    operations = filled.operations(max_sessions_per_user=3)
    login = await operations.users.create(NewSession(ZOE), a_call())
    assert list(login.evicted_session_ids) == ids("evicting")


async def test_a_limit_rejects(filled: Filled) -> None:
    """With the other policy the fourth login is refused, and nobody's session ends."""
    operations = filled.operations(max_sessions_per_user=3, evict_oldest=False)
    with pytest.raises(SessionLimitReached):
        await operations.users.create(NewSession(ZOE), a_call())
    for name in ("evicting", "kept, oldest", "kept, newest"):
        assert (await validated(operations, tokens_of(name)[-1])).stored is not None


async def test_a_tombstone_keeps_its_login_from_writing(filled: Filled) -> None:
    """The login that it was written for, and earlier ones; a later one may write."""
    (session_id,) = ids("revoked, with a tombstone")
    record = filled.records()[f"session:{session_id}"]
    sequence = json.loads(record)["void"]
    (brought_id,) = ids("brought, with attributes")
    session = decode(filled.records()[f"session:{brought_id}"].replace(brought_id.encode(), session_id.encode()))
    for late, outcome in ((0, Creation.REVOKED), (-2, Creation.REVOKED), (2, Creation.CREATED)):
        entry = IndexEntry(session_id, sequence + late)
        assert (await filled.made.sessions.create(session, entry, a_call()))[0] is outcome


async def test_what_is_in_use_stays_in_use(filled: Filled) -> None:
    """A brought token whose session lives cannot be brought again; one whose login never wrote can."""
    operations = filled.operations()
    for name in ("brought, with attributes", "written, not committed"):
        with pytest.raises(TokenInUse):
            await operations.users.create(NewSession(ANA, token=tokens_of(name)[-1]), a_call())
    login = await operations.users.create(NewSession(ANA, token=tokens_of("reserved, not written")[-1]), a_call())
    assert (await validated(operations, login.token)).stored is not None


@pytest.mark.parametrize("name", [name for name, each in DATA["sessions"].items() if "version" in each])
async def test_any_session_can_be_revoked(filled: Filled, name: str) -> None:
    """By its id; it is gone for every token, and from the index."""
    operations = filled.operations()
    (session_id,) = ids(name)
    assert await operations.sessions.revoke(session_id, a_call())
    with pytest.raises(SessionNotFound):
        await operations.sessions.get(session_id, a_call())
    assert session_id not in await filled.made.index.session_ids(DATA["sessions"][name]["user_id"], a_call())


async def test_this_version_writes_the_same_bytes(filled: Filled) -> None:
    """Of the same session the same record, with the same expiry; and of the same end the same tombstone."""
    await filled.backend.command("FLUSHALL")
    for name, record in filled.records().items():
        if is_tombstone(record):
            note = json.loads(record)
            assert tombstone(note["void"], note["user_id"]) == record
            continue
        session = decode(record)
        assert encode(session) == record
        outcome, _ = await filled.made.sessions.create(session, IndexEntry(session.session_id, 2), a_call())
        assert outcome is Creation.CREATED
        assert await filled.backend.command("GET", name) == record
        expires_at = int(filled.filled_in(DATA["keys"][name]["expires_at"]))
        assert await filled.backend.command("PEXPIRETIME", name) == expires_at
