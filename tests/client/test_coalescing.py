"""Validations that come together share calls: each keeps its own answer, deadline, error, user and cancellation."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from tests.support.callers import Caller, closing
from tests.support.fake_service import FakeService
from tests.support.waiting import TIMEOUT_SECONDS, eventually_async

from catraca import AsyncSessionClient, InvalidReason, SessionClient, _coalesce, errors


@pytest.fixture
def service() -> Iterator[FakeService]:
    """A service that counts what it is asked."""
    with FakeService() as running:  # type: ignore[abstract]  # what no test calls is missing
        yield running


@pytest.fixture(params=[SessionClient, AsyncSessionClient], ids=["sync", "async"])
async def sessions(
    service: FakeService, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Caller]:
    """A client that waits for the call under way, however long it takes, unless a test says otherwise."""
    monkeypatch.setattr(_coalesce, "PATIENCE_SECONDS", 60)
    # Many threads have to wait at once.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(64))
    async with closing(Caller(request.param(service.target, timeout=30))) as caller:
        yield caller


class Held:
    """Holds the first call up until it is let go."""

    def __init__(self, service: FakeService, sessions: Caller) -> None:
        self._service = service
        self._sessions = sessions
        self._go_on = threading.Event()

    async def __aenter__(self) -> asyncio.Task[object]:
        self._service.gate = lambda _: self._go_on.wait(TIMEOUT_SECONDS)
        first = asyncio.create_task(self._sessions.validate(self._service.login()))
        await until_asked(self._service, 1)
        return first

    async def __aexit__(self, *_: object) -> None:
        self._go_on.set()


async def until_asked(service: FakeService, calls: int) -> None:
    """Returns once so many calls have come."""

    async def asked() -> bool:
        return len(service.asked) >= calls

    await eventually_async(asked, f"{calls} calls")


async def settled() -> None:
    """Gives what was begun the time to get where it waits."""
    await asyncio.sleep(0.2)


async def test_a_lone_validation_leaves_at_once(service: FakeService, sessions: Caller) -> None:
    """By itself, as a plain ValidateSession."""
    for _ in range(3):
        assert await sessions.validate(service.login())
    assert service.batches == 0


async def test_those_behind_it_leave_together(service: FakeService, sessions: Caller) -> None:
    """When it returns, in one call, and each gets its own answer, for its own user."""
    mine, other = service.login("12345"), service.login("67890")
    async with Held(service, sessions) as first:
        asked = [
            asyncio.create_task(each)
            for each in (
                sessions.validate(mine),
                sessions.validate(other, user_id="12345"),
                sessions.validate(other, user_id="67890", skip_touch=True),
                sessions.validate("unknown-unknown-unknown"),
                sessions.validate("short"),
            )
        ]
        await settled()
        assert len(service.asked) == 1
    answers = await asyncio.gather(first, *asked)
    assert [each.session.user_id if each else each.reason for each in answers[1:]] == [
        "12345",
        InvalidReason.USER_MISMATCH,
        "67890",
        InvalidReason.NOT_FOUND,
        InvalidReason.MALFORMED,
    ]
    assert list(map(len, service.asked)) == [1, 5]
    assert sorted(each.skip_touch for each in service.asked[1]) == [False] * 4 + [True]


async def test_a_broken_rule_is_its_breakers_alone(service: FakeService, sessions: Caller) -> None:
    """Told with its own field; the others are asked for again. The rule is one that the client does not know."""
    service.longest_user_id = 100
    tokens = [service.login() for _ in range(3)]
    async with Held(service, sessions):
        good = [asyncio.create_task(sessions.validate(token)) for token in tokens]
        bad = asyncio.create_task(sessions.validate(tokens[0], user_id="u" * 101))
        await settled()
    assert all(await asyncio.gather(*good))
    with pytest.raises(errors.InvalidRequest) as caught:
        await bad
    assert [each.field for each in caught.value.violations] == ["user_id"]
    assert "requests[" not in str(caught.value)
    assert list(map(len, service.asked)) == [1, 4, 3]


@pytest.mark.parametrize(
    ("token", "user_id"), [("", None), ("a-token-of-a-user", "u" * 257), ("a-token-of-a-user", "1234\n")]
)
async def test_what_is_refused_disturbs_nobody(
    service: FakeService, sessions: Caller, token: str, user_id: str | None
) -> None:
    """What end users send without a cookie, or in place of their name, does not get into a batch."""
    async with Held(service, sessions):
        alone = asyncio.create_task(sessions.validate(token, user_id=user_id))
        good = [asyncio.create_task(sessions.validate(service.login())) for _ in range(2)]
        await settled()
        assert [len(each) for each in service.asked] == [1, 1]
    assert all(await asyncio.gather(*good))
    await asyncio.gather(alone, return_exceptions=True)


async def test_a_failure_of_all_is_each_ones_own(service: FakeService, sessions: Caller) -> None:
    """Everybody gets an error to keep, and none of them the other's."""
    async with Held(service, sessions) as first:
        asked = [asyncio.create_task(sessions.validate(service.login())) for _ in range(3)]
        await settled()
        service.status = grpc.StatusCode.PERMISSION_DENIED
    failures = await asyncio.gather(first, *asked, return_exceptions=True)
    assert {type(each) for each in failures} == {errors.NotAllowed}
    assert len(set(map(id, failures))) == 4


async def test_each_has_a_deadline(service: FakeService, sessions: Caller) -> None:
    """Whoever has waited long enough goes, sent or not, and is left out if it was not; the others go on."""
    token = service.login()
    async with Held(service, sessions):
        hasty = asyncio.create_task(sessions.validate(service.login(), timeout=0.2))
        patient = asyncio.create_task(sessions.validate(token, timeout=20))
        with pytest.raises(errors.Unavailable, match=r"not sent within 0\.2 s"):
            await hasty
        assert not patient.done()
    assert await patient
    assert [each.token for each in service.asked[1]] == [token]
    assert service.deadlines[1] > 10


async def test_a_deadline_while_a_batch_is_away(service: FakeService, sessions: Caller) -> None:
    """Those who share a call do not wait for each other's deadlines, whoever makes it."""
    go_on = threading.Event()
    async with Held(service, sessions):
        patient = asyncio.create_task(sessions.validate(service.login(), timeout=20))
        hasty = [asyncio.create_task(sessions.validate(service.login(), timeout=2)) for _ in range(2)]
        await settled()
        service.gate = lambda _: go_on.wait(TIMEOUT_SECONDS)
    failures = await asyncio.gather(*hasty, return_exceptions=True)
    assert [type(each) for each in failures] == [errors.Unavailable] * 2
    assert all("DEADLINE_EXCEEDED" in str(each) for each in failures)
    assert not patient.done()
    go_on.set()
    assert await patient


async def test_a_slow_call_does_not_hold_up_the_rest(
    service: FakeService, sessions: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a moment the next leave beside it; and a full group at once."""
    async with Held(service, sessions):
        monkeypatch.setattr(_coalesce, "PATIENCE_SECONDS", 0.01)
        service.gate = lambda _: None
        assert await sessions.validate(service.login())


async def test_closing_ends_those_who_wait(service: FakeService, sessions: Caller) -> None:
    """Sent or not: each is told that the client was closed."""
    async with Held(service, sessions) as first:
        asked = [asyncio.create_task(sessions.validate(service.login())) for _ in range(3)]
        await settled()
        await sessions.close()
        failures = await asyncio.gather(first, *asked, return_exceptions=True)
    assert [type(each) for each in failures] == [errors.Unavailable] * 4
    assert all("closed" in str(each) for each in failures)


async def test_cancelling_is_ones_own(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that is cancelled leaves the others' call alone, and is left out if it was not sent."""
    monkeypatch.setattr(_coalesce, "PATIENCE_SECONDS", 60)
    async with AsyncSessionClient(service.target, timeout=30) as client:
        sessions = Caller(client)
        go_on = threading.Event()
        async with Held(service, sessions) as first:
            asked = [asyncio.create_task(client.validate(service.login())) for _ in range(4)]
            await asyncio.sleep(0)
            asked[0].cancel()
            await settled()
            service.gate = lambda _: go_on.wait(TIMEOUT_SECONDS)
            await asyncio.sleep(0)
        await first
        await until_asked(service, 2)
        asked[1].cancel()
        go_on.set()
        assert all(await asyncio.gather(*asked[2:]))
        assert asked[0].cancelled()
        assert asked[1].cancelled()


async def test_two_thousand_at_once(service: FakeService) -> None:
    """In a few calls, none larger than a batch may be, and everybody gets the right answer."""
    tokens = [service.login(f"user-{at}") for at in range(2000)]
    async with AsyncSessionClient(service.target, timeout=60) as client:
        users = await asyncio.gather(*map(client.require, tokens))
    assert [each.user_id for each in users] == [f"user-{at}" for at in range(2000)]
    assert max(map(len, service.asked)) <= _coalesce.MAX_CALLS
    assert len(service.asked) < 40


def test_many_threads(service: FakeService) -> None:
    """Sixty-four of them: right answers, in far fewer calls."""
    tokens = [service.login(f"user-{at}") for at in range(64)]
    with SessionClient(service.target, timeout=60) as client, ThreadPoolExecutor(64) as pool:

        def look(at: int) -> bool:
            return all(client.require(tokens[at]).user_id == f"user-{at}" for _ in range(20))

        assert all(pool.map(look, range(64)))
    assert len(service.asked) < 64 * 20 / 4
