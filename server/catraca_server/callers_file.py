"""The callers file: one line for each API key and each pattern of certificates.

    # CALLER  ROLES           CREDENTIAL
    web       validate,issue  key:7U9ywncTXuWoMPAZlJdtRY:LH0w…  created=2026-11-26
    web       validate        uri:spiffe://example.org/ns/*/sa/web
    ops       admin           dns:*.ops.example.org             # all machines of operations

People write it, and so does `catraca keys`, which adds and removes whole lines and leaves all others as they are. A
line depends on no other line, so each can be read on its own.
"""

import fcntl
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from catraca_server.domain.call import Caller, Role
from catraca_server.domain.callers import KEY_PREFIX, Callers, Credential, DnsPattern, Entry, KeyRecord, UriPattern

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@/-]{0,63}")
_CREATED = "created="
_WHAT_IT_SAYS = "write CALLER ROLES CREDENTIAL"

HEADER = """\
# Who may call catraca, one line for each key or certificate: CALLER ROLES CREDENTIAL
# Roles: validate, issue, admin, separated by commas. `catraca keys` makes and removes lines with keys.
# Certificates: uri:spiffe://example.org/ns/prod/sa/web or dns:*.example.org
"""

Stamp: TypeAlias = tuple[int, int, int]
"""A value that changes whenever the file does."""


class CallersFileError(Exception):
    """The file cannot be used: why, by line, without quoting the line, which may have a key. `problems` has each."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def parse(text: str) -> list[Entry]:
    """Reads the lines of the file. Raises CallersFileError with everything that is wrong with them."""
    entries, problems = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        words = _without_comment(line).split()
        if not words:
            continue
        try:
            entries.append(_entry(words))
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    if not problems:
        try:
            Callers(entries)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise CallersFileError(*problems)
    return entries


def line_of(entry: Entry) -> str:
    """Returns an entry as its line."""
    roles = ",".join(role.value for role in Role if role in entry.caller.roles)
    match entry.credential:
        case KeyRecord(key_id, digest):
            credential = f"key:{key_id}:{digest}"
        case UriPattern(text):
            credential = f"uri:{text}"
        case pattern:
            credential = f"dns:{pattern.text}"
    return f"{entry.caller.name}  {roles}  {credential}" + (f"  {_CREATED}{entry.created}" if entry.created else "")


def caller(name: str, roles: str) -> Caller:
    """Returns a caller, with roles as people write them. Raises ValueError."""
    if not _NAME.fullmatch(name) or name.startswith(KEY_PREFIX):
        raise ValueError("the name of a caller has up to 64 letters, digits and _ . @ / -")
    known = {role.value: role for role in Role}
    given = roles.split(",")
    if not all(role in known for role in given):
        raise ValueError(f"roles are {', '.join(known)}, separated by commas without spaces")
    return Caller(name, frozenset(known[role] for role in given))


def read(path: Path) -> tuple[list[Entry], Stamp]:
    """Reads the file. Raises CallersFileError."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read()
    except OSError as error:
        raise CallersFileError(f"{path} cannot be read: {error.strerror}") from None
    if status.st_mode & 0o002:
        # A user who may write it could give themselves every role.
        raise CallersFileError(f"{path} may be written by every user of this machine: chmod o-w it")
    try:
        return parse(content.decode()), _stamp(status)
    except UnicodeDecodeError:
        raise CallersFileError(f"{path} is not UTF-8 text") from None
    except CallersFileError as error:
        raise CallersFileError(*(f"{path}: {each}" for each in error.problems)) from None


def stamp_of(path: Path) -> Stamp | None:
    """Returns what changes whenever the file does; None if it cannot be looked at."""
    try:
        return _stamp(path.stat())
    except OSError:
        return None


def add(path: Path, entry: Entry) -> None:
    """Adds a line at the end, and creates the file if there is none. Raises CallersFileError."""

    def changed(text: str) -> str:
        text = text or HEADER
        newline = "" if text.endswith("\n") else "\n"
        return f"{text}{newline}{line_of(entry)}\n"

    _change(path, changed, missing_ok=True)


def remove_key(path: Path, key_id: str) -> Entry | None:
    """Removes the line of a key and returns what it said; None if there is none. Raises CallersFileError."""
    removed: list[Entry] = []

    def changed(text: str) -> str:
        kept = []
        for line in text.splitlines(keepends=True):
            words = _without_comment(line).split()
            entry = _entry(words) if words else None
            if entry and isinstance(entry.credential, KeyRecord) and entry.credential.key_id == key_id:
                removed.append(entry)
            else:
                kept.append(line)
        return "".join(kept)

    _change(path, changed)
    return removed[0] if removed else None


def _without_comment(line: str) -> str:
    return re.split(r"(?:^|\s)#", line, maxsplit=1)[0]


def _entry(words: list[str]) -> Entry:
    if not 3 <= len(words) <= 4:
        raise ValueError(f"{len(words)} words: {_WHAT_IT_SAYS}")
    name, roles, credential, *rest = words
    if rest and not rest[0].startswith(_CREATED):
        raise ValueError(f"a fourth word that is not {_CREATED}: {_WHAT_IT_SAYS}")
    return Entry(caller(name, roles), _credential(credential), rest[0].removeprefix(_CREATED) if rest else "")


def _credential(text: str) -> Credential:
    kind, _, value = text.partition(":")
    match kind:
        case "key":
            key_id, _, digest = value.partition(":")
            return KeyRecord(key_id, digest)
        case "uri":
            return UriPattern(value)
        case "dns":
            return DnsPattern(value)
        case _:
            raise ValueError("a credential is key:ID:DIGEST, uri:NAME or dns:NAME; `catraca keys new` makes keys")


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_ino, status.st_mtime_ns, status.st_size


def _change(path: Path, changed: Callable[[str], str], *, missing_ok: bool = False) -> None:
    """Replaces the file in one step with its changed text, which is on the disk when this returns."""
    # The file itself, if the path is a link to it.
    path = Path(os.path.realpath(path))
    try:
        with _locked(path.parent):
            try:
                text, status = path.read_bytes().decode(), path.stat()
            except FileNotFoundError:
                if not missing_ok:
                    raise
                text, status = "", None
            parse(text)
            new = changed(text)
            if new != text:
                _replace(path, new.encode(), status)
    except OSError as error:
        raise CallersFileError(f"{path} cannot be changed: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CallersFileError(f"{path} is not UTF-8 text") from None


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Locks out other changes to files in a directory; of two changes at the same time, one would be lost."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace(path: Path, content: bytes, old: os.stat_result | None) -> None:
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            if old is not None:
                # The server may run as another user, which has to be able to read it.
                os.fchown(handle, old.st_uid, old.st_gid)
                os.fchmod(handle, old.st_mode & 0o7777)
            file.write(content)
            file.flush()
            os.fsync(handle)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
