"""Tokens: their format, what is refused without the store, and what the store may know."""

import base64
import hashlib
import re
import secrets
import string
import zlib
from itertools import count

import pytest
from hypothesis import example, given, strategies as st

from catraca_server.domain.tokens import Credential, Tokens, brought_token_fault, is_session_id

BASE62 = string.digits + string.ascii_letters
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NSJ9.c2lnbmF0dXJl"


def tokens(pepper: bytes | None = None) -> Tokens:
    """Returns tokens of real entropy."""
    return Tokens(secrets.token_bytes, pepper)


def test_a_minted_token_is_one_word_of_fixed_length() -> None:
    """`ctr_` and 71 letters and digits: a double-click selects it, and a scanner can find it."""
    for _ in range(200):
        assert re.fullmatch(r"ctr_[0-9A-Za-z]{71}", tokens().mint())


def test_minting_uses_all_the_entropy_it_asks_for() -> None:
    """128 bits make the id and 256 the secret: each bit of either changes the token."""
    sizes: list[int] = []

    def entropy_with(bit: int) -> Tokens:
        made = count()

        def entropy(size: int) -> bytes:
            sizes.append(size)
            # The bit counts over both draws: the first has 128, the second 256.
            at = bit - (0 if next(made) == 0 else 128)
            return (1 << at if 0 <= at < size * 8 else 0).to_bytes(size)

        return Tokens(entropy)

    minted = {entropy_with(bit).mint() for bit in range(128 + 256)}
    assert set(sizes) == {16, 32}
    assert len(minted) == 128 + 256


def test_a_minted_token_opens_its_own_session_only() -> None:
    """What is read from a token opens the digest of that token only."""
    one, other = tokens().mint(), tokens().mint()
    first, second = tokens().read(one), tokens().read(other)
    assert first is not None
    assert second is not None
    assert first.session_id in one
    assert first.opens(first.digest)
    assert not first.opens(second.digest)
    assert first.session_id != second.session_id


@given(at=st.integers(0, 74), replacement=st.characters(max_codepoint=0x2FF, exclude_categories=["Cs"]))
@example(at=10, replacement="é")
@example(at=10, replacement="²")
def test_one_wrong_character_is_noticed_without_the_store(at: int, replacement: str) -> None:
    """A minted token with one character changed, also to a letter or digit beyond ASCII, is never read as minted."""
    token = Tokens(lambda size: b"\x5a" * size).mint()
    if token[at] == replacement:
        return
    changed = token[:at] + replacement + token[at + 1 :]
    credential = tokens().read(changed)
    if changed.startswith("ctr_"):
        assert credential is None
    else:
        # Without the prefix it is as good as any brought token, and does not open the minted one's session.
        original = tokens().read(token)
        assert original is not None
        assert credential is None or credential.session_id != original.session_id


@given(
    st.text(max_size=100).map(lambda text: "ctr_" + text) | st.text(alphabet=BASE62, max_size=90).map("ctr_".__add__)
)
def test_nothing_made_up_is_read_as_minted(text: str) -> None:
    """Length, alphabet and checksum refuse what was not minted."""
    assert tokens().read(text) is None


@pytest.mark.parametrize("odd", ["-", " ", "\n", "\0", "é", "²", ":"])
def test_a_right_checksum_is_not_enough(odd: str) -> None:
    """Only letters and digits are minted: nothing else ever becomes part of a key, however well it was made up."""
    body = odd + "A" * (64 if odd.isascii() else 63)
    checksum = ""
    number = zlib.crc32(body.encode())
    for _ in range(6):
        number, digit = divmod(number, 62)
        checksum = (string.digits + string.ascii_uppercase + string.ascii_lowercase)[digit] + checksum
    assert tokens().read("ctr_" + body + checksum) is None
    assert tokens().read("ctr_" + body + "A" * (65 - len(body)) + checksum) is None


@pytest.mark.parametrize(
    ("token", "readable"),
    [
        ("x" * 15, False),
        ("x" * 16, True),
        ("x" * 4096, True),
        ("x" * 4097, False),
        ("with spaces inside", True),
        ("tabs\tare not printable", False),
        ("newlines\nare not printable", False),
        ("nul\0is not printable at all", False),
        ("del\x7fis not printable at all", False),
        ("ümlauts are not ASCII at all", False),
        ("", False),
        (JWT, True),
    ],
)
def test_what_can_be_brought(token: str, readable: bool) -> None:
    """16 to 4096 printable ASCII characters; the rule for bringing and for reading is the same."""
    assert (tokens().read(token) is not None) is readable
    assert (brought_token_fault(token) is None) is readable


def test_a_token_that_looks_minted_cannot_be_brought() -> None:
    """Its id would be chosen by the caller."""
    fault = brought_token_fault(tokens().mint())
    assert fault is not None
    assert "ctr_" in fault


def test_a_brought_token_always_names_the_same_session() -> None:
    """The id derives from the token, is the same on every server, and has the format of every id."""
    first, second = tokens().read(JWT), tokens().read(JWT)
    assert first == second
    assert first is not None
    assert is_session_id(first.session_id)


def test_the_public_id_tells_nothing_about_the_digest() -> None:
    """The id of a brought token is not a part of the digest in its record."""
    credential = tokens().read(JWT)
    assert credential is not None
    digest = base64.urlsafe_b64decode(credential.digest + "=")
    assert digest == hashlib.sha256(JWT.encode()).digest()
    number = int.from_bytes(digest[:16])
    assert credential.session_id != _base62(number)


def _base62(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, 62)
        digits = (string.digits + string.ascii_uppercase + string.ascii_lowercase)[digit] + digits
    return digits.rjust(22, "0")


def test_a_pepper_changes_every_digest() -> None:
    """With a pepper, neither the digest nor the id of a brought token can be computed from the token alone."""
    minted = tokens().mint()
    for token in (minted, JWT):
        plain, peppered, otherwise = (tokens(pepper).read(token) for pepper in (None, b"p" * 32, b"q" * 32))
        assert plain is not None
        assert peppered is not None
        assert otherwise is not None
        assert len({plain.digest, peppered.digest, otherwise.digest}) == 3
        ids = {plain.session_id, peppered.session_id, otherwise.session_id}
        assert len(ids) == (1 if token == minted else 3)


def test_secrets_stay_out_of_reprs() -> None:
    """A credential shows the session id and not what opens the session."""
    credential = tokens().read(JWT)
    assert credential is not None
    assert credential.digest not in repr(credential)
    assert credential.session_id in repr(credential)


@given(st.text())
@example("0" * 22 + "\n")
@example("²" * 22)
@example("session:other/../../key")
def test_only_an_id_is_an_id(text: str) -> None:
    """Nothing but 22 ASCII letters and digits ever becomes part of a key."""
    assert is_session_id(text) == bool(re.fullmatch(r"[0-9A-Za-z]{22}\Z", text, re.ASCII))


def test_credentials_compare_the_whole_digest() -> None:
    """A digest that is a part of the stored one, or longer, does not open it."""
    credential = Credential("id", bytes(range(32)))
    digest = credential.digest
    assert credential.opens(digest)
    others = (digest[:-1], digest + "A", digest + "=", digest.swapcase(), "", "?" + digest, digest[:-1] + "9", "a" * 43)
    assert not any(credential.opens(other) for other in others)
