"""How the `catraca` command ends when something goes wrong. Status 1 means "not valid", and must mean nothing else."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import pytest
from tests.support.command import catraca, clean_environment
from tests.support.waiting import TIMEOUT_SECONDS

from catraca import SessionClient, cli

NO, USAGE, UNFORESEEN, INTERRUPTED = 1, 2, 70, 130
FULL = Path("/dev/full")
NOWHERE = "127.0.0.1:1"

COMMANDS: dict[str, tuple[str, ...]] = {
    "validate": (),
    "create": ("--user-id", "12345"),
    "list": ("--user-id", "12345"),
    "health": (),
    "revoke": (),
}


@pytest.fixture
def environment(target: str) -> dict[str, str]:
    """What tells the commands where the service is."""
    return {"CATRACA_TARGET": target, "CATRACA_TIMEOUT": "20s"}


def run(
    words: Sequence[str],
    environment: dict[str, str],
    *,
    stdout: IO[str] | int = subprocess.PIPE,
    closed: Sequence[int] = (),
    stdin: str = "a-token-of-somebody",
) -> subprocess.CompletedProcess[str]:
    """Runs the command with its output somewhere, or with standard streams that are closed."""
    # By a shell: to close them in a fork of this process would run gRPC's handlers of forks, which now and then abort.
    closing = " ".join(f"{descriptor}>&-" for descriptor in closed)
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {closing}', "sh", sys.executable, "-m", "catraca", *words],
        env=clean_environment(environment),
        input=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


def assert_told(done: subprocess.CompletedProcess[str], status: int, told: str) -> None:
    """Asserts how a command ended, and that it said why in one line."""
    assert done.returncode == status, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("catraca: ")
    assert told in line


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    "words", [*((name, *more) for name, more in COMMANDS.items()), ("config", "show"), ("--help",)]
)
def test_a_full_disk(words: tuple[str, ...], environment: dict[str, str]) -> None:
    """An answer that could not be written is neither a yes nor a no."""
    with FULL.open("w") as full:
        assert_told(run(words, environment, stdout=full), UNFORESEEN, "No space left on device")


@pytest.mark.parametrize("words", [*((name, *more) for name, more in COMMANDS.items()), ("config", "show")])
def test_a_closed_standard_output(words: tuple[str, ...], environment: dict[str, str]) -> None:
    """It is told before anything is done: nobody would learn the token of what was created."""
    user = f"of-a-closed-output-{os.getpid()}"
    told = ("create", "--user-id", user) if words[0] == "create" else words
    assert_told(run(told, environment, closed=[1]), UNFORESEEN, "standard output is closed")
    with SessionClient(environment["CATRACA_TARGET"], timeout=20) as sessions:
        assert list(sessions.list_sessions(user)) == []


def test_a_closed_standard_input(environment: dict[str, str]) -> None:
    """There is no token in it, which is a mistake in the call of the command."""
    assert_told(run(("validate",), environment, closed=[0], stdin=""), USAGE, "token: must be set")
    assert run(("health",), environment, closed=[0], stdin="").returncode == 0


@pytest.mark.parametrize("closed", [(2,), (0, 2)])
def test_a_closed_standard_error(closed: tuple[int, ...], environment: dict[str, str]) -> None:
    """The status tells, and no error is taken for an answer."""
    done = run(("validate", "--timeout", "soon"), environment, closed=closed, stdin="")
    assert (done.returncode, done.stdout) == (USAGE, "")
    assert run(("health",), environment, closed=closed, stdin="").returncode == 0


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
def test_errors_that_cannot_be_written(environment: dict[str, str]) -> None:
    """The status tells, as if they had been."""
    for words, status in ((("validate", "--timeout", "soon"), USAGE), (("validate", "--bogus"), USAGE)):
        with FULL.open("w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "catraca", *words],
                env=clean_environment(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=full,
                timeout=TIMEOUT_SECONDS,
                check=False,
            )
        assert done.returncode == status


@pytest.mark.parametrize("words", [("serve",), ("config", "show"), ("config", "check")], ids=" ".join)
def test_server_commands_end_the_same_way(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the server's commands do not foresee is no 1 either."""
    server = pytest.importorskip("catraca_server.cli")
    monkeypatch.setattr(server, "load", _fail)
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == UNFORESEEN


def _fail(*_: object) -> None:
    raise RuntimeError("unforeseen, and in\x1b two lines\n")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("ask", ["flag", "setting", "neither"])
def test_a_traceback_only_for_those_who_ask(
    ask: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without `--debug`, or CATRACA_DEBUG, an unforeseen error is one line that cannot drive a terminal."""
    monkeypatch.setattr("catraca.cli.commands.run", _fail)
    if ask == "setting":
        monkeypatch.setenv("CATRACA_DEBUG", "true")
    with pytest.raises(SystemExit) as ended:
        cli.main(["health", *(["--debug"] if ask == "flag" else [])])
    assert ended.value.code == UNFORESEEN
    told = capsys.readouterr().err
    if ask == "neither":
        assert told.splitlines() == [
            "catraca: unforeseen error: RuntimeError: unforeseen, and in\\x1b two lines\\n (--debug shows where)"
        ]
    else:
        assert told.startswith("Traceback (most recent call last):")


def test_debug_is_a_flag_of_every_command(environment: dict[str, str]) -> None:
    """It may stand anywhere among the words; what comes after `--` is not a flag."""
    for words in (("--debug", "health"), ("health", "--debug"), ("config", "check", "--debug")):
        assert catraca(*words, environment=environment).returncode == 0
    not_found = catraca("get", "--", "--debug", environment=environment)
    assert (not_found.returncode, not_found.stderr.count("\n")) == (NO, 1)


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends the command as it ends others."""
    monkeypatch.setattr("catraca.cli.commands.run", _interrupt)
    with pytest.raises(SystemExit) as ended:
        cli.main(["health"])
    assert ended.value.code == INTERRUPTED


@pytest.mark.parametrize(
    ("words", "added", "told"),
    [
        (("health", "--target", "\udcff\udcfe"), {}, "write HOST:PORT"),
        (("health",), {"CATRACA_TARGET": "http://localhost:50051"}, "CATRACA_TARGET is a web address"),
        (("validate",), {"CATRACA_TARGET": "http://localhost:50051"}, "write 'localhost:50051'"),
        (("health",), {"CATRACA_TIMEOUT": "5"}, "CATRACA_TIMEOUT=5 is not a duration: write a whole number and a unit"),
        (("health", "--timeout", "5"), {"CATRACA_TIMEOUT": "7"}, "--timeout 5 is not a duration"),
        (("create", "--user-id", "x"), {"CATRACA_TTL": "1 h"}, "CATRACA_TTL=1 h is not a duration"),
        (("create", "--user-id", "x"), {"CATRACA_IDLE_TIMEOUT": "٣s"}, "CATRACA_IDLE_TIMEOUT=٣s is not a duration"),
        (("demo",), {"CATRACA_TTL": "2"}, "CATRACA_TTL=2 is not a duration"),
        (("update", "0" * 22, "--expire-in", "999999999d"), {}, "--expire-in 999999999d is after the year 9999"),
        (("health",), {"CATRACA_USE_PROXY": "maybe"}, "CATRACA_USE_PROXY='maybe' is neither true nor false"),
        (("list", "--user-id", "x"), {"CATRACA_USE_PROXY": "maybe"}, "is neither true nor false"),
        (("health",), {"CATRACA_DEBUG": "maybe"}, "CATRACA_DEBUG='maybe' is neither true nor false"),
        (("config", "check"), {"CATRACA_DEBUG": "maybe"}, "CATRACA_DEBUG='maybe' is neither true nor false"),
        (("validate", "--token-file", "/"), {}, "cannot read the token from --token-file /: Is a directory"),
    ],
)
def test_what_cannot_be_used_is_named(
    words: tuple[str, ...], added: dict[str, str], told: str, environment: dict[str, str]
) -> None:
    """The variable or flag that holds it, and what to write instead."""
    assert_told(run(words, environment | {"PYTHONUTF8": "1"} | added), USAGE, told)


@pytest.mark.parametrize("where", ["environment", "flag"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_choice_that_is_none(command: str, where: str, environment: dict[str, str]) -> None:
    """In the environment it is refused as it is as a flag; a flag goes before it, and an empty one is none."""
    words = (command, *COMMANDS[command])
    if where == "flag":
        done = run((*words, "--output", "xml"), environment)
    else:
        done = run(words, environment | {"CATRACA_OUTPUT": "xml"})
    assert (done.returncode, done.stdout) == (USAGE, "")
    assert "'xml' is not one of: text, json" in done.stderr
    assert "CATRACA_OUTPUT" in done.stderr


def test_a_choice_that_is_overridden(environment: dict[str, str]) -> None:
    """A flag goes before the environment, and an empty variable is as if it were unset."""
    assert run(("health", "--output", "json"), environment | {"CATRACA_OUTPUT": "xml"}).returncode == 0
    assert run(("health",), environment | {"CATRACA_OUTPUT": ""}).stdout == "serving\n"


@pytest.mark.parametrize("make", [lambda: b"\xff\xfe", lambda: b"token\xff"], ids=["no text", "partly"])
def test_a_token_that_is_not_text(make: Callable[[], bytes], environment: dict[str, str], tmp_path: Path) -> None:
    """It is a mistake in the call of the command, and is not quoted."""
    file = tmp_path / "token"
    file.write_bytes(make())
    for words in (("validate", "--token-file", str(file)), ("validate",)):
        with file.open("rb") as stdin:
            done = subprocess.run(
                [sys.executable, "-m", "catraca", *words],
                env=clean_environment(environment | {"PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:strict"}),
                stdin=stdin,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_SECONDS,
                check=False,
            )
        assert_told(done, USAGE, "it is not UTF-8 text")
        assert "xff" not in done.stderr
