"""ValidateSession calls that are there at the same time, answered together.

The engine hands over all calls that have arrived. They are parsed, read from the store in one request, decided and
answered without a task, a timer or a future of their own. Each keeps its own deadline, its own errors and its own
answer: a fault in one does not affect the others.

Calls that arrive while a batch waits for the store are the next batch, which starts as soon as the store has replied.
They lose nothing by it, because a connection to the store has one request in flight at a time. Larger batches make
each call cheaper: a batch costs about as much as five calls.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeAlias

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
_LATE = status_of(StoreUnavailable("the deadline has passed", StoreProblem.NOT_IN_TIME))


SLOW_SECONDS = 0.005
"""A batch that takes longer holds up no other: the store may be slow, or only one of its servers, which must not delay
calls about sessions on the others. From then on calls are watched, until a batch is quicker: a call whose caller leaves
would otherwise count towards the limit of its connection until the store replies."""


class IncomingCall(Protocol):
    """A ValidateSession call, as the engine hands it over.

    It is answered exactly once. If its caller has left by then, the answer goes nowhere.
    """

    @property
    def request(self) -> bytes:
        """The request as it came."""

    @property
    def deadline(self) -> float:
        """When the caller stops waiting: a time of the event loop's clock; infinity if it never does."""

    @property
    def caller(self) -> Caller | None:
        """The caller; None on a server that runs open."""

    @property
    def metadata(self) -> Metadata:
        """The metadata that the caller sent."""

    def watch(self) -> None:
        """Has the call notice, from now on, when its caller leaves."""

    def reply(self, message: bytes) -> None:
        """Sends the response."""

    def fail(self, status: Status) -> None:
        """Sends an error status."""


_Start: TypeAlias = Callable[[list[Any]], None]
"""Starts a batch of calls."""


class ValidationBatches:
    """Answers ValidateSession calls. The store has `store_timeout_seconds` for each of them.

    `audit` counts the tokens that are not valid. `around` puts something around the start of each batch, which gets its
    calls.
    """

    def __init__(
        self,
        validating: Validating,
        *,
        store_timeout_seconds: float,
        audit: Audit | None = None,
        around: Callable[[_Start], _Start] | None = None,
    ) -> None:
        self._validating = validating
        self._audit = audit or NoAudit()
        self._store_timeout_seconds = store_timeout_seconds
        self._start_batch = self._begin if around is None else around(self._begin)
        self._running: set[asyncio.Task[None]] = set()
        self._held: list[IncomingCall] = []
        self._asking: _Batch | None = None
        """The newest batch, while it waits for the store."""
        self._slow = False
        """Whether the last batch was slow."""

    def start(self, calls: Sequence[IncomingCall]) -> None:
        """Answers each call, now or after the batch that waits for the store. Call it on the event loop."""
        if self._slow:
            _watch(calls)
        self._held += calls
        if self._asking is None:
            self._start_held()

    def _start_held(self) -> None:
        calls, self._held = self._held, []
        for at in range(0, len(calls), BATCH_MAX_REQUESTS):
            self._start_batch(calls[at : at + BATCH_MAX_REQUESTS])

    def _begin(self, calls: list[IncomingCall]) -> None:
        task = start_now(self.answer(calls), name="validations")
        if task is not None:
            # The loop keeps only a weak reference.
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    def _on_store_replied(self, batch: "_Batch") -> None:
        if self._asking is batch:
            self._asking = None
            if self._held:
                self._start_held()

    def _on_slow(self, batch: "_Batch") -> None:
        batch.slow = self._slow = True
        _watch((*batch.calls, *self._held))
        self._on_store_replied(batch)

    async def answer(self, calls: Sequence[IncomingCall]) -> None:
        """Answers each call, in one batch."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        batch = self._asking = _Batch(now + self._store_timeout_seconds, self._audit, self._on_store_replied)
        requests = batch.requests
        for call in calls:
            if call.deadline <= now:
                call.fail(_LATE)
                continue
            try:
                request = _read(call.request)
            except Exception as error:  # noqa: BLE001  whatever it is, it is this call's alone
                call.fail(status_of(error, given_ids(call.metadata)))
            else:
                requests.append(request)
                batch.calls.append(call)
        slow = loop.call_later(SLOW_SECONDS, self._on_slow, batch)
        try:
            await self._validating.validate_each(requests, batch.latest_call(), batch)
        except Exception as error:  # noqa: BLE001  a defect: the calls without an answer fail with it
            batch.fail_rest(error)
        finally:
            slow.cancel()
            self._slow = batch.slow
            # Also if there was nothing to ask.
            batch.store_replied()


def _watch(calls: Iterable[IncomingCall | None]) -> None:
    for call in calls:
        if call is not None:
            call.watch()


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

    def __init__(self, latest_deadline: float, audit: Audit, on_store_replied: "Callable[[_Batch], None]") -> None:
        self._audit = audit
        self._on_store_replied = on_store_replied
        self.slow = False
        """Whether it took longer than SLOW_SECONDS."""
        self.requests: list[ValidationRequest] = []
        self.calls: list[IncomingCall | None] = []
        """By the position of their requests. None: already answered."""
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
        # Its ids are read only here, because few calls need them.
        return Call(min(self._latest_deadline, call.deadline), call.caller or ANONYMOUS, *call_ids(call.metadata))

    def store_replied(self) -> None:
        """Lets the next batch start."""
        self._on_store_replied(self)

    def answer(self, at: int, validation: Validation) -> None:
        """Sends the response, if it is not too late."""
        call = self.calls[at]
        if call is None:
            return
        try:
            response = validation_response(validation)
        except Exception as error:  # noqa: BLE001  a defect about this session must not fail other calls
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
        """Sends an error status to all calls without an answer."""
        for at in range(len(self.calls)):
            self.fail(at, error)

    def _status(self, error: Exception, call: IncomingCall) -> Status:
        """Returns the status of an error. Many calls often share one, and it is logged once."""
        if id(error) not in self._statuses:
            self._statuses[id(error)] = status_of(error, given_ids(call.metadata))
        return self._statuses[id(error)]
