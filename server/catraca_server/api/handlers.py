"""Where a call on the wire becomes a `Call`: bytes come in, the deadline is set, an exception becomes a status.

Handlers take and return bytes, so that a malformed body is answered here (INVALID_ARGUMENT) and not by the engine
(INTERNAL).
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message

from catraca.v1 import session_service_pb2 as pb
from catraca_server.api.session_service import SessionService
from catraca_server.api.statuses import Failure, failure
from catraca_server.domain.call import Call
from catraca_server.domain.errors import InvalidRequest

SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["SessionService"].full_name

USER_WIDE_EXCHANGES = 40
"""How many store timeouts a call about all sessions of a user may take: 10 s in all unless configured."""

_Request = TypeVar("_Request", bound=Message)
_Context = grpc.aio.ServicerContext[bytes, bytes]
_Method: TypeAlias = Callable[[_Request, Call], Awaitable[Message | bytes]]
"""Returns a message, or what it is on the wire."""
_Handler = Callable[[bytes, _Context], Awaitable[bytes]]


def session_service_handlers(service: SessionService, *, store_timeout_seconds: float) -> grpc.GenericRpcHandler:
    """Returns the handlers of SessionService; `store_timeout_seconds` is what the store has for one call.

    RevokeUserSessions takes more exchanges with the store the more sessions the user has. There the timeout is for each
    exchange, and the call has USER_WIDE_EXCHANGES of them.
    """

    def unary(request_type: type[_Request], method: _Method[_Request], exchanges: int = 1) -> Any:
        return grpc.unary_unary_rpc_method_handler(_handler(request_type, method, store_timeout_seconds * exchanges))

    return grpc.method_handlers_generic_handler(
        SERVICE_NAME,
        {
            "CreateSession": unary(pb.CreateSessionRequest, service.create_session),
            "ValidateSession": unary(pb.ValidateSessionRequest, service.validate_session),
            "BatchValidateSessions": unary(pb.BatchValidateSessionsRequest, service.batch_validate_sessions),
            "GetSession": unary(pb.GetSessionRequest, service.get_session),
            "ListSessions": unary(pb.ListSessionsRequest, service.list_sessions),
            "UpdateSession": unary(pb.UpdateSessionRequest, service.update_session),
            "RotateSession": unary(pb.RotateSessionRequest, service.rotate_session),
            "RevokeSession": unary(pb.RevokeSessionRequest, service.revoke_session),
            "RevokeUserSessions": unary(
                pb.RevokeUserSessionsRequest, service.revoke_user_sessions, USER_WIDE_EXCHANGES
            ),
        },
    )


def _handler(request_type: type[_Request], method: _Method[_Request], timeout_seconds: float) -> _Handler:
    async def handle(body: bytes, context: _Context) -> bytes:
        try:
            # Asked once, at entry: the engine measures the time left by the wall clock.
            remaining = cast("float | None", context.time_remaining())  # None: no deadline, which its type omits
            budget_seconds = min(timeout_seconds, math.inf if remaining is None else remaining)
            call = Call(deadline=asyncio.get_running_loop().time() + budget_seconds)
            response = await method(_parse(request_type, body), call)
            return response if isinstance(response, bytes) else response.SerializeToString()
        except Exception as error:  # noqa: BLE001  whatever it is, the caller gets a status made by `statuses`
            return _fail(context, failure(error))

    return handle


def _fail(context: _Context, status: Failure) -> bytes:
    """Sets the status; what is returned is not sent then.

    `context.abort` would raise an exception that refers to the call, which refers to the exception. The call would stay
    until the garbage collector comes, and count towards the streams of its connection all that time.
    """
    context.set_code(status.code)
    context.set_details(status.message)
    context.set_trailing_metadata(status.trailing_metadata)
    return b""


def _parse(request_type: type[_Request], body: bytes) -> _Request:
    try:
        return request_type.FromString(body)
    except DecodeError:
        raise InvalidRequest from None
