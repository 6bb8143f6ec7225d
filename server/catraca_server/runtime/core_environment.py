"""What gRPC's core reads from the environment, once, when `grpc` is imported.

That has happened by the time a command runs, so `catraca serve` starts itself again, in the same process, with the
environment that the core should have had. A variable that the operator has set stays as it is.
"""

import os
import sys
from collections.abc import Mapping, Sequence

ENVIRONMENT: Mapping[str, str] = {
    # The newer of the core's two listeners passes every piece of work between threads. With the older one, the thread
    # that waits for calls also reads them from their connections, which makes a validation on one core cheaper by a
    # third (docs/decisions/0004-engine.md).
    "GRPC_EXPERIMENTS": "-event_engine_listener",
    # The core would write a line for each failed handshake and each corrupt TLS record, in its own format: any client
    # that reaches the port could fill the log.
    "GRPC_VERBOSITY": "NONE",
}


def start_again(command: str, arguments: Sequence[str]) -> None:
    """Starts a command of catraca again if a variable is missing, and then does not return."""
    if not ENVIRONMENT.keys() <= os.environ.keys():
        restarted = [sys.executable, "-P", "-m", "catraca", command, *arguments]
        os.execve(sys.executable, restarted, {**ENVIRONMENT, **os.environ})  # noqa: S606  our own command, no shell
