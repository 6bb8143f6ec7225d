"""How single values are shown to people: times, durations, and text from others."""

import unicodedata
from datetime import UTC, datetime, timedelta


def moment(time: datetime) -> str:
    """Returns a time as people read it: local, with how far away it is."""
    return f"{time.astimezone():%Y-%m-%d %H:%M:%S} ({distance(time)})"


def distance(time: datetime) -> str:
    """Returns how far away a time is, such as `3 h ago` or `in 25 min`."""
    ahead = time - datetime.now(UTC)
    return f"in {duration(ahead)}" if ahead > timedelta(0) else f"{duration(-ahead)} ago"


def duration(length: timedelta) -> str:
    """Returns a duration in its largest unit, such as `3 h`."""
    seconds = round(length.total_seconds())
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds} s"


def visible(text: str) -> str:
    r"""Returns text with an escape such as `\x1b` for each unprintable character, which may control a terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def width(text: str) -> int:
    """Returns how many columns of a terminal visible text takes."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF") for char in text)


def cut(text: str, most: int) -> str:
    """Returns text that takes at most `most` columns. It ends in `…` if it had to be cut."""
    if width(text) <= most:
        return text
    kept = text[:most]
    while kept and width(kept) >= most:
        kept = kept[:-1]
    return f"{kept}…"
