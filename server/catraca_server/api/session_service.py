"""The RPCs: messages in, messages out. It only converts; no type of the engine gets below this module.

Errors are exceptions, which `statuses` turns into statuses.
"""

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from catraca.v1 import session_service_pb2 as pb
from catraca_server.api.messages import batch_response, validation_response, write_session
from catraca_server.api.paging import page_size, read_page_token, write_page_token
from catraca_server.domain.audit import Audit, NoAudit
from catraca_server.domain.call import Call
from catraca_server.domain.commands import NewSession, Update
from catraca_server.domain.errors import InvalidRequest, Violation
from catraca_server.domain.limits import BATCH_MAX_REQUESTS, MASK_MAX_PATHS, user_id_fault
from catraca_server.domain.tokens import is_session_id
from catraca_server.domain.validation import ValidationRequest
from catraca_server.operations.sessions import Sessions
from catraca_server.operations.users import UserSessions


class SessionService:
    """catraca.v1.SessionService; the protos say what each RPC does. ValidateSession is in `validation_batches`."""

    def __init__(self, sessions: Sessions, users: UserSessions, audit: Audit | None = None) -> None:
        self.audit = audit or NoAudit()
        self.validating = sessions.validating
        self._sessions = sessions
        self._users = users

    async def create_session(self, request: pb.CreateSessionRequest, call: Call) -> pb.CreateSessionResponse:
        """CreateSession."""
        new = NewSession(
            user_id=request.user_id,
            ttl_ms=_milliseconds("ttl", request.ttl) if request.HasField("ttl") else None,
            idle_timeout_ms=(
                _milliseconds("idle_timeout", request.idle_timeout) if request.HasField("idle_timeout") else None
            ),
            attributes=dict(request.attributes),
            token=request.token,
        )
        login = await self._users.create(new, call)
        response = pb.CreateSessionResponse(token=login.token, evicted_session_ids=login.evicted_session_ids)
        write_session(login.stored, response.session)
        return response

    async def batch_validate_sessions(self, request: pb.BatchValidateSessionsRequest, call: Call) -> bytes:
        """BatchValidateSessions."""
        requests = [_validation_request(each) for each in request.requests]
        if not 1 <= len(requests) <= BATCH_MAX_REQUESTS:
            raise InvalidRequest(Violation("requests", f"must have 1 to {BATCH_MAX_REQUESTS} entries"))
        if violations := [
            violation
            for at, each in enumerate(requests)
            if not each.token or each.user_id
            for violation in validation_violations(each.token, each.user_id, path=f"requests[{at}].")
        ]:
            raise InvalidRequest(*violations)
        validations = await self._sessions.validate(requests, call)
        if invalid := sum(validation.reason is not None for validation in validations):
            self.audit.invalid_tokens(call.caller.name, invalid)
        return batch_response([validation_response(validation) for validation in validations])

    async def get_session(self, request: pb.GetSessionRequest, call: Call) -> pb.GetSessionResponse:
        """GetSession."""
        _require("session_id", request.session_id)
        response = pb.GetSessionResponse()
        write_session(await self._sessions.get(request.session_id, call), response.session)
        return response

    async def list_sessions(self, request: pb.ListSessionsRequest, call: Call) -> pb.ListSessionsResponse:
        """ListSessions."""
        if fault := user_id_fault(request.user_id):
            raise InvalidRequest(Violation("user_id", fault))
        before = read_page_token(request.page_token, request.user_id) if request.page_token else None
        page = await self._users.page(request.user_id, before, page_size(request.page_size), call)
        response = pb.ListSessionsResponse()
        for stored in page.sessions:
            write_session(stored, response.sessions.add())
        if page.next_before is not None:
            response.next_page_token = write_page_token(page.next_before, request.user_id)
        return response

    async def update_session(self, request: pb.UpdateSessionRequest, call: Call) -> pb.UpdateSessionResponse:
        """UpdateSession."""
        response = pb.UpdateSessionResponse()
        write_session(await self._sessions.update(_update(request), call), response.session)
        return response

    async def rotate_session(self, request: pb.RotateSessionRequest, call: Call) -> pb.RotateSessionResponse:
        """RotateSession."""
        _require("token", request.token)
        rotation = await self._sessions.rotate(request.token, call)
        response = pb.RotateSessionResponse(token=rotation.token)
        write_session(rotation.stored, response.session)
        return response

    async def revoke_session(self, request: pb.RevokeSessionRequest, call: Call) -> pb.RevokeSessionResponse:
        """RevokeSession."""
        match request.WhichOneof("target"):
            case "token":
                _require("token", request.token)
                revoked = await self._sessions.revoke_token(request.token, call)
            case "session_id":
                _require("session_id", request.session_id)
                revoked = await self._sessions.revoke(request.session_id, call)
            case _:
                raise InvalidRequest(Violation("target", "must be set: either token or session_id"))
        return pb.RevokeSessionResponse(revoked=revoked)

    async def revoke_user_sessions(
        self, request: pb.RevokeUserSessionsRequest, call: Call
    ) -> pb.RevokeUserSessionsResponse:
        """RevokeUserSessions."""
        violations = []
        if fault := user_id_fault(request.user_id):
            violations.append(Violation("user_id", fault))
        if request.except_session_id and not is_session_id(request.except_session_id):
            # A mistyped id would keep no session.
            violations.append(Violation("except_session_id", "must be a session id"))
        if violations:
            raise InvalidRequest(*violations)
        revoked = await self._users.revoke(request.user_id, request.except_session_id, call)
        return pb.RevokeUserSessionsResponse(revoked_count=revoked)


def _require(field: str, value: str) -> None:
    if not value:
        raise InvalidRequest(Violation(field, "must be set"))


def validation_violations(token: str, user_id: str, path: str = "") -> list[Violation]:
    """Returns everything that is wrong with a validation; `path` is its place in the request."""
    violations = []
    if not token:
        violations.append(Violation(f"{path}token", "must be set"))
    if user_id and (fault := user_id_fault(user_id)):
        violations.append(Violation(f"{path}user_id", fault))
    return violations


def _validation_request(request: pb.ValidateSessionRequest) -> ValidationRequest:
    return ValidationRequest(request.token, request.user_id, request.skip_touch)


def _update(request: pb.UpdateSessionRequest) -> Update:
    session = request.session
    _require("session.session_id", session.session_id)
    if not 1 <= len(request.update_mask.paths) <= MASK_MAX_PATHS:
        raise InvalidRequest(Violation("update_mask", f"must name 1 to {MASK_MAX_PATHS} fields"))
    attributes, end_ms, idle_timeout_ms = None, None, None
    entries: dict[str, str | None] = {}
    for path in request.update_mask.paths:
        match path.partition("."):
            case "attributes", "", "":
                attributes = dict(session.attributes)
            case "attributes", ".", key if key:
                entries[key] = session.attributes.get(key)
            case "absolute_expire_time", "", "":
                if not session.HasField("absolute_expire_time"):
                    raise InvalidRequest(Violation("session.absolute_expire_time", "must be set"))
                end_ms = _unix_ms("session.absolute_expire_time", session.absolute_expire_time)
            case "idle_timeout", "", "":
                idle_timeout_ms = _milliseconds("session.idle_timeout", session.idle_timeout)
            case _:
                raise InvalidRequest(Violation("update_mask", "names a path that cannot be updated"))
    return Update(session.session_id, session.etag, attributes, entries, end_ms, idle_timeout_ms)


def _unix_ms(field: str, timestamp: Timestamp) -> int:
    if not 0 <= timestamp.nanos < 1_000_000_000:
        raise InvalidRequest(Violation(field, "must have nanos of 0 to 999,999,999"))
    return timestamp.seconds * 1000 + timestamp.nanos // 1_000_000


def _milliseconds(field: str, duration: Duration) -> int:
    """Returns a duration in milliseconds. A fraction of one counts as one, so that no duration is rounded to zero."""
    if abs(duration.nanos) >= 1_000_000_000 or duration.seconds * duration.nanos < 0:
        raise InvalidRequest(Violation(field, "must have nanos below 1e9, of the same sign as seconds"))
    nanoseconds = duration.seconds * 1_000_000_000 + duration.nanos
    whole = -(-abs(nanoseconds) // 1_000_000)
    return whole if nanoseconds > 0 else -whole
