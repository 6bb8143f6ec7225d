"""`python -m bench engines`: which grpcio, which event loop, which way of registering handlers costs least.

An empty handler on grpc.aio, in throw-away environments of several grpcio versions. A generated `add_…_to_server` adds
a generic handler and then also registers each method. The servers here do the second step for no service, only for the
services beside ours (health and reflection, whose packages offer nothing else), or for all.
"""

import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.closed_loop import Load
from bench.measure import Contestant, Plan, Row, measure
from bench.processes import find_cores
from bench.report import Results, Table

NEWEST, OLDEST = "1.85.1", "1.76.0"
VERSIONS = (NEWEST, "1.84.2", "1.82.3", "1.80.1", "1.78.2", OLDEST)

_SERVERS = Path(__file__).parent / "servers"

# As large as a validation and its answer.
EMPTY_RESPONSE_BYTES = 158
EMPTY_LOAD = Load("/bench.Empty/Method0", [bytes(77)], bytes(EMPTY_RESPONSE_BYTES).__eq__)


def empty_handler(name: str, *options: str, python: str = sys.executable) -> Contestant:
    """Describes grpc.aio with an empty handler."""
    command = [python, str(_SERVERS / "empty.py"), "--response-bytes", str(EMPTY_RESPONSE_BYTES), *options]
    return Contestant(command, [Row(name, EMPTY_LOAD)])


def empty_engine(name: str) -> Contestant:
    """Describes catraca's own engine with an empty handler."""
    command = [sys.executable, str(_SERVERS / "empty_engine.py"), EMPTY_LOAD.method, str(EMPTY_RESPONSE_BYTES)]
    return Contestant(command, [Row(name, EMPTY_LOAD)])


def compare_engines(
    plan: Plan, *, work: Path, versions: Sequence[str], pythons: Sequence[str], progress: Callable[[str], None]
) -> Results:
    """Compares versions, the newest first; ways of registering; and further interpreters, if any are given."""

    def both_loops(name: str, python: str) -> list[Contestant]:
        return [empty_handler(name, python=python), empty_handler(f"{name}, uvloop", "--uvloop", python=python)]

    def registered(name: str, *options: str) -> Contestant:
        return empty_handler(name, "--uvloop", *options, python=newest)

    progress("installing")
    newest = _environment(work, sys.executable, NEWEST)
    comparisons = {
        f"grpcio versions on Python {platform.python_version()}, generic handlers only": [
            contestant
            for version in versions
            for contestant in both_loops(f"grpcio {version}", _environment(work, sys.executable, version))
        ],
        f"Ways of registering on grpcio {NEWEST}, uvloop": [
            registered("generic handlers only"),
            registered("health and reflection registered", "--register", "others"),
            registered("all registered, 5 methods of ours", "--register", "all"),
            registered("all registered, 10 methods of ours", "--register", "all", "--methods", "10"),
            registered("all registered, 100 methods of ours", "--register", "all", "--methods", "100"),
        ],
        f"Pythons on grpcio {NEWEST}, generic handlers only": [
            contestant
            for python in [sys.executable, *pythons]
            for contestant in both_loops(f"Python {_version(python)}", _environment(work, python, NEWEST))
        ],
    }
    cores = find_cores()
    tables, measurements = [], []
    # Each comparison by itself: the closer in time rows are measured, the less drift there is between them.
    for title, contestants in comparisons.items():
        tables.append(Table(title, [row.name for contestant in contestants for row in contestant.rows]))
        measurements += measure([[each] for each in contestants], plan, cores=cores, progress=progress)
    return Results(plan, cores, None, tables, measurements)


def _environment(work: Path, base: str, grpcio: str) -> str:
    """Creates an environment with one grpcio and returns its interpreter."""
    home = work / f"python{_version(base)}-grpcio{grpcio}"
    python = str(home / "bin" / "python")
    uv = [sys.executable, "-m", "uv", "--quiet"]
    if not home.exists():
        _output([*uv, "venv", "--python", base, str(home)])
    _output([*uv, "pip", "install", "--python", python, f"grpcio=={grpcio}", "uvloop"])
    return python


def _version(python: str) -> str:
    return _output([python, "-c", "import platform; print(platform.python_version())"]).strip()


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
