"""Callers: what is a key, what is kept of it, and which caller the names in a certificate stand for."""

import hashlib
import secrets
from base64 import urlsafe_b64decode

import pytest

from catraca_server.domain.call import ANONYMOUS, Caller, Role
from catraca_server.domain.callers import Callers, DnsPattern, Entry, KeyRecord, UriPattern, new_key, read_key
from catraca_server.domain.tokens import Tokens

WEB, OPS = Caller("web", frozenset({Role.VALIDATE})), Caller("ops", frozenset({Role.ADMIN}))


def test_a_key_looks_like_one() -> None:
    """It begins with what scanners look for, a double-click selects it, and it is not a session token."""
    key, record = new_key(secrets.token_bytes)
    assert key.startswith("ctrk_")
    assert len(key) == 76
    assert key.isascii()
    assert key.replace("_", "").isalnum()
    assert key[5:27] == record.key_id
    assert read_key(key) == record
    token = Tokens(secrets.token_bytes).mint()
    assert read_key(token) is None
    assert read_key(f"ctrk_{token[4:]}") is not None, "they are laid out alike"


def test_what_is_kept_of_a_key_cannot_be_presented() -> None:
    """It is a hash of 256 random bits, which are all in the secret."""
    asked: list[int] = []

    def entropy(count: int) -> bytes:
        asked.append(count)
        return secrets.token_bytes(count)

    key, record = new_key(entropy)
    assert asked == [16, 32]
    assert key[27:70] not in repr(record)
    assert hashlib.sha256(key[27:70].encode()).digest() == urlsafe_b64decode(record.digest + "=")


def test_every_character_of_a_key_counts() -> None:
    """A key with one other character is not one, whichever it is."""
    key, _ = new_key(secrets.token_bytes)
    for at, char in enumerate(key):
        assert read_key(key[:at] + ("0" if char != "0" else "1") + key[at + 1 :]) is None
    for other in ("", key[:-1], f"{key}0", f" {key}", key.upper(), f"{key[:-1]}é", "ctrk_" + "é" * 71):
        assert read_key(other) is None


def test_whose_key_it_is() -> None:
    """Several keys may be one caller's at a time; a key with a known id and another secret is nobody's."""
    (first, kept_first), (second, kept_second), (unknown, _) = (new_key(secrets.token_bytes) for _ in range(3))
    callers = Callers([Entry(WEB, kept_first), Entry(WEB, kept_second)])
    assert callers.with_key(first) is callers.with_key(second) is WEB
    assert callers.with_key(unknown) is None
    assert callers.with_key("nonsense") is None
    forged, _ = new_key(lambda count: int.from_bytes(secrets.token_bytes(count)).to_bytes(count))
    with_known_id = KeyRecord(kept_first.key_id, read_key(forged).digest)  # type: ignore[union-attr]
    assert Callers([Entry(WEB, with_known_id)]).with_key(first) is None
    with pytest.raises(ValueError, match="two keys have the id"):
        Callers([Entry(WEB, kept_first), Entry(OPS, kept_first)])


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        (
            "spiffe://example.org/ns/prod/sa/web",
            ["spiffe://example.org/ns/prod/sa/web"],
            [
                *("spiffe://example.org/ns/prod/sa/web/", "spiffe://example.org/ns/prod/sa/webs"),
                *("spiffe://example.org.evil/ns/prod/sa/web", "spiffe://example.org/ns/prod/sa", "https://example.org"),
                "spiffe://EXAMPLE.org/ns/prod/sa/web",
            ],
        ),
        (
            "spiffe://example.org/ns/*/sa/web",
            ["spiffe://example.org/ns/prod/sa/web", "spiffe://example.org/ns/a.b/sa/web"],
            [
                *("spiffe://example.org/ns//sa/web", "spiffe://example.org/ns/a/b/sa/web"),
                *("spiffe://example.org/ns/*/sa/web", "spiffe://other.org/ns/prod/sa/web"),
            ],
        ),
        ("https://example.org", ["https://example.org"], ["https://example.org/", "http://example.org"]),
    ],
)
def test_uri_patterns(pattern: str, matching: list[str], others: list[str]) -> None:
    """A * is one whole segment of the path."""
    assert all(map(UriPattern(pattern).matches, matching))
    assert not any(map(UriPattern(pattern).matches, others))


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("web.example.org", ["web.example.org", "WEB.example.org"], ["a.web.example.org", "web.example.org."]),
        (
            "*.example.org",
            ["web.example.org"],
            ["example.org", "a.web.example.org", "*.example.org", ".example.org", "web.example.com"],
        ),
        ("a.*.example.org", ["a.b.example.org"], ["a.b.c.example.org", "b.b.example.org"]),
        ("localhost", ["localhost"], ["localhosts"]),
    ],
)
def test_dns_patterns(pattern: str, matching: list[str], others: list[str]) -> None:
    """A * is one whole label."""
    assert all(map(DnsPattern(pattern).matches, matching))
    assert not any(map(DnsPattern(pattern).matches, others))


@pytest.mark.parametrize(
    "text",
    [
        *("", "web", "spiffe:", "spiffe://", "spiffe://*/ns/web", "spiffe://*.example.org/web", "*://example.org/web"),
        *("spiffe://example.org/we*", "spiffe://example.org/**", "spiffe://example.org/a?b=*", "spiffe://a/b c"),
    ],
)
def test_what_is_no_uri_pattern(text: str) -> None:
    """What would leave the authority open, or seem to mean more than it does, is refused."""
    with pytest.raises(ValueError, match="a URI has"):
        UriPattern(text)


@pytest.mark.parametrize(
    "text", ["", "*", "*.org", "*.*", "web.*", "w*.example.org", "a..b", "Web.example.org", "a b.c"]
)
def test_what_is_no_dns_pattern(text: str) -> None:
    """What would let in half of the world is refused."""
    with pytest.raises(ValueError, match="a DNS name"):
        DnsPattern(text)


def test_whose_certificate_it_is() -> None:
    """The first entry counts. A pattern for one kind of name does not match the other."""
    callers = Callers([Entry(OPS, DnsPattern("a.example.org")), Entry(WEB, DnsPattern("*.example.org"))])
    assert callers.with_certificate([], ["a.example.org"]) is OPS
    assert callers.with_certificate([], ["x.test", "b.example.org"]) is WEB
    assert callers.with_certificate(["a.example.org"], []) is None
    assert Callers([Entry(WEB, UriPattern("a://b"))]).with_certificate([], ["a://b"]) is None


def test_roles_by_default() -> None:
    """A caller has none; that of an open server has all."""
    assert Caller("new").roles == frozenset()
    assert ANONYMOUS.roles == frozenset(Role)
