"""Which exception a status becomes, and what is read from its details."""

from datetime import timedelta

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from catraca import errors


def trailers(*details: ErrorInfo | BadRequest | RetryInfo) -> list[tuple[str, str | bytes]]:
    """Returns trailing metadata that carries details."""
    status = Status()
    for each in details:
        packed = AnyMessage()
        packed.Pack(each)
        status.details.append(packed)
    return [("other", "text"), ("grpc-status-details-bin", status.SerializeToString())]


@pytest.mark.parametrize(
    ("code", "error_type"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidRequest),
        (grpc.StatusCode.NOT_FOUND, errors.SessionNotFound),
        (grpc.StatusCode.ALREADY_EXISTS, errors.TokenInUse),
        (grpc.StatusCode.UNAUTHENTICATED, errors.NotAllowed),
        (grpc.StatusCode.PERMISSION_DENIED, errors.NotAllowed),
        (grpc.StatusCode.UNAVAILABLE, errors.Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.Unavailable),
        (grpc.StatusCode.CANCELLED, errors.Unavailable),
        (grpc.StatusCode.INTERNAL, errors.UnexpectedAnswer),
        (grpc.StatusCode.UNIMPLEMENTED, errors.UnexpectedAnswer),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.UnexpectedAnswer),
        (grpc.StatusCode.FAILED_PRECONDITION, errors.UnexpectedAnswer),
        (grpc.StatusCode.ABORTED, errors.UnexpectedAnswer),
    ],
)
def test_each_status_has_its_exception(code: grpc.StatusCode, error_type: type[errors.CatracaError]) -> None:
    """Also without any details, as when a proxy answers."""
    error = errors.from_status(code, None, ())
    assert type(error) is error_type
    assert error.reason is None
    assert code.name in str(error)


@pytest.mark.parametrize(
    ("code", "reason", "error_type"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "SESSION_LIMIT_REACHED", errors.SessionLimitReached),
        (grpc.StatusCode.FAILED_PRECONDITION, "TOKEN_REUSED", errors.TokenReused),
        (grpc.StatusCode.ABORTED, "ETAG_MISMATCH", errors.EtagMismatch),
        (grpc.StatusCode.FAILED_PRECONDITION, "OF_A_LATER_SERVER", errors.UnexpectedAnswer),
        (grpc.StatusCode.ABORTED, "OF_A_LATER_SERVER", errors.UnexpectedAnswer),
    ],
)
def test_what_only_the_reason_tells(code: grpc.StatusCode, reason: str, error_type: type[errors.CatracaError]) -> None:
    """Where a status can mean many things, the reason decides; one that is not known is not guessed at."""
    error = errors.from_status(code, "so it is", trailers(ErrorInfo(domain="catraca", reason=reason)))
    assert type(error) is error_type
    assert error.reason == reason


def test_the_reason_is_told() -> None:
    """The stable reason is an attribute and in the text."""
    info = ErrorInfo(domain="catraca", reason="STORE_UNAVAILABLE")
    error = errors.from_status(grpc.StatusCode.UNAVAILABLE, "no answer", trailers(info))
    assert error.reason == "STORE_UNAVAILABLE"
    assert str(error) == "no answer (UNAVAILABLE, STORE_UNAVAILABLE)"


def test_overload_is_a_kind_of_unavailable() -> None:
    """Who handles "unknown, retry" handles overload too, and learns when."""
    details = trailers(
        ErrorInfo(domain="catraca", reason="OVERLOADED"), RetryInfo(retry_delay=Duration(nanos=100_000_000))
    )
    error = errors.from_status(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", details)
    assert isinstance(error, errors.Overloaded)
    assert isinstance(error, errors.Unavailable)
    assert error.retry_delay == timedelta(milliseconds=100)


def test_violations_are_read() -> None:
    """Field and rule of each violation."""
    bad_request = BadRequest(field_violations=[BadRequest.FieldViolation(field="ttl", description="must be positive")])
    error = errors.from_status(grpc.StatusCode.INVALID_ARGUMENT, "ttl: must be positive", trailers(bad_request))
    assert isinstance(error, errors.InvalidRequest)
    assert error.violations == (errors.FieldViolation("ttl", "must be positive"),)


def test_details_that_cannot_be_read_are_left_out() -> None:
    """Whatever comes in the trailers, the caller gets the exception of the status."""
    for value in (b"\xff\xff", "no bytes"):
        error = errors.from_status(grpc.StatusCode.UNAVAILABLE, "x", [("grpc-status-details-bin", value)])
        assert type(error) is errors.Unavailable
