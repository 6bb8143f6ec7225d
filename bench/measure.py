"""Measures every contestant once a round, round after round, so that drift affects all of them."""

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from statistics import median

import psutil

from bench.closed_loop import Client, Load
from bench.http2 import OPEN, Access
from bench.processes import Cores, Running, Server, pin, serving


@dataclass(frozen=True)
class Row:
    """One thing to measure of a contestant."""

    name: str
    load: Load
    connections: int = 4
    streams: int = 16
    items: int = 1
    """How many validations or sessions a call is about."""
    prepare: Callable[[Client], None] = lambda _: None
    """Called before each run, to restore what the run before has changed."""
    event: Load | None = None
    """Measure while one more caller makes these calls, one after the other. None: for as long as the plan says."""
    access: Access = OPEN


@dataclass(frozen=True)
class Contestant:
    """A server, started anew for each round, and the rows to measure of it."""

    command: Sequence[str]
    rows: Sequence[Row]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Its environment variables, in addition to the bench's own."""


Group = Sequence[Contestant]
"""Contestants that run at the same time and take turns, row by row, so that there is little drift between them."""


@dataclass(frozen=True)
class Plan:
    """How often and how long."""

    rounds: int
    warm_up_seconds: float
    seconds: float
    only: str = ""
    """A regular expression: only rows whose name it matches somewhere are measured."""

    def has(self, row: Row) -> bool:
        """Whether the row is to be measured."""
        return re.search(self.only, row.name, re.IGNORECASE) is not None


@dataclass(frozen=True)
class Measurement:
    """The measurements of one row in one round."""

    row: str
    round: int
    items: int
    seconds: float
    p50_seconds: float
    p99_seconds: float
    slowest_seconds: float
    server_cpu_seconds: float
    """CPU seconds of the server in these `seconds`, including its child processes."""
    load_cpu_seconds: float
    """The same for the load generator. If it is close to `seconds`, the load generator was measured, not the server."""
    store_cpu_seconds: float
    """The same for the store."""
    other_cpu_seconds: float
    """The same for all other processes of the machine: the noise."""

    @property
    def rate(self) -> float:
        """Items per second."""
        return self.items / self.seconds

    @property
    def cpu_seconds_each(self) -> float:
        """CPU seconds of the server per item."""
        return self.server_cpu_seconds / self.items


@dataclass(frozen=True)
class Spread:
    """The median of the rounds, and the extremes."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Summarises the values of the rounds."""
        every = list(values)
        return cls(median(every), min(every), max(every))


def measure(
    groups: Sequence[Group],
    plan: Plan,
    *,
    cores: Cores,
    store: Running | None = None,
    progress: Callable[[str], None],
) -> list[Measurement]:
    """Measures all rounds. Raises LoadError if a single call fails."""
    pin(cores.load)
    wanted = [
        [replace(each, rows=rows) for each in group if (rows := [row for row in each.rows if plan.has(row)])]
        for group in groups
    ]
    measurements = []
    for number in range(1, plan.rounds + 1):
        for group in wanted:
            # Every other round in reverse order, so that no contestant always comes first.
            turns = group if number % 2 else group[::-1]
            with ExitStack() as stack:
                servers = [
                    stack.enter_context(serving(each.command, core=cores.server, environment=each.environment))
                    for each in turns
                ]
                for turn in zip_longest(*(each.rows for each in turns)):
                    for row, server in zip(turn, servers, strict=True):
                        if row is not None:
                            progress(f"round {number} of {plan.rounds}: {row.name}")
                            measurements.append(measure_row(row, number, plan, server, store))
    return measurements


def measure_row(row: Row, number: int, plan: Plan, server: Server, store: Running | None) -> Measurement:
    """Measures one row in one round. Raises LoadError if a single call fails."""

    def cpu_seconds() -> tuple[float, float, float]:
        return server.cpu_seconds(), time.process_time(), store.cpu_seconds() if store else 0.0

    with closing(Client(server.port, connections=row.connections, access=row.access)) as client:
        row.prepare(client)
        client.run(row.load, streams=row.streams, seconds=plan.warm_up_seconds)
        row.prepare(client)
        before, idle = cpu_seconds(), idle_seconds()
        if row.event:
            answers = client.run_during(row.event, row.load, streams=row.streams)
        else:
            answers = client.run(row.load, streams=row.streams, seconds=plan.seconds)
        idle, after = idle_seconds() - idle, cpu_seconds()
    server_cpu, load_cpu, store_cpu = (late - early for late, early in zip(after, before, strict=True))
    return Measurement(
        row=row.name,
        round=number,
        items=len(answers.latencies) * row.items,
        seconds=answers.seconds,
        p50_seconds=answers.latencies[len(answers.latencies) // 2],
        p99_seconds=answers.latencies[len(answers.latencies) * 99 // 100],
        slowest_seconds=answers.latencies[-1],
        server_cpu_seconds=server_cpu,
        load_cpu_seconds=load_cpu,
        store_cpu_seconds=store_cpu,
        other_cpu_seconds=answers.seconds * (psutil.cpu_count() or 1) - idle - server_cpu - load_cpu - store_cpu,
    )


def idle_seconds() -> float:
    """Returns the idle time of all cores of the machine, added up."""
    times = psutil.cpu_times()
    return float(times.idle + getattr(times, "iowait", 0.0))
