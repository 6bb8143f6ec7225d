"""A user's sessions as a table, one line per session."""

import json
from collections.abc import Iterator, Mapping, Sequence

from catraca import Session
from catraca.cli import text

_HEADS = ("SESSION", "LOGIN", "ACTIVE", "EXPIRES")
_GAP = "  "
_SHORTEST = 8
"""How many columns of a long value are shown at least; fewer would say nothing."""


def lines(sessions: Sequence[Session], terminal: int | None) -> Iterator[str]:
    """Yields the lines of the table, each at most as wide as the terminal if there is one."""
    rows = [_HEADS, *(_row(session) for session in sessions)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = None if terminal is None else terminal - sum(widths) - len(_GAP) * len(widths)
    last_column = ["ATTRIBUTES", *(_attributes(session.attributes, room) for session in sessions)]
    for row, last in zip(rows, last_column, strict=True):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        line = _GAP.join((*cells, last)).rstrip()
        yield line if terminal is None else text.cut(line, terminal)


def _row(session: Session) -> tuple[str, str, str, str]:
    return (
        session.session_id,
        text.distance(session.create_time),
        text.distance(session.last_active_time),
        text.distance(session.expire_time),
    )


def _attributes(attributes: Mapping[str, str], room: int | None) -> str:
    """Returns attributes on one line. If there is too little room, the longest values are cut."""
    pairs = [(f"{_quoted(key)}=", _quoted(value)) for key, value in sorted(attributes.items())]
    if room is not None:
        for_values = room - sum(text.width(key) + 1 for key, _ in pairs) + 1
        longest = _share(for_values, sorted(text.width(value) for _, value in pairs))
        pairs = [(key, text.cut(value, longest)) for key, value in pairs]
    return " ".join(f"{key}{value}" for key, value in pairs)


def _quoted(written: str) -> str:
    """Returns a key or value, in quotes if it could be mistaken for several."""
    if written.isprintable() and not set(written) & set(' ="\\'):
        return written
    return text.visible(json.dumps(written, ensure_ascii=False))


def _share(room: int, widths: Sequence[int]) -> int:
    """Returns how wide a value may be if all are to fit; `widths` is sorted, and narrow ones leave room."""
    for at, width in enumerate(widths):
        share = room // (len(widths) - at)
        if width > share:
            return max(share, _SHORTEST)
        room -= width
    return max(widths, default=0)
