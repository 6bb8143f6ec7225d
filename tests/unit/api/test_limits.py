"""How much a caller may do: calls at a time and calls a second, by a clock that the test moves."""

import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status as RpcStatus
from grpc import StatusCode

from catraca_server.api.engine import StatusError
from catraca_server.api.limits import CallerLimits
from catraca_server.domain.call import Caller

WEB, OPS = Caller("web"), Caller("ops")


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:  # noqa: D102  it is a clock
        return self.seconds


def admitted(limits: CallerLimits, caller: Caller, calls: int) -> int:
    """Begins so many calls and returns how many were let in."""
    count = 0
    for _ in range(calls):
        try:
            limits.admit(caller)
        except StatusError:
            continue
        count += 1
    return count


def test_calls_at_a_time() -> None:
    """So many of each caller, by whatever credential; one that is over makes room for one."""
    limits = CallerLimits(max_calls=3, max_rate=0, now=Clock())
    over = limits.admit(WEB)
    assert admitted(limits, Caller("web"), 5) == 2
    assert admitted(limits, OPS, 5) == 3
    over()
    assert admitted(limits, WEB, 5) == 1


def test_calls_a_second() -> None:
    """What was not used is saved for a second, and no longer; who is refused loses nothing by it."""
    clock = Clock()
    limits = CallerLimits(max_calls=0, max_rate=10, now=clock)
    assert admitted(limits, WEB, 50) == 10
    assert admitted(limits, OPS, 50) == 10
    for _ in range(10):
        clock.seconds += 0.05
        admitted(limits, WEB, 1)
    assert admitted(limits, WEB, 50) == 0
    clock.seconds += 0.5
    assert admitted(limits, WEB, 50) == 5
    clock.seconds += 3600
    assert admitted(limits, WEB, 50) == 10


def test_who_is_over_the_calls_at_a_time_loses_no_rate() -> None:
    """And who is over the rate has no call in flight."""
    clock = Clock()
    limits = CallerLimits(max_calls=2, max_rate=3, now=clock)
    ends = [limits.admit(WEB), limits.admit(WEB)]
    assert admitted(limits, WEB, 50) == 0
    for end in ends:
        end()
    assert admitted(limits, WEB, 50) == 1
    clock.seconds += 1
    assert admitted(limits, WEB, 50) == 1, "one is still in flight"


def test_the_refusal_says_when_to_come_again() -> None:
    """RESOURCE_EXHAUSTED, OVERLOADED, with RetryInfo."""
    limits = CallerLimits(max_calls=1, max_rate=0, now=Clock())
    limits.admit(WEB)
    with pytest.raises(StatusError) as caught:
        limits.admit(WEB)
    assert caught.value.status.code is StatusCode.RESOURCE_EXHAUSTED
    ((_, details),) = caught.value.status.trailing_metadata
    assert isinstance(details, bytes)
    packed = RpcStatus.FromString(details).details
    info, retry = ErrorInfo(), RetryInfo()
    assert packed[0].Unpack(info)
    assert packed[1].Unpack(retry)
    assert info.reason == "OVERLOADED"
    assert retry.retry_delay.ToMilliseconds() > 0
