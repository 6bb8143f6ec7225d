"""Clients in programs that fork, as preloading servers do: they work in the child, or say at once that they do not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.command import clean_environment
from tests.support.forking import STATES

from catraca import SessionClient, _forks

PROGRAM = Path(__file__).parents[1] / "support" / "forking.py"
PROGRAM_SECONDS = 150

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.mark.parametrize("state", STATES)
def test_forks(target: str, state: str) -> None:
    """Whatever clients do while the process forks: no child hangs, crashes or burns a core, and the parent goes on."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), state, target],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=PROGRAM_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only Linux tells of the threads of a process")
def test_grpc_is_known_by_its_threads(target: str) -> None:
    """What decides whether a child can use gRPC: a client in use has threads of the names that are looked for."""
    with SessionClient(target, timeout=20) as sessions:
        sessions.create("12345")
        assert _forks._engine_runs()
