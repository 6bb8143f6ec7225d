"""The engine's suite on the oldest grpcio that is allowed and on the newest there is, to notice what breaks it."""

import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
from tests.support.command import clean_environment
from tests.support.environments import Environment

ROOT = Path(__file__).parents[2]
GRPCIO = ("grpcio", "grpcio-health-checking", "grpcio-reflection")
BESIDE = (
    "fakeredis[lua]>=2.40,<3",
    "googleapis-common-protos",
    "hypothesis",
    "psutil",
    "pytest",
    "pytest-asyncio",
    "pytest-timeout",
    "redis[hiredis]>=8.0,<9",
    "uvloop",
)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("pin", ["==1.76.0", ""], ids=["floor", "newest"])
def test_the_engine_on(pin: str, tmp_path: Path) -> None:
    """All of it passes."""
    environment = Environment(tmp_path / "venv")
    if why := environment.why_no_index():
        pytest.skip(why)
    environment.install(*(f"{name}{pin}" for name in GRPCIO), *BESIDE)
    if environment.versions()["grpcio"] == version("grpcio"):
        pytest.skip(f"grpcio {version('grpcio')} is what all tests run on")
    done = subprocess.run(
        [environment.python, "-m", "pytest", "tests/engine", "-q", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env=clean_environment({"PYTHONPATH": f"{ROOT / 'server'}:{ROOT / 'client'}"}),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr
