"""The client commands of `catraca`, run as an operator runs them: what they print and their exit status."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from tests.support.command import catraca, clean_environment
from tests.support.fake_redis import FakeRedis
from tests.support.service import ServeProcess
from tests.support.waiting import PATIENCE, eventually_async

YES, NO, USAGE, UNAVAILABLE, FAILED = range(5)
NOWHERE = "127.0.0.1:1"


@pytest.fixture(scope="module")
def service() -> Iterator[ServeProcess]:
    """The service that the commands call."""
    with ServeProcess(store_url="memory:", store_timeout="5s") as process:
        yield process


@pytest.fixture
def environment(service: ServeProcess) -> dict[str, str]:
    """What tells the commands where the service is, and to be patient."""
    return {"CATRACA_TARGET": service.target, "CATRACA_TIMEOUT": "10s"}


def run_json(*words: str, environment: dict[str, str], stdin: str = "") -> tuple[int, dict[str, object]]:
    """Runs a command with JSON output; returns its status and what it printed."""
    done = catraca(*words, "--output", "json", environment=environment, stdin=stdin)
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def new_token(environment: dict[str, str], user_id: str = "12345") -> str:
    """Creates a session and returns its token."""
    status, login = run_json("create", "--user-id", user_id, environment=environment)
    assert status == YES
    assert isinstance(login["token"], str)
    return login["token"]


def assert_fails(done: CompletedProcess[str], status: int, told: str) -> None:
    """Asserts that a command failed, saying why in one line and printing nothing else."""
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("catraca: ")
    assert told in line


def test_a_session_in_json(environment: dict[str, str]) -> None:
    """`--output json` prints the API's own JSON, through a session's whole life, and each answer has its status."""
    words = ("create", "--user-id", "12345", "--ttl", "1h", "--idle-timeout", "0s", "--attribute", "device=phone")
    status, login = run_json(*words, environment=environment)
    assert status == YES
    assert login.keys() == {"token", "session", "evictedSessionIds"}
    session = login["session"]
    assert isinstance(session, dict)
    assert session["userId"] == "12345"
    assert session["attributes"] == {"device": "phone"}
    assert "idleTimeout" not in session
    token, session_id = str(login["token"]), session["sessionId"]

    valid = {"valid": True, "session": session, "tokenRotated": False}
    assert run_json("validate", environment=environment, stdin=token) == (YES, valid)
    assert run_json("get", session_id, environment=environment) == (YES, {"session": session})
    another = {"valid": False, "invalidReason": "INVALID_REASON_USER_MISMATCH"}
    assert run_json("validate", "--user-id", "6", environment=environment, stdin=token) == (NO, another)
    assert run_json("revoke", environment=environment, stdin=token) == (YES, {"revoked": True})
    assert run_json("revoke", "--session-id", session_id, environment=environment) == (YES, {"revoked": False})
    gone = {"valid": False, "invalidReason": "INVALID_REASON_NOT_FOUND"}
    assert run_json("validate", environment=environment, stdin=token) == (NO, gone)
    assert run_json("health", environment=environment) == (YES, {"status": "SERVING"})


def test_a_session_in_text(environment: dict[str, str]) -> None:
    """Without `--output` people can read it."""
    created = catraca("create", "--user-id", "12345", "--attribute", "device=phone", environment=environment)
    assert created.returncode == YES
    shown = dict(line.split(maxsplit=1) for line in created.stdout.splitlines() if "=" not in line)
    assert shown["user"] == "12345"
    assert "device = phone" in created.stdout
    token = shown["token"]

    validated = catraca("validate", environment=environment, stdin=token)
    assert (validated.returncode, validated.stdout.splitlines()[0]) == (YES, "valid")
    assert token not in validated.stdout
    revoked = catraca("revoke", environment=environment, stdin=token)
    assert (revoked.returncode, revoked.stdout) == (YES, "revoked\n")
    again = catraca("revoke", environment=environment, stdin=token)
    assert (again.returncode, again.stdout) == (YES, "nothing to revoke: it was gone already\n")
    denied = catraca("validate", environment=environment, stdin=token)
    assert (denied.returncode, denied.stdout) == (NO, "not valid: unknown, expired or revoked (NOT_FOUND)\n")
    health = catraca("health", "--service", "store", environment=environment)
    assert (health.returncode, health.stdout) == (YES, "serving\n")


def test_the_token_comes_from_where_others_cannot_read(environment: dict[str, str], tmp_path: Path) -> None:
    """The token is read from a file, else from the environment, else from standard input; never from a flag."""
    file = tmp_path / "token"
    tokens = [new_token(environment, user) for user in ("of the file", "of the environment", "of the input")]
    file.write_text(f"{tokens[0]}\n")
    in_environment = environment | {"CATRACA_TOKEN": tokens[1]}

    def user_of(*words: str, environment: dict[str, str]) -> object:
        status, answer = run_json("validate", *words, environment=environment, stdin=f"{tokens[2]}\n")
        assert status == YES
        assert isinstance(answer["session"], dict)
        return answer["session"]["userId"]

    assert user_of("--token-file", str(file), environment=in_environment) == "of the file"
    assert user_of(environment=in_environment) == "of the environment"
    assert user_of("--token-file", "-", environment=in_environment) == "of the input"
    assert user_of(environment=environment) == "of the input"
    assert catraca("validate", "--token", tokens[2], environment=environment).returncode == USAGE
    missing = catraca("validate", "--token-file", str(tmp_path / "none"), environment=environment)
    assert_fails(missing, USAGE, "cannot be read")


def test_a_brought_token(environment: dict[str, str]) -> None:
    """A token of one's own is brought the same way; bringing it twice is a no."""
    words = ("create", "--user-id", "12345", "--bring-token")
    brought = "jwt_token_exemplo_abc123"
    assert run_json(*words, environment=environment, stdin=brought)[0] == YES
    assert_fails(catraca(*words, environment=environment, stdin=brought), NO, "TOKEN_IN_USE")
    assert_fails(catraca(*words, environment=environment, stdin="short"), USAGE, "token: must be 16 to 4096")


def test_no(environment: dict[str, str]) -> None:
    """What is not there is a no, and not a failure."""
    assert_fails(catraca("get", "0" * 22, environment=environment), NO, "SESSION_NOT_FOUND")
    assert_fails(catraca("health", "--service", "nothing", environment=environment), NO, "unknown service")
    malformed = {"valid": False, "invalidReason": "INVALID_REASON_MALFORMED"}
    assert run_json("validate", environment=environment, stdin="ctr_") == (NO, malformed)


@pytest.mark.parametrize(
    "words",
    [
        ("create", "--user-id", ""),
        ("create", "--user-id", "x", "--ttl", "0s"),
        ("create", "--user-id", "x", "--ttl", "999999999d"),
        ("create", "--user-id", "x", "--ttl", "1"),
        ("create", "--user-id", "x", "--ttl=-1s"),
        ("create", "--user-id", "x", "--attribute", "device"),
        ("create", "--user-id", "x", "--attribute", "=phone"),
        ("validate",),
        ("revoke",),
        ("revoke", "--session-id", ""),
        ("get", ""),
        ("health", "--timeout", "soon"),
        ("demo", "--ttl", "two"),
    ],
    ids=" ".join,
)
def test_usage(words: tuple[str, ...], environment: dict[str, str]) -> None:
    """What breaks a rule is told as such, whether the command or the service sees it."""
    assert_fails(catraca(*words, environment=environment), USAGE, "")


@pytest.mark.parametrize("words", [(), ("open",), ("create",), ("get",), ("health", "--output", "xml")], ids=" ".join)
def test_unknown_words(words: tuple[str, ...]) -> None:
    """Words that are no command are answered with what would be."""
    done = catraca(*words)
    assert (done.returncode, done.stdout) == (USAGE, "")
    assert done.stderr.startswith("usage: catraca")


@pytest.mark.parametrize("command", ["health", "create", "validate", "get", "revoke"])
def test_unavailable(command: str) -> None:
    """Where nothing answers nothing is known: a status of its own, never a no."""
    more = {"create": ("--user-id", "12345"), "get": ("0" * 22,)}.get(command, ())
    done = catraca(command, *more, "--target", NOWHERE, "--timeout", "300ms", stdin="a-token-of-somebody")
    assert_fails(done, UNAVAILABLE, "(")


async def test_health_that_is_none(tmp_path: Path) -> None:
    """A store that is lost is told with 3, which scripts take for "not now"; the server as a whole still serves."""
    async with FakeRedis(tmp_path / "fake.sock") as fake, ServeProcess(store_url=fake.url) as process:
        await fake.close()

        async def store_is_lost() -> bool:
            return "store lost" in process.log

        await eventually_async(store_is_lost, "the store is lost")
        environment = {"CATRACA_TARGET": process.target, "CATRACA_TIMEOUT": "10s"}
        lost = await asyncio.to_thread(catraca, "health", "--service", "store", environment=environment)
        assert (lost.returncode, lost.stdout) == (UNAVAILABLE, "not serving\n")
        whole = await asyncio.to_thread(catraca, "health", environment=environment)
        assert (whole.returncode, whole.stdout) == (YES, "serving\n")


@pytest.mark.parametrize("words", [("create", "--user-id", "12345"), ("config", "show"), ("--help",)], ids=" ".join)
def test_whoever_reads_may_leave(words: tuple[str, ...], environment: dict[str, str]) -> None:
    """A reader that has gone, as `head` goes, is no reason for a traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "catraca", *words],
        env=clean_environment(environment),
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (FAILED, "")
