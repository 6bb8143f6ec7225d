"""The metrics: their names, what processes have counted, and the page that Prometheus reads (text format 0.0.4).

A few plain numbers and forty lines of text: a library would add nothing, and count more slowly.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

_LABEL = re.compile(r'([a-z_]+)="([^"]*)"')

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Snapshot: TypeAlias = dict[str, dict[str, float]]
"""The numbers by family, and in it by sample: its name and labels, as on the page."""


class Merge(Enum):
    """How the numbers of several processes are combined."""

    SUM = "sum"
    MIN = "min"
    MAX = "max"


class Family(NamedTuple):
    """One metric."""

    kind: str
    help_text: str
    merge: Merge = Merge.SUM


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "grpc_server_started_total": Family("counter", "Calls that came in."),
        "grpc_server_handled_total": Family("counter", "Calls that ended, by status code."),
        "grpc_server_handling_seconds": Family("histogram", "From when a call came in until its status was sent."),
        "catraca_errors_total": Family("counter", "Calls that ended with an error, by its reason in the API."),
        "catraca_shedding_seconds_total": Family(
            "counter", "Time in which fewer calls were let in, because callers waited until their deadlines."
        ),
        "catraca_validations_total": Family("counter", "Tokens validated, by outcome."),
        "catraca_sessions_created_total": Family("counter", "Sessions created."),
        "catraca_sessions_updated_total": Family("counter", "Sessions updated."),
        "catraca_sessions_rotated_total": Family("counter", "Tokens rotated."),
        "catraca_sessions_ended_total": Family("counter", "Sessions ended before they expired, by cause."),
        "catraca_watches": Family("gauge", "Watches that are open."),
        "catraca_feed_age_seconds": Family(
            "gauge", "Since the feed was last read to its end; 0 while nobody watches.", Merge.MAX
        ),
        "catraca_store_connected": Family("gauge", "1 if every process is connected to the store.", Merge.MIN),
        "catraca_store_reconnects_total": Family("counter", "Connections to the store that replaced a closed one."),
        "catraca_store_exchange_seconds": Family("histogram", "From sending a batch to the store to its last reply."),
        "catraca_store_batch_commands": Family("histogram", "Commands in one batch."),
        "catraca_store_waiting_commands": Family("gauge", "Commands that wait to be sent to the store."),
        "catraca_tls_certificate_expiry_timestamp_seconds": Family(
            "gauge", "When the server's certificate ends, in seconds since 1970.", Merge.MIN
        ),
        "catraca_workers": Family("gauge", "Processes whose numbers are on this page."),
    }
)


class Histogram:
    """How many values there were up to each bound."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Counts a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def samples(self, name: str, labels: Mapping[str, str]) -> dict[str, float]:
        """Returns the samples as they are on the page."""
        total = 0
        found: dict[str, float] = {}
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            found[sample(f"{name}_bucket", {**labels, "le": bound})] = total
        found[sample(f"{name}_sum", labels)] = self._sum
        found[sample(f"{name}_count", labels)] = total
        return found


def sample(name: str, labels: Mapping[str, str]) -> str:
    """Returns the name of a sample. The label values are our own words, which need no escaping."""
    inner = ",".join([f'{key}="{value}"' for key, value in labels.items()])
    return f"{name}{{{inner}}}" if inner else name


def labels_of(name: str) -> dict[str, str]:
    """Returns the labels of a sample, by its name."""
    return dict(_LABEL.findall(name))


def merge(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Returns the numbers of several processes as one."""
    merged: Snapshot = {}
    for snapshot in snapshots:
        for family, samples in snapshot.items():
            into = merged.setdefault(family, {})
            for name, value in samples.items():
                into[name] = _merged(FAMILIES[family].merge, into[name], value) if name in into else value
    return merged


def without_gauges(snapshot: Snapshot) -> Snapshot:
    """Returns what remains true of a process that has ended."""
    return {family: samples for family, samples in snapshot.items() if FAMILIES[family].kind != "gauge"}


def page(snapshot: Snapshot) -> str:
    """Returns the page."""
    lines = []
    for name, family in FAMILIES.items():
        if samples := snapshot.get(name):
            lines += [f"# HELP {name} {family.help_text}", f"# TYPE {name} {family.kind}"]
            lines += [f"{each} {value:.17g}" for each, value in samples.items()]
    return "\n".join(lines) + "\n"


def _merged(how: Merge, first: float, second: float) -> float:
    match how:
        case Merge.SUM:
            return first + second
        case Merge.MIN:
            return min(first, second)
        case Merge.MAX:
            return max(first, second)
