"""Loads that compare the Python client with others, in this process: one caller, many tasks or many threads."""

import asyncio
import itertools
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from bench.http2 import LoadError

_TURN = 64
"""After this many answers a task lets others run: answers from a near cache come without a wait."""


@dataclass(frozen=True)
class Taken:
    """How long each call took, in seconds."""

    seconds: float
    latencies: Sequence[float] = field(repr=False)
    """Not in the repr: asyncio builds that of a task's result. For a million calls it takes longer than they did."""


def in_turn(ask: Callable[[str], object], tokens: Sequence[str], seconds: float) -> Taken:
    """Asks one question after the other. Raises LoadError if an answer is not true."""
    return Taken(*_asked(ask, tokens, seconds))


def in_threads(ask: Callable[[str], object], tokens: Sequence[str], seconds: float, *, callers: int) -> Taken:
    """Asks in this many threads at once."""
    parts: list[list[float]] = []
    failures: list[BaseException] = []

    def caller() -> None:
        try:
            parts.append(_asked(ask, tokens, seconds)[1])
        except BaseException as error:  # noqa: BLE001  raised below, in the thread that measures
            failures.append(error)

    began = time.perf_counter()
    threads = [threading.Thread(target=caller) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise LoadError(f"a call failed: {failures[0]}")
    return Taken(time.perf_counter() - began, list(itertools.chain(*parts)))


async def in_tasks(
    ask: Callable[[str], Awaitable[object]], tokens: Sequence[str], seconds: float, *, callers: int
) -> Taken:
    """Asks in this many tasks at once."""
    latencies: list[float] = []
    began = time.perf_counter()
    next_token = itertools.cycle(tokens).__next__

    async def caller() -> None:
        for turn in itertools.count(1):
            before = time.perf_counter()
            if before - began >= seconds:
                return
            if not await ask(next_token()):
                raise LoadError("a good token was refused")
            latencies.append(time.perf_counter() - before)
            if turn % _TURN == 0:
                await asyncio.sleep(0)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return Taken(time.perf_counter() - began, latencies)


def _asked(ask: Callable[[str], object], tokens: Sequence[str], seconds: float) -> tuple[float, list[float]]:
    latencies = []
    clock = time.perf_counter
    began = before = clock()
    for token in itertools.cycle(tokens):
        if not ask(token):
            raise LoadError("a good token was refused")
        after = clock()
        latencies.append(after - before)
        if after - began >= seconds:
            break
        before = clock()
    return clock() - began, latencies
