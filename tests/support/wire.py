"""Calls over the wire with the generated stubs, as the tests of the API make them."""

import contextlib
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status
from tests.support.service import ServeProcess
from tests.support.valkey import Valkey

from catraca.v1 import session_pb2, session_service_pb2 as pb
from catraca.v1.session_service_pb2_grpc import SessionServiceStub

TIMEOUT_SECONDS = 30
LIMIT_BYTES = 256
Refusal = tuple[grpc.StatusCode, str, list[str]]
INVALID = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
NOT_FOUND: Refusal = (grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND", [])
TOKEN_REUSED: Refusal = (grpc.StatusCode.FAILED_PRECONDITION, "TOKEN_REUSED", [])
LIMIT_REACHED: Refusal = (grpc.StatusCode.RESOURCE_EXHAUSTED, "SESSION_LIMIT_REACHED", [])
ETAG_MISMATCH: Refusal = (grpc.StatusCode.ABORTED, "ETAG_MISMATCH", [])
MAX_TTL = 30 * 86_400
NOBODY = "0" * 22
"""An id that no session has."""


@contextlib.contextmanager
def stub_of(target: str) -> Iterator[SessionServiceStub]:
    """Connects to a service, without retries."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.enable_retries", 0)]
    with grpc.insecure_channel(target, options) as channel:
        yield SessionServiceStub(channel)


@contextlib.contextmanager
def serving_stub(valkey: Valkey, **variables: str) -> Iterator[SessionServiceStub]:
    """Runs a service with these environment variables, and connects to it."""
    process = ServeProcess(variables, store_url=valkey.url, store_timeout="5s")
    with process, stub_of(process.target) as stub:
        yield stub


def seconds(number: float) -> Duration:
    """Returns a Duration."""
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=number))
    return duration


def create(stub: SessionServiceStub, user: str, **fields: Any) -> pb.CreateSessionResponse:
    """Logs in."""
    return stub.CreateSession(pb.CreateSessionRequest(user_id=user, **fields), timeout=TIMEOUT_SECONDS)


def validate(stub: SessionServiceStub, token: str) -> pb.ValidateSessionResponse:
    """Validates a token."""
    return stub.ValidateSession(pb.ValidateSessionRequest(token=token), timeout=TIMEOUT_SECONDS)


def get(stub: SessionServiceStub, session_id: str) -> session_pb2.Session:
    """Reads a session."""
    return stub.GetSession(pb.GetSessionRequest(session_id=session_id), timeout=TIMEOUT_SECONDS).session


def rotate(stub: SessionServiceStub, token: str) -> pb.RotateSessionResponse:
    """Rotates a token."""
    return stub.RotateSession(pb.RotateSessionRequest(token=token), timeout=TIMEOUT_SECONDS)


def change(session_id: str, *paths: str, **fields: Any) -> pb.UpdateSessionRequest:
    """Returns an update request with these fields, of which only those that the paths name are written."""
    request = pb.UpdateSessionRequest(session=session_pb2.Session(session_id=session_id, **fields))
    request.update_mask.paths.extend(paths)
    return request


def update(stub: SessionServiceStub, session_id: str, *paths: str, **fields: Any) -> session_pb2.Session:
    """Updates a session."""
    return stub.UpdateSession(change(session_id, *paths, **fields), timeout=TIMEOUT_SECONDS).session


def page(stub: SessionServiceStub, user: str, **fields: Any) -> pb.ListSessionsResponse:
    """Reads a page of a user's sessions."""
    return stub.ListSessions(pb.ListSessionsRequest(user_id=user, **fields), timeout=TIMEOUT_SECONDS)


def revoke_all(stub: SessionServiceStub, user: str, **fields: Any) -> int:
    """Ends a user's sessions."""
    return stub.RevokeUserSessions(
        pb.RevokeUserSessionsRequest(user_id=user, **fields), timeout=TIMEOUT_SECONDS
    ).revoked_count


def in_seconds(number: float) -> Timestamp:
    """Returns a time."""
    moment = Timestamp()
    moment.FromMilliseconds(int((time.time() + number) * 1000))
    return moment


def refused(method: Any, request: Any) -> Refusal:
    """Makes a call that fails, and returns how."""
    with pytest.raises(grpc.RpcError) as caught:
        method(request, timeout=TIMEOUT_SECONDS)
    return refusal_of(caught.value)


def refusal_of(error: Any) -> Refusal:
    """Returns the status code and the reason of a failed call, and the fields that it names."""
    details = dict(tuple(error.trailing_metadata())).get("grpc-status-details-bin")
    assert details is not None, error
    status = Status.FromString(details)
    assert (status.code, status.message) == (error.code().value[0], error.details())
    info, bad_request = ErrorInfo(), BadRequest()
    assert status.details[0].Unpack(info)
    assert info.domain == "catraca"
    fields = []
    if len(status.details) > 1 and status.details[1].Unpack(bad_request):
        fields = [each.field for each in bad_request.field_violations]
        assert all(each.description for each in bad_request.field_violations)
    return error.code(), info.reason, fields


def assert_gone(stub: SessionServiceStub, session_id: str, *tokens: str) -> None:
    """Asserts that a session has ended: neither its id nor its tokens find it."""
    assert refused(stub.GetSession, pb.GetSessionRequest(session_id=session_id)) == NOT_FOUND
    for token in tokens:
        assert MessageToDict(validate(stub, token)) == {"invalidReason": "INVALID_REASON_NOT_FOUND"}
        assert refused(stub.RotateSession, pb.RotateSessionRequest(token=token)) == NOT_FOUND
