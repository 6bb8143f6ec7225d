"""The `catraca` command for tests: run as users run it, in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Mapping

from tests.support.waiting import PATIENCE


def clean_environment(settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns this process's environment without any setting of catraca or of output, and with those given."""
    left_out = ("CATRACA_", "PYTHONUNBUFFERED", "NO_COLOR")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    return inherited | dict(settings or {})


def catraca(
    *words: str, environment: Mapping[str, str] | None = None, stdin: str = "", timeout: float = PATIENCE
) -> subprocess.CompletedProcess[str]:
    """Runs `catraca` with these words to its end; `environment` is added to an otherwise clean one."""
    return subprocess.run(
        [sys.executable, "-m", "catraca", *words],
        env=clean_environment(environment),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
