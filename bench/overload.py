"""`python -m bench overload`: what happens to calls when more come than can be answered, and afterwards.

An open loop (see `open_loop`) offers half of the capacity, all of it, and more. Each row has a server of its own, so
that its memory shows this load alone. The server has half a core, and a process that spins has the other half. So one
core can generate five times the capacity.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from time import perf_counter, process_time

import psutil

from bench.checkouts import THIS
from bench.closed_loop import Client, Load
from bench.measure import Plan
from bench.open_loop import Callers, Fate
from bench.processes import Cores, find_cores, pin, running, serving
from bench.report import Results, Sheet
from bench.sessions import log_in, single_validations
from bench.store import Store, temporary_store

_SESSIONS = 1_000
_TIMEOUT_SECONDS = 1.0

# In the first second of a load, the queues of the server are still empty.
_SKIPPED_SECONDS = 1.0

# The probe that shows whether the server has recovered: its calls a second, and how long that may take.
_PROBES_PER_SECOND = 100
_RECOVERY_TIMEOUT_SECONDS = 30

# This much is normal: a shared machine stalls for that long now and then.
_NORMAL_SECONDS = 0.02


@dataclass(frozen=True)
class _Offer:
    """A load to measure."""

    connections: int
    limit: int
    """Calls that a connection may have in flight."""
    multiple: float
    """The load, as a multiple of the capacity."""
    seconds: float


@dataclass(frozen=True)
class _Row:
    """The result of an offer."""

    name: str
    connections: int
    limit: int
    seconds: float
    offered: float
    """Calls a second."""
    goodput: float
    """Good answers within the deadline, per second."""
    of_peak: float
    good_p50_seconds: float | None
    good_p99_seconds: float | None
    calls: Mapping[str, int]
    """How many calls ended in each way; see `Fate`."""
    refused_p50_seconds: float | None
    refused_p99_seconds: float | None
    memory_before_bytes: int
    memory_most_bytes: int
    memory_after_bytes: int
    normal_p99_seconds: float
    """The p99 of the probe, before."""
    recovery_seconds: float | None
    """From when the last caller has left until the probe's p99 is normal again; None: not in time."""
    late_seconds: float
    """How late the load generator began a call, at most."""
    load_cpu_share: float
    """CPU seconds of the load generator per second."""


def compare_overload(*, quick: bool, progress: Callable[[str], None]) -> Results:
    """Finds the capacity, and offers multiples of it over a few and over many connections."""
    cores = find_cores()
    offers = _offers(quick=quick)
    pin(cores.load)
    spin = [sys.executable, "-c", "while True: pass"]
    with temporary_store(core=cores.load) as store, running(spin, core=cores.server):
        progress("capacity")
        load = single_validations([each.token for each in log_in(_SESSIONS, THIS, store.url, core=cores.server)])
        capacity = _capacity(store, cores, load)
        rows = []
        for number, offer in enumerate(offers, 1):
            progress(f"{number} of {len(offers)}: {_name(offer)}")
            rows.append(_measure(store, cores, load, offer, capacity))
        progress("capacity again")
        afterwards = _capacity(store, cores, load)
    # The higher of the two: anything else that runs makes it less.
    rows = [replace(row, of_peak=row.goodput / max(capacity, afterwards)) for row in rows]
    late_seconds, load_cpu_share = max(row.late_seconds for row in rows), max(row.load_cpu_share for row in rows)
    note = (
        f"Capacity of half a core: {capacity:,.0f} validations/s, afterwards {afterwards:,.0f}."
        f" Recovery: until {_PROBES_PER_SECOND} calls/s have a p99 of at most twice what it was before"
        f" (or {_NORMAL_SECONDS * 1e3:.0f} ms).\n"
        f"The load generator was at most {late_seconds * 1e3:,.0f} ms late and took at most {load_cpu_share:.0%} of its"
        " core."
    )
    sheet = Sheet(f"Overload, deadline {_TIMEOUT_SECONDS:g} s", rows, _COLUMNS, note)
    return Results(
        Plan(1, _SKIPPED_SECONDS, max(offer.seconds for offer in offers)), cores, store.version, [], [], [sheet]
    )


def _offers(*, quick: bool) -> Sequence[_Offer]:
    # The default, and limits that allow about as many calls on more connections.
    limits = [(8, 250), (32, 100), (100, 40)]
    if quick:
        return [_Offer(connections, limit, 5, 3) for connections, limit in limits]
    return [
        _Offer(connections, limit, multiple, 60 if multiple == 5 else 10)
        for connections, limit in limits
        for multiple in (0.5, 1, 2, 5)
    ]


def _name(offer: _Offer) -> str:
    return f"{offer.connections} connections of at most {offer.limit} calls, {offer.multiple:g}x capacity"


def _capacity(store: Store, cores: Cores, load: Load) -> float:
    """Returns the most validations a second of a few short closed loops: other load on the machine only lowers it."""
    with (
        serving(THIS.serve(store.url), core=cores.server) as server,
        closing(Client(server.port, connections=8)) as client,
    ):
        client.run(load, streams=16, seconds=0.5)
        runs = [client.run(load, streams=16, seconds=1) for _ in range(5)]
    return max(len(run.latencies) / run.seconds for run in runs)


def _measure(store: Store, cores: Cores, load: Load, offer: _Offer, capacity: float) -> _Row:
    command = THIS.serve(store.url, "--max-calls-per-connection", str(offer.limit), default_timeout=True)
    with (
        serving(command, core=cores.server) as server,
        closing(Callers(server.port, load, connections=offer.connections, timeout_seconds=_TIMEOUT_SECONDS)) as callers,
    ):
        callers.run(capacity / 2, 0.5)
        normal = _quantile(callers.run(_PROBES_PER_SECOND, 2).seconds(Fate.GOOD), 0.99) or _NORMAL_SECONDS
        process = psutil.Process(server.popen.pid)
        memory = [process.memory_info().rss]
        cpu, begin = process_time(), perf_counter()
        outcomes = callers.run(
            capacity * offer.multiple, offer.seconds, watch=lambda: memory.append(process.memory_info().rss)
        )
        cpu, took = process_time() - cpu, perf_counter() - begin
        recovery_seconds = _recovery(server.port, load, max(2 * normal, _NORMAL_SECONDS))
        memory.append(process.memory_info().rss)
    good, refused = outcomes.seconds(Fate.GOOD, skip=_SKIPPED_SECONDS), outcomes.refusals()
    goodput = len(good) / (offer.seconds - _SKIPPED_SECONDS)
    return _Row(
        name=_name(offer),
        connections=offer.connections,
        limit=offer.limit,
        seconds=offer.seconds,
        offered=capacity * offer.multiple,
        goodput=goodput,
        of_peak=goodput / capacity,
        good_p50_seconds=_quantile(good, 0.5),
        good_p99_seconds=_quantile(good, 0.99),
        calls={fate.value: outcomes.count(fate) for fate in Fate},
        refused_p50_seconds=_quantile(refused, 0.5),
        refused_p99_seconds=_quantile(refused, 0.99),
        memory_before_bytes=memory[0],
        memory_most_bytes=max(memory),
        memory_after_bytes=memory[-1],
        normal_p99_seconds=normal,
        recovery_seconds=recovery_seconds,
        late_seconds=outcomes.late_seconds,
        load_cpu_share=cpu / took,
    )


def _recovery(port: int, load: Load, normal: float) -> float | None:
    """Connects and calls at a low rate until a second of calls has a normal p99. Returns how long that took."""
    start = perf_counter()
    calls: list[tuple[float, bool]] = []
    with closing(Callers(port, load, connections=1, timeout_seconds=_TIMEOUT_SECONDS)) as probe:
        while perf_counter() < start + _RECOVERY_TIMEOUT_SECONDS:
            calls += probe.run(_PROBES_PER_SECOND, 1).slow(normal)
            for first in range(len(calls) - _PROBES_PER_SECOND + 1):
                if sum(slow for _, slow in calls[first : first + _PROBES_PER_SECOND]) <= _PROBES_PER_SECOND // 100:
                    return calls[first][0] - start
    return None


def _quantile(ascending: Sequence[float], part: float) -> float | None:
    return ascending[int(len(ascending) * part)] if ascending else None


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:,.0f}"


def _part(*fates: Fate) -> Callable[[_Row], str]:
    def show(row: _Row) -> str:
        return f"{sum(row.calls[fate.value] for fate in fates) / sum(row.calls.values()):.1%}"

    return show


_COLUMNS: Mapping[str, Callable[[_Row], str]] = {
    "": lambda row: row.name,
    "good/s": lambda row: f"{row.goodput:,.0f}",
    "of peak": lambda row: f"{row.of_peak:.2f}",
    "p50 ms": lambda row: _milliseconds(row.good_p50_seconds),
    "p99 ms": lambda row: _milliseconds(row.good_p99_seconds),
    "held back": _part(Fate.HELD_BACK),
    "given up": _part(Fate.GIVEN_UP),
    "refused": _part(Fate.RESET, Fate.REFUSED),
    "after p50, p99 ms": lambda row: (
        f"{_milliseconds(row.refused_p50_seconds)}, {_milliseconds(row.refused_p99_seconds)}"
    ),
    "MB before, most, after": lambda row: ", ".join(
        f"{size / 1e6:,.0f}" for size in (row.memory_before_bytes, row.memory_most_bytes, row.memory_after_bytes)
    ),
    "recovery s": lambda row: (
        f"over {_RECOVERY_TIMEOUT_SECONDS}" if row.recovery_seconds is None else f"{row.recovery_seconds:.1f}"
    ),
}
