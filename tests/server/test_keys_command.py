"""`catraca keys`: keys are made, listed and revoked by hand, for a running service."""

import re

import pytest
from tests.support.command import catraca
from tests.support.door import Door
from tests.support.service import ServeProcess
from tests.support.waiting import eventually


def keys(door: Door, *words: str, **environment: str) -> tuple[int, str, str]:
    """Runs `catraca keys` and returns its status and its output."""
    done = catraca("keys", *words, environment={"CATRACA_CALLERS_FILE": str(door.callers), **environment})
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_the_command_makes_lists_and_revokes_keys(door: Door) -> None:
    """A key is printed once, alone on standard output, and never again; it works with a running service."""
    door.callers.unlink()
    status, printed, told = keys(door, "new", "--caller", "web", "--roles", "validate,issue")
    key = printed.strip()
    assert (status, len(key), key[:5]) == (0, 76, "ctrk_")
    assert key[27:] not in told
    assert key[5:27] in told
    tls = {"CATRACA_TLS_CERT": str(door.certificate), "CATRACA_TLS_KEY": str(door.key)}
    with ServeProcess(
        {"CATRACA_CALLERS_FILE": str(door.callers), "CATRACA_TLS_CLIENT_CA": "", **tls},
        store_url="memory:", host="0.0.0.0",  # noqa: S104  with TLS and callers it may
    ) as service:  # fmt: skip
        assert "INSECURE" not in service.log
        port = service.target.rpartition(":")[2]
        own = {"CATRACA_TLS_CA": str(door.ca), "CATRACA_TARGET": f"localhost:{port}", "CATRACA_TIMEOUT": "5s"}
        made = catraca("create", "--user-id", "12345", environment={**own, "CATRACA_API_KEY": key})
        assert made.returncode == 0, made.stderr
        (door.callers.parent / "web.key").write_text(f"{key}\n")
        file = ("--api-key-file", str(door.callers.parent / "web.key"))
        assert catraca("create", "--user-id", "12345", *file, environment=own).returncode == 0
        denied = catraca("list", "--user-id", "12345", environment={**own, "CATRACA_API_KEY": key})
        assert denied.returncode == 4
        assert "needs the role admin" in denied.stderr
        assert catraca("create", "--user-id", "12345", environment=own).returncode == 4
        status, printed, told = keys(door, "list")
        assert (status, told) == (0, "")
        assert re.fullmatch(rf"{key[5:27]}  \d{{4}}-\d\d-\d\dT\S{{9}}  web  validate,issue\n", printed)
        assert keys(door, "revoke", key[5:27])[0] == 0

        def refused() -> bool:
            return catraca("create", "--user-id", "1", environment={**own, "CATRACA_API_KEY": key}).returncode == 4

        eventually(refused, "the key is refused")
        assert key[27:] not in service.log
    assert keys(door, "list")[:2] == (0, "")
    assert keys(door, "revoke", key[5:27])[0] == 1
    assert key[27:] not in door.callers.read_text()


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (("new", "--caller", "web"), 2, "--roles"),
        (("new", "--caller", "web", "--roles", "everything"), 2, "roles are validate, issue, admin"),
        (("new", "--caller", "two words", "--roles", "admin"), 2, "the name of a caller"),
        (("revoke", "ctrk_secret"), 2, "that is a key and not its id"),
        (("revoke", "nobody"), 1, "no key in"),
        (("list", "--callers-file", "/nonexistent"), 3, "cannot be read"),
        (("list", "--callers-file", ""), 2, "CATRACA_CALLERS_FILE or --callers-file"),
        (("new", "--callers-file", "/none/callers", "--caller", "web", "--roles", "admin"), 3, "cannot be changed"),
        (("burn",), 2, "invalid choice"),
    ],
)
def test_what_the_command_cannot_do(door: Door, words: tuple[str, ...], status: int, text: str) -> None:
    """It says why, with what would be right."""
    done = keys(door, *words)
    assert (done[0], done[1]) == (status, "")
    assert text in done[2]
    assert "secret" not in done[2]
