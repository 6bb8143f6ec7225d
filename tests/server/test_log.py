"""The server's log: it says what happened, and has no secret in it."""

import re
from pathlib import Path

import pytest
from tests.support.service import ServeProcess
from tests.support.valkey import Valkey

from catraca import SessionClient, errors

PASSWORD = "the-password-of-the-store"
BROUGHT = "eyJhbGciOiJIUzI1NiJ9.a-token-that-users-already-have"
ATTRIBUTE = "something-private-of-the-user"
PEPPER = "pepper-pepper-pepper-pepper-pepper"


@pytest.fixture
def protected_valkey(own_valkey: Valkey) -> Valkey:
    """A Valkey with a password."""
    own_valkey.command("CONFIG", "SET", "requirepass", PASSWORD)
    return own_valkey


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_secret_is_logged(log_format: str, protected_valkey: Valkey, tmp_path: Path) -> None:
    """At debug level, whatever goes wrong, the log has no token, digest, password or attribute."""
    pepper = tmp_path / "pepper"
    pepper.write_text(PEPPER)
    with ServeProcess(
        store_url=protected_valkey.url.replace("unix://", f"unix://:{PASSWORD}@"),
        token_pepper_file=str(pepper),
        log_level="debug",
        log_format=log_format,
    ) as process:
        with SessionClient(process.target, timeout=10) as sessions:
            minted = sessions.create("12345", attributes={"note": ATTRIBUTE}).token
            sessions.create("12345", token=BROUGHT)
            with pytest.raises(errors.TokenInUse):
                sessions.create("12345", token=BROUGHT)
            with pytest.raises(errors.InvalidRequest):
                sessions.create("12345", token=BROUGHT[:12], attributes={"": ATTRIBUTE})
            assert sessions.validate(minted)
            assert not sessions.validate(minted[:-1])
            key = f"session:{minted[4:26]}"
            record = protected_valkey.command("GET", key)
            digest = re.search(rb'"digest":"([^"]+)"', record)
            assert digest is not None
            # A record of another session, and one that cannot be read: both are logged.
            protected_valkey.command("SET", key, record.replace(minted[4:26].encode(), b"0" * 22), "KEEPTTL")
            with pytest.raises(errors.Unavailable):
                sessions.validate(minted)
            protected_valkey.command("SET", key, record[:-1], "KEEPTTL")
            assert not sessions.validate(minted)
            protected_valkey.kill()
            with pytest.raises(errors.Unavailable):
                sessions.validate(BROUGHT)
        assert process.stop() == 0
    for line in ("wrong record: read session", "unreadable record: session", "store disconnected"):
        assert line in process.log
    for secret in (PASSWORD, PEPPER, BROUGHT, BROUGHT[:12], ATTRIBUTE, minted, minted[26:69], digest[1].decode()):
        assert secret not in process.log
