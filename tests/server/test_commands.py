"""The client commands of `catraca`, run as an operator runs them: what they print and their exit status."""

import asyncio
import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path
from subprocess import CompletedProcess
from unicodedata import east_asian_width

import pytest
from tests.support.command import catraca, clean_environment
from tests.support.fake_redis import FakeRedis
from tests.support.service import ServeProcess
from tests.support.waiting import TIMEOUT_SECONDS, eventually_async

from catraca import SessionClient

YES, NO, USAGE, UNAVAILABLE = range(4)
NO_READER = 141
NOWHERE = "127.0.0.1:1"


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


def on_terminal(*words: str, columns: int, environment: dict[str, str]) -> str:
    """Runs a command on a terminal of that many columns and returns what it shows there."""
    terminal, ours = pty.openpty()
    termios.tcsetwinsize(ours, (24, columns))
    with subprocess.Popen(
        [sys.executable, "-m", "catraca", *words],
        # COLUMNS would be believed rather than the terminal.
        env=clean_environment(environment | {"PYTHONIOENCODING": "utf-8", "COLUMNS": ""}),
        stdin=ours,
        stdout=ours,
        stderr=ours,
    ):
        os.close(ours)
        shown = b""
        with contextlib.suppress(OSError):  # how a terminal says that the other side has gone
            while piece := os.read(terminal, 4096):
                shown += piece
    os.close(terminal)
    return shown.decode()


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


def test_a_list_for_people(environment: dict[str, str]) -> None:
    """A line a session, newest first: how long ago, how long yet, and all attributes in full, as this is a pipe."""
    words = ("create", "--user-id", "a lister", "--attribute", f"agent=Mozilla/5.0 {'x' * 300}", "--ttl", "10d")
    assert catraca(*words, environment=environment).returncode == YES
    assert catraca("create", "--user-id", "a lister", "--idle-timeout", "0s", environment=environment).returncode == YES
    listed = catraca("list", "--user-id", "a lister", environment=environment)
    assert (listed.returncode, listed.stderr) == (YES, "")
    heads, newest, oldest = (re.split("  +", line) for line in listed.stdout.splitlines())
    assert heads == ["SESSION", "LOGIN", "ACTIVE", "EXPIRES", "ATTRIBUTES"]
    assert [len(cell) for cell in newest[:1] + oldest[:1]] == [22, 22]
    assert newest[3:] == ["in 24 h"]
    assert oldest[3:] == ["in 30 min", f'agent="Mozilla/5.0 {"x" * 300}"']
    for line in (newest, oldest):
        assert re.fullmatch(r"[0-9]{1,2} s ago", line[1])
        assert re.fullmatch(r"[0-9]{1,2} s ago", line[2])

    nothing = catraca("list", "--user-id", "who never came", environment=environment)
    assert (nothing.returncode, nothing.stdout) == (YES, "no sessions\n")


@pytest.mark.parametrize("columns", [120, 80, 40])
def test_a_list_on_a_terminal(columns: int, environment: dict[str, str]) -> None:
    """No line is wider than the terminal; what is long is cut, and what is short stays whole if there is room."""
    user = f"of a terminal of {columns}"
    attributes = {"agent": "Mozilla/5.0 " * 20, "cidade": "São Paulo 東京" * 9, "os": "linux"}
    words = [word for key, value in attributes.items() for word in ("--attribute", f"{key}={value}")]
    assert catraca("create", "--user-id", user, *words, environment=environment).returncode == YES
    heads, line = on_terminal("list", "--user-id", user, columns=columns, environment=environment).splitlines()
    cells = sum(2 if east_asian_width(char) in "WF" else 1 for char in line)
    assert columns - 2 <= cells <= columns
    assert len(heads) <= columns
    assert re.search(
        r'agent="Mozilla/5\.0 [^"]*… cidade="São Paulo 東京[^"]*… os=linux$' if columns == 120 else "…$", line
    )


def test_a_list_in_json(environment: dict[str, str]) -> None:
    """A ListSessionsResponse with all sessions in it, however many pages they come in."""
    user = "with 60 sessions"
    with SessionClient(environment["CATRACA_TARGET"], timeout=20) as sessions:
        created = [sessions.create(user).session.session_id for _ in range(60)]
    status, listed = run_json("list", "--user-id", user, environment=environment)
    assert status == YES
    assert listed.keys() == {"sessions"}
    assert isinstance(listed["sessions"], list)
    assert [session["sessionId"] for session in listed["sessions"]] == created[::-1]
    got = run_json("get", created[-1], environment=environment)
    assert got == (YES, {"session": listed["sessions"][0]})
    assert run_json("list", "--user-id", "who never came", environment=environment) == (YES, {"sessions": []})


def test_an_update(environment: dict[str, str]) -> None:
    """Attributes and deadlines change in place, in JSON and in text; a stale etag is a no."""
    login = run_json("create", "--user-id", "12345", "--attribute", "device=phone", environment=environment)[1]
    assert isinstance(login["session"], dict)
    session_id, etag = login["session"]["sessionId"], login["session"]["etag"]
    words: tuple[str, ...] = ("update", session_id, "--attribute", "cart=7", "--remove-attribute", "device")
    status, changed = run_json(*words, "--idle-timeout", "30d", "--etag", etag, environment=environment)
    assert status == YES
    assert isinstance(changed["session"], dict)
    assert changed["session"]["attributes"] == {"cart": "7"}
    assert changed["session"]["idleTimeout"] == "2592000s"
    assert changed["session"]["absoluteExpireTime"] == login["session"]["absoluteExpireTime"]
    assert run_json("get", session_id, environment=environment) == (YES, changed)
    assert_fails(catraca(*words, "--etag", etag, environment=environment), NO, "ETAG_MISMATCH")

    words = ("update", session_id, "--replace-attributes", "--attribute", "a=b=c", "--idle-timeout", "10m")
    replaced = catraca(*words, "--expire-in", "3h", environment=environment)
    assert (replaced.returncode, replaced.stderr) == (YES, "")
    assert "a = b=c" in replaced.stdout
    assert "cart" not in replaced.stdout
    for told in (r"expires .*\(in 10 min\)", r"idle +for at most 10 min", r"at latest .*\(in 3 h\)"):
        assert re.search(told, replaced.stdout), replaced.stdout
    emptied = run_json("update", session_id, "--replace-attributes", "--idle-timeout", "0s", environment=environment)[1]
    assert isinstance(emptied["session"], dict)
    assert emptied["session"]["attributes"] == {}
    assert "idleTimeout" not in emptied["session"]


def test_a_rotation(environment: dict[str, str]) -> None:
    """The new token is printed as a creation prints it; the old one still works, and is told to be the old one."""
    old = new_token(environment)
    status, rotated = run_json("rotate", environment=environment, stdin=old)
    assert status == YES
    assert rotated.keys() == {"token", "session"}
    assert rotated["token"] != old
    assert run_json("validate", environment=environment, stdin=old)[1]["tokenRotated"] is True
    assert run_json("validate", environment=environment, stdin=str(rotated["token"]))[1]["tokenRotated"] is False

    again = catraca("rotate", environment=environment, stdin=old)
    assert again.returncode == YES
    assert f"token     {rotated['token']}\n" in again.stdout
    assert old not in again.stdout
    assert "rotated: it stays valid" in catraca("validate", environment=environment, stdin=old).stdout
    assert_fails(catraca("rotate", environment=environment, stdin="ctr_"), NO, "SESSION_NOT_FOUND")
    assert_fails(catraca("rotate", environment=environment), USAGE, "token: must be set")


def test_a_user_is_logged_out_everywhere(environment: dict[str, str]) -> None:
    """All sessions of a user end, or all but one, and how many there were is told."""
    user = "who lost a phone"
    tokens = [new_token(environment, user) for _ in range(3)]
    session = run_json("validate", environment=environment, stdin=tokens[0])[1]["session"]
    assert isinstance(session, dict)
    words = ("revoke", "--user", user, "--except", session["sessionId"])
    assert run_json(*words, environment=environment) == (YES, {"revokedCount": 2})
    left = [run_json("validate", environment=environment, stdin=token)[0] for token in tokens]
    assert left == [YES, NO, NO]

    # A token that lies about is no reason to leave the other sessions alone.
    ended = catraca("revoke", "--user", user, environment=environment | {"CATRACA_TOKEN": tokens[1]})
    assert (ended.returncode, ended.stdout) == (YES, "revoked 1 session\n")
    again = catraca("revoke", "--user", user, environment=environment)
    assert (again.returncode, again.stdout) == (YES, "revoked 0 sessions\n")


def test_values_may_begin_with_a_dash(environment: dict[str, str]) -> None:
    """They need no `=`. What is itself a flag is none: then the value was forgotten."""
    status, login = run_json("create", "--user-id", "-ana", "--attribute", "-k=-v", environment=environment)
    session = login["session"]
    assert isinstance(session, dict)
    assert (status, session["userId"], session["attributes"]) == (YES, "-ana", {"-k": "-v"})
    etag = catraca("update", session["sessionId"], "--etag", "-1", "--attribute", "a=b", environment=environment)
    assert_fails(etag, NO, "etag")
    assert catraca("revoke", "--user", "-ana", environment=environment).stdout == "revoked 1 session\n"
    for other in ("--bring-token", "--"):
        forgotten = catraca("create", "--user-id", other, environment=environment)
        assert (forgotten.returncode, forgotten.stdout) == (USAGE, "")
        assert "--user-id: expected one argument" in forgotten.stderr


def test_what_lies_in_the_environment_changes_and_ends_nothing(environment: dict[str, str]) -> None:
    """Flags that say what to change or which sessions to end have no twins: here the token's session ends, alone."""
    kept, ended = new_token(environment, "67890"), new_token(environment)
    session = run_json("validate", environment=environment, stdin=kept)[1]["session"]
    assert isinstance(session, dict)
    left_over = {
        "CATRACA_USER": "67890",
        "CATRACA_USER_ID": "67890",
        "CATRACA_SESSION_ID": session["sessionId"],
        "CATRACA_IDLE_TIMEOUT": "1s",
        "CATRACA_EXPIRE_IN": "1s",
    }
    assert run_json("revoke", environment=environment | left_over, stdin=ended) == (YES, {"revoked": True})
    assert run_json("validate", environment=environment, stdin=ended)[0] == NO
    changed = run_json("update", session["sessionId"], "--attribute", "a=1", environment=environment | left_over)[1]
    assert isinstance(changed["session"], dict)
    times = ("expireTime", "absoluteExpireTime", "idleTimeout")
    assert [changed["session"][each] for each in times] == [session[each] for each in times]
    assert run_json("validate", environment=environment, stdin=kept)[0] == YES


def test_limits() -> None:
    """Who logs in once too often is told whom that logged out, or that it is a no; a token reused is a no as well."""
    settings = {"CATRACA_STORE_URL": "memory:", "CATRACA_STORE_TIMEOUT": "5s", "CATRACA_MAX_SESSIONS_PER_USER": "1"}
    with ServeProcess(settings, rotation_grace="0s") as evicting:
        environment = {"CATRACA_TARGET": evicting.target, "CATRACA_TIMEOUT": "10s"}
        token = new_token(environment)
        first = run_json("validate", environment=environment, stdin=token)[1]["session"]
        assert isinstance(first, dict)
        second = catraca("create", "--user-id", "12345", environment=environment)
        assert f"evicted   {first['sessionId']}\n" in second.stdout
        third = run_json("create", "--user-id", "12345", environment=environment)[1]
        assert third["evictedSessionIds"] == [second.stdout.split()[1]]
        assert run_json("rotate", environment=environment, stdin=str(third["token"]))[0] == YES
        reused = catraca("rotate", environment=environment, stdin=str(third["token"]))
        assert_fails(reused, NO, "TOKEN_REUSED")
    with ServeProcess(settings, session_limit_policy="reject") as rejecting:
        environment = {"CATRACA_TARGET": rejecting.target, "CATRACA_TIMEOUT": "10s"}
        new_token(environment)
        rejected = catraca("create", "--user-id", "12345", environment=environment)
        assert_fails(rejected, NO, "SESSION_LIMIT_REACHED")


EVIL = "\x1b]0;owned\x07\x9b2J\x7f\u202e\r\nuser      admin"


def test_what_is_stored_cannot_drive_a_terminal(environment: dict[str, str]) -> None:
    """Control characters and those that turn text around are shown as escapes; in JSON nothing of a value is lost."""
    environment = environment | {"PYTHONIOENCODING": "utf-8"}
    attributes = {"device": EVIL, f"key{EVIL}": 'x" admin="yes'}
    user = "evil\u202e\u2028user"
    with SessionClient(environment["CATRACA_TARGET"], timeout=20) as sessions:
        login = sessions.create(user, attributes=attributes)
    session_id = login.session.session_id
    shown = [
        catraca("validate", environment=environment, stdin=login.token).stdout,
        catraca("get", session_id, environment=environment).stdout,
        catraca("list", "--user-id", user, environment=environment).stdout,
        catraca("update", session_id, "--attribute", "a=1", environment=environment).stdout,
        catraca("rotate", environment=environment, stdin=login.token).stdout,
        catraca("get", session_id, "--output", "json", environment=environment).stdout,
    ]
    for text in shown:
        assert all(char.isprintable() or char == "\n" for char in text), ascii(text)
        assert not [line for line in text.splitlines() if re.match("user +admin", line)]
    assert "device = \\x1b]0;owned\\x07\\x9b2J\\x7f\\u202e\\r\\nuser      admin" in shown[1]
    assert '="x\\" admin=\\"yes"' in shown[2]
    session = json.loads(shown[-1])["session"]
    assert (session["userId"], session["attributes"]) == (user, {**attributes, "a": "1"})


def test_what_a_terminal_cannot_show(environment: dict[str, str]) -> None:
    """A character that the terminal's encoding does not have is no reason for a traceback."""
    environment = environment | {"PYTHONIOENCODING": "ascii"}
    created = catraca("create", "--user-id", "josé", "--attribute", "cidade=São Paulo", environment=environment)
    assert (created.returncode, created.stderr) == (YES, "")
    assert "user      jos\\xe9" in created.stdout
    status, listed = run_json("list", "--user-id", "josé", environment=environment)
    assert status == YES
    assert isinstance(listed["sessions"], list)
    assert listed["sessions"][0]["attributes"] == {"cidade": "São Paulo"}


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
    assert_fails(missing, USAGE, "cannot read the token from --token-file")


SPACES = " \t\r\n\u00a0"


def test_spaces_around_a_token_are_left_out(environment: dict[str, str], tmp_path: Path) -> None:
    """The same ones wherever it is read from; a variable with nothing else in it is as if it were unset."""
    environment = environment | {"PYTHONUTF8": "1"}
    token = new_token(environment)
    spaced = f"{SPACES}{token}{SPACES}"
    file = tmp_path / "token"
    file.write_text(spaced, encoding="utf-8")
    ways: list[tuple[tuple[str, ...], dict[str, str], str]] = [
        (("--token-file", str(file)), {}, ""),
        ((), {"CATRACA_TOKEN": spaced}, ""),
        ((), {}, spaced),
        (("--token-file", "-"), {}, spaced),
        ((), {"CATRACA_TOKEN": SPACES}, spaced),
    ]
    for words, added, stdin in ways:
        done = catraca("validate", *words, environment=environment | added, stdin=stdin)
        assert done.returncode == YES, (words, added, done.stderr)


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
    update = catraca("update", "0" * 22, "--attribute", "a=1", environment=environment)
    assert_fails(update, NO, "SESSION_NOT_FOUND")
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
        ("revoke", "--user", ""),
        ("revoke", "--user", "x", "--except", ""),
        ("revoke", "--except", "0" * 22),
        ("rotate",),
        ("list", "--user-id", ""),
        ("update", "0" * 22),
        ("update", "0" * 22, "--etag", "1-1"),
        ("update", "", "--attribute", "a=1"),
        ("update", "0" * 22, "--attribute", "a=1", "--etag", ""),
        ("update", "0" * 22, "--attribute", "a"),
        ("update", "0" * 22, "--attribute", "a=1", "--remove-attribute", "a"),
        ("update", "0" * 22, "--expire-in", "tomorrow"),
        ("update", "0" * 22, "--expire-in", "999999999d"),
        ("update", "0" * 22, "--idle-timeout", ""),
        ("get", ""),
        ("health", "--timeout", "soon"),
        ("demo", "--ttl", "two"),
    ],
    ids=" ".join,
)
def test_usage(words: tuple[str, ...], environment: dict[str, str]) -> None:
    """What breaks a rule is told as such, whether the command or the service sees it."""
    assert_fails(catraca(*words, environment=environment), USAGE, "")


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("open",),
        ("create",),
        ("get",),
        ("list",),
        ("update",),
        ("health", "--output", "xml"),
        ("revoke", "--user", "12345", "--session-id", "0" * 22),
        ("revoke", "--user", "12345", "--token-file", "-"),
        ("revoke", "--user-id", "12345"),
    ],
    ids=" ".join,
)
def test_unknown_words(words: tuple[str, ...]) -> None:
    """Words that are no command are answered with what would be."""
    done = catraca(*words)
    assert (done.returncode, done.stdout) == (USAGE, "")
    assert done.stderr.startswith("usage: catraca")


@pytest.mark.parametrize(
    "words",
    [
        ("health",),
        ("create", "--user-id", "12345"),
        ("validate",),
        ("get", "0" * 22),
        ("list", "--user-id", "12345"),
        ("update", "0" * 22, "--idle-timeout", "1h"),
        ("rotate",),
        ("revoke",),
        ("revoke", "--user", "12345"),
    ],
    ids=" ".join,
)
def test_unavailable(words: tuple[str, ...]) -> None:
    """Where nothing answers nothing is known: a status of its own, never a no."""
    done = catraca(*words, "--target", NOWHERE, "--timeout", "300ms", stdin="a-token-of-somebody")
    assert_fails(done, UNAVAILABLE, "(")


async def test_health_that_is_none(tmp_path: Path) -> None:
    """A store that is lost is told with 3, which scripts take for "not now"; the server as a whole still serves."""
    async with FakeRedis(tmp_path / "fake.sock") as fake, ServeProcess(store_url=fake.url) as process:
        await fake.close()

        async def store_is_lost() -> bool:
            return "store disconnected" in process.log

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
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (NO_READER, "")
