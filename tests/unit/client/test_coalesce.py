"""Which validations leave together, and whose fault a failure is."""

from dataclasses import dataclass, field

import pytest

from catraca import _coalesce
from catraca._coalesce import (
    CALLS_AWAY,
    ENOUGH,
    MAX_BYTES,
    MAX_CALLS,
    PATIENCE_SECONDS,
    Departures,
    is_refused,
    own,
    tell,
)
from catraca.errors import CatracaError, FieldViolation, InvalidRequest, Overloaded
from catraca.v1 import session_service_pb2 as pb
from catraca_server.api.session_service import validation_violations


@dataclass(eq=False)
class Asking:
    """Somebody who waits."""

    request: bytes = b"t" * 20
    deadline: float = 100.0
    told: list[CatracaError] = field(default_factory=list)

    def fail(self, error: CatracaError) -> None:
        """Takes an error."""
        self.told.append(error)


def waiting(count: int) -> tuple[Departures[Asking], list[Asking]]:
    """Returns departures with so many that wait."""
    departures: Departures[Asking] = Departures()
    asking = [Asking() for _ in range(count)]
    for each in asking:
        departures.add(each)
    return departures, asking


def test_the_first_leaves_at_once_and_the_next_when_it_returns() -> None:
    """And whoever has left is not joined."""
    departures, (first,) = waiting(1)
    group = departures.next_group(0)
    assert group is not None
    assert group.members == [first]
    assert not departures.remove(first)
    others = [Asking(), Asking(deadline=200)]
    for each in others:
        departures.add(each)
    assert departures.next_group(PATIENCE_SECONDS / 2) is None
    departures.returned(group)
    group = departures.next_group(PATIENCE_SECONDS / 2)
    assert group is not None
    assert group.members == others
    assert departures.next_group(9) is None


def test_a_slow_call_is_overtaken_up_to_a_number() -> None:
    """So many calls are under way at most, however long they take."""
    departures, _ = waiting(1)
    now = 0.0
    for _ in range(CALLS_AWAY):
        assert departures.next_group(now) is not None
        departures.add(Asking())
        assert departures.next_look() in (now + PATIENCE_SECONDS, float("inf"))
        now += PATIENCE_SECONDS
    assert departures.next_group(now + 50) is None


def test_as_many_as_are_under_way_do_not_wait() -> None:
    """They leave beside that call, but not beside two, and only if they are enough."""
    departures, _ = waiting(ENOUGH + 2)
    departures.next_group(0)
    for _ in range(ENOUGH + 1):
        departures.add(Asking())
    assert departures.next_group(0) is None
    departures.add(Asking())
    group = departures.next_group(0)
    assert group is not None
    assert len(group.members) == ENOUGH + 2
    for _ in range(2 * ENOUGH + 4):
        departures.add(Asking())
    assert departures.next_group(0) is None
    departures, _ = waiting(1)
    departures.next_group(0)
    for _ in range(ENOUGH - 1):
        departures.add(Asking())
    assert departures.next_group(0) is None
    departures.add(Asking())
    assert departures.next_group(0) is not None


def test_who_gave_up_is_left_out() -> None:
    """After a cancellation or a deadline; if that is everybody, nothing is sent."""
    departures, asking = waiting(3)
    assert departures.remove(asking[0])
    asking[1].deadline = 5
    group = departures.next_group(5)
    assert group is not None
    assert group.members == asking[2:]
    assert list(departures.all()) == [asking[1], asking[2]], "who watches the deadline still finds it"
    departures, asking = waiting(1)
    assert departures.next_group(100) is None
    assert list(departures.all()) == asking


def test_a_batch_has_its_limits() -> None:
    """In requests and in bytes; one that is larger than all that leaves alone."""
    departures, asking = waiting(MAX_CALLS + 1)
    group = departures.next_group(0)
    assert group is not None
    assert group.members == asking[:MAX_CALLS]
    departures = Departures()
    large = [Asking(b"t" * (MAX_BYTES // 3)) for _ in range(4)]
    for each in large:
        departures.add(each)
    group = departures.next_group(0)
    assert group is not None
    assert len(group.members) == 2
    departures = Departures()
    departures.add(Asking(b"t" * (MAX_BYTES + 1)))
    assert departures.next_group(0) is not None


def test_whose_fault_it_is() -> None:
    """Violations name who broke a rule; without a name, or with a wrong one, it is everybody's."""
    error = InvalidRequest("requests[1].user_id: too long (INVALID_ARGUMENT)")
    error.violations = (FieldViolation("requests[1].user_id", "too long"),)
    asking = [Asking() for _ in range(3)]
    assert tell(error, asking) == [asking[0], asking[2]]
    (mine,) = asking[1].told
    assert isinstance(mine, InvalidRequest)
    assert mine.violations == (FieldViolation("user_id", "too long"),)
    for name in ("requests", "requests[7].token", "other"):
        error.violations = (FieldViolation(name, "wrong"),)
        asking = [Asking() for _ in range(3)]
        assert tell(error, asking) == []
        assert len({id(each.told[0]) for each in asking}) == 3


def test_ones_own_error() -> None:
    """Has all that the first had."""
    error = Overloaded("busy")
    error.reason = "OVERLOADED"
    error.__cause__ = ValueError("below")
    mine = own(error)
    assert mine is not error
    assert (type(mine), str(mine), mine.reason, mine.__cause__) == (Overloaded, "busy", "OVERLOADED", error.__cause__)


@pytest.mark.parametrize("length", [4096])
def test_a_full_batch_of_the_longest_requests_is_within_the_servers_limit(length: int) -> None:
    """The longest token and the longest user id, as often as a batch has room."""
    request = pb.ValidateSessionRequest(token="t" * length, user_id="u" * 256, skip_touch=True)
    batch = pb.BatchValidateSessionsRequest(requests=[request] * MAX_CALLS)
    assert batch.ByteSize() < _coalesce.MAX_BYTES < 8 << 20


@pytest.mark.parametrize("token", ["", "t", "t" * 5000])
@pytest.mark.parametrize(
    "user_id",
    [
        "",
        "12345",
        "u" * 256,
        "u" * 257,
        "é" * 128,
        "é" * 129,
        "1234\n",
        "\x00",
        "\x7f",
        "\x85",
        "a b",
        "\u200b",
        "\u2028",
        "日本",
    ],
)
def test_a_validation_that_the_service_refuses(token: str, user_id: str) -> None:
    """The client knows the same rules as the service."""
    assert is_refused(token, user_id) == bool(validation_violations(token, user_id))
