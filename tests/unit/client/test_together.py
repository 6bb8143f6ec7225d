"""Callers that share calls: how often a waiting thread wakes up, which thread makes a call, and what a close ends."""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.support.waiting import TIMEOUT_SECONDS, eventually, eventually_async

from catraca import _coalesce, _core, _together_sync, _validations
from catraca._together_aio import AsyncTogether
from catraca._together_sync import SyncTogether
from catraca._validations import Answer
from catraca.errors import FieldViolation, InvalidRequest, Unavailable
from catraca.v1 import session_service_pb2 as pb

Tokens = list[str]


def asking_for(token: str) -> bytes:
    """Returns the request for a token."""
    return _validations.request(token, user_id=None, skip_touch=False)


class Channel:
    """A channel whose calls each take until they are let go, and answer with the token as the session id."""

    def __init__(self) -> None:
        self.asked: list[Tokens] = []
        """The tokens of each call."""
        self.ends: dict[int, Callable[[], object]] = {}
        """What happens instead of an answer, by the number of the call."""
        self._go_on: dict[int, threading.Event] = {}
        self._open = threading.Event()

    def call(self, call: _core.Call[Any], timeout: float) -> bytes:
        """Makes a call."""
        del timeout
        together = call.path.endswith("/BatchValidateSessions")
        requests = (
            list(pb.BatchValidateSessionsRequest.FromString(call.request).requests)
            if together
            else [pb.ValidateSessionRequest.FromString(call.request)]
        )
        at = len(self.asked)
        go_on = self._go_on.setdefault(at, threading.Event())
        self.asked.append([each.token for each in requests])
        while not (self._open.is_set() or go_on.wait(0.01)):
            pass
        if at in self.ends:
            self.ends[at]()
        answers = [pb.ValidateSessionResponse() for _ in requests]
        for each, answer in zip(requests, answers, strict=True):
            answer.valid = True
            answer.session.session_id = each.token
        if together:
            return pb.BatchValidateSessionsResponse(responses=answers).SerializeToString()
        return answers[0].SerializeToString()

    def let_go(self, at: int) -> None:
        """Lets a call return."""
        self._go_on[at].set()

    def let_all_go(self) -> None:
        """Lets all calls return, also later ones."""
        self._open.set()


class Threads:
    """Threads that ask."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.channel = Channel()
        self.together = SyncTogether(cast("Any", self.channel))
        self.departures = self.together._departures
        self._pool = pool

    def ask(self, token: str, timeout: float = 30) -> Future[Answer]:
        """Has a thread ask."""
        return self._pool.submit(self.together.ask, asking_for(token), timeout)

    def ask_in_turn(self, *tokens: str) -> list[Future[Answer]]:
        """Has a thread ask for each token, and returns once all wait to leave."""
        asked = []
        for token in tokens:
            asked.append(self.ask(token))
            self.until_waiting(token)
        return asked

    def until_waiting(self, token: str) -> None:
        """Returns once the validation of a token is the last that waits to leave."""

        def is_last() -> bool:
            last = self.departures.last()
            return last is not None and last.request == asking_for(token)

        eventually(is_last, f"{token} waits")

    def until_asked(self, calls: int) -> None:
        """Returns once so many calls have been made."""
        eventually(lambda: len(self.channel.asked) >= calls, f"{calls} calls")


@contextmanager
def asking() -> Iterator[Threads]:
    """Threads that ask, all of which have ended afterwards."""
    with ThreadPoolExecutor(16) as pool:
        threads = Threads(pool)
        try:
            yield threads
        finally:
            threads.channel.let_all_go()


def answered(future: Future[Answer]) -> str:
    """Returns whose answer a thread got."""
    session = _validations.validation(future.result(TIMEOUT_SECONDS)).session
    assert session is not None
    return session.session_id


class Bell:
    """A bell that keeps the timeout of each wait for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.timeouts: list[float] = []
        self.interrupts = False
        """Whether Ctrl-C comes as soon as it is rung."""

    def acquire(self, timeout: float = -1) -> bool:
        """Waits."""
        if timeout >= 0:
            self.timeouts.append(timeout)
        rung = self._lock.acquire(timeout=timeout)
        if rung and self.interrupts:
            raise KeyboardInterrupt
        return rung

    def release(self) -> None:
        """Rings."""
        self._lock.release()


@pytest.fixture
def bells(monkeypatch: pytest.MonkeyPatch) -> list[Bell]:
    """The bells of all threads that ask, in the order in which they came."""
    made: list[Bell] = []

    def bell() -> Bell:
        made.append(Bell())
        return made[-1]

    monkeypatch.setattr(_together_sync, "allocate_lock", bell)
    return made


def test_a_thread_whose_validation_has_left_only_waits(bells: list[Bell]) -> None:
    """However long the call takes, it does not wake up to look whether others may leave."""
    with asking() as threads:
        asked = [threads.ask(str(at)) for at in range(6)]

        def all_wait_for_answers() -> bool:
            members = sum(map(len, threads.channel.asked))
            calm = sum(bool(each.timeouts) and each.timeouts[-1] > 1 for each in bells)
            return members == len(asked) and calm == len(asked) - len(threads.channel.asked)

        eventually(all_wait_for_answers, "each thread that makes no call waits for its answer")
        threads.channel.let_all_go()
        assert [answered(each) for each in asked] == [str(at) for at in range(6)]
    assert sum(len(each.timeouts) for each in bells) < 5 * len(asked)


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most two validations share a call, and at first one call is under way at a time."""
    monkeypatch.setattr(_coalesce, "PATIENCE_SECONDS", 60)
    monkeypatch.setattr(_coalesce, "MAX_CALLS", 2)
    monkeypatch.setattr(_coalesce, "CALLS_AWAY", 1)


@pytest.mark.usefixtures("pairs")
def test_a_thread_makes_only_calls_that_its_own_validation_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """With more threads waiting than a call takes, the thread that wakes up may be of a later group."""
    with asking() as threads:
        first = threads.ask("first")
        threads.until_asked(1)
        waiting = threads.ask_in_turn("a", "b", "c")
        # The thread of "c" is woken by the return, and it waits longest in the group of "c" and "d".
        threads.channel.let_go(0)
        threads.until_asked(2)
        monkeypatch.setattr(_coalesce, "CALLS_AWAY", 2)
        monkeypatch.setattr(_coalesce, "ENOUGH", 2)
        last = threads.ask("d", timeout=10)
        threads.until_asked(3)
        threads.channel.let_all_go()
        assert [answered(each) for each in (first, *waiting, last)] == ["first", "a", "b", "c", "d"]
    assert threads.channel.asked == [["first"], ["a", "b"], ["c", "d"]]
    assert threads.departures.away == []


def interrupt() -> None:
    """Does what Ctrl-C does."""
    raise KeyboardInterrupt


@pytest.mark.usefixtures("pairs")
def test_an_interrupted_call() -> None:
    """It fails for its members, and the next group leaves."""
    with asking() as threads:
        threads.channel.ends[1] = interrupt
        first = threads.ask("first")
        threads.until_asked(1)
        waiting = threads.ask_in_turn("a", "b", "c")
        threads.channel.let_all_go()
        assert answered(first) == "first"
        ends = sorted((type(each.exception(TIMEOUT_SECONDS)) for each in waiting[:2]), key=repr)
        assert ends == [KeyboardInterrupt, Unavailable]
        assert answered(waiting[2]) == "c"
    assert threads.departures.away == []


@pytest.mark.usefixtures("pairs")
def test_an_interruption_after_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The place of the call is free again, and the other member gets its answer."""
    returned = _coalesce.Departures.returned
    calls: list[object] = []

    def interrupted(self: Any, group: Any) -> None:
        calls.append(group)
        if len(calls) == 2:
            raise KeyboardInterrupt
        returned(self, group)

    monkeypatch.setattr(_coalesce.Departures, "returned", interrupted)
    with asking() as threads:
        threads.ask("first")
        threads.until_asked(1)
        members = threads.ask_in_turn("a", "b")
        threads.channel.let_all_go()
        ends = [each.exception(TIMEOUT_SECONDS) for each in members]
        assert sorted(map(type, ends), key=repr) == [KeyboardInterrupt, type(None)]
        assert answered(threads.ask("c")) == "c"
    assert threads.departures.away == []


@pytest.mark.usefixtures("pairs")
def test_an_interruption_of_a_thread_that_has_just_got_a_group(bells: list[Bell]) -> None:
    """The call is not made: it fails for the other member, and its place is free again."""
    with asking() as threads:
        first = threads.ask("first")
        threads.until_asked(1)
        (leader,) = threads.ask_in_turn("a")
        bells[-1].interrupts = True
        # This thread is woken by the return, and gives the group to the one that waits longer.
        other = threads.ask("b", timeout=20)
        threads.until_waiting("b")
        threads.channel.let_all_go()
        assert answered(first) == "first"
        assert isinstance(leader.exception(TIMEOUT_SECONDS), KeyboardInterrupt)
        assert isinstance(other.exception(TIMEOUT_SECONDS), Unavailable)
    assert threads.channel.asked == [["first"]]
    assert threads.departures.away == []


@pytest.mark.usefixtures("pairs")
def test_a_thread_that_gives_up_wakes_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have been woken to look whether a group may leave, and no other thread was."""
    ring = _together_sync._Waiting.ring
    rung: list[bytes] = []

    def recorded(self: _together_sync._Waiting) -> None:
        rung.append(self.request)
        ring(self)

    with asking() as threads:
        threads.ask("first")
        threads.until_asked(1)
        threads.ask_in_turn("a")
        monkeypatch.setattr(_together_sync._Waiting, "ring", recorded)
        hasty = threads.ask("b", timeout=0.05)
        assert isinstance(hasty.exception(TIMEOUT_SECONDS), Unavailable)
        assert rung == [asking_for("a")]


@pytest.mark.usefixtures("pairs")
def test_a_close_while_a_call_is_refused_for_one_of_its_members() -> None:
    """The others are not sent again."""
    with asking() as threads:

        def refuse() -> None:
            threads.together.close()
            error = InvalidRequest("requests[0].user_id: is too long")
            error.violations = (FieldViolation("requests[0].user_id", "is too long"),)
            raise error

        threads.channel.ends[1] = refuse
        threads.ask("first")
        threads.until_asked(1)
        guilty, other = threads.ask_in_turn("a", "b")
        threads.channel.let_all_go()
        assert isinstance(guilty.exception(TIMEOUT_SECONDS), InvalidRequest)
        assert str(other.exception(TIMEOUT_SECONDS)) == _core.CLOSED
    assert threads.channel.asked == [["first"], ["a", "b"]]
    assert threads.departures.away == []


class AsyncChannel:
    """A channel whose calls take as long as the test says, and answer with the token as the session id."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._channel = Channel()
        self._channel.let_all_go()

    async def call(self, call: _core.Call[Any], timeout: float) -> bytes:
        """Makes a call. Raises Unavailable if it would take longer than the timeout."""
        seconds = self._seconds()
        await asyncio.sleep(min(seconds, timeout))
        if seconds > timeout:
            raise Unavailable("too late")
        return self._channel.call(call, timeout)


class HeldUpLoop:
    """The running loop, with a clock that can be moved on, as while a long computation holds the loop up."""

    def __init__(self) -> None:
        loop = self._loop = asyncio.get_running_loop()
        self._held_up_seconds = 0.0
        self.create_future, self.create_task = loop.create_future, loop.create_task

    def time(self) -> float:
        """Returns the time."""
        return self._loop.time() + self._held_up_seconds

    def call_at(self, when: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        """Sets a timer. Those that become due while the loop is held up fire later."""
        return self._loop.call_at(when - self._held_up_seconds, callback)

    def hold_up(self, seconds: float) -> None:
        """Moves the clock on."""
        self._held_up_seconds += seconds


def async_together(seconds: Callable[[], float]) -> tuple[AsyncTogether, HeldUpLoop]:
    """Returns what sends validations over such a channel, and its loop."""
    loop = HeldUpLoop()
    return AsyncTogether(cast("Any", AsyncChannel(seconds)), cast("Any", loop)), loop


@pytest.mark.parametrize("timeout", [0, -1])
async def test_a_task_without_time(timeout: float) -> None:
    """It does not wait: whether the token is valid is not known."""
    together, _ = async_together(lambda: 0)
    async with asyncio.timeout(TIMEOUT_SECONDS):
        with pytest.raises(Unavailable):
            await together.ask(asking_for("token"), timeout)


async def test_a_deadline_that_passes_while_the_loop_is_held_up() -> None:
    """The call before it returns first, and leaves it behind."""
    together, loop = async_together(lambda: 0)
    first = asyncio.create_task(together.ask(asking_for("first"), 30))
    hasty = asyncio.create_task(together.ask(asking_for("hasty"), 0.05))
    await asyncio.sleep(0)
    loop.hold_up(1)
    async with asyncio.timeout(TIMEOUT_SECONDS):
        await first
        with pytest.raises(Unavailable, match="not sent"):
            await hasty


@pytest.mark.parametrize("seed", range(3))
async def test_tasks_whatever_happens(seed: int) -> None:
    """Deadlines, cancellations, slow calls, closes: each task gets its answer or an error, and none waits for ever."""
    chance = random.Random(seed)  # noqa: S311  repeatable
    together, loop = async_together(lambda: chance.choice((0, 0, 0.001, 0.003, 0.02)))
    ends: Counter[str] = Counter()

    async def ask(token: str) -> None:
        try:
            async with asyncio.timeout(chance.choice((None, None, 0.001, 0.01))):
                answer = await together.ask(asking_for(token), chance.choice((0, 0.002, 0.05, 30)))
        except (Unavailable, TimeoutError) as error:
            ends[type(error).__name__] += 1
        else:
            session = _validations.validation(answer).session
            assert session is not None
            assert session.session_id == token
            ends["answered"] += 1

    async with asyncio.timeout(TIMEOUT_SECONDS), asyncio.TaskGroup() as tasks:
        for number in range(1_500):
            tasks.create_task(ask(str(number)))
            if chance.random() < 0.3:
                await asyncio.sleep(chance.choice((0, 0, 0.0005)))
            if chance.random() < 0.005:
                together.close()
            if chance.random() < 0.005:
                loop.hold_up(0.004)
    assert ends.keys() == {"answered", "Unavailable", "TimeoutError"}

    async def nothing_is_left() -> bool:
        return not together._tasks and not list(together._departures.all())

    await eventually_async(nothing_is_left, "calls that all of their callers have left return")


async def test_a_task_that_closes_the_client_as_soon_as_it_has_its_answer() -> None:
    """The group that leaves at that moment is not sent."""
    asked: list[_core.Call[Any]] = []
    go_on = asyncio.Event()

    async def call(call: _core.Call[Any], timeout: float) -> bytes:
        del timeout
        asked.append(call)
        await go_on.wait()
        return pb.ValidateSessionResponse().SerializeToString()

    together = AsyncTogether(cast("Any", SimpleNamespace(call=call)), asyncio.get_running_loop())

    async def ask(token: str) -> Answer:
        return await together.ask(asking_for(token), 30)

    async def ask_and_close() -> None:
        await ask("first")
        together.close()

    closing = asyncio.create_task(ask_and_close())
    others = [asyncio.create_task(ask(token)) for token in "ab"]
    await asyncio.sleep(0)
    go_on.set()
    failures = await asyncio.gather(*others, return_exceptions=True)
    await closing
    assert [str(each) for each in failures] == [_core.CLOSED] * 2
    assert len(asked) == 1
