"""The client without its I/O: what each call sends, how its answer is read, and how a channel is set up.

Both clients are thin shells over this. A new RPC is a function here and a line in each shell. Validations are in
`_validations`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from catraca import _model
from catraca._model import Login, Rotation, Session, Validation
from catraca.errors import InvalidRequest, SessionInvalid, Unavailable, UnexpectedAnswer
from catraca.v1 import session_pb2, session_service_pb2 as pb

DEFAULT_TIMEOUT_SECONDS = 1.0
"""For one call, retries included."""

_SERVICE = pb.DESCRIPTOR.services_by_name["SessionService"].full_name
_Result = TypeVar("_Result")
_Built = TypeVar("_Built", bound=Message)

_SERVICE_CONFIG = {
    # A name may resolve to several servers; one that goes away is skipped until it is back.
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": _SERVICE}],
            # UNAVAILABLE means that repeating is safe, writes included. A stopping server answers CANCELLED to calls
            # that it has not begun (grpc#41785). Retries are throttled, so that a store that is down does not get three
            # times as many requests.
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.1s",
                "maxBackoff": "0.3s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
}

_PROXY_OPTION = "grpc.enable_http_proxy"

CALLS_AT_A_TIME = 100
"""How many calls an asynchronous client has under way at most; further calls wait for their turn, within their timeout.
A server works on as many at a time. It refuses calls over its limit for a connection (250), and some a little below."""

CHANNEL_OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    # A response about 1,000 sessions, each with as many attributes as are allowed, takes 20 MiB.
    ("grpc.max_receive_message_length", 32 << 20),
    # A server that restarts may drop a connection that is just being made. By default the next attempt comes a second
    # later, when all retries are used up, and after a long outage two minutes later.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A machine or a network that is gone closes no connection, and gRPC would go on using it for a quarter of an hour.
    # Servers allow a ping every 5 s. The last option is for the pings with which gRPC measures a connection: while one
    # of them is unanswered, no keepalive is sent, and by default it may stay unanswered for a minute.
    ("grpc.keepalive_time_ms", 6_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    # Tokens are for the service alone. gRPC would otherwise obey http_proxy, https_proxy and grpc_proxy, which many
    # machines set for access to the web.
    (_PROXY_OPTION, 0),
)


WATCH = f"/{_SERVICE}/WatchSessions"

CLOSED = "the client was closed while this call was under way"
"""The error of a call that `close` ended."""


def channel_options(*, use_proxy: bool) -> tuple[tuple[str, str | int], ...]:
    """Returns how a channel is set up."""
    if not use_proxy:
        return CHANNEL_OPTIONS
    return tuple(option for option in CHANNEL_OPTIONS if option[0] != _PROXY_OPTION)


@dataclass(frozen=True, slots=True)
class Call(Generic[_Result]):
    """A call to be made: its path, its request, and how to read the answer."""

    path: str
    request: bytes = field(repr=False)
    """It may have a token in it."""
    response_type: type[Message]
    read: Callable[[Any], _Result]

    def result(self, answer: bytes) -> _Result:
        """Reads an answer. Raises UnexpectedAnswer if it is not one."""
        try:
            return self.read(self.response_type.FromString(answer))
        except (DecodeError, ValueError, OverflowError) as error:
            raise unreadable(self.path, error) from None


def unreadable(path: str, error: Exception) -> UnexpectedAnswer:
    """Returns the error for an answer that is no message, or has times outside the range of datetime."""
    # Its bytes stay out of the error.
    return UnexpectedAnswer(f"the answer to {path} cannot be read: {type(error).__name__}")


def path(method: str) -> str:
    """Returns the path of an RPC."""
    return f"/{_SERVICE}/{method}"


def build(message_type: type[_Built], **fields: Any) -> _Built:
    """Returns a message. Raises InvalidRequest if a value is not valid Unicode text."""
    try:
        return message_type(**fields)
    except UnicodeError:
        # Text with lone surrogates, which no message can carry. The values stay out of the error.
        raise InvalidRequest("a value is not valid Unicode text") from None


def create(
    *,
    user_id: str,
    ttl: timedelta | None,
    idle_timeout: timedelta | None,
    attributes: Mapping[str, str] | None,
    token: str | None,
) -> Call[Login]:
    """CreateSession."""
    request = build(
        pb.CreateSessionRequest,
        user_id=user_id,
        ttl=_duration(ttl),
        idle_timeout=_duration(idle_timeout),
        attributes=attributes,
        token=token,
    )
    return _call("CreateSession", request, pb.CreateSessionResponse, _model.read_login)


def too_late(timeout: float, *, sent: bool) -> Unavailable:
    """Returns the error for a caller whose deadline passes while the call it shares goes on."""
    if sent:
        return Unavailable(f"no answer within {timeout:g} s (DEADLINE_EXCEEDED)")
    return Unavailable(f"not sent within {timeout:g} s, behind this client's other calls")


def page(user_id: str, *, page_size: int, page_token: str) -> Call[tuple[list[Session], str]]:
    """ListSessions: the sessions of a page, and the token of the next page, which is empty at the end."""

    def read(response: pb.ListSessionsResponse) -> tuple[list[Session], str]:
        return [_model.read_session(each) for each in response.sessions], response.next_page_token

    request = build(pb.ListSessionsRequest, user_id=user_id, page_size=page_size, page_token=page_token)
    return _call("ListSessions", request, pb.ListSessionsResponse, read)


def update(
    session_id: str,
    *,
    etag: str | None,
    attributes: Mapping[str, str] | None,
    set_attributes: Mapping[str, str | None] | None,
    absolute_expire_time: datetime | None,
    idle_timeout: timedelta | None,
) -> Call[Session]:
    """UpdateSession. Raises TypeError if there is nothing to update, or a time has no time zone."""
    single = dict(set_attributes or {})
    paths = [
        *(["attributes"] if attributes is not None else []),
        *(f"attributes.{key}" for key in single),
        *(["absolute_expire_time"] if absolute_expire_time is not None else []),
        *(["idle_timeout"] if idle_timeout is not None else []),
    ]
    if not paths:
        raise TypeError("update() takes at least one thing to update")
    session = build(
        session_pb2.Session,
        session_id=session_id,
        etag=etag,
        attributes={key: value for key, value in {**(attributes or {}), **single}.items() if value is not None},
        absolute_expire_time=_timestamp(absolute_expire_time),
        idle_timeout=_duration(idle_timeout),
    )

    def read(response: pb.UpdateSessionResponse) -> Session:
        return _model.read_session(response.session)

    request = pb.UpdateSessionRequest(session=session, update_mask=build(FieldMask, paths=paths))
    return _call("UpdateSession", request, pb.UpdateSessionResponse, read)


def rotate(token: str) -> Call[Rotation]:
    """RotateSession."""
    request = build(pb.RotateSessionRequest, token=token)
    return _call("RotateSession", request, pb.RotateSessionResponse, _model.read_rotation)


def get(session_id: str) -> Call[Session]:
    """GetSession."""

    def read(response: pb.GetSessionResponse) -> Session:
        return _model.read_session(response.session)

    return _call("GetSession", build(pb.GetSessionRequest, session_id=session_id), pb.GetSessionResponse, read)


def revoke(*, token: str | None, session_id: str | None) -> Call[bool]:
    """RevokeSession. Raises TypeError unless exactly one of the two is given."""
    if (token is None) == (session_id is None):
        raise TypeError("revoke() takes either token or session_id")

    def read(response: pb.RevokeSessionResponse) -> bool:
        return response.revoked

    request = build(pb.RevokeSessionRequest, token=token, session_id=session_id)
    return _call("RevokeSession", request, pb.RevokeSessionResponse, read)


def revoke_user_sessions(user_id: str, *, except_session_id: str | None) -> Call[int]:
    """RevokeUserSessions."""

    def read(response: pb.RevokeUserSessionsResponse) -> int:
        return response.revoked_count

    request = build(pb.RevokeUserSessionsRequest, user_id=user_id, except_session_id=except_session_id)
    return _call("RevokeUserSessions", request, pb.RevokeUserSessionsResponse, read)


def required(validation: Validation) -> Session:
    """Returns the session of a valid token. Raises SessionInvalid."""
    if validation.session is None:
        assert validation.reason is not None, "an invalid token has a reason"
        raise SessionInvalid(validation.reason)
    return validation.session


def _call(method: str, request: Message, response_type: type[Message], read: Callable[[Any], _Result]) -> Call[_Result]:
    return Call(path(method), request.SerializeToString(), response_type, read)


def _duration(length: timedelta | None) -> Duration | None:
    if length is None:
        return None
    duration = Duration()
    duration.FromTimedelta(length)
    return duration


def _timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    if moment.tzinfo is None:
        raise TypeError("a time must have a time zone")
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp
