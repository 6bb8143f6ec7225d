"""`catraca bench`, run as an operator runs it: what it measures, draws and leaves behind, and how it ends."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from tests.support.command import catraca, clean_environment
from tests.support.valkey import Valkey
from tests.support.waiting import TIMEOUT_SECONDS, eventually

from catraca import SessionClient
from catraca.cli.bench_load import Outcome

YES, _, USAGE, UNAVAILABLE, FAILED = range(5)
INTERRUPTED = 130
SHORT = ("--duration", "300ms", "--sessions", "5", "--concurrency", "8")


def live(target: str, user: str, sessions: int = 5) -> int:
    """How many sessions of the users of a bench are left."""
    with SessionClient(target, timeout=20) as client:
        return sum(len(list(client.list_sessions(f"{user}-{number}"))) for number in range(sessions))


def test_all_modes(environment: dict[str, str], tmp_path: Path) -> None:
    """A table with a line for each mode, a plot that is an SVG, nothing on standard error, and no session left."""
    plot = tmp_path / "latency.svg"
    done = catraca("bench", *SHORT, "--user-id", "all", "--plot", str(plot), environment=environment)
    assert (done.returncode, done.stderr) == (YES, "")
    heads, *rows = done.stdout.splitlines()
    assert heads.split()[:2] == ["per", "second"]
    assert [row.split()[0] for row in rows] == ["single", "coalesced", "near-cache"]
    assert all(row.endswith(" none") for row in rows)
    drawn = ET.parse(plot).getroot()  # noqa: S314  we have just written it
    assert len(drawn.findall("{http://www.w3.org/2000/svg}polyline")) == 3
    assert live(environment["CATRACA_TARGET"], "all") == 0


def test_json_and_what_is_compared(environment: dict[str, str], valkey: Valkey) -> None:
    """One mode alone, beside Redis. What is not installed is named, and how to install it."""
    words = ("--mode", "coalesced", "--compare", "--redis-url", valkey.url, "--output", "json")
    done = catraca("bench", *SHORT, *words, environment=environment)
    assert (done.returncode, done.stderr) == (YES, "")
    shown = json.loads(done.stdout)
    first, second = shown["runs"][:2]
    assert (first["name"], second["name"], first["errors"]) == ("coalesced", "redis GET", {})
    assert first["validations"] == pytest.approx(first["perSecond"] * first["seconds"])
    times = first["latencySeconds"]
    assert 0 < times["p50"] <= times["p90"] <= times["p99"] <= times["max"]
    names = [each["name"] for each in shown["runs"]]
    assert ("JWT HS256" in names) or any("pip install PyJWT" in each for each in shown["missing"])


def test_redis_that_cannot_be_compared(environment: dict[str, str]) -> None:
    """It is said why, and the rest is measured."""
    without = catraca("bench", *SHORT, "--mode", "single", "--compare", environment=environment)
    assert without.returncode == YES
    assert "--redis-url" in without.stdout
    words = ("--mode", "single", "--compare", "--redis-url", "redis://:secret@127.0.0.1:1/0")
    down = catraca("bench", *SHORT, *words, environment=environment)
    assert down.returncode == YES
    assert "Redis failed: ConnectionError" in down.stdout
    assert "secret" not in down.stdout + down.stderr


def test_sessions_that_end_meanwhile(environment: dict[str, str]) -> None:
    """They are errors by kind, and the status tells."""
    words = [*SHORT, "--mode", "single", "--duration", "3s", "--user-id", "ending"]
    with (
        subprocess.Popen(
            [sys.executable, "-m", "catraca", "bench", *words],
            env=clean_environment(environment),
            stdout=subprocess.PIPE,
            text=True,
        ) as bench,
        SessionClient(environment["CATRACA_TARGET"], timeout=20) as client,
    ):
        eventually(lambda: client.revoke_user_sessions("ending-0") == 1, "a session to end")
        assert bench.stdout is not None
        told = bench.stdout.read()
    assert bench.returncode == FAILED
    assert " not valid: NOT_FOUND" in told


def test_ctrl_c_leaves_nothing_behind(environment: dict[str, str]) -> None:
    """The sessions are revoked all the same."""
    with subprocess.Popen(
        [sys.executable, "-m", "catraca", "bench", *SHORT, "--duration", "60s", "--user-id", "stopped"],
        env=clean_environment(environment),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as bench:
        eventually(lambda: live(environment["CATRACA_TARGET"], "stopped") == 5, "its sessions")
        time.sleep(0.2)
        bench.send_signal(signal.SIGINT)
        assert bench.wait(TIMEOUT_SECONDS) == INTERRUPTED
    assert live(environment["CATRACA_TARGET"], "stopped") == 0


def test_a_bar_on_a_terminal(environment: dict[str, str]) -> None:
    """It moves on standard error, and is gone at the end."""
    terminal, ours = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "catraca", "bench", *SHORT, "--mode", "single"],
        env=clean_environment(environment | {"PYTHONIOENCODING": "utf-8"}),
        stdout=subprocess.PIPE,
        stderr=ours,
        timeout=TIMEOUT_SECONDS,
        check=True,
    )
    os.close(ours)
    shown = os.read(terminal, 100_000).decode(errors="replace")
    os.close(terminal)
    assert "░" in shown
    assert shown.endswith("\r\x1b[K")
    assert b"\r" not in done.stdout


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (("--target", "127.0.0.1:1"), UNAVAILABLE, "UNAVAILABLE"),
        (("--sessions", "0"), USAGE, "--sessions 0 is not a number from 1"),
        (("--concurrency", "many"), USAGE, "--concurrency many is not a number"),
        (("--duration", "10"), USAGE, "is not a duration"),
        (("--plot", "/nowhere/at/all.svg"), USAGE, "no such folder"),
        (("--mode", "fast"), USAGE, "is not one of"),
    ],
)
def test_what_cannot_be_run(words: tuple[str, ...], status: int, told: str, environment: dict[str, str]) -> None:
    """It is said before anything is created."""
    done = catraca("bench", *words, environment=environment)
    assert (done.returncode, done.stdout) == (status, "")
    assert told in done.stderr


def test_percentiles() -> None:
    """Within 4 % of the truth, whatever the size; the slowest is exact."""
    outcome = Outcome("any", seconds=2.0)
    for value in range(1, 1001):
        outcome.add(value * 1_000)
    found = outcome.percentiles()
    assert found["p50"] == pytest.approx(500e-6, rel=0.04)
    assert found["p99"] == pytest.approx(990e-6, rel=0.04)
    assert (found["max"], outcome.validations, outcome.rate) == (1e-3, 1000, 500.0)
    assert Outcome("none").percentiles() == {}
