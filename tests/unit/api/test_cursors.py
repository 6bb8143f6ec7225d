"""Cursors: opaque, and made-up ones are refused."""

import pytest
from hypothesis import given, strategies as st

from catraca_server.api.cursors import read_cursor, write_cursor
from catraca_server.domain.errors import InvalidRequest
from catraca_server.domain.events import EntryId, Position

NUMBERS = st.integers(0, 2**64 - 1)


@given(st.binary(min_size=8, max_size=8), NUMBERS, NUMBERS)
def test_a_cursor_is_read_as_it_was_written(epoch: bytes, ms: int, number: int) -> None:
    """Whatever the position."""
    position = Position(epoch, EntryId(ms, number))
    assert read_cursor(write_cursor(position)) == position


GOOD = write_cursor(Position(b"12345678", EntryId(5, 6)))


@pytest.mark.parametrize("text", ["x", "é", GOOD[:-4], GOOD + "AAAA", GOOD + GOOD, "A" * len(GOOD), " " + GOOD])
def test_what_was_not_written_is_refused(text: str) -> None:
    """With the field that it is in."""
    with pytest.raises(InvalidRequest) as caught:
        read_cursor(text)
    assert [each.field for each in caught.value.violations] == ["start.cursor"]


@given(st.integers(0, len(GOOD) - 1), st.sampled_from("ABab01_-"))
def test_a_changed_one_is_refused(at: int, character: str) -> None:
    """A single character is enough."""
    changed = GOOD[:at] + character + GOOD[at + 1 :]
    if changed != GOOD:
        with pytest.raises(InvalidRequest):
            read_cursor(changed)
