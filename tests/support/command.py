"""The `catraca` command for tests: run as users run it, in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Mapping

from tests.support.waiting import TIMEOUT_SECONDS


def clean_environment(settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns this process's environment, without settings of catraca and of output, plus the given variables."""
    left_out = ("CATRACA_", "PYTHONUNBUFFERED", "NO_COLOR")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    return inherited | dict(settings or {})


def catraca(
    *args: str, environment: Mapping[str, str] | None = None, stdin: str = "", timeout: float = TIMEOUT_SECONDS
) -> subprocess.CompletedProcess[str]:
    """Runs `catraca` with these arguments until it ends; `environment` is added to an otherwise clean one."""
    return subprocess.run(
        [sys.executable, "-m", "catraca", *args],
        env=clean_environment(environment),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
