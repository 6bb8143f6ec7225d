"""`python -m bench scale`: a thousand sessions in the store, a hundred thousand, a million.

Each number of sessions has an embedded store of its own, as in `catraca serve`. All servers run at the same time, so
that rounds can be interleaved without loading a million sessions for each.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import inf
from pathlib import Path

from bench.checkouts import THIS
from bench.closed_loop import Client
from bench.fill import Filled, fill
from bench.measure import Plan, Row, measure_row
from bench.processes import Server, find_cores, pin, serving
from bench.report import COST, P50, P50_COMPARED, P99, P99_COMPARED, Results, Sheet, Table, rate
from bench.sessions import batched_validations, single_validations
from catraca_server.redis.url import StoreUrl

# Numbers of sessions, and of their users.
_Scale = tuple[int, int]
_SCALES: Sequence[_Scale] = ((1_000, 1_000), (100_000, 100_000), (1_000_000, 1_000_000), (1_000_000, 200_000))
_QUICK_SCALES: Sequence[_Scale] = ((1_000, 1_000), (10_000, 10_000), (50_000, 50_000), (50_000, 10_000))

# This many sessions are validated in turn. Their activity is recorded just before.
_VALIDATED = 10_000

# Concurrent callers: not so many that they wait more for each other than for their answers.
_CONNECTIONS, _STREAMS = 4, 2

_LOAD_TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True)
class _Size:
    """The cost of this many sessions."""

    name: str
    sessions: int
    used_bytes_each: float
    record_bytes_each: float
    index_bytes_each: float
    fill_seconds: float
    disk_bytes: int
    start_seconds: float
    """How long the server took to listen, with everything loaded by the store."""
    server_memory_bytes: int
    """Resident after the measurement, as is the store's."""
    store_memory_bytes: int


def compare_scale(plan: Plan, *, quick: bool, progress: Callable[[str], None]) -> Results:
    """Measures validations, memory and the start at each number of sessions."""
    cores = find_cores()
    scales = _QUICK_SCALES if quick else _SCALES
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        data_dirs = {scale: Path(directory, _name(scale)) for scale in scales}
        # On all cores: this process is pinned only after that, and processes that it starts now are not pinned either.
        filled = {scale: _filled(data_dir, scale, progress) for scale, data_dir in data_dirs.items()}
        disk_bytes = {scale: _bytes_in(data_dir) for scale, data_dir in data_dirs.items()}
        pin(cores.load)
        servers = {}
        for scale, data_dir in data_dirs.items():
            progress(f"loading {_name(scale)}")
            command = THIS.serve(StoreUrl.parse("embedded:"), "--data-dir", str(data_dir))
            servers[scale] = stack.enter_context(
                serving(command, core=cores.server, timeout_seconds=_LOAD_TIMEOUT_SECONDS)
            )
        rows = {scale: _row(scale, filled[scale].tokens) for scale in scales}
        measurements = []
        for number in range(1, plan.rounds + 1):
            for scale, row in rows.items():
                progress(f"round {number} of {plan.rounds}: {row.name}")
                measurements.append(measure_row(row, number, plan, servers[scale], None))
        sheet_rows = [_size(scale, filled[scale], disk_bytes[scale], servers[scale]) for scale in scales]
    table = Table(
        f"ValidateSession by {_CONNECTIONS * _STREAMS} callers",
        [row.name for row in rows.values()],
        (rate("calls"), COST, P50, P99, P50_COMPARED, P99_COMPARED),
        plotted=P99,
    )
    sheet = Sheet("What they take", sheet_rows, _COLUMNS, _NOTE)
    return Results(plan, cores, None, [table], measurements, [sheet])


def _name(scale: _Scale) -> str:
    sessions, users = scale
    return f"{sessions:,} sessions" + (f" of {users:,} users" if users < sessions else "")


def _filled(data_dir: Path, scale: _Scale, progress: Callable[[str], None]) -> Filled:
    sessions, users = scale
    sample = min(sessions, _VALIDATED)
    return fill(
        data_dir,
        sessions,
        users=users,
        sample=sample,
        progress=lambda done: progress(f"{done:,} written of {_name(scale)}"),
    )


def _bytes_in(data_dir: Path) -> int:
    return sum(file.stat().st_size for file in data_dir.rglob("*") if file.is_file())


def _row(scale: _Scale, tokens: Sequence[str]) -> Row:
    def write_activity(client: Client) -> None:
        # A session whose touch is due costs a write, and among more sessions more touches would be due.
        client.run(batched_validations(tokens, min(len(tokens), 1_000), once=True), streams=1, seconds=inf)

    return Row(
        _name(scale),
        single_validations(tokens),
        connections=_CONNECTIONS,
        streams=_STREAMS,
        prepare=write_activity,
    )


def _size(scale: _Scale, filled: Filled, disk_bytes: int, server: Server) -> _Size:
    own, *others = server.memory_bytes()
    return _Size(
        name=_name(scale),
        sessions=scale[0],
        used_bytes_each=filled.used_bytes,
        record_bytes_each=filled.record_bytes,
        index_bytes_each=filled.index_bytes,
        fill_seconds=filled.seconds,
        disk_bytes=disk_bytes,
        start_seconds=server.start_seconds,
        server_memory_bytes=own,
        store_memory_bytes=sum(others),
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f}"


_COLUMNS: Mapping[str, Callable[[_Size], str]] = {
    "": lambda size: size.name,
    "bytes each": lambda size: f"{size.used_bytes_each:.0f}",
    "record": lambda size: f"{size.record_bytes_each:.0f}",
    "index": lambda size: f"{size.index_bytes_each:.0f}",
    "start s": lambda size: f"{size.start_seconds:.1f}",
    "MB server": lambda size: _megabytes(size.server_memory_bytes),
    "MB store": lambda size: _megabytes(size.store_memory_bytes),
    "MB disk": lambda size: _megabytes(size.disk_bytes),
    "filled in s": lambda size: f"{size.fill_seconds:.0f}",
}
_NOTE = (
    "Bytes each: by how much the store's used memory has grown per session; of that, what the session's record and"
    " its user's index take.\nStart: of catraca with its embedded store, until it listens. The server and the store are"
    " on one core, and CPU is of both."
)
