"""When a dead worker is replaced, and when the service gives up: decided without a clock."""

import pytest

from catraca_server.runtime.supervisor import CRASH_LIMIT, STABLE_AFTER_SECONDS, RestartPolicy

LONG, SHORT = STABLE_AFTER_SECONDS, STABLE_AFTER_SECONDS - 0.001


def test_the_first_death_has_no_delay() -> None:
    """A worker that dies for the first time is replaced at once, however long it has served."""
    assert RestartPolicy().delay_seconds(LONG) == 0
    assert RestartPolicy().delay_seconds(0) == 0


def test_deaths_in_a_row_are_a_crash_loop() -> None:
    """Each replacement waits longer than the one before it, and after the fifth death there is none."""
    policy = RestartPolicy()
    delays = [policy.delay_seconds(SHORT) for _ in range(CRASH_LIMIT)]
    assert delays == [0, 0.5, 1, 2, None]


@pytest.mark.parametrize("deaths", range(1, CRASH_LIMIT))
def test_stable_service_resets_the_count(deaths: int) -> None:
    """The death of a worker that has served for long enough counts as a first one."""
    policy = RestartPolicy()
    for _ in range(deaths):
        policy.delay_seconds(SHORT)
    assert policy.delay_seconds(LONG) == 0
    assert policy.delay_seconds(SHORT) == 0.5


def test_a_death_a_day_is_not_a_crash_loop() -> None:
    """However many there have been."""
    policy = RestartPolicy()
    assert {policy.delay_seconds(86_400) for _ in range(1000)} == {0}
