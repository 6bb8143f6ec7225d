"""`catraca watch`, run as an operator runs it: what it shows, how it goes on, and how it ends."""

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any, Self

import grpc
import pytest
from tests.support.command import catraca, clean_environment
from tests.support.fake_service import FakeService
from tests.support.service import ServeProcess
from tests.support.waiting import TIMEOUT_SECONDS

from catraca import SessionClient
from catraca.v1 import session_event_pb2 as events, session_service_pb2 as pb

USAGE, UNAVAILABLE, FAILED = 2, 3, 4
INTERRUPTED, NO_READER = 130, 141


class Watching:
    """A watch under way, whose lines are read as they come."""

    def __init__(self, target: str, *words: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "catraca", "watch", *words],
            env=clean_environment({"CATRACA_TARGET": target, "CATRACA_TIMEOUT": "20s", "TZ": "UTC"}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.told: list[str] = []
        self._reader = threading.Thread(target=self._read_told, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()

    def line(self) -> str:
        """Returns the next line."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip("\n")

    def json(self) -> dict[str, Any]:
        """Returns the next line's object."""
        value: dict[str, Any] = json.loads(self.line())
        return value

    def stop_reading(self) -> None:
        """Closes the pipe, as `head` does."""
        assert self._process.stdout is not None
        self._process.stdout.close()

    def interrupt(self) -> None:
        """Presses Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    def status(self) -> int:
        """Returns the exit status."""
        return self._process.wait(TIMEOUT_SECONDS)

    def _read_told(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.told.append(line)


@pytest.fixture
def fake() -> Iterator[FakeService]:
    """A service that does what a test has it do."""
    with FakeService() as running:  # type: ignore[abstract]  # what no test calls is missing
        yield running


def test_lines_for_people(service: ServeProcess) -> None:
    """One aligned line for each event, at once; what users wrote cannot control the terminal. Ctrl-C ends it."""
    with SessionClient(service.target, timeout=20) as sessions, Watching(service.target) as watching:
        assert watching.line().startswith("watching, after cursor ")
        login = sessions.create("josé \u202e")
        session_id = login.session.session_id
        created = watching.line()
        assert created.endswith(f"  created                {session_id}  josé \\u202e")
        sessions.rotate(login.token)
        rotated = watching.line()
        sessions.revoke(session_id=session_id)
        revoked = watching.line()
        assert revoked.endswith(f"  revoked  request       {session_id}  josé \\u202e")
        assert {line.index(session_id) for line in (created, rotated, revoked)} == {48}
        assert created[:2] == "20"
        watching.interrupt()
        assert watching.status() == INTERRUPTED
        assert watching.told == []


def test_lines_for_programs(service: ServeProcess) -> None:
    """The API's own JSON, an object a line; types narrow it, and a cursor continues it."""
    json_of = ("--output", "json")
    with SessionClient(service.target, timeout=20) as sessions:
        with Watching(service.target, *json_of, "--type", "created", "--type", "revoked") as watching:
            cursor = watching.json()["opened"]["cursor"]
            login = sessions.create("12345")
            sessions.rotate(login.token)
            sessions.revoke(session_id=login.session.session_id)
            created, revoked = watching.json()["event"], watching.json()["event"]
        with Watching(service.target, *json_of, "--cursor", cursor) as watching:
            assert watching.json() == {"opened": {"cursor": cursor}}
            again = [watching.json()["event"] for _ in range(3)]
    assert created.keys() == {"type", "sessionId", "userId", "eventTime", "cursor"}
    assert (created["type"], created["userId"]) == ("SESSION_EVENT_TYPE_CREATED", "12345")
    assert revoked["cause"] == "REVOCATION_CAUSE_REQUEST"
    assert [each["type"].removeprefix("SESSION_EVENT_TYPE_") for each in again] == ["CREATED", "ROTATED", "REVOKED"]
    assert (again[0], again[2]) == (created, revoked)


def test_a_lost_connection_and_a_reset(fake: FakeService) -> None:
    """It goes on after the last event and says so on standard error; a reset is a line that says why."""
    with Watching(fake.target) as watching:
        watching.line()
        fake.tell(events.SESSION_EVENT_TYPE_UPDATED, "session-1", "12345")
        assert " updated " in watching.line()
        fake.end_watches()
        assert watching.line() == "watching, after cursor e-1"
        assert fake.starts[-1].cursor == "e-1"
        (told,) = watching.told
        assert told.startswith("catraca: watch lost, connecting again in 0.")
        fake.tell(events.SESSION_EVENT_TYPE_REVOKED, "", "12345")
        assert watching.line().endswith("(all of the user's)     12345")
        fake.reset(pb.WATCH_RESET_REASON_SLOW_CONSUMER)
        told = "reset: events may have been missed: they were read more slowly than they came (SLOW_CONSUMER)"
        assert watching.line() == told


def test_a_refusal_ends_a_watch_that_was_open(fake: FakeService) -> None:
    """A key that was taken away is no lost connection."""
    with Watching(fake.target) as watching:
        watching.line()
        fake.watch_status = grpc.StatusCode.UNAUTHENTICATED
        fake.end_watches()
        assert watching.status() == FAILED


def test_nobody_reads(fake: FakeService) -> None:
    """The next event ends it, as it ends other commands."""
    with Watching(fake.target) as watching:
        watching.line()
        watching.stop_reading()
        fake.tell(events.SESSION_EVENT_TYPE_CREATED, "session-1", "12345")
        assert watching.status() == NO_READER


@pytest.mark.parametrize("code", ["UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED"])
def test_a_service_that_refuses(code: str, fake: FakeService) -> None:
    """It is told at once, and not tried again."""
    fake.watch_status = grpc.StatusCode[code]
    done = catraca("watch", environment={"CATRACA_TARGET": fake.target, "CATRACA_TIMEOUT": "20s"})
    assert (done.returncode, done.stdout) == (FAILED, "")
    assert code in done.stderr


def test_no_service() -> None:
    """Where none listens, and where one listens and says nothing."""
    done = catraca("watch", environment={"CATRACA_TARGET": "127.0.0.1:1"})
    assert (done.returncode, done.stdout) == (UNAVAILABLE, "")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = f"127.0.0.1:{silent.getsockname()[1]}"
        done = catraca("watch", environment={"CATRACA_TARGET": target, "CATRACA_TIMEOUT": "300ms"})
    assert (done.returncode, done.stdout) == (UNAVAILABLE, "")
    assert "not opened within 0.3 s" in done.stderr


def test_a_cursor_that_is_none(service: ServeProcess) -> None:
    """It is a mistake in the call of the command."""
    for words, told in (
        (("--cursor", "-nonsense"), "start.cursor"),
        (("--cursor", ""), "is empty"),
        (("--type", "x"), "x"),
    ):
        done = catraca("watch", *words, environment={"CATRACA_TARGET": service.target, "CATRACA_TIMEOUT": "20s"})
        assert (done.returncode, done.stdout) == (USAGE, "")
        assert told in done.stderr
