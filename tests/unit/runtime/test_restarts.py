"""When a dead worker is replaced, and when that is given up: decided without a clock."""

import pytest

from catraca_server.runtime.supervisor import CRASH_LIMIT, STEADY, Restarts

LONG, SHORT = STEADY, STEADY - 0.001


def test_the_first_death_costs_no_time() -> None:
    """However long the worker has served."""
    assert Restarts().pause(LONG) == 0
    assert Restarts().pause(0) == 0


def test_deaths_in_a_row_are_a_crash_loop() -> None:
    """Each replacement waits longer than the one before it, and the fifth death is the last."""
    restarts = Restarts()
    pauses = [restarts.pause(SHORT) for _ in range(CRASH_LIMIT)]
    assert pauses == [0, 0.5, 1, 2, None]


@pytest.mark.parametrize("deaths", range(1, CRASH_LIMIT))
def test_a_while_of_service_ends_the_row(deaths: int) -> None:
    """A worker that has served for a while is one that works: its death is a first one again."""
    restarts = Restarts()
    for _ in range(deaths):
        restarts.pause(SHORT)
    assert restarts.pause(LONG) == 0
    assert restarts.pause(SHORT) == 0.5


def test_a_death_a_day_is_no_crash_loop() -> None:
    """It is replaced for ever."""
    restarts = Restarts()
    assert {restarts.pause(86_400) for _ in range(1000)} == {0}
