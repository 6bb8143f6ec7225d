"""Callers: by which API keys and certificates they are known, and which roles each of these gives. No I/O.

An API key is ``ctrk_`` and 71 base62 characters, laid out as a token is: a public id of 128 bits by which it is found,
a secret of 256 bits, and a checksum. What is kept of it is its id and a hash of the secret. The hash is a plain
SHA-256: nobody can search 256 random bits, however fast each try is. A slow hash, as for passwords, would gain nothing.
"""

import hashlib
import hmac
import re
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

from catraca_server.domain.call import Caller
from catraca_server.domain.encoding import (
    CHECKSUM_LENGTH,
    ID_BITS,
    ID_LENGTH,
    SECRET_BITS,
    SECRET_LENGTH,
    base62,
    checksum,
)

KEY_PREFIX = "ctrk_"

_SECRET_AT = len(KEY_PREFIX) + ID_LENGTH
_CHECKSUM_AT = _SECRET_AT + SECRET_LENGTH
_KEY_LENGTH = _CHECKSUM_AT + CHECKSUM_LENGTH
_DIGEST = re.compile(r"[A-Za-z0-9_-]{43}")

_ANY = "*"
_LABEL = re.compile(r"[a-z0-9_-]+|\*")
_URI = re.compile(r"([a-z][a-z0-9+.-]*)://([^/*\s?#]+)(/[^\s?#]*)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What is kept of an API key: enough to recognise it, and not enough to present it."""

    key_id: str
    digest: str
    """SHA-256 of the secret, in base64url."""

    def __post_init__(self) -> None:
        if not (len(self.key_id) == ID_LENGTH and self.key_id.isascii() and self.key_id.isalnum()):
            raise ValueError("the id of a key has 22 letters and digits")
        if not _DIGEST.fullmatch(self.digest):
            raise ValueError("the digest of a key has 43 characters of base64url")


def new_key(entropy: Callable[[int], bytes]) -> tuple[str, KeyRecord]:
    """Returns a new API key, and what is to be kept of it. `entropy(n)` returns n unpredictable bytes."""
    body = base62(int.from_bytes(entropy(ID_BITS // 8)), ID_LENGTH)
    body += base62(int.from_bytes(entropy(SECRET_BITS // 8)), SECRET_LENGTH)
    key = KEY_PREFIX + body + checksum(body.encode())
    return key, _record_of(key)


def read_key(key: str) -> KeyRecord | None:
    """Returns what would be kept of a presented key; None if it cannot be one of ours."""
    if len(key) != _KEY_LENGTH or not key.startswith(KEY_PREFIX) or not key.isascii():
        return None
    body = key[len(KEY_PREFIX) : _CHECKSUM_AT]
    if not body.isalnum() or checksum(body.encode()) != key[_CHECKSUM_AT:]:
        return None
    return _record_of(key)


def _record_of(key: str) -> KeyRecord:
    digest = urlsafe_b64encode(hashlib.sha256(key[_SECRET_AT:_CHECKSUM_AT].encode()).digest())
    return KeyRecord(key[len(KEY_PREFIX) : _SECRET_AT], digest.rstrip(b"=").decode())


@dataclass(frozen=True, slots=True)
class UriPattern:
    """Names in certificates such as `spiffe://example.org/ns/prod/sa/web`; a `*` is any one segment of the path."""

    text: str

    def __post_init__(self) -> None:
        matched = _URI.fullmatch(self.text)
        # A * elsewhere would seem to mean more than it does; an authority is never left open.
        if not matched or any(_ANY in part and part != _ANY for part in (matched[3] or "").split("/")):
            raise ValueError("a URI has a scheme, an authority and a path, and a * stands for a whole segment of it")

    def matches(self, uri: str) -> bool:
        """Whether a name in a certificate is one of these."""
        return _match(self.text.split("/"), uri.split("/"))


@dataclass(frozen=True, slots=True)
class DnsPattern:
    """Names in certificates such as `web.example.org`; a `*` is any one label of it."""

    text: str

    def __post_init__(self) -> None:
        labels = self.text.split(".")
        if not all(map(_LABEL.fullmatch, labels)) or _ANY in labels[-2:]:
            raise ValueError("a DNS name is in lower case, and a * stands for a whole label, not the last two")

    def matches(self, name: str) -> bool:
        """Whether a name in a certificate is one of these."""
        return _match(self.text.split("."), name.lower().split("."))


def _match(pattern: Sequence[str], parts: Sequence[str]) -> bool:
    return len(pattern) == len(parts) and all(
        # A part of the name in a certificate may itself be a *, which is not one name.
        (part not in ("", _ANY)) if expected == _ANY else part == expected
        for expected, part in zip(pattern, parts, strict=True)
    )


Credential: TypeAlias = KeyRecord | UriPattern | DnsPattern


@dataclass(frozen=True, slots=True)
class Entry:
    """A credential and the caller it stands for. Its roles are those that this credential gives."""

    caller: Caller
    credential: Credential
    created: str = ""
    """When it was made, as its line says."""


class Callers:
    """All callers there are. Of several entries for a certificate, the first counts."""

    def __init__(self, entries: Sequence[Entry] = ()) -> None:
        keys: dict[str, tuple[KeyRecord, Caller]] = {}
        self._patterns: list[tuple[UriPattern | DnsPattern, Caller]] = []
        for entry in entries:
            if isinstance(entry.credential, KeyRecord):
                if entry.credential.key_id in keys:
                    raise ValueError(f"two keys have the id {entry.credential.key_id}")
                keys[entry.credential.key_id] = entry.credential, entry.caller
            else:
                self._patterns.append((entry.credential, entry.caller))
        self._keys: Mapping[str, tuple[KeyRecord, Caller]] = MappingProxyType(keys)

    def with_key(self, key: str) -> Caller | None:
        """Returns the caller with this key; None if no caller has it, or it is not a key at all."""
        presented = read_key(key)
        if presented is None:
            return None
        kept, caller = self._keys.get(presented.key_id, (None, None))
        # In constant time: the id may be known, so the time must not show how much of the digest is right.
        if kept is None or not hmac.compare_digest(kept.digest, presented.digest):
            return None
        return caller

    def with_certificate(self, uris: Sequence[str], dns_names: Sequence[str]) -> Caller | None:
        """Returns the caller whose certificate has these names; None if there is none."""
        for pattern, caller in self._patterns:
            if any(map(pattern.matches, uris if isinstance(pattern, UriPattern) else dns_names)):
                return caller
        return None
