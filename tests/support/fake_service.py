"""A service of sessions in memory, with a feed to watch. A test defines how it behaves; it counts what it is asked."""

import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status
from tests.support.waiting import TIMEOUT_SECONDS, eventually

from catraca.v1 import session_event_pb2 as events, session_pb2, session_service_pb2 as pb, session_service_pb2_grpc

CACHE_TTL_SECONDS = 60
MALFORMED_LENGTH = 16


class FakeService(session_service_pb2_grpc.SessionServiceServicer):
    """A service at `target`, in threads of this process."""

    def __init__(self) -> None:
        self.sessions: dict[str, session_pb2.Session] = {}
        """The live sessions by their tokens."""
        self.asked: list[list[pb.ValidateSessionRequest]] = []
        """The validations of each call, in the order in which calls came."""
        self.batches = 0
        """How many calls were BatchValidateSessions."""
        self.deadlines: list[float] = []
        """How much time each call of validations had left when it came."""
        self.starts: list[pb.WatchStart] = []
        """How each watch began."""
        self.pings = 0
        self.gate: Callable[[list[pb.ValidateSessionRequest]], object] = lambda _: None
        """Called with each call of validations before it is answered."""
        self.status: grpc.StatusCode | None = None
        """What all validations fail with."""
        self.watch_status: grpc.StatusCode | None = None
        """What all watches fail with."""
        self.longest_user_id = 256
        """A validation with a longer one is refused."""
        self.pongs = True
        self.age = Duration()
        self.cache_ttl = Duration(seconds=CACHE_TTL_SECONDS)
        self.target = ""
        self._feed: list[pb.WatchSessionsResponse] = []
        self._news = threading.Condition()
        self._watches: set[Any] = set()
        self._lost: set[Any] = set()
        self._ids = itertools.count(1)

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(64)
        self._server = grpc.server(self._pool)
        session_service_pb2_grpc.add_SessionServiceServicer_to_server(self, self._server)
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end_watches()
        self._server.stop(None).wait()
        self._pool.shutdown()

    def login(self, user_id: str = "12345") -> str:
        """Adds a session. Returns its token."""
        number = next(self._ids)
        token = f"token-of-session-{number}"
        self.sessions[token] = session_pb2.Session(session_id=f"session-{number}", user_id=user_id, etag="1-1")
        return token

    def end(self, token: str) -> None:
        """Ends a session as another client would: the session first, then the event."""
        session = self.sessions.pop(token)
        self.tell(events.SESSION_EVENT_TYPE_REVOKED, session.session_id, session.user_id)

    def tell(self, kind: events.SessionEventType.ValueType, session_id: str = "", user_id: str = "") -> None:
        """Writes an event."""
        with self._news:
            event = events.SessionEvent(
                type=kind, session_id=session_id, user_id=user_id, cursor=f"e-{len(self._feed) + 1}"
            )
            self._feed.append(pb.WatchSessionsResponse(event=event))
            self._news.notify_all()

    def reset(self, reason: pb.WatchResetReason.ValueType = pb.WATCH_RESET_REASON_TRIMMED) -> None:
        """Sends all watches a reset: events may have been missed."""
        with self._news:
            reset = pb.WatchReset(cursor=f"e-{len(self._feed) + 1}", reason=reason)
            self._feed.append(pb.WatchSessionsResponse(reset=reset))
            self._news.notify_all()

    def end_watches(self) -> None:
        """Ends all watches, as a server does when it stops."""
        with self._news:
            self._lost |= self._watches
            self._news.notify_all()

    @property
    def watches(self) -> int:
        """How many watches are open."""
        return len(self._watches)

    def ValidateSession(self, request: pb.ValidateSessionRequest, context: Any) -> pb.ValidateSessionResponse:  # noqa: N802
        """One validation."""
        (response,) = self._answer([request], context)
        return response

    def BatchValidateSessions(  # noqa: N802
        self, request: pb.BatchValidateSessionsRequest, context: Any
    ) -> pb.BatchValidateSessionsResponse:
        """Many validations."""
        self.batches += 1
        return pb.BatchValidateSessionsResponse(responses=self._answer(list(request.requests), context))

    def RevokeSession(self, request: pb.RevokeSessionRequest, context: Any) -> pb.RevokeSessionResponse:  # noqa: N802
        """Ends a session without an event: a client that has ended a session itself must not depend on the event."""
        del context
        ended = [
            token
            for token, session in self.sessions.items()
            if token == request.token or session.session_id == request.session_id
        ]
        for token in ended:
            del self.sessions[token]
        return pb.RevokeSessionResponse(revoked=bool(ended))

    def RevokeUserSessions(  # noqa: N802
        self, request: pb.RevokeUserSessionsRequest, context: Any
    ) -> pb.RevokeUserSessionsResponse:
        """Ends all sessions of a user, without an event."""
        del context
        ended = [token for token, session in self.sessions.items() if session.user_id == request.user_id]
        for token in ended:
            del self.sessions[token]
        return pb.RevokeUserSessionsResponse(revoked_count=len(ended))

    def UpdateSession(self, request: pb.UpdateSessionRequest, context: Any) -> pb.UpdateSessionResponse:  # noqa: N802
        """Replaces a session's attributes, without an event."""
        del context
        for session in self.sessions.values():
            if session.session_id == request.session.session_id:
                session.attributes.clear()
                session.attributes.update(request.session.attributes)
        return pb.UpdateSessionResponse(session=request.session)

    def RotateSession(self, request: pb.RotateSessionRequest, context: Any) -> pb.RotateSessionResponse:  # noqa: N802
        """Replaces a token, without a grace and without an event."""
        del context
        session = self.sessions.pop(request.token)
        token = f"{request.token}+"
        self.sessions[token] = session
        return pb.RotateSessionResponse(token=token, session=session)

    def WatchSessions(self, requests: Iterator[pb.WatchSessionsRequest], context: Any) -> Iterator[Any]:  # noqa: N802
        """Sends the feed and answers pings."""
        if self.watch_status is not None:
            context.abort(self.watch_status, "as told")
        start = next(requests).start
        self.starts.append(start)
        pings: list[int] = []

        def listen() -> None:
            try:
                for request in requests:
                    with self._news:
                        self.pings += 1
                        pings.append(request.ping.nonce)
                        self._news.notify_all()
            except grpc.RpcError:
                pass
            with self._news:
                self._lost.add(context)
                self._news.notify_all()

        at = int(start.cursor.partition("-")[2]) if start.cursor else len(self._feed)
        with self._news:
            self._watches.add(context)
        threading.Thread(target=listen, daemon=True).start()
        try:
            yield pb.WatchSessionsResponse(opened=pb.WatchOpened(cursor=f"e-{at}"))
            while True:
                with self._news:
                    self._news.wait_for(
                        lambda: len(self._feed) > at or (self.pongs and pings) or context in self._lost,  # noqa: B023
                        TIMEOUT_SECONDS,
                    )
                    if context in self._lost:
                        break
                    news, at = self._feed[at:], len(self._feed)
                    asked = [pings.pop(0) for _ in range(len(pings) if self.pongs else 0)]
                yield from news
                for nonce in asked:
                    yield pb.WatchSessionsResponse(pong=pb.WatchPong(nonce=nonce, age=self.age))
        finally:
            with self._news:
                self._watches.discard(context)
                self._lost.discard(context)
        context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping")

    def _answer(self, requests: list[pb.ValidateSessionRequest], context: Any) -> list[pb.ValidateSessionResponse]:
        self.asked.append(requests)
        self.deadlines.append(context.time_remaining())
        # The session is looked up before the test delays the answer.
        responses = [self._validate(each) for each in requests]
        self.gate(requests)
        if self.status is not None:
            context.abort(self.status, "as told")
        faults = [
            BadRequest.FieldViolation(
                field=f"requests[{at}].user_id" if len(requests) > 1 else "user_id", description="is too long"
            )
            for at, each in enumerate(requests)
            if len(each.user_id) > self.longest_user_id
        ]
        if faults:
            details = AnyMessage()
            details.Pack(BadRequest(field_violations=faults))
            status = Status(code=3, message="a rule is broken", details=[details])
            context.set_trailing_metadata([("grpc-status-details-bin", status.SerializeToString())])
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a rule is broken")
        return responses

    def _validate(self, request: pb.ValidateSessionRequest) -> pb.ValidateSessionResponse:
        if len(request.token) < MALFORMED_LENGTH:
            return pb.ValidateSessionResponse(invalid_reason=pb.INVALID_REASON_MALFORMED)
        session = self.sessions.get(request.token)
        if session is None:
            return pb.ValidateSessionResponse(invalid_reason=pb.INVALID_REASON_NOT_FOUND)
        if request.user_id not in ("", session.user_id):
            return pb.ValidateSessionResponse(invalid_reason=pb.INVALID_REASON_USER_MISMATCH)
        return pb.ValidateSessionResponse(valid=True, session=session, cache_ttl=self.cache_ttl)

    def wait_for_pings(self, more: int) -> None:
        """Returns once this many more pings have come."""
        enough = self.pings + more
        eventually(lambda: self.pings >= enough, f"{more} pings")


if __name__ == "__main__":  # for programs that fork: gRPC's threads of a server in their own process would stop them
    with FakeService() as service:  # type: ignore[abstract]  # what no test calls is missing
        service.sessions[sys.argv[1]] = session_pb2.Session(session_id="session-0", user_id="12345", etag="1-1")
        print(service.target, flush=True)  # noqa: T201
        sys.stdin.read()
