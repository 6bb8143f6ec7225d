"""ValidateSession calls that are there at the same time, answered together.

An engine hands over all that have arrived. They are parsed, asked of the store in one request, decided and answered
without a task, a timer or a future of their own. Each keeps its own deadline, its own faults and its own answer:
whatever is wrong with one, the others do not notice.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

import grpc
from google.protobuf.message import DecodeError

from catraca.v1 import session_service_pb2 as pb
from catraca_server.api.call_ids import call_ids, given_ids
from catraca_server.api.eager import start_now
from catraca_server.api.engine import Metadata, Status
from catraca_server.api.messages import validation_response
from catraca_server.api.session_service import validation_violations
from catraca_server.api.statuses import status_of
from catraca_server.domain.audit import Audit, NoAudit
from catraca_server.domain.call import ANONYMOUS, Call, Caller
from catraca_server.domain.errors import InvalidRequest
from catraca_server.domain.limits import BATCH_MAX_REQUESTS
from catraca_server.domain.validation import Validation, ValidationRequest
from catraca_server.operations.validating import Validating
from catraca_server.store import StoreProblem, StoreUnavailable

_parse = pb.ValidateSessionRequest.FromString
_GONE = Status(grpc.StatusCode.CANCELLED, "the caller has left", ())
_LATE = status_of(StoreUnavailable("the deadline has passed", StoreProblem.NOT_IN_TIME))


class IncomingCall(Protocol):
    """A ValidateSession call, as an engine hands it over.

    It is answered exactly once, also if nobody waits for it any more: what is sent then goes nowhere.
    """

    @property
    def request(self) -> bytes:
        """The request as it came."""

    @property
    def deadline(self) -> float:
        """When the caller stops waiting: a time of the event loop's clock; infinity if it never does."""

    @property
    def caller(self) -> Caller | None:
        """Who calls; None on a server that runs open."""

    @property
    def metadata(self) -> Metadata:
        """What the caller sent beside it."""

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits any more."""

    def reply(self, message: bytes) -> None:
        """Sends the response."""

    def fail(self, status: Status) -> None:
        """Sends an error status."""


class ValidationBatches:
    """Answers ValidateSession calls. `store_timeout_seconds` is what the store has for each of them.

    `audit` is told of tokens that are not valid.
    """

    def __init__(self, validating: Validating, *, store_timeout_seconds: float, audit: Audit | None = None) -> None:
        self._validating = validating
        self._audit = audit or NoAudit()
        self._store_timeout_seconds = store_timeout_seconds
        self._running: set[asyncio.Task[None]] = set()

    def start(self, calls: Sequence[IncomingCall]) -> None:
        """Sees to it that each call is answered. Has to be called on the event loop."""
        for at in range(0, len(calls), BATCH_MAX_REQUESTS):
            task = start_now(self.answer(calls[at : at + BATCH_MAX_REQUESTS]), name="validations")
            if task is not None:
                # The loop itself keeps only a weak reference.
                self._running.add(task)
                task.add_done_callback(self._running.discard)

    async def answer(self, calls: Sequence[IncomingCall]) -> None:
        """Answers each call."""
        now = asyncio.get_running_loop().time()
        batch = _Batch(now + self._store_timeout_seconds, self._audit)
        requests = batch.requests
        for call in calls:
            if call.cancelled or call.deadline <= now:
                call.fail(_GONE if call.cancelled else _LATE)
                continue
            try:
                request = _read(call.request)
            except Exception as error:  # noqa: BLE001  whatever it is, it is this call's alone
                call.fail(status_of(error, given_ids(call.metadata)))
            else:
                requests.append(request)
                batch.calls.append(call)
        try:
            await self._validating.validate_each(requests, batch.latest_call(), batch)
        except Exception as error:  # noqa: BLE001  a defect: who has no answer yet hears of it
            batch.fail_rest(error)


def _read(body: bytes) -> ValidationRequest:
    """Reads a request. Raises InvalidRequest."""
    try:
        request = _parse(body)
    except DecodeError:
        raise InvalidRequest from None
    token, user_id = request.token, request.user_id
    if (not token or user_id) and (violations := validation_violations(token, user_id)):
        raise InvalidRequest(*violations)
    return ValidationRequest(token, user_id, request.skip_touch)


class _Batch:
    """Calls that wait for validations."""

    def __init__(self, latest_deadline: float, audit: Audit) -> None:
        self._audit = audit
        self.requests: list[ValidationRequest] = []
        self.calls: list[IncomingCall | None] = []
        """By the position of their requests. None: it has its answer."""
        self._latest_deadline = latest_deadline
        self._time = asyncio.get_running_loop().time
        self._statuses: dict[int, Status] = {}

    def latest_call(self) -> Call:
        """Returns the call with the latest deadline."""
        deadlines = [call.deadline for call in self.calls if call is not None]
        return Call(min(self._latest_deadline, max(deadlines, default=self._latest_deadline)))

    def call(self, at: int) -> Call:
        """Returns the call that a request came with."""
        call = self.calls[at]
        assert call is not None, "it has no answer yet"
        # Named only here, where something is to be told of it: few calls get here.
        return Call(min(self._latest_deadline, call.deadline), call.caller or ANONYMOUS, *call_ids(call.metadata))

    def answer(self, at: int, validation: Validation) -> None:
        """Sends the response, if it is not too late."""
        call = self.calls[at]
        if call is None:
            return
        try:
            response = validation_response(validation)
        except Exception as error:  # noqa: BLE001  it is about this session, and no other call may suffer from it
            self.fail(at, error)
            return
        self.calls[at] = None
        if call.deadline <= self._time():
            call.fail(_LATE)
        else:
            call.reply(response)
        if validation.reason is not None:
            self._audit.invalid_tokens((call.caller or ANONYMOUS).name, 1)

    def fail(self, at: int, error: Exception) -> None:
        """Sends an error status."""
        call, self.calls[at] = self.calls[at], None
        if call is not None:
            call.fail(self._status(error, call))

    def fail_rest(self, error: Exception) -> None:
        """Sends an error status to all that have no answer."""
        for at in range(len(self.calls)):
            self.fail(at, error)

    def _status(self, error: Exception, call: IncomingCall) -> Status:
        """Returns the status of an error. Many calls often have the same one, and the log has it once."""
        if id(error) not in self._statuses:
            self._statuses[id(error)] = status_of(error, given_ids(call.metadata))
        return self._statuses[id(error)]
