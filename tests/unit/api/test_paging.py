"""Pages of a user's sessions: their size, and the token of the next one."""

import pytest
from hypothesis import example, given, strategies as st

from catraca_server.api.paging import PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX, page_size, read_page_token, write_page_token
from catraca_server.domain.errors import InvalidRequest
from catraca_server.store.attempts import SEQUENCE_LIMIT

sequences = st.integers(0, SEQUENCE_LIMIT - 1)


def fields_refused(text: str, user_id: str) -> list[str]:
    """Returns the fields that the refusal of a page token names."""
    with pytest.raises(InvalidRequest) as caught:
        read_page_token(text, user_id)
    return [each.field for each in caught.value.violations]


@pytest.mark.parametrize(
    ("requested", "size"),
    [(0, PAGE_SIZE_DEFAULT), (1, 1), (PAGE_SIZE_MAX + 1, PAGE_SIZE_MAX), (2**31 - 1, PAGE_SIZE_MAX)],
)
def test_the_size_of_a_page(requested: int, size: int) -> None:
    """No size is the default one, and more than the largest is the largest."""
    assert page_size(requested) == size


def test_a_negative_size_is_refused() -> None:
    """It names the field."""
    with pytest.raises(InvalidRequest) as caught:
        page_size(-1)
    assert [each.field for each in caught.value.violations] == ["page_size"]


@given(sequences, st.text(max_size=50))
def test_a_page_token_is_read_as_it_was_written(before: int, user_id: str) -> None:
    """For the same user."""
    assert read_page_token(write_page_token(before, user_id), user_id) == before


@given(sequences, st.text(max_size=50), st.text(max_size=50))
def test_a_page_token_is_good_for_its_user_only(before: int, user_id: str, other_id: str) -> None:
    """Another user's is refused."""
    if user_id != other_id:
        assert fields_refused(write_page_token(before, user_id), other_id) == ["page_token"]


@given(st.text(max_size=40) | st.text("ABab01-_=", max_size=40))
def test_what_was_not_written_is_refused(text: str) -> None:
    """Nothing made up is a page token."""
    assert fields_refused(text, "12345") == ["page_token"]


@example(88147, 16, "+")  # another spelling of `-`
@given(sequences, st.integers(0, 23), st.characters(codec="ascii"))
def test_a_page_token_with_one_character_changed_is_refused(before: int, at: int, replacement: str) -> None:
    """Wherever it is."""
    token = write_page_token(before, "12345")
    changed = token[:at] + replacement + token[at + 1 :]
    if changed != token:
        assert fields_refused(changed, "12345") == ["page_token"]
