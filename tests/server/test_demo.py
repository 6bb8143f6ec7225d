"""`catraca demo`: the story, on a pipe and on a terminal."""

import contextlib
import os
import pty
import subprocess
import sys

from tests.support.command import catraca, clean_environment


def test_on_a_pipe() -> None:
    """The whole story is told in plain lines, goes as told, and leaves nothing running."""
    done = catraca("demo", "--ttl", "1s")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert "\r" not in done.stdout
    told = [
        "User 12345 logs in with a token of their own, jwt_token_exemplo_abc123, for 1 s",
        "authorised  user 12345",
        "device = phone",
        "1 s pass",
        "denied      NOT_FOUND",
        "the service mints the token",
        "authorised  user 12345",
        "presents it as user 67890",
        "denied      USER_MISMATCH",
        "revoked",
        "denied      NOT_FOUND",
    ]
    rest = done.stdout
    for text in told:
        _, found, rest = rest.partition(text)
        assert found, f"not told, or not in this place: {text}\n{done.stdout}"


def test_what_is_set_for_another_service() -> None:
    """It makes no difference: the demo is by itself."""
    settings = {"CATRACA_TLS_CA": "/none", "CATRACA_API_KEY": "ctrk_x", "CATRACA_PORT": "1", "CATRACA_TARGET": "a:1"}
    done = catraca("demo", "--ttl", "100ms", environment=settings)
    assert (done.returncode, done.stderr) == (0, "")


def test_on_a_terminal() -> None:
    """On a terminal the wait has a bar that moves, and the verdicts have colours."""
    terminal, ours = pty.openpty()
    environment = clean_environment({"TERM": "xterm", "PYTHONIOENCODING": "utf-8"})
    with subprocess.Popen(
        [sys.executable, "-m", "catraca", "demo", "--ttl", "1s"],
        env=environment,
        stdin=ours,
        stdout=ours,
        stderr=ours,
    ) as process:
        os.close(ours)
        shown = b""
        with contextlib.suppress(OSError):  # how a terminal says that the other side has gone
            while piece := os.read(terminal, 4096):
                shown += piece
    os.close(terminal)
    assert process.returncode == 0
    text = shown.decode()
    bars = [line for line in text.split("\r") if "░" in line or "█" in line]
    filled = [bar.count("█") for bar in bars]
    assert len(bars) > 10
    assert filled == sorted(filled)
    assert (filled[0], bars[-1].count("░")) == (0, 0)
    assert "\x1b[32m✓ authorised" in text
    assert "\x1b[31m✗ denied" in text
