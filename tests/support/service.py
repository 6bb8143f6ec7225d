"""The running service for tests: as a process, the way users run it."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.command import clean_environment
from tests.support.waiting import eventually

from catraca import SessionClient, errors

_READY = "listening on "


def is_known_valid(sessions: SessionClient, token: str) -> bool:
    """Whether a live session is valid; False while the service is unavailable."""
    try:
        assert sessions.validate(token), "a live session was denied"
    except errors.Unavailable:
        return False
    return True


class ServeProcess:
    """`catraca serve` on a free port of loopback; the port is known once it listens.

    Keyword arguments are settings: `store_url="memory:"` becomes CATRACA_STORE_URL. `python` is where it is installed.
    """

    def __init__(
        self, environment: Mapping[str, str] | None = None, *, python: Path = Path(sys.executable), **settings: str
    ) -> None:
        twins = {f"CATRACA_{name.upper()}": value for name, value in settings.items()}
        self._environment = clean_environment({"CATRACA_PORT": "0", **twins, **(environment or {})})
        self._python = python
        self._lines: list[str] = []
        self.target = ""

    def start(self, *, wait: bool = True) -> Self:
        """Starts it, perhaps once more, and, with `wait`, returns once it listens."""
        self.target = ""
        self.process = subprocess.Popen(
            [self._python, "-m", "catraca", "serve"],
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            # As a shell starts it: Ctrl-C reaches the whole group.
            process_group=0,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if wait:
            try:
                eventually(lambda: bool(self.target) or self.process.poll() is not None, "the service listens")
                assert self.target, f"the service did not start:\n{self.log}"
            except AssertionError:
                self.end()
                raise
        return self

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def log(self) -> str:
        """What it has written to stderr so far."""
        return "".join(self._lines)

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        self.process.send_signal(number)

    def press_ctrl_c(self) -> None:
        """Sends SIGINT to its process group, as a terminal does."""
        os.killpg(self.pid, signal.SIGINT)

    def wait(self, timeout: float = 20) -> int:
        """Waits until it has ended and returns its exit status; the log is complete then."""
        status = self.process.wait(timeout)
        self._reader.join(timeout)
        return status

    def stop(self) -> int:
        """Stops it as an operator does and returns its exit status."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        return self.wait()

    def end(self) -> None:
        """Kills it if it still runs, and releases everything."""
        if self.process.poll() is None:
            self.process.kill()
        self.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()

    async def __aenter__(self) -> Self:
        """Starts it without blocking the event loop, on which its store may run."""
        return await asyncio.to_thread(self.start)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.end)

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self._lines.append(line)
                if _READY in line:
                    self.target = line.partition(_READY)[2].split(";")[0].strip()
