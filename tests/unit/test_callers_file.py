"""The callers file: what its lines say, what is wrong with it, and how it is changed."""

import os
import secrets
import stat
import threading
from pathlib import Path

import pytest

from catraca_server import callers_file
from catraca_server.callers_file import CallersFileError, add, caller, line_of, parse, read, remove_key, stamp_of
from catraca_server.domain.call import Caller, Role
from catraca_server.domain.callers import DnsPattern, Entry, KeyRecord, UriPattern, new_key

# The same in every process that collects these tests.
KEY, RECORD = new_key(lambda count: bytes(range(count)))
ENTRY = Entry(Caller("web", frozenset({Role.VALIDATE, Role.ISSUE})), RECORD, "2026-11-26")


def test_lines() -> None:
    """Each is a caller, its roles and a credential; comments and empty lines say nothing."""
    text = f"""
# a comment
web  validate,issue  key:{RECORD.key_id}:{RECORD.digest}  created=2026-11-26
\tweb validate uri:spiffe://example.org/ns/*/sa/web#nocomment
"""
    with pytest.raises(CallersFileError, match="line 4: a URI has"):
        parse(text)
    lines = text.replace("web#nocomment", "web #comment").splitlines()
    assert parse("\r\n".join([*lines, "ops admin dns:*.ops.example.org #all"])) == [
        ENTRY,
        Entry(Caller("web", frozenset({Role.VALIDATE})), UriPattern("spiffe://example.org/ns/*/sa/web")),
        Entry(Caller("ops", frozenset({Role.ADMIN})), DnsPattern("*.ops.example.org")),
    ]
    assert parse("") == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("web validate", "2 words: write CALLER ROLES CREDENTIAL"),
        ("web validate dns:a.b created=1 more", "5 words"),
        ("web validate dns:a.b more", "a fourth word"),
        ("web validates dns:a.b", "roles are validate, issue, admin"),
        ("web validate, dns:a.b", "roles are"),
        ("web Admin dns:a.b", "roles are"),
        ("wéb validate dns:a.b", "the name of a caller"),
        (f"{KEY} validate dns:a.b", "the name of a caller"),
        ("web validate a.b", "a credential is key:ID:DIGEST"),
        (f"web validate {KEY}", "a credential is key:ID:DIGEST"),
        (f"web validate key:{KEY}", "the id of a key has"),
        (f"web validate key:{RECORD.key_id}:{KEY}", "the digest of a key has"),
        (f"web validate key:{RECORD.key_id}", "the digest of a key has"),
    ],
)
def test_lines_that_cannot_be_used(line: str, reason: str, tmp_path: Path) -> None:
    """The error says which and why, and does not quote it: it may be a key."""
    file = tmp_path / "callers"
    file.write_text(f"ops admin dns:ops.test\n\n{line}\n")
    with pytest.raises(CallersFileError, match=f"line 3: {reason}") as caught:
        read(file)
    assert str(file) in str(caught.value)
    assert KEY[27:] not in str(caught.value)


def test_everything_that_is_wrong_is_told_at_once() -> None:
    """And two keys must not have one id."""
    with pytest.raises(CallersFileError, match=r"line 1: .*; line 2: "):
        parse("a\nb")
    with pytest.raises(CallersFileError, match="two keys have the id"):
        parse(f"{line_of(ENTRY)}\n{line_of(ENTRY)}")


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    """A file that is not there, is not text, or that everybody may write."""
    file = tmp_path / "callers"
    with pytest.raises(CallersFileError, match="cannot be read: No such file"):
        read(file)
    assert stamp_of(file) is None
    file.write_bytes(b"\xff")
    with pytest.raises(CallersFileError, match="not UTF-8"):
        read(file)
    with pytest.raises(CallersFileError, match="not UTF-8"):
        add(file, ENTRY)
    file.write_text("")
    file.chmod(0o666)
    with pytest.raises(CallersFileError, match="chmod o-w"):
        read(file)


def test_a_key_is_added_and_removed(tmp_path: Path) -> None:
    """All other lines stay as they are. A new file is for its user alone, an old one keeps its mode."""
    file = tmp_path / "callers"
    add(file, ENTRY)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert read(file)[0] == [ENTRY]
    assert KEY[27:] not in file.read_text()
    before = "# mine\n\nops   admin dns:ops.test  # all of them, é\r\nweb validate dns:web.test"
    file.write_bytes(before.encode())
    file.chmod(0o640)
    first = stamp_of(file)
    add(file, ENTRY)
    assert file.read_bytes().decode() == f"{before}\n{line_of(ENTRY)}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert stamp_of(file) != first
    assert remove_key(file, "0" * 22) is None
    assert remove_key(file, RECORD.key_id) == ENTRY
    assert file.read_bytes().decode() == f"{before}\n"
    assert os.listdir(tmp_path) == ["callers"]  # noqa: PTH208  hidden ones too


def test_a_file_with_faults_is_not_changed(tmp_path: Path) -> None:
    """Whoever mends it finds it as it was; so does who finds that it cannot be written."""
    file = tmp_path / "callers"
    file.write_text("nonsense\n")
    with pytest.raises(CallersFileError, match="line 1"):
        add(file, ENTRY)
    with pytest.raises(CallersFileError, match="line 1"):
        remove_key(file, RECORD.key_id)
    assert file.read_text() == "nonsense\n"
    with pytest.raises(CallersFileError, match="cannot be changed"):
        remove_key(tmp_path / "none", RECORD.key_id)
    with pytest.raises(CallersFileError, match="cannot be changed"):
        add(tmp_path / "none" / "callers", ENTRY)


def test_a_crash_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new one takes its place in one step, once it is on the disk."""
    file = tmp_path / "callers"
    file.write_text("ops admin dns:ops.test\n")
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)

    def fail(path: Path, target: Path) -> None:
        assert synced, "it is on the disk"
        assert line_of(ENTRY) in path.read_text()
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(CallersFileError, match="Input/output error"):
        add(file, ENTRY)
    assert file.read_text() == "ops admin dns:ops.test\n"
    assert [each.name for each in tmp_path.iterdir()] == ["callers"]


def test_a_change_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file, and then the directory that names it: a revoked key does not come back with a power failure."""
    synced: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(stat.S_ISDIR(os.fstat(handle).st_mode)))
    add(tmp_path / "callers", ENTRY)
    remove_key(tmp_path / "callers", RECORD.key_id)
    assert synced == [False, True, False, True]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """What it points to is changed."""
    (tmp_path / "real").write_text("")
    link = tmp_path / "callers"
    link.symlink_to("real")
    add(link, ENTRY)
    assert link.is_symlink()
    assert RECORD.key_id in (tmp_path / "real").read_text()


def test_changes_at_the_same_time(tmp_path: Path) -> None:
    """None is lost."""
    file = tmp_path / "callers"
    entries = [Entry(ENTRY.caller, new_key(secrets.token_bytes)[1]) for _ in range(20)]
    threads = [threading.Thread(target=add, args=(file, entry)) for entry in entries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = {entry.credential.key_id for entry in read(file)[0] if isinstance(entry.credential, KeyRecord)}
    assert len(ids) == 20


def test_callers_as_people_write_them() -> None:
    """Names with what mail addresses and paths have in them."""
    assert caller("web@prod/eu-1.a_b", "admin").roles == {Role.ADMIN}
    assert callers_file.HEADER.startswith("#")
    assert parse(callers_file.HEADER) == []
