"""A closed loop of validations: a fixed number of callers, each of which asks again once it has an answer."""

import asyncio
import itertools
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from catraca.errors import CatracaError

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}

_KEPT_BITS = 6
_TURN = 32
"""A caller lets others run after this many answers: those of a near cache come without any wait."""
_PAUSE_SECONDS = 0.01
_BAR_WIDTH = 30


@dataclass
class Outcome:
    """What came of one load."""

    name: str
    seconds: float = 0.0
    counts: Counter[int] = field(default_factory=Counter)
    """Counts of answers by nanoseconds, rounded down to 3 %, so that a run of any length fits into memory."""
    slowest: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def add(self, nanoseconds: int) -> None:
        """Counts an answer."""
        shift = max(nanoseconds.bit_length() - _KEPT_BITS, 0)
        self.counts[nanoseconds >> shift << shift] += 1
        self.slowest = max(self.slowest, nanoseconds)

    @property
    def validations(self) -> int:
        """How many were answered."""
        return self.counts.total()

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.validations / self.seconds if self.seconds else 0.0

    def percentiles(self) -> dict[str, float]:
        """Returns the percentiles and the slowest, in seconds. Empty if nothing was answered."""
        if not self.counts:
            return {}
        ordered = sorted(self.counts.items())
        sums = list(itertools.accumulate(count for _, count in ordered))
        found = {
            name: next(value for (value, _), so_far in zip(ordered, sums, strict=True) if so_far >= share * sums[-1])
            for name, share in PERCENTILES.items()
        }
        return {name: value / 1e9 for name, value in {**found, "max": self.slowest}.items()}


async def load(
    name: str, ask: Callable[[str], Awaitable[str]], tokens: Sequence[str], *, concurrency: int, seconds: float
) -> Outcome:
    """Asks for `seconds`. `ask` returns what is wrong with an answer, if anything is."""
    outcome = Outcome(name)
    began = time.monotonic()
    next_token = itertools.cycle(tokens).__next__

    async def caller() -> None:
        for turn in itertools.count(1):
            if time.monotonic() - began >= seconds:
                return
            before = time.perf_counter_ns()
            try:
                wrong = await ask(next_token())
            except CatracaError as error:
                wrong = error.reason or type(error).__name__
            if wrong:
                outcome.errors[wrong] += 1
                await asyncio.sleep(_PAUSE_SECONDS)  # so as not to storm a server that is down
            else:
                outcome.add(time.perf_counter_ns() - before)
            if turn % _TURN == 0:
                await asyncio.sleep(0)

    bar = asyncio.ensure_future(_bar(outcome, began, seconds)) if sys.stderr.isatty() else None
    try:
        async with asyncio.TaskGroup() as callers:
            for _ in range(concurrency):
                callers.create_task(caller())
    finally:
        outcome.seconds = time.monotonic() - began
        if bar is not None:
            bar.cancel()
            print("\r\033[K", end="", file=sys.stderr, flush=True)
    return outcome


async def _bar(outcome: Outcome, began: float, seconds: float) -> None:
    while True:
        passed = max(time.monotonic() - began, 1e-9)
        step = min(int(passed / seconds * _BAR_WIDTH), _BAR_WIDTH)
        bar = "█" * step + "░" * (_BAR_WIDTH - step)
        told = f"{outcome.name:<12} {bar} {outcome.validations / passed:,.0f}/s, {outcome.errors.total()} errors"
        print(f"\r\033[K{told}", end="", file=sys.stderr, flush=True)
        await asyncio.sleep(0.1)
