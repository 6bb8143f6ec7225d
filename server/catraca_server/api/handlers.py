"""Where a call on the wire becomes a `Call`: bytes come in, the deadline is set, an exception becomes a status.

Handlers take and return bytes, so that a malformed body is answered here, like any other fault of a request.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias, TypeVar

from google.protobuf.message import DecodeError, Message

from catraca.v1 import session_service_pb2 as pb
from catraca_server.api.call_ids import REQUEST_ID_HEADER, call_ids
from catraca_server.api.engine import BatchMethod, Method, StatusError, StreamMethod, UnaryCall, UnaryMethod
from catraca_server.api.session_service import SessionService
from catraca_server.api.statuses import status_of
from catraca_server.api.validation_batches import ValidationBatches
from catraca_server.api.watch import Watches
from catraca_server.domain.call import ANONYMOUS, Call, Role
from catraca_server.domain.errors import InvalidRequest

SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["SessionService"].full_name

METHOD_ROLES: Mapping[str, Role] = MappingProxyType(
    {
        f"/{SERVICE_NAME}/{name}": role
        for role, names in {
            Role.VALIDATE: ("ValidateSession", "BatchValidateSessions", "WatchSessions"),
            Role.ISSUE: ("CreateSession", "UpdateSession", "RotateSession", "RevokeSession"),
            Role.ADMIN: ("GetSession", "ListSessions", "RevokeUserSessions"),
        }.items()
        for name in names
    }
)
"""The role that a caller needs for each method, as the protos say too. No role allows a method that is not here."""

USER_WIDE_EXCHANGES = 40
"""How many store timeouts a call about all sessions of a user may take: by default 10 s in total."""

_Request = TypeVar("_Request", bound=Message)
_Rpc: TypeAlias = Callable[[_Request, Call], Awaitable[Message | bytes]]
"""Returns a message, or its bytes."""
_Handler: TypeAlias = Callable[[UnaryCall], Coroutine[Any, Any, bytes]]
_BatchHandler: TypeAlias = Callable[[list[UnaryCall]], None]


class Around(Protocol):
    """Wraps the handlers, once, when the server is created."""

    def unary(self, handler: _Handler) -> _Handler:
        """Returns a handler that calls this one."""

    def batch(self, handler: _BatchHandler) -> _BatchHandler:
        """Returns a handler that calls this one."""


def session_service_methods(
    service: SessionService, watches: Watches, *, store_timeout_seconds: float, around: Around | None = None
) -> dict[str, Method]:
    """Returns the methods of SessionService by their paths. `store_timeout_seconds` is the store's time for one call.

    RevokeUserSessions takes more exchanges with the store the more sessions the user has. There the timeout is for each
    exchange, and the call has USER_WIDE_EXCHANGES of them.
    """

    def unary(request_type: type[_Request], rpc: _Rpc[_Request], exchanges: int = 1) -> Method:
        handler = _unary(request_type, rpc, store_timeout_seconds * exchanges)
        return UnaryMethod(handler if around is None else around.unary(handler))

    batches = ValidationBatches(
        service.validating,
        store_timeout_seconds=store_timeout_seconds,
        audit=service.audit,
        around=None if around is None else around.batch,
    )
    methods: dict[str, Method] = {
        "CreateSession": unary(pb.CreateSessionRequest, service.create_session),
        "ValidateSession": BatchMethod(batches.start),
        "BatchValidateSessions": unary(pb.BatchValidateSessionsRequest, service.batch_validate_sessions),
        "GetSession": unary(pb.GetSessionRequest, service.get_session),
        "ListSessions": unary(pb.ListSessionsRequest, service.list_sessions),
        "UpdateSession": unary(pb.UpdateSessionRequest, service.update_session),
        "RotateSession": unary(pb.RotateSessionRequest, service.rotate_session),
        "RevokeSession": unary(pb.RevokeSessionRequest, service.revoke_session),
        "RevokeUserSessions": unary(pb.RevokeUserSessionsRequest, service.revoke_user_sessions, USER_WIDE_EXCHANGES),
        "WatchSessions": StreamMethod(watches.serve),
    }
    return {f"/{SERVICE_NAME}/{name}": method for name, method in methods.items()}


def _unary(request_type: type[_Request], rpc: _Rpc[_Request], timeout_seconds: float) -> _Handler:
    async def handle(call: UnaryCall) -> bytes:
        ids = call_ids(call.metadata)
        call.initial_metadata = ((REQUEST_ID_HEADER, ids.request_id),)
        try:
            deadline = min(call.deadline, asyncio.get_running_loop().time() + timeout_seconds)
            context = Call(deadline, call.caller or ANONYMOUS, *ids)
            response = await rpc(_parse(request_type, call.request), context)
            return response if isinstance(response, bytes) else response.SerializeToString()
        except Exception as error:  # noqa: BLE001  whatever it is, the caller gets a status from `statuses`
            raise StatusError(status_of(error, ids)) from None

    return handle


def _parse(request_type: type[_Request], body: bytes) -> _Request:
    try:
        return request_type.FromString(body)
    except DecodeError:
        raise InvalidRequest from None
