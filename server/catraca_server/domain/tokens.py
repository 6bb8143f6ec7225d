"""Tokens: minting them, recognising them, and what the store may know of them. No I/O; entropy is an argument.

A minted token is ``ctr_`` and 71 base62 characters, so that a double-click selects all of it:

====== ========= ============================================================
offset length    what
====== ========= ============================================================
0      4         ``ctr_``
4      22        the session id, 128 random bits: public, safe to log
26     43        the secret, 256 random bits
69     6         CRC-32 of the 65 characters before it
====== ========= ============================================================

Length, alphabet and checksum are fixed, so what cannot be one of ours is refused without asking the store, and secret
scanners can find one that leaked. A token may also be *brought* by the caller, for example a JWT that users already
hold: then its session id derives from its digest.

The store keeps a digest of the secret (of a brought token: of all of it) and never the secret: SHA-256 suffices for 256
random bits. A brought token may have less entropy, which is what the pepper is for: a key from outside the store, so
that a dump of the store alone does not let anybody search for tokens offline.
"""

import hashlib
import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass, field

from catraca_server.domain.encoding import (
    CHECKSUM_LENGTH,
    ID_BITS,
    ID_LENGTH,
    SECRET_BITS,
    SECRET_LENGTH,
    base62,
    checksum,
    is_id,
)

MINTED_PREFIX = "ctr_"
BROUGHT_MIN_LENGTH = 16
BROUGHT_MAX_LENGTH = 4096

_SALT_BITS = 128
_ID_AT = len(MINTED_PREFIX)
_SECRET_AT = _ID_AT + ID_LENGTH
_CHECKSUM_AT = _SECRET_AT + SECRET_LENGTH
_MINTED_LENGTH = _CHECKSUM_AT + CHECKSUM_LENGTH

Entropy = Callable[[int], bytes]
"""Returns a given number of unpredictable bytes: `secrets.token_bytes`, except in tests."""


@dataclass(slots=True)
class Credential:
    """What a token proves: knowledge of the secret with this hash, for the session with this id."""

    session_id: str
    secret_hash: bytes = field(repr=False)

    @property
    def digest(self) -> str:
        """The hash as a record holds it."""
        return urlsafe_b64encode(self.secret_hash).rstrip(b"=").decode()

    def opens(self, digest: str) -> bool:
        """Whether it proves the secret behind a stored digest. Constant time."""
        return self.proves(hash_of(digest))

    def proves(self, secret_hash: bytes) -> bool:
        """Whether it proves the secret with this hash. Constant time."""
        return hmac.compare_digest(self.secret_hash, secret_hash)


def hash_of(digest: str) -> bytes:
    """Returns the hash that a stored digest stands for. What is not a digest stands for none, and nothing proves it."""
    try:
        secret_hash = urlsafe_b64decode(digest + "=")
    except ValueError:
        return b""
    # Decoding skips characters outside the alphabet, and ignores the last two bits.
    return secret_hash if Credential("", secret_hash).digest == digest else b""


class Tokens:
    """Mints and reads tokens. `pepper`, if given, keys every digest; another pepper ends all sessions."""

    def __init__(self, entropy: Entropy, pepper: bytes | None = None) -> None:
        self._entropy = entropy
        # Made once: copying it costs half as much as keying it for each digest.
        self._peppered = None if pepper is None else hmac.new(pepper, digestmod=hashlib.sha256)

    def mint(self) -> str:
        """Returns a new minted token."""
        session_id = base62(int.from_bytes(self._entropy(ID_BITS // 8)), ID_LENGTH)
        return _minted(session_id, int.from_bytes(self._entropy(SECRET_BITS // 8)))

    def salt(self) -> str:
        """Returns a new salt for `renew`."""
        return base62(int.from_bytes(self._entropy(_SALT_BITS // 8)), ID_LENGTH)

    def renew(self, token: str, salt: str) -> str:
        """Returns the token that follows `token` in the same session: always the same for the same token and salt.

        Neither the salt, which the store keeps for a while, nor the old token yields the new one without the other.
        """
        credential = self.read(token)
        assert credential is not None, "a token that has opened a session"
        secret = token[_SECRET_AT:_CHECKSUM_AT] if token.startswith(MINTED_PREFIX) else token
        derived = hmac.digest(secret.encode(), b"catraca rotation\0" + salt.encode(), "sha256")
        return _minted(credential.session_id, int.from_bytes(derived))

    def read(self, token: str) -> Credential | None:
        """Returns what a presented token proves, or None if it can be neither minted nor brought."""
        if token.startswith(MINTED_PREFIX):
            if len(token) != _MINTED_LENGTH or not token.isascii():
                return None
            data = token.encode()
            body = data[_ID_AT:_CHECKSUM_AT]
            if not body.isalnum() or checksum(body) != token[_CHECKSUM_AT:]:
                return None
            return Credential(token[_ID_AT:_SECRET_AT], self._hash(data[_SECRET_AT:_CHECKSUM_AT]))
        if not _can_be_brought(token):
            return None
        # Two digests of one token: the id is public and must reveal nothing about what the record holds.
        derived = self._hash(b"catraca session id\0" + token.encode())
        return Credential(base62(int.from_bytes(derived[: ID_BITS // 8]), ID_LENGTH), self._hash(token.encode()))

    def _hash(self, data: bytes) -> bytes:
        if self._peppered is None:
            return hashlib.sha256(data).digest()
        peppered = self._peppered.copy()
        peppered.update(data)
        return peppered.digest()


def brought_token_fault(token: str) -> str | None:
    """Says what forbids bringing this token, or None if nothing does."""
    if token.startswith(MINTED_PREFIX):
        return f"must not start with {MINTED_PREFIX}, which marks tokens minted here"
    if not _can_be_brought(token):
        return f"must be {BROUGHT_MIN_LENGTH} to {BROUGHT_MAX_LENGTH} printable ASCII characters"
    return None


def is_session_id(text: str) -> bool:
    """Whether this can be a session id, so that nothing else ever becomes part of a key."""
    return is_id(text)


def _minted(session_id: str, secret: int) -> str:
    body = session_id + base62(secret, SECRET_LENGTH)
    return MINTED_PREFIX + body + checksum(body.encode())


def _can_be_brought(token: str) -> bool:
    return BROUGHT_MIN_LENGTH <= len(token) <= BROUGHT_MAX_LENGTH and token.isascii() and token.isprintable()
