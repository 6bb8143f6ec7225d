"""Turns exceptions into statuses. This is the one place that does, so that no error ever says more than it should.

The texts are written here. An exception from below may hold a key or quote Redis, so its text never gets out. Only
InvalidRequest adds to the text: it holds nothing but field names and rules.
"""

import logging
import traceback
from collections.abc import Mapping
from types import MappingProxyType

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status as RpcStatus

from catraca.v1.error_reason_pb2 import ErrorReason
from catraca_server.api.call_ids import CallIds
from catraca_server.api.engine import Status
from catraca_server.domain.errors import (
    EtagMismatch,
    InvalidRequest,
    PermissionDenied,
    SessionLimitReached,
    SessionNotFound,
    Stopping,
    TokenInUse,
    TokenReused,
    Unauthenticated,
)
from catraca_server.store import NotDurable, Overloaded, StoreProblem, StoreUnavailable

logger = logging.getLogger(__name__)

DOMAIN = "catraca"
REASONS = tuple(name.removeprefix("ERROR_REASON_") for name, number in ErrorReason.items() if number)
"""Why calls fail, in the words of ErrorInfo."""
RETRY_DELAY = Duration(nanos=100_000_000)
VIOLATIONS_MAX = 16
"""Details travel in the trailers, which clients limit to 8 KiB; a batch can be wrong in 1,000 places."""


_STATUSES: Mapping[type[Exception], tuple[grpc.StatusCode, ErrorReason.ValueType, str]] = MappingProxyType(
    {
        SessionNotFound: (
            grpc.StatusCode.NOT_FOUND,
            ErrorReason.ERROR_REASON_SESSION_NOT_FOUND,
            "no such session: it never existed, has expired, or was revoked",
        ),
        TokenInUse: (
            grpc.StatusCode.ALREADY_EXISTS,
            ErrorReason.ERROR_REASON_TOKEN_IN_USE,
            "the token already names a live session: revoke that session first, or bring another token",
        ),
        SessionLimitReached: (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            ErrorReason.ERROR_REASON_SESSION_LIMIT_REACHED,
            "the user has as many sessions as this server allows: revoke one of them first",
        ),
        TokenReused: (
            grpc.StatusCode.FAILED_PRECONDITION,
            ErrorReason.ERROR_REASON_TOKEN_REUSED,
            "the token was rotated out and its grace is over, so its session has been revoked: log in again",
        ),
        EtagMismatch: (
            grpc.StatusCode.ABORTED,
            ErrorReason.ERROR_REASON_ETAG_MISMATCH,
            "the session has changed since that etag: read it again and decide anew",
        ),
        NotDurable: (
            grpc.StatusCode.UNAVAILABLE,
            ErrorReason.ERROR_REASON_NOT_DURABLE,
            "too few replicas of the session store acknowledged the change in time, so it may be lost or not: retry",
        ),
        Stopping: (
            grpc.StatusCode.UNAVAILABLE,
            ErrorReason.ERROR_REASON_STORE_UNAVAILABLE,
            "the server is stopping: open another stream, with the last cursor",
        ),
        Unauthenticated: (
            grpc.StatusCode.UNAUTHENTICATED,
            ErrorReason.ERROR_REASON_UNAUTHENTICATED,
            "this server does not know who calls: send a valid API key (authorization: Bearer KEY), or a certificate",
        ),
        Overloaded: (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            ErrorReason.ERROR_REASON_OVERLOADED,
            "the server has more work than it can answer in time: retry after the delay in RetryInfo",
        ),
    }
)

_SEE_LOG = "see the server's log for the reason"
_STORE_PROBLEMS: Mapping[StoreProblem, tuple[str, str]] = MappingProxyType(
    {
        StoreProblem.NOT_IN_TIME: ("did not answer in time", "retry"),
        StoreProblem.DISCONNECTED: ("closed the connection before it replied", "retry"),
        StoreProblem.CANNOT_CONNECT: ("cannot be reached", f"retry, and {_SEE_LOG}"),
        StoreProblem.REFUSED: ("refused the command", _SEE_LOG),
        StoreProblem.FULL: ("has reached its maxmemory", "raise it or free memory, then retry"),
        StoreProblem.READ_ONLY: ("accepts no writes at present", f"retry, and {_SEE_LOG}"),
        StoreProblem.NOT_PRIMARY: ("is no longer a primary", "retry, the new primary is being looked for"),
        StoreProblem.SLOT_UNCOVERED: ("has no node that serves the session's slot at present", "retry"),
        StoreProblem.NOT_REPLICATED: ("has the change on too few replicas", "retry"),
        StoreProblem.LOADING: ("is still loading its data", "retry"),
        StoreProblem.MALFORMED_REPLY: ("sent a reply that makes no sense", f"retry, and {_SEE_LOG}"),
        StoreProblem.SHUTTING_DOWN: ("is not used any more by this server, which is shutting down", "retry"),
    }
)
"""What is wrong with the session store, and what a caller can do."""


def status_of(error: Exception, ids: CallIds = CallIds()) -> Status:  # noqa: B008  it is immutable
    """Returns the status of an exception that ended a call, and logs it if it is a defect of ours."""
    if isinstance(error, InvalidRequest):
        return _invalid_request(error)
    for error_type, status in _STATUSES.items():
        if isinstance(error, error_type):
            details = [RetryInfo(retry_delay=RETRY_DELAY)] if error_type is Overloaded else []
            return _status(*status, *details)
    if isinstance(error, PermissionDenied):
        return _status(
            grpc.StatusCode.PERMISSION_DENIED,
            ErrorReason.ERROR_REASON_PERMISSION_DENIED,
            f"this needs the role {error.role.value}, which this caller does not have",
        )
    if isinstance(error, StoreUnavailable):
        what, remedy = _STORE_PROBLEMS[error.problem]
        message = f"the session store {what}, so nothing is known about the session: {remedy}"
        return _status(grpc.StatusCode.UNAVAILABLE, ErrorReason.ERROR_REASON_STORE_UNAVAILABLE, message)
    # Where it happened, but not the text of the exception: that may quote a request.
    where = "".join(traceback.format_tb(error.__traceback__))
    logger.critical("defect: %s%s\n%s", type(error).__name__, ids, where)
    return _status(
        grpc.StatusCode.INTERNAL,
        ErrorReason.ERROR_REASON_INTERNAL,
        "a defect of the server; its log has the details",
    )


def _invalid_request(error: InvalidRequest) -> Status:
    shown = error.violations[:VIOLATIONS_MAX]
    message = "; ".join(f"{each.field}: {each.description}" for each in shown)
    if hidden := len(error.violations) - len(shown):
        message += f"; and {hidden} more"
    bad_request = BadRequest(
        field_violations=[BadRequest.FieldViolation(field=each.field, description=each.description) for each in shown]
    )
    return _status(
        grpc.StatusCode.INVALID_ARGUMENT,
        ErrorReason.ERROR_REASON_INVALID_REQUEST,
        message or "the body is not a message of this RPC's request type",
        bad_request,
    )


def _status(code: grpc.StatusCode, reason: ErrorReason.ValueType, message: str, *details: Message) -> Status:
    info = ErrorInfo(reason=ErrorReason.Name(reason).removeprefix("ERROR_REASON_"), domain=DOMAIN)
    status = RpcStatus(code=code.value[0], message=message)
    for detail in (info, *details):
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return Status(code, message, (("grpc-status-details-bin", status.SerializeToString()),), info.reason)
