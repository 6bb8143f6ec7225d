"""What is made of measurements: tables to read, and a file with every number in it."""

import json
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil

from bench.measure import Measurement, Plan, Spread
from bench.processes import Cores

_HEADINGS = ("validations/s", "CPU µs each", "p50 ms", "p99 ms", "rate / first", "CPU / first")


@dataclass(frozen=True)
class Table:
    """Rows to be read side by side, the first of them being what the others are compared with."""

    title: str
    rows: Sequence[str]


@dataclass(frozen=True)
class Results:
    """One run of the bench."""

    plan: Plan
    cores: Cores
    store: str | None
    tables: Sequence[Table]
    measurements: Sequence[Measurement]

    def spread(self, row: str, value: Callable[[Measurement], float]) -> Spread:
        """Summarises one value of a row over the rounds."""
        return Spread.of(value(each) for each in self._of(row))

    def ratio(self, row: str, base: str, value: Callable[[Measurement], float]) -> Spread:
        """Summarises a value of a row as a multiple of the same value of another, taken round by round."""
        pairs = zip(self._of(row), self._of(base), strict=True)
        return Spread.of(value(each) / value(other) for each, other in pairs)

    def _of(self, row: str) -> list[Measurement]:
        return [each for each in self.measurements if each.row == row]

    def text(self) -> str:
        """Shows the tables, and how far they can be trusted."""
        return "\n\n".join([*(self._table(table) for table in self.tables), self._noise()])

    def _table(self, table: Table) -> str:
        lines = [(table.title, *_HEADINGS), *(self._line(row, table.rows[0]) for row in table.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        aligned = (
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines
        )
        return "\n".join(aligned)

    def _line(self, row: str, base: str) -> tuple[str, ...]:
        return (
            row,
            _show(self.spread(row, lambda each: each.rate), "{:,.0f}"),
            _show(self.spread(row, lambda each: each.cost * 1e6), "{:,.1f}"),
            _show(self.spread(row, lambda each: each.p50 * 1e3), "{:.1f}"),
            _show(self.spread(row, lambda each: each.p99 * 1e3), "{:.1f}"),
            _show(self.ratio(row, base, lambda each: each.rate), "{:.2f}"),
            _show(self.ratio(row, base, lambda each: each.cost), "{:.2f}"),
        )

    def _noise(self) -> str:
        load = max(each.load_cpu / each.seconds for each in self.measurements)
        others = Spread.of(each.other_cpu / each.seconds for each in self.measurements)
        return (
            f"Medians of {self.plan.rounds} rounds of {self.plan.seconds:g} s, lowest and highest in brackets; compared"
            f" with the first row round by round.\nOther programs took {others.median:.0%} of a core, at most"
            f" {others.high:.0%}; the load generator took at most {load:.0%} of its own."
        )

    def save(self, file: Path) -> None:
        """Writes every number of every round as JSON."""
        file.parent.mkdir(parents=True, exist_ok=True)
        contents = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": {
                "cpu": _cpu(),
                "cpus": psutil.cpu_count(),
                "pinned": self.cores.server is not None,
                "system": platform.system(),
                "python": platform.python_version(),
                "grpcio": version("grpcio"),
                "protobuf": version("protobuf"),
                "redis-py": version("redis"),
                "store": self.store,
            },
            "plan": asdict(self.plan),
            "tables": [asdict(table) for table in self.tables],
            "rounds": [asdict(each) for each in self.measurements],
        }
        file.write_text(json.dumps(contents, indent=1, ensure_ascii=False) + "\n")


def _show(spread: Spread, form: str) -> str:
    low, middle, high = (form.format(value) for value in (spread.low, spread.median, spread.high))
    return f"{middle} ({low}-{high})"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found[1] if found else platform.processor()
