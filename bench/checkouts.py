"""Catraca as it is run: this checkout, and another one to compare it with (`--against`), each in its own environment.

With both in one run, the bench can show that a change makes no row slower.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench.measure import Contestant, Group, Row
from bench.processes import StartError
from bench.report import COST, COST_COMPARED, P50, P99, P99_COMPARED, RATE_COMPARED, Table, rate
from catraca_server.redis.url import StoreUrl

_ROOT = Path(__file__).parent.parent

# A stall of a shared machine should show as a slow call, not end the run as a failed one.
_LONG_STORE_TIMEOUT = ("--store-timeout", "5s")


@dataclass(frozen=True)
class Checkout:
    """A version of catraca that can be started."""

    label: str
    """Distinguishes its rows from those of this checkout, which has no label."""
    python: str = sys.executable

    def serve(self, store_url: StoreUrl, *options: str, default_timeout: bool = False) -> list[str]:
        """Returns the command that serves it on a store."""
        timeout = () if default_timeout else _LONG_STORE_TIMEOUT
        return [self.python, "-m", "catraca", "serve", "--port", "0", "--store-url", str(store_url), *timeout, *options]

    def name(self, row: str) -> str:
        """Returns the name of one of its rows."""
        return f"{row}, {self.label}" if self.label else row


THIS = Checkout("")


@contextmanager
def checkout(source: str, *, workdir: Path) -> Iterator[Checkout]:
    """Prepares a folder with a checkout of catraca, or a commit of this repository. Raises StartError if it cannot."""
    workdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=workdir.absolute()) as directory:
        if Path(source).is_dir():
            folder = Path(source).resolve()
            yield _installed(folder, folder.name, Path(directory, "env"))
            return
        # The name of a branch would say less than the commit: branches move.
        commit = _output(["git", "rev-parse", "--short", "--verify", "--end-of-options", f"{source}^{{commit}}"])
        folder = Path(directory, "source")
        _output(["git", "worktree", "add", "--quiet", "--detach", str(folder), commit])
        try:
            yield _installed(folder, commit, Path(directory, "env"))
        finally:
            _output(["git", "worktree", "remove", "--force", str(folder)])


def _installed(folder: Path, label: str, environment: Path) -> Checkout:
    """Creates an environment with the dependencies that the checkout locks; the checkout itself does not change."""
    python = str(environment / "bin" / "python")
    uv = [sys.executable, "-m", "uv", "--quiet"]
    install = [*uv, "pip", "install", "--python", python]
    _output([*uv, "venv", "--python", sys.executable, str(environment)])
    _output([*install, "--require-hashes", "-r", str(folder / "requirements" / "run.txt")])
    _output([*install, "--no-deps", "--no-build-isolation", "--editable", str(folder)])
    # PYTHONPATH, for example, could cause this checkout to be measured under the other's name.
    found = Path(_output([python, "-c", "import catraca_server; print(catraca_server.__file__)"]))
    if not found.resolve().is_relative_to(folder):
        raise StartError(f"{python} runs {found.parent}, which is not in {folder}: is PYTHONPATH set?")
    return Checkout(label, python)


def _output(command: Sequence[str]) -> str:
    # In this repository, not in the current directory.
    done = subprocess.run(command, cwd=_ROOT, check=False, capture_output=True, text=True)
    if done.returncode:
        raise StartError(f"{' '.join(command)} failed:\n{done.stderr.strip()}")
    return done.stdout.strip()


def take_turns(checkouts: Sequence[Checkout], store_url: StoreUrl, rows: Sequence[Row], *options: str) -> Group:
    """Plans these rows for each checkout, to be measured in turns."""
    return [
        Contestant(each.serve(store_url, *options), [replace(row, name=each.name(row.name)) for row in rows])
        for each in checkouts
    ]


def comparison(title: str, rows: Sequence[str], other: Checkout, *, items: str) -> Table:
    """Shows each row beside the same row of the other checkout, and compares the two."""
    others = {row: other.name(row) for row in rows}
    return Table(
        f"{title}: this checkout beside {other.label}",
        [name for row in rows for name in (others[row], row)],
        (rate(items), COST, P50, P99, RATE_COMPARED, COST_COMPARED, P99_COMPARED),
        bases=others,
    )
