"""The values of settings as operators write them: parsed, or refused with a text that says what would be right.

Each reader takes text and raises ValueError with a sentence that begins with "must". No message quotes the text, which
may be a secret.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from catraca_server.domain.limits import format_duration

_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SWITCHES = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)


@dataclass(frozen=True, slots=True)
class Duration:
    """A duration, which operators write as `250ms`, `30s`, `15m`, `24h` or `30d`."""

    ms: int

    @classmethod
    def parse(cls, text: str) -> "Duration":
        """Reads a duration. Raises ValueError."""
        match = re.fullmatch(r"([0-9]{1,12})(ms|s|m|h|d)", text)
        if match is None:
            raise ValueError("must be a whole number and a unit, such as 250ms, 30s, 15m, 24h or 30d")
        return cls(int(match[1]) * _UNITS_MS[match[2]])

    def __str__(self) -> str:
        return format_duration(self.ms)

    @property
    def seconds(self) -> float:
        """The duration in seconds."""
        return self.ms / 1000


def duration(minimum: str, maximum: str) -> Callable[[str], Duration]:
    """Returns the reader of a duration within bounds."""
    shortest, longest = Duration.parse(minimum), Duration.parse(maximum)

    def parse(text: str) -> Duration:
        value = Duration.parse(text)
        if not shortest.ms <= value.ms <= longest.ms:
            raise ValueError(f"must be from {minimum} to {maximum}")
        return value

    return parse


def whole_number(minimum: int, maximum: int) -> Callable[[str], int]:
    """Returns the reader of a whole number within bounds."""

    def parse(text: str) -> int:
        # Longer numbers exceed every bound, and Python refuses the longest with an error text of its own.
        if not re.fullmatch(r"[0-9]{1,12}", text) or not minimum <= int(text) <= maximum:
            raise ValueError(f"must be a whole number from {minimum} to {maximum}")
        return int(text)

    return parse


def one_of(*choices: str) -> Callable[[str], str]:
    """Returns the reader of one of these words."""

    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return text

    return parse


def switch(text: str) -> bool:
    """Reads `true` or `false`, in any of the usual spellings."""
    if text.lower() not in _SWITCHES:
        raise ValueError("must be true or false")
    return _SWITCHES[text.lower()]


def short_text(max_bytes: int) -> Callable[[str], str]:
    """Returns the reader of text without control characters."""

    def parse(text: str) -> str:
        if len(text.encode()) > max_bytes or not text.isprintable():
            raise ValueError(f"must be at most {max_bytes} bytes of printable text")
        return text

    return parse


def expand_path(text: str) -> Path:
    """Reads a path; `~` at its beginning is a home directory."""
    if "\0" in text:
        raise ValueError("must be a path, which has no NUL bytes in it")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError("must be a path: the home directory that ~ stands for is not known") from None


def optional_path(text: str) -> Path | None:
    """Reads a path; `~` at its beginning is a home directory. None if there is none."""
    return expand_path(text) if text else None


def utf8(text: str) -> str:
    """Returns a text as it is. Raises ValueError if its bytes were not UTF-8, which no store accepts."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be UTF-8") from None
    return text
