"""How random bits become text that people can copy: base62, so that a double-click selects it, and a checksum.

Tokens and API keys are made of it. The code is written for speed, because every token that is read passes through here.
"""

import zlib

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]

ID_BITS, ID_LENGTH = 128, 22
SECRET_BITS, SECRET_LENGTH = 256, 43
CHECKSUM_LENGTH = 6


def base62(number: int, length: int) -> str:
    """Returns a number with `length` digits."""
    # Two digits at a time, for the ids of brought tokens.
    digits = ""
    for _ in range((length + 1) // 2):
        number, pair = divmod(number, 62 * 62)
        digits = _PAIRS[pair] + digits
    return digits[-length:]


def checksum(body: bytes) -> str:
    """Returns the CRC-32 of a text, which shows that it was mistyped or cut."""
    # It has 32 bits: six digits, three pairs.
    number = zlib.crc32(body)
    return _PAIRS[number // 62**4] + _PAIRS[number // 62**2 % 62**2] + _PAIRS[number % 62**2]


def is_id(text: str) -> bool:
    """Whether this can be the id in a token or a key."""
    return len(text) == ID_LENGTH and text.isascii() and text.isalnum()
