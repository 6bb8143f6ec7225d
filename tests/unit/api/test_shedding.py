"""Which share of a connection's calls is let in, and what is kept for it."""

import math
from collections.abc import Iterator

import pytest

from catraca_server.api.engine.shedding import Shedding

LIMIT = 16


class Kept:
    """A call of the core that knows when nobody has it any more."""

    def __init__(self, connection: str, alive: set[int]) -> None:
        self._connection = connection.encode()
        self._alive = alive
        alive.add(id(self))

    def __del__(self) -> None:
        self._alive.discard(id(self))

    def peer(self) -> bytes:
        """Names its connection."""
        return self._connection


@pytest.fixture
def alive() -> set[int]:
    """The calls that somebody has."""
    return set()


@pytest.fixture
def shedding() -> Iterator[Shedding]:
    """One whose connections may have LIMIT calls in flight."""
    shedding = Shedding(LIMIT)
    yield shedding
    shedding.close()


def look(
    shedding: Shedding, *, slots_ran_out: bool = True, answered: int = 0, seconds_left: float = 1.0, left: int = 0
) -> None:
    """Lets calls end, and has it look."""
    shedding.slots_ran_out = slots_ran_out
    for _ in range(answered):
        shedding.on_answered(Kept("somewhere", set()), seconds_left)
    for _ in range(left):
        shedding.on_end(-0.1)
    shedding.look(0.125)


def answer(shedding: Shedding, connection: str, alive: set[int], calls: int) -> None:
    """Has calls of a connection end with an answer."""
    for _ in range(calls):
        shedding.on_answered(Kept(connection, alive), 1.0)


def test_with_free_slots_all_are_let_in(shedding: Shedding, alive: set[int]) -> None:
    """However many leave: who has a slot waits for nobody. Nothing is kept."""
    look(shedding, slots_ran_out=False, answered=10, left=100)
    assert shedding.let_in == LIMIT
    answer(shedding, "a", alive, 100)
    assert not alive


def test_without_slots_half_is_let_in(shedding: Shedding, alive: set[int]) -> None:
    """As many calls as that are kept, of each connection for itself."""
    look(shedding, answered=100)
    assert shedding.let_in == LIMIT / 2
    answer(shedding, "a", alive, 100)
    assert len(alive) == LIMIT / 2
    answer(shedding, "b", alive, 3)
    assert len(alive) == LIMIT / 2 + 3


def test_while_callers_leave_it_is_halved(shedding: Shedding) -> None:
    """Down to one call, and then to none every other time."""
    seen = []
    for _ in range(7):
        look(shedding, answered=40, left=60)
        seen.append(shedding.let_in)
    assert seen == [8, 4, 2, 1, 0, 1, 0]


def test_how_long_it_lets_in_fewer(shedding: Shedding) -> None:
    """From the look that finds callers late until half of the limit is let in again; not while slots merely run out."""
    look(shedding, answered=100)
    look(shedding, answered=100)
    assert shedding.seconds == 0
    look(shedding, answered=40, left=60)
    assert shedding.seconds == 0
    looks = 0
    while shedding.let_in < LIMIT / 2:
        look(shedding, answered=100)
        looks += 1
    assert shedding.seconds == looks * 0.125
    look(shedding, answered=100)
    assert shedding.seconds == looks * 0.125


def test_where_none_was_let_in_one_is_again(shedding: Shedding, alive: set[int]) -> None:
    """Though no answer came in the meantime, and nobody is forgotten for that."""
    for _ in range(5):
        look(shedding, left=100)
        answer(shedding, "a", alive, LIMIT)
    assert shedding.let_in == 0
    assert len(alive) == LIMIT
    look(shedding)
    assert shedding.let_in == 1
    assert len(alive) == LIMIT - 1


def test_answers_at_the_last_moment_count_as_well(shedding: Shedding) -> None:
    """Their callers have waited for so long that those behind them will leave."""
    seen = []
    for seconds_left in (0.2, 0.05, -0.05, math.inf):
        look(shedding, answered=100, seconds_left=seconds_left)
        seen.append(shedding.let_in)
    assert seen == [8, 4, 2, 2 * 1.05]


def test_who_leaves_early_does_not_count(shedding: Shedding) -> None:
    """They have reasons of their own."""
    for _ in range(3):
        for _ in range(100):
            shedding.on_end(1.0)
        look(shedding)
    assert shedding.let_in == LIMIT / 2


@pytest.mark.parametrize(("answered", "left"), [(50, 50), (0, 19), (100, 0), (0, 0)])
def test_a_few_who_leave_do_not_count(answered: int, left: int, shedding: Shedding) -> None:
    """Half of the callers, or a handful."""
    for _ in range(3):
        look(shedding, answered=answered, left=left)
    assert shedding.let_in == LIMIT / 2


def test_it_grows_again_slowly(shedding: Shedding, alive: set[int]) -> None:
    """To a half while slots run out, and to all once they do not: then everything is let go of."""
    for _ in range(4):
        look(shedding, left=100)
    answer(shedding, "a", alive, 100)
    assert len(alive) == LIMIT - 1
    looks = 0
    while shedding.let_in < LIMIT / 2:
        before = shedding.let_in
        look(shedding, answered=100)
        assert before < shedding.let_in <= before * 1.1
        looks += 1
    assert looks > 20
    look(shedding, answered=100)
    assert shedding.let_in == LIMIT / 2
    while shedding.let_in < LIMIT:
        look(shedding, slots_ran_out=False)
    answer(shedding, "a", alive, 1)
    assert not alive


def test_what_has_grown_lets_kept_calls_go(shedding: Shedding, alive: set[int]) -> None:
    """As it grows."""
    for _ in range(4):
        look(shedding, left=100)
    answer(shedding, "a", alive, 100)
    assert len(alive) == 15
    for _ in range(15):
        answer(shedding, "a", alive, 1)
        look(shedding, answered=100)
    assert len(alive) == LIMIT - 2


def test_a_connection_without_answers_is_forgotten(shedding: Shedding, alive: set[int]) -> None:
    """It may be closed, and what is kept of it would keep it in memory."""
    look(shedding)
    answer(shedding, "gone", alive, 5)
    answer(shedding, "here", alive, 5)
    look(shedding)
    answer(shedding, "here", alive, 1)
    assert len(alive) == 5 + 6
    look(shedding)
    assert len(alive) == 6


def test_all_of_them_together_keep_a_bounded_number(alive: set[int]) -> None:
    """However many connections there are and whatever their limit."""
    shedding = Shedding(250)
    look(shedding)
    for _ in range(10):
        for connection in range(500):
            answer(shedding, f"{connection}", alive, 1)
    assert 2_000 <= len(alive) <= 4_000
    shedding.close()
    assert not alive


def test_without_a_limit_nothing_is_kept(alive: set[int]) -> None:
    """All are let in."""
    shedding = Shedding(0)
    for _ in range(5):
        look(shedding, left=100)
        answer(shedding, "a", alive, 10)
    assert not alive
