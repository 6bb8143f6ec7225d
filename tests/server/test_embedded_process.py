"""The embedded store under the running service: what is on the disk, and what a kill leaves behind."""

import signal
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
import redis
from tests.support.processes import alive, has_written, store_processes
from tests.support.service import ServeProcess, is_known_valid
from tests.support.valkey import BINARY, WHY_MISSING
from tests.support.waiting import eventually

from catraca import Login, SessionClient, errors

pytestmark = pytest.mark.skipif(BINARY is None, reason=WHY_MISSING)

BROUGHT = "eyJhbGciOiJIUzI1NiJ9.a-token-that-users-already-have"


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """A data directory that does not exist yet, with a space in its path."""
    path = tmp_path / "session data"
    yield path
    for stray in store_processes(path):
        # Only a test that failed leaves one.
        stray.kill()


@pytest.fixture
def connect(data_dir: Path) -> Iterator[redis.Redis]:
    """A client on the store's socket, as `redis-cli -s` is."""
    with redis.Redis(unix_socket_path=str(data_dir / "valkey.sock")) as client:
        yield client


class Logins(threading.Thread):
    """Logs users in, one after the other, until the service is unavailable."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self._target = target
        self.acknowledged: list[Login] = []

    def run(self) -> None:
        """Ends with the service."""
        with SessionClient(self._target, timeout=10) as sessions:
            while True:
                try:
                    login = sessions.create(f"user-{len(self.acknowledged)}")
                except errors.Unavailable:
                    return
                self.acknowledged.append(login)


def test_nothing_acknowledged_is_lost_when_the_server_is_killed(data_dir: Path) -> None:
    """After kill -9 in the middle of logins a second run has every session, and nothing remains of the first."""
    with ServeProcess(data_dir=str(data_dir)) as first:
        logins = Logins(first.target)
        logins.start()
        eventually(lambda: len(logins.acknowledged) >= 200, "users have logged in")
        (first_store,) = store_processes(data_dir)
        first.signal(signal.SIGKILL)
        # At once: the second has to wait for the store of the first, which is still writing.
        with ServeProcess(data_dir=str(data_dir)) as second:
            assert not alive(first_store), "two stores used the same data"
            logins.join()
            with SessionClient(second.target, timeout=10) as sessions:
                for login in logins.acknowledged:
                    validation = sessions.validate(login.token, skip_touch=True)
                    assert validation.session == login.session
            assert len(store_processes(data_dir)) == 1
            assert second.stop() == 0
    assert not store_processes(data_dir)
    assert not (data_dir / "valkey.sock").exists()


def test_a_kill_leaves_neither_process_nor_socket(data_dir: Path) -> None:
    """After kill -9 of the server its store ends by itself and removes its socket."""
    with ServeProcess(data_dir=str(data_dir)) as process:
        family = psutil.Process(process.pid).children(recursive=True)
        assert family == store_processes(data_dir)
        process.signal(signal.SIGKILL)
    eventually(lambda: not any(map(alive, family)), "the store has ended")
    assert not store_processes(data_dir)
    assert not (data_dir / "valkey.sock").exists()


def test_a_data_directory_has_one_owner(data_dir: Path) -> None:
    """A second server on the same data directory refuses to start and says what to do; the first goes on."""
    with ServeProcess(data_dir=str(data_dir)) as first, SessionClient(first.target, timeout=10) as sessions:
        token = sessions.create("12345").token
        second = ServeProcess(data_dir=str(data_dir)).start(wait=False)
        assert second.wait() == 3
        assert f"data directory {data_dir} is in use by another catraca" in second.log
        assert "choose another --data-dir" in second.log
        assert sessions.validate(token)


def test_a_killed_store_is_started_again(data_dir: Path) -> None:
    """When the store process dies, calls are UNAVAILABLE for a moment; sessions are never invalid, and are kept."""
    with ServeProcess(data_dir=str(data_dir)) as process, SessionClient(process.target, timeout=10) as sessions:
        token = sessions.create("12345").token

        def is_noticed(deaths: int) -> bool:
            is_known_valid(sessions, token)
            return process.log.count("embedded store ended with status -9") == deaths

        eventually(lambda: has_written(data_dir, token), "the session is written")
        for deaths in (1, 2, 3):
            (store,) = store_processes(data_dir)
            store.kill()
            eventually(partial(is_noticed, deaths), "the death is noticed")
            eventually(lambda: is_known_valid(sessions, token), "the session is valid again")


def test_a_stop_keeps_sessions_and_leaves_nothing_running(data_dir: Path) -> None:
    """SIGTERM ends the store, too; after the next start sessions are valid, and revoked ones stay revoked."""
    with ServeProcess(data_dir=str(data_dir)) as first:
        with SessionClient(first.target, timeout=10) as sessions:
            kept, revoked = sessions.create("kept"), sessions.create("revoked")
            assert sessions.revoke(token=revoked.token)
        assert first.stop() == 0
    assert not store_processes(data_dir)
    with ServeProcess(data_dir=str(data_dir)) as second, SessionClient(second.target, timeout=10) as sessions:
        assert sessions.validate(kept.token).session == kept.session
        assert not sessions.validate(revoked.token)


def test_the_store_is_for_its_owner_only(data_dir: Path) -> None:
    """No other user can read the data directory or anything in it, and the store listens on no port."""
    with ServeProcess(data_dir=str(data_dir)):
        open_to_others = [path for path in (data_dir, *data_dir.rglob("*")) if path.stat().st_mode & 0o077]
        assert not open_to_others
        (store,) = store_processes(data_dir)
        assert not store.net_connections("inet")


def test_the_store_holds_no_token(data_dir: Path, connect: redis.Redis) -> None:
    """Neither a key, nor a record, nor a file has a token or its secret; and every key has an expiry."""
    with ServeProcess(data_dir=str(data_dir), log_level="debug") as process:
        with SessionClient(process.target, timeout=10) as sessions:
            minted = sessions.create("12345", attributes={"device": "phone"}).token
            sessions.create("12345", token=BROUGHT)
            assert sessions.validate(minted)
            assert sessions.validate(BROUGHT)
        keys = list(connect.scan_iter())
        of_type = {kind: [key for key in keys if connect.type(key) == kind] for kind in (b"string", b"zset", b"stream")}
        records = [connect.get(key) for key in of_type[b"string"]]
        index = [connect.zrange(key, 0, -1) for key in of_type[b"zset"]]
        feed = [connect.xrange(key) for key in of_type[b"stream"]]
        stored = (
            b"\n".join(part for part in [*keys, *records] if isinstance(part, bytes)) + repr((index, feed)).encode()
        )
        assert [len(keys) for keys in of_type.values()] == [2, 1, 1], "not records, an index and the feed"
        assert all(connect.pttl(key) > 0 for key in keys)
        assert stored.count(b'"user_id":"12345"') == 2, "the records cannot be read"
        assert process.stop() == 0
    # Complete, now that the store has stopped.
    stored += b"\n".join(path.read_bytes() for path in data_dir.rglob("*") if path.is_file())
    assert stored.count(b'"user_id":"12345"') >= 4, "the files are not where this test looks"
    for secret in (minted, minted[26:69], minted[26:], BROUGHT):
        assert secret.encode() not in stored


@pytest.fixture
def slow_loader(tmp_path: Path) -> str:
    """A valkey-server that takes a while to load each change."""
    script = tmp_path / "slow-valkey-server"
    script.write_text(f'#!/bin/sh\nexec "{BINARY}" "$@" --key-load-delay 50\n')
    script.chmod(0o700)
    return str(script)


def fill(data_dir: Path, connect: redis.Redis) -> str:
    """Fills a store with a session and 16,000 other keys; returns the session's token."""
    with ServeProcess(data_dir=str(data_dir)) as process:
        # So many because Valkey handles events only every 1,024 loaded changes.
        filling = "for n = 1, 16000 do redis.call('SET', KEYS[1] .. n, 'x', 'PX', 3600000) end"
        connect.eval(filling, 1, "filler:")
        with SessionClient(process.target, timeout=10) as sessions:
            token = sessions.create("12345").token
        assert process.stop() == 0
    return token


def test_a_start_waits_until_all_is_loaded(data_dir: Path, slow_loader: str, connect: redis.Redis) -> None:
    """With much to load the service listens late, and every session is valid from the start."""
    token = fill(data_dir, connect)
    with ServeProcess(data_dir=str(data_dir), valkey_server=slow_loader) as process:
        assert connect.info("persistence")["loading"] == 0, "the service listened before its store was ready"
        with SessionClient(process.target, timeout=10) as sessions:
            assert sessions.validate(token)
        assert process.log.count("store connected") == 1
        assert "store connection closed" not in process.log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda each: each.name)
def test_a_start_can_be_stopped(number: signal.Signals, data_dir: Path, slow_loader: str, connect: redis.Redis) -> None:
    """A signal while the store still loads stops the service and the store; nothing is lost."""
    token = fill(data_dir, connect)
    process = ServeProcess(data_dir=str(data_dir), valkey_server=slow_loader).start(wait=False)
    eventually(lambda: bool(store_processes(data_dir)), "the store has been started")
    process.signal(number)
    assert process.wait() == 0
    assert "listening" not in process.log
    assert "stopped" in process.log
    assert not store_processes(data_dir)
    with ServeProcess(data_dir=str(data_dir)) as again, SessionClient(again.target, timeout=10) as sessions:
        assert sessions.validate(token)
