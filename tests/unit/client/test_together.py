"""Threads that share calls: how often a waiting thread wakes up, and which thread makes a call."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, cast

import pytest
from tests.support.waiting import TIMEOUT_SECONDS, eventually

from catraca import _core, _together_sync
from catraca._together_sync import SyncTogether
from catraca.v1 import session_service_pb2 as pb

Tokens = list[str]


class Channel:
    """A channel whose calls each take until they are let go, and answer with the token as the session id."""

    def __init__(self) -> None:
        self.asked: list[Tokens] = []
        """The tokens of each call."""
        self._go_on: dict[int, threading.Event] = {}
        self._open = threading.Event()

    def call(self, call: _core.Call[Any], timeout: float) -> bytes:
        """Makes a call."""
        del timeout
        together = isinstance(call.request, pb.BatchValidateSessionsRequest)
        requests: list[Any] = list(call.request.requests) if together else [call.request]  # type: ignore[attr-defined]  # of a batch
        go_on = self._go_on.setdefault(len(self.asked), threading.Event())
        self.asked.append([each.token for each in requests])
        while not (self._open.is_set() or go_on.wait(0.01)):
            pass
        answers = [pb.ValidateSessionResponse() for _ in requests]
        for each, answer in zip(requests, answers, strict=True):
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

    def ask(self, token: str, timeout: float = 30) -> Future[pb.ValidateSessionResponse]:
        """Has a thread ask."""
        return self._pool.submit(self.together.ask, pb.ValidateSessionRequest(token=token), timeout)

    def ask_in_turn(self, *tokens: str) -> list[Future[pb.ValidateSessionResponse]]:
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
            return last is not None and last.request.token == token

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


def answered(future: Future[pb.ValidateSessionResponse]) -> str:
    """Returns whose answer a thread got."""
    return future.result(TIMEOUT_SECONDS).session.session_id


class Bell:
    """A bell that keeps the timeout of each wait for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.timeouts: list[float] = []

    def acquire(self, timeout: float = -1) -> bool:
        """Waits."""
        if timeout >= 0:
            self.timeouts.append(timeout)
        return self._lock.acquire(timeout=timeout)

    def release(self) -> None:
        """Rings."""
        self._lock.release()


def test_a_thread_whose_validation_has_left_only_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the call takes, it does not wake up to look whether others may leave."""
    bells: list[Bell] = []

    def bell() -> Bell:
        bells.append(Bell())
        return bells[-1]

    monkeypatch.setattr(_together_sync, "allocate_lock", bell)
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
