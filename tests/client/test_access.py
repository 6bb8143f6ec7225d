"""How clients get in: which targets are on this machine, where the API key comes from, and where it never goes."""

import os
from pathlib import Path
from typing import Any

import grpc
import pytest

from catraca import AsyncSessionClient, SessionClient
from catraca._access import KeyFile, access_or_default, is_local
from catraca.errors import InvalidSetting

KEY = "ctrk_a-key-of-a-test"
ELSEWHERE = "catraca.internal:50051"


@pytest.mark.parametrize(
    "target",
    [
        *("127.0.0.1:50051", "127.1.2.3:1", "localhost", "localhost:50051", "LOCALHOST.:1", "[::1]:50051", "::1"),
        *("unix:/run/catraca.sock", "unix:///run/catraca.sock", "unix-abstract:catraca"),
        *("dns:localhost:1", "dns:///localhost:1", "ipv4:127.0.0.1:1,127.0.0.2:1", "ipv6:[::1]:1"),
    ],
)
def test_targets_on_this_machine(target: str) -> None:
    """Nothing leaves it."""
    assert is_local(target)


@pytest.mark.parametrize(
    "target",
    [
        *(
            "catraca.internal:50051",
            "10.0.0.1:1",
            "0.0.0.0:1",
            "[fe80::1]:1",
            "localhost.example.com:1",
            "unix.example",
        ),
        *("dns:///catraca:1", "dns://127.0.0.1/catraca:1", "ipv4:127.0.0.1:1,10.0.0.1:1", "ipv6:[2001:db8::1]:1"),
        *("127.0.0.1.example.com:1", "xds:///localhost", "[::ffff:10.0.0.1]:1", "", "2130706433:1"),
    ],
)
def test_targets_elsewhere(target: str) -> None:
    """What is not known to be here may be anywhere."""
    assert not is_local(target)


@pytest.mark.parametrize("make", [SessionClient, AsyncSessionClient])
def test_a_key_does_not_travel_in_clear(
    make: type[SessionClient] | type[AsyncSessionClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without TLS it goes to this machine only, and through no proxy, unless somebody says that this is meant."""
    keys: tuple[dict[str, Any], ...] = ({"api_key": KEY}, {})
    for key in keys:
        monkeypatch.setenv("CATRACA_API_KEY", "" if key else KEY)
        with pytest.raises(InvalidSetting, match="would travel in clear") as caught:
            make(ELSEWHERE, **key)
        assert KEY not in str(caught.value)
        with pytest.raises(InvalidSetting, match="would travel in clear"):
            make("localhost:1", use_proxy=True, **key)
        make("localhost:1", **key)
        make("unix:/run/catraca.sock", **key)
        make(ELSEWHERE, credentials=grpc.ssl_channel_credentials(), **key)
        make(ELSEWHERE, insecure=True, **key)
        monkeypatch.setenv("CATRACA_INSECURE", "true")
        assert KEY not in repr(make(ELSEWHERE, **key))
        with pytest.raises(InvalidSetting, match="would travel in clear"):
            make(ELSEWHERE, insecure=False, **key)
        monkeypatch.delenv("CATRACA_INSECURE")


def key_of(api_key: str | None = None, api_key_file: Path | None = None) -> str | None:
    """Returns the key that a client would send, as its header has it."""
    access = access_or_default(
        "localhost:1", credentials=None, api_key=api_key, api_key_file=api_key_file, insecure=None, use_proxy=False
    )
    assert KEY not in repr(access)
    metadata = access.metadata()
    if metadata is None:
        return None
    ((name, value),) = metadata
    assert name == "authorization"
    return value.removeprefix("Bearer ")


def test_where_the_key_comes_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An argument goes before the environment. Key and file at the same time are a mistake."""
    file = tmp_path / "key"
    file.write_text(f"{KEY}-of-the-file\n")
    assert key_of() is None
    monkeypatch.setenv("CATRACA_API_KEY_FILE", str(file))
    assert key_of() == f"{KEY}-of-the-file"
    assert key_of(KEY) == KEY
    monkeypatch.setenv("CATRACA_API_KEY", f"{KEY}-of-the-environment")
    with pytest.raises(InvalidSetting, match="both CATRACA_API_KEY and CATRACA_API_KEY_FILE"):
        key_of()
    monkeypatch.delenv("CATRACA_API_KEY_FILE")
    assert key_of() == f"{KEY}-of-the-environment"
    assert key_of(api_key_file=file) == f"{KEY}-of-the-file"
    with pytest.raises(InvalidSetting, match="both api_key and api_key_file"):
        key_of(KEY, file)


@pytest.mark.parametrize("text", ["", " \n", "two words", "tab\tin it", "accentué", "\0"])
def test_what_is_no_key(text: str, tmp_path: Path) -> None:
    """It is refused when the client is made, and not quoted."""
    file = tmp_path / "key"
    file.write_text(text)
    with pytest.raises(InvalidSetting, match="does not hold an API key") as caught:
        key_of(api_key_file=file)
    assert not text.strip() or text not in str(caught.value)
    if text:
        with pytest.raises(InvalidSetting, match="does not hold an API key"):
            key_of(text)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """The error names the file; where a key stands for the name of a file, it does not quote it."""
    with pytest.raises(InvalidSetting, match=f"api_key_file '{tmp_path}/none' cannot be read"):
        key_of(api_key_file=tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidSetting, match="not UTF-8"):
        key_of(api_key_file=tmp_path / "binary")
    with pytest.raises(InvalidSetting, match="api_key_file is a key") as caught:
        key_of(api_key_file=Path(KEY))
    assert KEY not in str(caught.value)


def test_a_file_that_changes(tmp_path: Path) -> None:
    """The new key is in use a second later. While there is none, the old one stays in use."""
    now = 100.0
    file = tmp_path / "key"
    file.write_text("first")
    key = KeyFile("api_key_file", file, now=lambda: now)
    assert key() == "first"
    new = tmp_path / "new"
    new.write_text("second")
    os.replace(new, file)  # noqa: PTH105  what `mv` does
    assert key() == "first"
    now += 1
    assert key() == "second"
    for broken in (lambda: file.write_text(""), file.unlink):
        broken()
        now += 1
        assert key() == "second"
    file.write_text("third")
    now += 1
    assert key() == "third"
