"""Validations that leave together from a client of several servers."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import grpc
import pytest
from tests.support.callers import Caller, closing
from tests.support.fake_service import FakeService
from tests.support.waiting import eventually_async

from catraca import AsyncSessionClient, SessionClient, errors

SERVERS = 3
CALLERS = 48


@pytest.fixture
def services() -> Iterator[list[FakeService]]:
    """Services that know the same sessions, as of one store."""
    with ExitStack() as stack:
        running = [stack.enter_context(FakeService()) for _ in range(SERVERS)]  # type: ignore[abstract]  # see there
        for each in running[1:]:
            each.sessions = running[0].sessions
        yield running


@pytest.fixture(params=[SessionClient, AsyncSessionClient], ids=["sync", "async"])
async def sessions(services: list[FakeService], request: pytest.FixtureRequest) -> AsyncIterator[Caller]:
    """A client of all of them."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(CALLERS))
    target = "ipv4:" + ",".join(each.target for each in services)
    async with closing(Caller(request.param(target, timeout=20))) as caller:
        yield caller


async def ask(sessions: Caller, tokens: dict[str, str]) -> None:
    """Validates all at once, and looks at each answer."""
    answers = await asyncio.gather(*map(sessions.validate, tokens))
    assert [each.session.user_id for each in answers] == list(tokens.values())


async def test_calls_go_to_all_in_turn(services: list[FakeService], sessions: Caller) -> None:
    """Each call goes to one server, whichever is next, with all that it carries; everybody gets the right answer."""
    tokens = {services[0].login(f"user-{at}"): f"user-{at}" for at in range(CALLERS)}

    async def all_were_asked_together() -> bool:
        await ask(sessions, tokens)
        # Moves the turn on: all at once may make as many calls as there are servers.
        await sessions.validate(next(iter(tokens)))
        return all(each.batches for each in services)

    await eventually_async(all_were_asked_together, "each server has answered several at once")
    calls = sum(len(each.asked) for each in services)
    validations = sum(len(of_one) for each in services for of_one in each.asked)
    assert calls < validations / 2


async def test_one_that_goes_away_is_no_failure(services: list[FakeService], sessions: Caller) -> None:
    """Whoever shares a call with others gets the answer of another server; nobody gets an error."""
    tokens = {services[0].login(f"user-{at}"): f"user-{at}" for at in range(CALLERS)}
    await ask(sessions, tokens)
    services[1].status = grpc.StatusCode.UNAVAILABLE
    for _ in range(5):
        await ask(sessions, tokens)
    asked = len(services[1].asked)
    await asyncio.to_thread(services[1]._server.stop(None).wait)
    for _ in range(5):
        await ask(sessions, tokens)
    assert len(services[1].asked) == asked
    for each in services:
        each.status = grpc.StatusCode.UNAVAILABLE
    with pytest.raises(errors.Unavailable):
        await sessions.validate(next(iter(tokens)))
