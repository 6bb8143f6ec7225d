"""The status of each exception, and what it must not reveal."""

import logging

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from catraca.v1.error_reason_pb2 import ErrorReason
from catraca_server.api.statuses import status_of
from catraca_server.domain.errors import (
    EtagMismatch,
    InvalidRequest,
    SessionLimitReached,
    SessionNotFound,
    TokenInUse,
    TokenReused,
    Violation,
)
from catraca_server.store import NotDurable, Overloaded, StoreProblem, StoreUnavailable

SECRET = "ctr_this-must-not-be-shown"
MAX_TRAILERS = 8192


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (InvalidRequest(Violation("token", "must be set")), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        (InvalidRequest(), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        (SessionNotFound(SECRET), grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND"),
        (TokenInUse(SECRET), grpc.StatusCode.ALREADY_EXISTS, "TOKEN_IN_USE"),
        (SessionLimitReached(SECRET), grpc.StatusCode.RESOURCE_EXHAUSTED, "SESSION_LIMIT_REACHED"),
        (TokenReused(SECRET), grpc.StatusCode.FAILED_PRECONDITION, "TOKEN_REUSED"),
        (EtagMismatch(SECRET), grpc.StatusCode.ABORTED, "ETAG_MISMATCH"),
        (NotDurable(SECRET), grpc.StatusCode.UNAVAILABLE, "NOT_DURABLE"),
        *(
            (StoreUnavailable(SECRET, problem), grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
            for problem in StoreProblem
        ),
        (Overloaded(SECRET), grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"),
        (KeyError(SECRET), grpc.StatusCode.INTERNAL, "INTERNAL"),
    ],
)
def test_each_exception_has_its_status(
    error: Exception, code: grpc.StatusCode, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It has the code, the reason and a helpful message; nothing of the exception's own text, also not in the log."""
    with caplog.at_level(logging.DEBUG):
        made = status_of(error)
    assert made.code is code
    ((key, value),) = made.trailing_metadata
    assert key == "grpc-status-details-bin"
    status = Status.FromString(value)
    assert (status.code, status.message) == (code.value[0], made.message)
    info = ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.domain, info.reason) == ("catraca", reason)
    assert f"ERROR_REASON_{reason}" in ErrorReason.keys()  # noqa: SIM118  it is not a dict
    assert len(made.message) > 10
    assert SECRET not in made.message
    assert SECRET.encode() not in value
    assert SECRET not in caplog.text


def test_each_problem_of_the_store_has_its_message() -> None:
    """A full store, one that is down and one that is slow need different remedies."""
    messages = {status_of(StoreUnavailable(SECRET, problem)).message for problem in StoreProblem}
    assert len(messages) == len(StoreProblem)


def test_a_defect_is_logged_with_the_place_it_happened() -> None:
    """INTERNAL says nothing to the caller, so the log has to say where it happened."""
    with pytest.MonkeyPatch.context() as patch:
        logged: list[str] = []
        patch.setattr("catraca_server.api.statuses.logger.critical", lambda text, *args: logged.append(text % args))
        try:
            {"": 0}[SECRET]
        except KeyError as error:
            status_of(error)
    assert "KeyError" in logged[0]
    assert "test_statuses.py" in logged[0]
    assert SECRET not in logged[0].replace("[SECRET]", "")


def test_each_violation_names_its_field() -> None:
    """BadRequest has the field paths and the rules."""
    made = status_of(InvalidRequest(Violation("user_id", "must be set"), Violation("requests[3].token", "must be set")))
    status = Status.FromString(made.trailing_metadata[0][1])
    bad_request = BadRequest()
    assert status.details[1].Unpack(bad_request)
    assert [each.field for each in bad_request.field_violations] == ["user_id", "requests[3].token"]


def test_details_stay_below_what_clients_accept() -> None:
    """A batch with 1,000 violations names the first of them; trailers over 8 KiB would lose the status."""
    made = status_of(InvalidRequest(*(Violation(f"requests[{at}].token", "must be set") for at in range(1000))))
    assert len(made.message) + len(made.trailing_metadata[0][1]) * 4 / 3 < MAX_TRAILERS
    assert "984 more" in made.message


def test_overload_says_when_to_retry() -> None:
    """RetryInfo has a delay."""
    status = Status.FromString(status_of(Overloaded()).trailing_metadata[0][1])
    retry_info = RetryInfo()
    assert status.details[1].Unpack(retry_info)
    assert retry_info.retry_delay.ToMilliseconds() > 0
