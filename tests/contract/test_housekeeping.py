"""What a validation cleans up takes few exchanges with the store, and never fails the validation."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence

import pytest
from tests.support.backends import Backend, Operations, Stores, a_call
from tests.support.waiting import eventually_async

from catraca_server.domain.commands import NewSession
from catraca_server.domain.validation import InvalidReason, ValidationRequest
from catraca_server.redis.errors import StoreProblem
from catraca_server.redis.link import Link, Request
from catraca_server.redis.replies import Replies
from catraca_server.store import NotDurable, Overloaded, StoreUnavailable

GRACE = 30_000
MANY = 300


class WatchedLink(Link):
    """A link that counts exchanges, and makes those that write fail or hang, if a test wants."""

    def __init__(self, inner: Link) -> None:
        self.inner = inner
        self.exchanges: list[int] = []
        """How many requests each had."""
        self.failure: Exception | None = None
        self.hangs = False

    async def execute(
        self, requests: Sequence[Request], deadline: float, *, durable: bool = False
    ) -> Sequence[Replies]:
        """Executes them, or fails."""
        self.exchanges.append(len(requests))
        if any(command[0] == "EVAL" for _, commands in requests for command in commands):
            if self.hangs:
                await asyncio.Event().wait()
            if self.failure is not None:
                raise self.failure
        return await self.inner.execute(requests, deadline, durable=durable)


@pytest.fixture
async def watched(backend: Backend) -> AsyncIterator[WatchedLink]:
    """A link to each backend that can be watched."""
    async with backend.link() as link:
        yield WatchedLink(link)


async def rotated_logins(operations: Operations, count: int) -> list[tuple[str, str]]:
    """Logs users in, rotates each token, and returns the old and the new ones."""

    async def one(at: int) -> tuple[str, str]:
        login = await operations.users.create(NewSession(f"user-{at}"), a_call())
        return login.token, (await operations.sessions.rotate(login.token, a_call())).token

    return list(await asyncio.gather(*map(one, range(count))))


async def salts(backend: Backend) -> int:
    """Returns how many records have a salt."""
    keys = await backend.command("KEYS", "session:*")
    records = [json.loads(await backend.command("GET", key)) for key in keys]
    return sum("salt" in rotated for record in records for rotated in record["retired"])


async def test_expired_salts_are_dropped_in_one_exchange(backend: Backend, watched: WatchedLink) -> None:
    """However many sessions of a batch have a grace that has just ended."""
    operations = Operations.over(Stores.over(watched), rotation_grace_ms=GRACE)
    tokens = [new for _, new in await rotated_logins(operations, MANY)]
    await backend.travel(GRACE + 1)
    watched.exchanges.clear()
    # A probe, which does not touch: one exchange reads, one tidies. Each session is in the batch twice.
    requests = [ValidationRequest(token, skip_touch=True) for token in tokens * 2]
    assert all(each.stored for each in await operations.sessions.validate(requests, a_call()))

    async def tidied() -> bool:
        return await salts(backend) == 0

    await eventually_async(tidied, "all salts are dropped")
    assert watched.exchanges == [2 * MANY, MANY]


@pytest.mark.parametrize(
    "failure",
    [StoreUnavailable("lost", StoreProblem.DISCONNECTED), NotDurable("too few"), Overloaded(), None],
    ids=["unavailable", "not durable", "overloaded", "hanging"],
)
@pytest.mark.parametrize("skip_touch", [True, False], ids=["probe", "activity"])
async def test_housekeeping_that_fails_fails_no_validation(
    backend: Backend, watched: WatchedLink, failure: Exception | None, skip_touch: bool
) -> None:
    """A valid token stays valid, and the response does not wait, whatever becomes of the salts."""
    operations = Operations.over(Stores.over(watched), rotation_grace_ms=GRACE)
    ((_, new),) = await rotated_logins(operations, 1)
    await backend.travel(GRACE + 1)
    watched.failure, watched.hangs = failure, failure is None
    async with asyncio.timeout(20):
        request = ValidationRequest(new, skip_touch=skip_touch)
        (validation,) = await operations.sessions.validate([request], a_call())
    assert validation.stored is not None


async def test_reused_tokens_revoke_their_sessions_together(backend: Backend, watched: WatchedLink) -> None:
    """A batch of reused tokens ends its sessions at the same time, and they have ended when it is answered."""
    operations = Operations.over(Stores.over(watched), rotation_grace_ms=GRACE)
    tokens = await rotated_logins(operations, MANY)
    await backend.travel(GRACE + 1)
    requests = [ValidationRequest(old) for old, _ in tokens] * 2
    validations = await operations.sessions.validate(requests, a_call())
    assert {each.reason for each in validations} == {InvalidReason.TOKEN_REUSED}
    for _, new in tokens:
        (validation,) = await operations.sessions.validate([ValidationRequest(new)], a_call())
        assert validation.reason is InvalidReason.NOT_FOUND


async def test_a_reuse_whose_session_cannot_be_ended_is_unavailable(backend: Backend, watched: WatchedLink) -> None:
    """Unlike housekeeping, the revocation belongs to the validation: if it fails, so does that."""
    operations = Operations.over(Stores.over(watched), rotation_grace_ms=GRACE)
    ((old, new),) = await rotated_logins(operations, 1)
    await backend.travel(GRACE + 1)
    watched.failure = StoreUnavailable("lost", StoreProblem.DISCONNECTED)
    with pytest.raises(StoreUnavailable):
        await operations.sessions.validate([ValidationRequest(old)], a_call())
    watched.failure = None
    (validation,) = await operations.sessions.validate([ValidationRequest(new)], a_call())
    assert validation.stored is not None
