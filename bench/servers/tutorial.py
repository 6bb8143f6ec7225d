"""What a tutorial would have you write: grpcio's sync server, a pool of threads, one GET per call, JSON."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import redis
from google.protobuf.timestamp_pb2 import Timestamp

from catraca.v1.session_pb2 import Session
from catraca.v1.session_service_pb2 import InvalidReason, ValidateSessionRequest, ValidateSessionResponse

_SERVICE = "catraca.v1.SessionService"
_THREADS = 8


class Sessions:
    """Sessions kept as JSON under their tokens."""

    def __init__(self, socket: str) -> None:
        self._store = redis.Redis(unix_socket_path=socket)

    def validate(self, request: ValidateSessionRequest, _context: grpc.ServicerContext) -> ValidateSessionResponse:
        """Looks the token up."""
        stored = self._store.get(f"session:{request.token}")
        if stored is None:
            return ValidateSessionResponse(invalid_reason=InvalidReason.INVALID_REASON_NOT_FOUND)
        record = json.loads(stored)
        session = Session(
            session_id=record["session_id"],
            user_id=record["user_id"],
            attributes=record["attributes"],
            create_time=Timestamp(seconds=record["create_time"]),
            expire_time=Timestamp(seconds=record["expire_time"]),
        )
        return ValidateSessionResponse(valid=True, session=session)


def main() -> None:
    """Serves until killed."""
    sessions = Sessions(socket=sys.argv[1])
    server = grpc.server(ThreadPoolExecutor(_THREADS))
    # What a generated `add_…_to_server` does, for the one method that is measured.
    handlers = {
        "ValidateSession": grpc.unary_unary_rpc_method_handler(
            sessions.validate,
            request_deserializer=ValidateSessionRequest.FromString,
            response_serializer=ValidateSessionResponse.SerializeToString,
        )
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
    server.add_registered_method_handlers(_SERVICE, handlers)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"listening on 127.0.0.1:{port}", file=sys.stderr)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
