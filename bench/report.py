"""Reports on measurements: tables to read, and a file with every number."""

import json
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from bench.measure import Measurement, Plan, Spread
from bench.processes import Cores


@dataclass(frozen=True)
class Column:
    """One value of every row."""

    heading: str
    value: Callable[[Measurement], float]
    form: str
    compared: bool = False
    """As a multiple of the base row's value, round by round."""


COST = Column("CPU µs each", lambda each: each.cpu_seconds_each * 1e6, "{:,.1f}")
P50 = Column("p50 ms", lambda each: each.p50_seconds * 1e3, "{:.2f}")
P99 = Column("p99 ms", lambda each: each.p99_seconds * 1e3, "{:.2f}")
COST_COMPARED = Column("CPU / base", lambda each: each.cpu_seconds_each, "{:.2f}", compared=True)
RATE_COMPARED = Column("rate / base", lambda each: each.rate, "{:.2f}", compared=True)
P50_COMPARED = Column("p50 / base", lambda each: each.p50_seconds, "{:.2f}", compared=True)
P99_COMPARED = Column("p99 / base", lambda each: each.p99_seconds, "{:.2f}", compared=True)
SLOWEST = Column("slowest ms", lambda each: each.slowest_seconds * 1e3, "{:.1f}")
SECONDS = Column("seconds", lambda each: each.seconds, "{:.2f}")


def rate(items: str) -> Column:
    """How many of the unit a second."""
    return Column(f"{items}/s", lambda each: each.rate, "{:,.0f}")


@dataclass(frozen=True)
class Table:
    """Rows to compare."""

    title: str
    rows: Sequence[str]
    columns: Sequence[Column] = (rate("validations"), COST, P50, P99, RATE_COMPARED, COST_COMPARED)
    plotted: Column = COST
    bases: Mapping[str, str] = field(default_factory=dict)
    """The row that others are compared with, if it is not the first one."""

    def base(self, row: str) -> str:
        """Returns the row that this one is compared with: the base of the table, which for the base is itself."""
        return self.bases.get(row, row if row in self.bases.values() else self.rows[0])


@dataclass(frozen=True)
class Sheet:
    """Rows that were measured once, each one a dataclass, and the columns to show of them."""

    title: str
    rows: Sequence[Any]
    columns: Mapping[str, Callable[[Any], str]]
    """The function that gives the text under each heading; the first one is the row's name."""
    note: str = ""

    def text(self) -> str:
        """Shows the rows."""
        shown = _aligned([(self.title, *list(self.columns)[1:]), *(self._line(row) for row in self.rows)])
        return f"{shown}\n{self.note}" if self.note else shown

    def _line(self, row: Any) -> tuple[str, ...]:
        return tuple(show(row) for show in self.columns.values())


@dataclass(frozen=True)
class Results:
    """One run of the bench."""

    plan: Plan
    cores: Cores
    store: str | None
    tables: Sequence[Table]
    measurements: Sequence[Measurement]
    sheets: Sequence[Sheet] = ()
    notes: Sequence[str] = ()
    """What else a reader must know: which rows could not be measured, and why."""

    def __add__(self, other: "Results") -> "Results":
        """Returns both runs as one."""
        return replace(
            self,
            tables=[*self.tables, *other.tables],
            measurements=[*self.measurements, *other.measurements],
            sheets=[*self.sheets, *other.sheets],
            notes=[*self.notes, *other.notes],
        )

    def without_missing(self) -> "Results":
        """Returns the tables with only the rows that were measured."""
        measured = {each.row for each in self.measurements}
        tables = [
            replace(
                table,
                rows=[row for row in table.rows if row in measured],
                bases={row: base for row, base in table.bases.items() if base in measured},
            )
            for table in self.tables
        ]
        return replace(self, tables=[table for table in tables if table.rows])

    def spread(self, row: str, column: Column, base: str) -> Spread:
        """Summarises one value of a row over the rounds. A ratio is to the value of `base`, round by round."""
        values = [column.value(each) for each in self._of(row)]
        if not column.compared:
            return Spread.of(values)
        return Spread.of(value / column.value(first) for value, first in zip(values, self._of(base), strict=True))

    def _of(self, row: str) -> list[Measurement]:
        return [each for each in self.measurements if each.row == row]

    def text(self) -> str:
        """Shows the tables, and how much noise there was."""
        notes = ["\n".join([*([self._noise()] if self.measurements else []), *self.notes])]
        sheets = [sheet.text() for sheet in self.sheets]
        return "\n\n".join(filter(None, [*(self._table(table) for table in self.tables), *notes, *sheets]))

    def _table(self, table: Table) -> str:
        headings = (table.title, *(column.heading for column in table.columns))
        return _aligned([headings, *(self._line(row, table) for row in table.rows)])

    def _line(self, row: str, table: Table) -> tuple[str, ...]:
        return (row, *(_show(self.spread(row, column, table.base(row)), column.form) for column in table.columns))

    def _noise(self) -> str:
        load = max(each.load_cpu_seconds / each.seconds for each in self.measurements)
        others = Spread.of(each.other_cpu_seconds / each.seconds for each in self.measurements)
        return (
            f"Medians of {self.plan.rounds} rounds of {self.plan.seconds:g} s, lowest and highest in brackets. Ratios"
            " are taken round by round; base: the table's first row, or the same row of the other checkout.\n"
            f"Other programs took {others.median:.0%} of a core, at most {others.high:.0%}; the load generator took at"
            f" most {load:.0%} of its own."
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
            "tables": [{"title": table.title, "rows": table.rows} for table in self.tables],
            "rounds": [asdict(each) for each in self.measurements],
            "notes": self.notes,
            "sheets": [{"title": each.title, "rows": [asdict(row) for row in each.rows]} for each in self.sheets],
        }
        file.write_text(json.dumps(contents, indent=1, ensure_ascii=False) + "\n")


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    aligned = ("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines)
    return "\n".join(aligned)


def _show(spread: Spread, form: str) -> str:
    low, middle, high = (form.format(value) for value in (spread.low, spread.median, spread.high))
    return f"{middle} ({low}-{high})"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found[1] if found else platform.processor()
