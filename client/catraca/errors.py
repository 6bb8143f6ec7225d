"""The exceptions of the client. All derive from `CatracaError`; only this module maps a status to an exception.

`Unavailable` means that nothing is known: retry, and never take it for an invalid session.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from catraca._model import InvalidReason

_DETAILS_KEY = "grpc-status-details-bin"


class CatracaError(Exception):
    """Any failure of a call. `reason` is the stable reason from the server, if it gave one."""

    reason: str | None = None


class SessionInvalid(CatracaError):
    """The token given to `require` is not valid."""

    def __init__(self, invalid_reason: InvalidReason) -> None:
        super().__init__(f"the session is not valid: {invalid_reason.name}")
        self.invalid_reason = invalid_reason


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field of the request and the rule it breaks."""

    field: str
    description: str


class InvalidRequest(CatracaError):
    """The request breaks a rule of the API. Repeating it unchanged does not help."""

    violations: tuple[FieldViolation, ...] = ()


class InvalidSetting(CatracaError, ValueError):
    """An argument or an environment variable of the client cannot be used. Raised when a client is made."""


class SessionNotFound(CatracaError):
    """No session has this id or token: it never existed, has expired, or was revoked."""


class TokenInUse(CatracaError):
    """The token that the caller brought already belongs to a live session."""


class SessionLimitReached(CatracaError):
    """The user has as many sessions as the service allows, and it rejects further ones."""


class TokenReused(CatracaError):
    """The token was rotated and its grace is over. Its session has just been revoked."""


class EtagMismatch(CatracaError):
    """The session has changed since it had that etag. Read it again, then decide."""


class NotAllowed(CatracaError):
    """The service does not know this caller, or does not allow it to do this."""


class Unavailable(CatracaError):
    """There was no answer, or none in time. Nothing is known, and repeating the call is safe."""


class UnusableAfterFork(Unavailable):
    """This process was forked while gRPC was in use, so it cannot make calls. Retrying does not help.

    The text says what to do.
    """


class Overloaded(Unavailable):
    """The server has more work than it can do, and refused this call. Retry after `retry_delay`."""

    retry_delay: timedelta = timedelta(0)


class UnexpectedAnswer(CatracaError):
    """An answer that this client cannot interpret: a defect, or a server of a very different version."""


_BY_STATUS: Mapping[grpc.StatusCode, type[CatracaError]] = MappingProxyType(
    {
        grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
        grpc.StatusCode.NOT_FOUND: SessionNotFound,
        grpc.StatusCode.ALREADY_EXISTS: TokenInUse,
        grpc.StatusCode.UNAUTHENTICATED: NotAllowed,
        grpc.StatusCode.PERMISSION_DENIED: NotAllowed,
        grpc.StatusCode.UNAVAILABLE: Unavailable,
        grpc.StatusCode.DEADLINE_EXCEEDED: Unavailable,
        grpc.StatusCode.CANCELLED: Unavailable,
    }
)

# For these the status alone is not enough: proxies and later servers may send it for other reasons, and mistaking one
# of those for a reused token would log a user out.
_BY_REASON: Mapping[str, type[CatracaError]] = MappingProxyType(
    {
        "ETAG_MISMATCH": EtagMismatch,
        "OVERLOADED": Overloaded,
        "SESSION_LIMIT_REACHED": SessionLimitReached,
        "TOKEN_REUSED": TokenReused,
    }
)


def from_status(code: grpc.StatusCode, message: str | None, trailing_metadata: Iterable[Any]) -> CatracaError:
    """Returns the exception for an error status; `trailing_metadata` is pairs, as gRPC gives them."""
    details = _details(trailing_metadata)
    info = details.get(ErrorInfo)
    reason = info.reason if isinstance(info, ErrorInfo) else None
    error_type = _BY_REASON.get(reason or "") or _BY_STATUS.get(code, UnexpectedAnswer)
    error = error_type(f"{message or 'no message'} ({code.name}{f', {reason}' if reason else ''})")
    error.reason = reason
    match error, details.get(BadRequest), details.get(RetryInfo):
        case InvalidRequest(), BadRequest() as bad_request, _:
            error.violations = tuple(
                FieldViolation(each.field, each.description) for each in bad_request.field_violations
            )
        case Overloaded(), _, RetryInfo() as retry_info:
            error.retry_delay = retry_info.retry_delay.ToTimedelta()
    return error


def _details(trailing_metadata: Iterable[Any]) -> dict[type, object]:
    """Returns the details of a status by their type. Leaves out those that cannot be read."""
    found: dict[type, object] = {}
    for key, value in trailing_metadata:
        if key != _DETAILS_KEY or not isinstance(value, bytes):
            continue
        try:
            status = Status.FromString(value)
            for packed in status.details:
                for detail_type in (ErrorInfo, BadRequest, RetryInfo):
                    if packed.Is(detail_type.DESCRIPTOR):
                        found[detail_type] = detail_type.FromString(packed.value)
        except DecodeError:
            continue
    return found
