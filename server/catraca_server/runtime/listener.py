"""Which of its two listeners gRPC's core uses.

The newer one hands every piece of work from thread to thread; with the older one, the thread that waits for calls also
reads them from their connections. On one core that makes a validation cheaper by a third
(docs/decisions/0004-engine.md). The core reads its choice once, from the environment, when `grpc` is imported. That has
happened by the time a command runs, so `catraca serve` starts itself again, in the same process, with the environment
that the core should have had.
An operator who sets the variable decides alone.
"""

import os
import sys
from collections.abc import Mapping, Sequence

_VARIABLE = "GRPC_EXPERIMENTS"
ENVIRONMENT: Mapping[str, str] = {_VARIABLE: "-event_engine_listener"}


def choose_listener(command: str, arguments: Sequence[str]) -> None:
    """Starts a command of catraca again if the choice has not been made. Does not return then."""
    if _VARIABLE not in os.environ:
        restarted = [sys.executable, "-P", "-m", "catraca", command, *arguments]
        os.execve(sys.executable, restarted, {**os.environ, **ENVIRONMENT})  # noqa: S606  our own command, no shell
