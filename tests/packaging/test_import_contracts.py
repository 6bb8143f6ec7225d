"""The import contracts are complete: they place every file and every room of the server."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = Path("server/catraca_server")
NO_ROOMS = {PACKAGE / "store/scripts"}
"""Packages without code."""


def test_no_test_imports_from_another() -> None:
    """What several tests need is in tests/support."""
    imports = re.compile(r"^\s*(?:from|import)\s+(tests\.(?!support\b)[\w.]+)", re.MULTILINE)
    tests = ROOT / "tests"
    found = {str(path.relative_to(tests)): imports.findall(path.read_text("utf-8")) for path in tests.rglob("*.py")}
    assert len(found) > 50
    assert {name: modules for name, modules in found.items() if modules} == {}


def test_a_stray_file_in_any_room_breaks_a_contract(tmp_path: Path) -> None:
    """`make check` fails for a new file or room until a contract places it."""
    for name in ("client", "server", "pyproject.toml"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    rooms = {file.parent.relative_to(tmp_path) for file in (tmp_path / PACKAGE).rglob("__init__.py")} - NO_ROOMS
    assert len(rooms) >= 7
    for room in rooms:
        (tmp_path / room / "stray.py").touch()
    new_room = tmp_path / PACKAGE / "annex"
    new_room.mkdir()
    (new_room / "__init__.py").touch()
    linted = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path / 'client'}:{tmp_path / 'server'}", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert linted.returncode != 0
    strays = {".".join(room.relative_to("server").parts) + ".stray" for room in rooms}
    assert {name for name in strays | {"catraca_server.annex"} if f"{name}\n" not in linted.stdout} == set()
