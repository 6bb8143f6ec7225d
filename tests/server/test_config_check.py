"""`catraca config check`: everything that is wrong, at once, before anything is started."""

from pathlib import Path

import pytest
from tests.support.certificates import Authority
from tests.support.command import catraca
from tests.support.door import Door

OK, USAGE = 0, 2


def problems(**settings: object) -> list[str]:
    """Returns the lines in which `catraca config check` says what is wrong."""
    done = catraca("config", "check", environment={f"CATRACA_{name.upper()}": str(v) for name, v in settings.items()})
    assert (done.returncode, done.stdout) == (USAGE, "")
    lines = done.stderr.splitlines()
    assert all(line.startswith("catraca: ") for line in lines)
    return [line.removeprefix("catraca: ") for line in lines]


def test_a_door_that_is_in_order(door: Door, tmp_path: Path) -> None:
    """Nothing is wrong with it, and the command says so."""
    pepper = tmp_path / "pepper"
    pepper.write_text("p" * 32)
    settings = {
        "HOST": "0.0.0.0",  # noqa: S104  where it takes all of them
        "TLS_CERT": door.certificate,
        "TLS_KEY": door.key,
        "TLS_CLIENT_CA": door.ca,
        "CALLERS_FILE": door.callers,
        "TOKEN_PEPPER_FILE": pepper,
    }
    done = catraca("config", "check", environment={f"CATRACA_{name}": str(path) for name, path in settings.items()})
    assert (done.returncode, done.stdout, done.stderr) == (OK, "the settings can be used\n", "")


def test_everything_at_once(door: Door, tmp_path: Path) -> None:
    """Values, contradictions and files: one line for each problem."""
    door.callers.write_text("web validate key:x\nweb nonsense dns:a.example.org\nops admin dns:ops.test\n")
    pepper = tmp_path / "pepper"
    pepper.write_text("short")
    found = problems(
        port="x",
        workers="0",
        default_ttl="60d",
        tls_cert=door.certificate,
        tls_key=tmp_path / "none",
        tls_client_ca=door.key,
        store_tls_cert=door.certificate,
        callers_file=door.callers,
        token_pepper_file=pepper,
    )
    wanted = [
        "CATRACA_PORT must be a whole number",
        "CATRACA_WORKERS must be a whole number",
        "default_ttl (60d) must not be longer than max_ttl (30d)",
        "store_tls_cert is set, and of store_tls_cert and store_tls_key both are needed",
        "store_url embedded: does not use TLS",
        f"CATRACA_TLS_KEY: {tmp_path / 'none'} cannot be read: No such file or directory",
        f"CATRACA_TLS_CLIENT_CA: {door.key} has no certificates in PEM",
        f"CATRACA_CALLERS_FILE: {door.callers}: line 1: the id of a key",
        f"CATRACA_CALLERS_FILE: {door.callers}: line 2: roles are",
        f"token_pepper_file {pepper} must hold at least 32 bytes",
    ]
    assert len(found) == len(wanted), found
    for problem, begin in zip(found, wanted, strict=True):
        assert begin in problem


def test_a_key_of_another_certificate(door: Door) -> None:
    """It is told as what it is, for the server's own certificate and for the one that the store is shown."""
    Authority("another").server().write(door.ca, door.key)
    for names, store_url in (("TLS", "embedded:"), ("STORE_TLS", "rediss://store")):
        (found,) = problems(**{f"{names}_cert": door.certificate, f"{names}_key": door.key}, store_url=store_url)
        assert found.startswith(f"CATRACA_{names}_CERT and CATRACA_{names}_KEY: ")
        assert "the key is not that of the certificate" in found


@pytest.mark.parametrize("name", ["tls_cert", "tls_key", "tls_client_ca", "callers_file", "token_pepper_file"])
def test_each_file_that_is_missing(name: str, door: Door, tmp_path: Path) -> None:
    """It is named, and nothing else is said."""
    settings: dict[str, Path] = {"tls_cert": door.certificate, "tls_key": door.key}
    (found,) = problems(**{**settings, name: tmp_path / "none"})
    assert f"{tmp_path / 'none'} cannot be read: No such file" in found
    assert name in found.lower()


def test_both_files_of_a_pair_that_are_missing(tmp_path: Path) -> None:
    """Each has its line."""
    found = problems(tls_cert=tmp_path / "a", tls_key=tmp_path / "b")
    assert [line.split(":")[0] for line in found] == ["CATRACA_TLS_CERT", "CATRACA_TLS_KEY"]


def test_what_contradicts_an_unreadable_setting_is_not_told() -> None:
    """It may contradict nothing once it can be read."""
    assert len(problems(max_ttl="x", default_ttl="60d")) == 1
    assert len(problems(workers="x", store_url="memory:")) == 1
    assert len(problems(insecure="x", host="192.0.2.1")) == 1
