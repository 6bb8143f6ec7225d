"""What importing the client costs a program, and what the command imports before it knows what to do."""

import subprocess
import sys

from tests.support.command import clean_environment

RUNS = 5
BUDGET = 0.050


def imported_by(*words: str) -> dict[str, float]:
    """Runs Python with these words; returns the modules it imported with the seconds each took, imports included."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *words],
        env=clean_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    )
    lines = [line.split("|") for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {name.strip(): int(cumulative) / 1e6 for _, cumulative, name in lines[1:]}


def packages(modules: dict[str, float]) -> set[str]:
    """Returns the packages that modules are of, leaving out what comes with Python."""
    return {module.partition(".")[0] for module in modules} - set(sys.stdlib_module_names)


def test_importing_the_client_imports_little() -> None:
    """`import catraca` takes gRPC and protobuf, and neither the server nor Redis."""
    modules = imported_by("-c", "import catraca")
    assert "catraca" in modules
    beside_grpc = packages(modules) - packages(imported_by("-c", "import grpc.aio"))
    # `org` is never there: the standard library looks for Jython.
    assert beside_grpc <= {"catraca", "google", "typing_extensions", "org"}
    assert not [module for module in modules if module.startswith("catraca.cli")]


def test_importing_the_client_is_quick() -> None:
    """Beside gRPC itself it takes less than 50 ms or, on a machine that is slow at that too, less than gRPC."""
    took = []
    for _ in range(RUNS):
        modules = imported_by("-c", "import grpc.aio, catraca")
        # The name may be missing where another import had it first.
        grpc = sum(modules.get(name, 0) for name in ("grpc", "asyncio"))
        took.append((modules["catraca"], max(BUDGET, grpc)))
    assert any(seconds < limit for seconds, limit in took), took


def test_the_command_answers_without_the_server() -> None:
    """`catraca --help` and the help of a client's command import nothing of the server."""
    for words in (("--help",), ("validate", "--help")):
        modules = imported_by("-m", "catraca", *words)
        assert "catraca.cli" in modules
        assert not packages(modules) & {"catraca_server", "redis", "hiredis", "fakeredis", "lupa"}
        assert "catraca.cli.commands" not in modules
