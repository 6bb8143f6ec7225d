"""Rotating tokens: grace, retries, concurrent rotations and stolen tokens, on every backend."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from tests.support.backends import Backend, Operations, a_call, stores
from tests.support.waiting import eventually_async

from catraca_server.domain.commands import NewSession, Update
from catraca_server.domain.errors import SessionNotFound, TokenReused
from catraca_server.domain.session import ROTATED_TOKENS_MAX
from catraca_server.domain.tokens import Tokens
from catraca_server.domain.validation import InvalidReason, Validation, ValidationRequest
from catraca_server.operations.users import Login

GRACE, HOUR = 30_000, 3_600_000
BROUGHT = "a-token-that-was-brought"


@pytest.fixture
async def operations(backend: Backend) -> AsyncIterator[Operations]:
    """The operations on each backend, with a grace of 30 seconds."""
    async with stores(backend) as opened:
        yield Operations.over(opened, rotation_grace_ms=GRACE)


async def log_in(operations: Operations, **fields: object) -> Login:
    """Creates a session."""
    return await operations.users.create(NewSession("ana", **fields), a_call())  # type: ignore[arg-type]  # the tests' own


async def validated(operations: Operations, token: str) -> Validation:
    """Validates a token."""
    (validation,) = await operations.sessions.validate([ValidationRequest(token)], a_call())
    return validation


async def rotated(operations: Operations, token: str) -> str:
    """Rotates a token and returns the new one."""
    return (await operations.sessions.rotate(token, a_call())).token


@pytest.mark.parametrize("brought", ["", BROUGHT], ids=["minted", "brought"])
async def test_a_new_token_for_the_same_session(operations: Operations, brought: str) -> None:
    """The session keeps its id and changes its etag; both tokens are valid, and the old one is marked as rotated."""
    login = await log_in(operations, token=brought)
    rotation = await operations.sessions.rotate(login.token, a_call())
    assert rotation.token != login.token
    assert rotation.token.startswith("ctr_")
    assert rotation.stored.session.session_id == login.stored.session.session_id
    assert rotation.stored.session.etag != login.stored.session.etag
    assert rotation.stored.expiry_ms == login.stored.expiry_ms
    new, old = await validated(operations, rotation.token), await validated(operations, login.token)
    assert new.stored is not None
    assert not new.token_rotated
    assert new.cache_ttl_ms > 0
    assert old.stored is not None
    assert old.token_rotated
    assert old.cache_ttl_ms == 0, "a near cache would not notice the end of the grace"


@pytest.mark.parametrize("brought", ["", BROUGHT], ids=["minted", "brought"])
async def test_after_the_grace_the_old_token_ends_the_session(
    backend: Backend, operations: Operations, brought: str
) -> None:
    """Somebody has kept a token that its owner no longer uses: the session is revoked, which is reported once."""
    login = await log_in(operations, token=brought)
    new = await rotated(operations, login.token)
    await backend.travel(GRACE + 1)
    assert (await validated(operations, new)).stored is not None
    assert (await validated(operations, login.token)).reason is InvalidReason.TOKEN_REUSED
    assert (await validated(operations, login.token)).reason is InvalidReason.NOT_FOUND
    assert (await validated(operations, new)).reason is InvalidReason.NOT_FOUND
    assert await operations.users.revoke("ana", "", a_call()) == 0, "it has been removed from the index, too"


async def test_rotating_a_token_past_its_grace_ends_the_session(backend: Backend, operations: Operations) -> None:
    """A rotation notices reuse like a validation."""
    login = await log_in(operations)
    new = await rotated(operations, login.token)
    await backend.travel(GRACE + 1)
    with pytest.raises(TokenReused):
        await rotated(operations, login.token)
    assert (await validated(operations, new)).reason is InvalidReason.NOT_FOUND
    with pytest.raises(SessionNotFound):
        await rotated(operations, login.token)


async def test_a_probe_notices_reuse_as_well(backend: Backend, operations: Operations) -> None:
    """Reuse is noticed for another user, without touching, and in a batch."""
    login = await log_in(operations)
    await rotated(operations, login.token)
    await backend.travel(GRACE + 1)
    requests = [
        ValidationRequest("x" * 20),
        ValidationRequest(login.token, "somebody else", skip_touch=True),
        ValidationRequest(login.token),
    ]
    reasons = [each.reason for each in await operations.sessions.validate(requests, a_call())]
    assert reasons == [InvalidReason.NOT_FOUND, InvalidReason.TOKEN_REUSED, InvalidReason.TOKEN_REUSED]


async def test_a_retry_gets_the_same_token(backend: Backend, operations: Operations) -> None:
    """Rotating again within the grace, as after a lost reply, changes nothing and returns what was lost."""
    login = await log_in(operations)
    new = await rotated(operations, login.token)
    await backend.travel(GRACE - 2000)
    record = await backend.command("GET", f"session:{login.stored.session.session_id}")
    assert await rotated(operations, login.token) == new
    assert await backend.command("GET", f"session:{login.stored.session.session_id}") == record


async def test_concurrent_rotations_give_the_same_token(operations: Operations) -> None:
    """Exactly one token is current afterwards (supabase/auth-js#213)."""
    login = await log_in(operations)
    tokens = await asyncio.gather(*(rotated(operations, login.token) for _ in range(20)))
    assert len(set(tokens)) == 1
    session = (await operations.sessions.get(login.stored.session.session_id, a_call())).session
    assert len(session.rotated_tokens) == 1
    validation = await validated(operations, tokens[0])
    assert validation.stored is not None
    assert not validation.token_rotated


async def test_every_token_within_its_grace_yields_the_current_one(operations: Operations) -> None:
    """Also after several rotations within one grace."""
    tokens = [(await log_in(operations, token=BROUGHT)).token]
    for _ in range(3):
        tokens.append(await rotated(operations, tokens[-1]))
    for token in tokens[:-1]:
        assert await rotated(operations, token) == tokens[-1]
    assert len(set(tokens)) == 4


async def test_old_tokens_are_recognised(backend: Backend, operations: Operations) -> None:
    """A token that was replaced several rotations ago is still reuse, up to the documented number."""
    login = await log_in(operations)
    tokens = [login.token]
    for _ in range(ROTATED_TOKENS_MAX + 1):
        tokens.append(await rotated(operations, tokens[-1]))
        await backend.travel(GRACE + 1)
    assert (await validated(operations, tokens[0])).reason is InvalidReason.NOT_FOUND, "too old to recognise"
    assert (await validated(operations, tokens[-1])).stored is not None
    assert (await validated(operations, tokens[1])).reason is InvalidReason.TOKEN_REUSED
    assert (await validated(operations, tokens[-1])).stored is None


async def test_without_a_grace_the_old_token_is_reused_at_once(backend: Backend) -> None:
    """With a grace of zero, presenting the old token right after the rotation is reuse."""
    async with stores(backend) as opened:
        operations = Operations.over(opened, rotation_grace_ms=0)
        login = await log_in(operations)
        await rotated(operations, login.token)
        assert (await validated(operations, login.token)).reason is InvalidReason.TOKEN_REUSED


async def test_rotate_and_revoke_cannot_both_win(operations: Operations) -> None:
    """However they race, a revoked session stays revoked (keycloak#51312, better-auth#11073)."""
    for _ in range(30):
        login = await log_in(operations)
        outcomes = await asyncio.gather(
            rotated(operations, login.token),
            operations.sessions.revoke(login.stored.session.session_id, a_call()),
            rotated(operations, login.token),
            operations.sessions.update(Update(login.stored.session.session_id, entries={"k": "v"}), a_call()),
            return_exceptions=True,
        )
        assert outcomes[1] is True
        for token in [login.token, *(each for each in outcomes if isinstance(each, str))]:
            assert (await validated(operations, token)).stored is None


async def test_logging_out_with_an_old_token(backend: Backend, operations: Operations) -> None:
    """Revoking by a rotated token ends the session, within the grace and after."""
    for wait in (0, GRACE + 1):
        login = await log_in(operations)
        new = await rotated(operations, login.token)
        await backend.travel(wait)
        assert await operations.sessions.revoke_token(login.token, a_call())
        assert (await validated(operations, new)).stored is None


async def test_neither_the_store_nor_the_old_token_yields_the_new_one(backend: Backend, operations: Operations) -> None:
    """It takes both, and the record has the salt only until the end of the grace."""
    login = await log_in(operations)
    new = await rotated(operations, login.token)
    key = f"session:{login.stored.session.session_id}"
    record = json.loads(await backend.command("GET", key))
    (rotated_token,) = record["retired"]
    assert Tokens(bytes).renew(login.token, rotated_token["salt"]) == new
    assert Tokens(bytes).renew(login.token, "another salt") != new
    assert new[26:69] not in json.dumps(record)
    assert login.token[26:69] not in json.dumps(record)
    await backend.travel(GRACE + 1)
    assert (await validated(operations, new)).stored is not None

    async def salt_is_dropped() -> bool:
        (rotated_token,) = json.loads(await backend.command("GET", key))["retired"]
        return "salt" not in rotated_token

    await eventually_async(salt_is_dropped, "the salt is dropped")
    assert (await validated(operations, new)).stored is not None


async def test_what_cannot_be_rotated(operations: Operations) -> None:
    """Unknown, revoked and malformed tokens name no live session."""
    login = await log_in(operations)
    await operations.sessions.revoke_token(login.token, a_call())
    for token in (login.token, "never-seen-before-at-all", "short", "ctr_nonsense"):
        with pytest.raises(SessionNotFound):
            await rotated(operations, token)


async def test_a_forged_token_is_not_reuse(operations: Operations) -> None:
    """The id is public: whoever knows it but no secret can neither rotate nor end the session."""
    login = await log_in(operations)
    await rotated(operations, login.token)
    forged = Tokens(bytes).renew(login.token, "made up")
    assert (await validated(operations, forged)).reason is InvalidReason.NOT_FOUND
    with pytest.raises(SessionNotFound):
        await rotated(operations, forged)
    assert not await operations.sessions.revoke_token(forged, a_call())
    assert (await operations.sessions.get(login.stored.session.session_id, a_call())) is not None
