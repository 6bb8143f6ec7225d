"""`make bench`: the parts that measure the Python clients run to their end."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.command import clean_environment
from tests.support.valkey import BINARY, WHY_MISSING

ROOT = Path(__file__).parents[2]
SECONDS = 200

pytestmark = [
    pytest.mark.skipif(BINARY is None, reason=WHY_MISSING),
    pytest.mark.skipif(os.environ.get("CATRACA_TEST_LONG") != "1", reason="takes a minute: set CATRACA_TEST_LONG=1"),
]


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("client", "--rounds", "1", "--only", "64 threads"), r"64 threads, coalesced +[\d,]+ \([\d,]+-[\d,]+\)"),
        (("revocations", "--quick"), r"by another server: p50 [\d.]+(.|\n)*\n100 +\d+%(.|\n)*\n1,000 +\d+%"),
    ],
    ids=lambda each: each[0] if isinstance(each, tuple) else "",
)
def test_it_measures(args: tuple[str, ...], told: str, tmp_path: Path) -> None:
    """And tells what it found, whatever that is on this machine."""
    done = subprocess.run(
        [sys.executable, "-m", "bench", *args, "--json", str(tmp_path / "results.json")],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(told, done.stdout), done.stdout
