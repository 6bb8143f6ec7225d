"""The engine is self-contained, and uses grpcio's private parts in one file only."""

import ast
from pathlib import Path

import grpc
import pytest

import catraca_server.api.engine

PACKAGE = Path(catraca_server.api.engine.__file__).parent
FILES = sorted(PACKAGE.glob("*.py"))
OWN = "catraca_server.api.engine"


def imports(path: Path) -> set[str]:
    """Returns the modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.add(str(node.module))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_it_imports(path: Path) -> None:
    """Nothing of catraca but itself, and private parts of grpcio only in core.py."""
    for module in imports(path):
        if module.startswith(("catraca", "google")):
            assert module.startswith(OWN)
        if module.startswith("grpc"):
            assert module == "grpc" or path.name == "core.py"


def test_grpcio_uses_the_same_parts() -> None:
    """The synchronous server of grpcio is built of the parts that the engine is built of."""
    theirs = (Path(grpc.__file__).parent / "_server.py").read_text()
    core = ast.parse((PACKAGE / "core.py").read_text())
    (names,) = [[alias.name for alias in node.names] for node in ast.walk(core) if isinstance(node, ast.ImportFrom)]
    assert [name for name in names if f"cygrpc.{name}" not in theirs] == []
    methods = ("poll", "start_server_batch", "request_call", "add_http2_port", "cancel_all_calls", "destroy")
    assert [name for name in methods if f".{name}(" not in theirs] == []
