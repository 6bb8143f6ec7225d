"""ValidateSession calls as an engine hands them over, without an engine."""

import asyncio
import math
from dataclasses import dataclass, field

import grpc
from tests.support.backends import STORE_TIMEOUT_SECONDS, Operations

from catraca.v1 import session_service_pb2 as pb
from catraca_server.api.engine import Metadata, Status
from catraca_server.api.validation_batches import ValidationBatches
from catraca_server.domain.call import Caller


@dataclass(eq=False)
class Incoming:
    """A call, and its answers."""

    request: bytes
    deadline: float = math.inf
    caller: Caller | None = None
    metadata: Metadata = ()
    watched: bool = False
    answers: list[pb.ValidateSessionResponse | Status] = field(default_factory=list)

    def watch(self) -> None:
        """Notes that it is watched."""
        self.watched = True

    def reply(self, body: bytes) -> None:
        """Takes the response."""
        self.answers.append(pb.ValidateSessionResponse.FromString(body))

    def fail(self, status: Status) -> None:
        """Takes an error status."""
        self.answers.append(status)

    @property
    def response(self) -> pb.ValidateSessionResponse:
        """The only answer, which is no error."""
        (answer,) = self.answers
        assert isinstance(answer, pb.ValidateSessionResponse), answer
        return answer

    @property
    def code(self) -> grpc.StatusCode:
        """The status of the only answer."""
        (answer,) = self.answers
        return answer.code if isinstance(answer, Status) else grpc.StatusCode.OK


def validation(token: str, *, user_id: str = "", skip_touch: bool = False, within: float = math.inf) -> Incoming:
    """Returns a call that must be answered `within` this many seconds."""
    request = pb.ValidateSessionRequest(token=token, user_id=user_id, skip_touch=skip_touch)
    return Incoming(request.SerializeToString(), asyncio.get_running_loop().time() + within)


def batches_over(operations: Operations, *, store_timeout_seconds: float = STORE_TIMEOUT_SECONDS) -> ValidationBatches:
    """Returns what answers such calls."""
    return ValidationBatches(operations.sessions.validating, store_timeout_seconds=store_timeout_seconds)


async def answered(operations: Operations, *calls: Incoming) -> None:
    """Makes the handler answer calls that came together."""
    await batches_over(operations).answer(calls)
