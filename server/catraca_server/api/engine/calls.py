"""A call as its handler sees it, and a unary call from its request to its reply."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from math import inf
from time import perf_counter
from typing import Any, TypeAlias

import grpc

from catraca_server.api.engine import core
from catraca_server.api.engine.completions import Completions
from catraca_server.api.engine.slots import Slot
from catraca_server.api.engine.statuses import Metadata, Status, checked

_NO_DEADLINE_SECONDS = 1e12
"""A wall clock time that no deadline reaches. For a call without one, the core has the last second it can count."""


_OK_CODE = grpc.StatusCode.OK.value[0]
_DEADLINE_EXCEEDED_CODE = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
_CANCELLED_CODE = grpc.StatusCode.CANCELLED.value[0]

NO_REQUEST = Status(grpc.StatusCode.UNIMPLEMENTED, "the method takes exactly one request message")


class Arrival:
    """A call that has just come in. None of its request has been read."""

    __slots__ = ("_core", "metadata", "method", "on_end")

    def __init__(self, event: Any) -> None:
        self.method: bytes = event.call_details.method
        """The path: `/package.Service/Method`."""
        self.on_end: Callable[[], None] | None = None
        """A guard may set this. It is called once, when a call that was let in is over, however that ends."""
        self.metadata: Metadata = event.invocation_metadata
        """What the caller sent; keys are lower case."""
        self._core = event.call

    def peer(self) -> str:
        """Returns where the call comes from, such as `ipv4:127.0.0.1:40312`."""
        peer: bytes = self._core.peer()
        return peer.decode()

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        """Returns what the transport knows about the caller."""
        return _auth_context(self._core)


Guard: TypeAlias = Callable[[Arrival], Any]
"""Decides whether a call is let in. It returns the `caller` that handlers see, or raises StatusError."""


class Call:
    """A call: what is known about it, and the two ways in which it ends: it is answered, or its caller leaves.

    A call that is `watched` notices at once when its caller leaves. Any other notices only when it is answered, which
    saves an operation of the core: a tenth of what an empty call costs.
    """

    __slots__ = (
        "_began_seconds",
        "_completions",
        "_core",
        "_ended_with",
        "_slot",
        "_watched",
        "answered",
        "caller",
        "cancelled",
        "deadline",
        "initial_metadata",
        "metadata",
        "method",
        "task",
        "trailing_metadata",
    )

    def __init__(self, event: Any, slot: Slot, completions: Completions, caller: Any, *, watched: bool) -> None:
        details = event.call_details
        deadline = details.deadline
        self.method: bytes = details.method
        """The path: `/package.Service/Method`."""
        self.deadline: float = (
            inf if deadline > _NO_DEADLINE_SECONDS else deadline + completions.deadline_offset_seconds
        )
        """A time of the loop's clock in seconds; infinity if there is none. The core ends calls that are past it."""
        self.metadata: Metadata = event.invocation_metadata
        """What the caller sent; keys are lower case."""
        self.caller: Any = caller
        """What the guard of the method returned; None if it has none."""
        self.cancelled = False
        """Whether a watched call has ended without an answer: its caller left, or its deadline or the grace is over."""
        self.answered = False
        """Whether its handler has finished with it."""
        self.task: asyncio.Task[Any] | None = None
        """The task that handles it, if a task does."""
        self.initial_metadata: Metadata = ()
        """Sent before the first message, so set it before that."""
        self.trailing_metadata: Metadata = ()
        """Sent with the status, in addition to the status's own trailing metadata."""
        self._completions = completions
        self._began_seconds = completions.turn_began_seconds
        self._slot = slot
        # Dropped as soon as the call is over. As long as it is kept, it counts as a stream of its connection.
        self._core = event.call
        self._ended_with = (0, "")
        self._watched = False
        if watched:
            self.watch()

    @property
    def observed(self) -> Any:
        """What the server's observer returned for it; None without an observer."""
        return self._slot.observed

    def watch(self) -> None:
        """Has the call notice, from now on, when its caller leaves."""
        if self._core is not None and not self._watched and not self.answered:
            self._watched = True
            self._completions.begin(self._core, (core.ReceiveCloseOnServerOperation(core.NO_FLAGS),), self._on_close)

    def peer(self) -> str:
        """Returns where the call comes from, such as `ipv4:127.0.0.1:40312`; empty once the call is over."""
        return "" if self._core is None else self._core.peer().decode()

    def peer_identities(self) -> Sequence[bytes] | None:
        """Returns the names in the caller's certificate; None without one, or once the call is over."""
        return None if self._core is None else core.peer_identities(self._core)

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        """Returns what the transport knows about the caller; empty once the call is over."""
        return {} if self._core is None else _auth_context(self._core)

    def _on_close(self, event: Any) -> None:
        if event.batch_operations[0].cancelled() and not self.answered:
            self._completions.shedding.on_end(self._seconds_left())
            self.cancelled = True
            self._core = None
            if self.task is not None:
                self.task.cancel()

    def _finish(self, operations: tuple[Any, ...], status: Status | None = None) -> None:
        """Sends the last operations of the call and its status, OK by default; nothing if the caller has left."""
        if self.answered:
            raise RuntimeError("the call has been answered already")
        trailing = self.trailing_metadata
        if status is None:
            code, message = _OK_CODE, b""
        else:
            code, message = status.code.value[0], status.message.encode()
            trailing = (*trailing, *status.trailing_metadata)
        send_status = core.SendStatusFromServerOperation(
            checked(trailing) if trailing else (), code, message, core.NO_FLAGS
        )
        self.answered = True
        self._ended_with = code, "" if status is None else status.reason
        if self._core is None or self._completions.closed:
            self._end(left=True)
            return
        operations = (*operations, send_status)
        if not self._watched:
            operations = (*operations, core.ReceiveCloseOnServerOperation(core.NO_FLAGS))
        self._completions.begin(self._core, operations, self._on_finished)

    def _on_finished(self, event: Any) -> None:
        if self._core is not None:
            self._completions.shedding.on_answered(self._core, self._seconds_left())
        self._core = None
        self._end(left=not self._watched and event.batch_operations[-1].cancelled())

    def _end(self, *, left: bool) -> None:
        """Releases the slot. `left`: the caller did not wait for the answer."""
        observer = self._completions.observer
        if observer is not None:
            code, reason = self._ended_with
            if left:
                code = _CANCELLED_CODE if self._seconds_left() > 0 else _DEADLINE_EXCEEDED_CODE
            seconds = perf_counter() - self._began_seconds
            observer.handled(self._slot.observed, self.method, code, reason, seconds)
        self._slot.release()

    def _seconds_left(self) -> float:
        """Returns how much time was left until the deadline when the turn began."""
        return self.deadline - self._completions.now_seconds


class UnaryCall(Call):
    """A call with one request and one reply. It is answered once: by `reply` or by `fail`."""

    __slots__ = ("_on_request_do", "request")

    def __init__(
        self,
        event: Any,
        slot: Slot,
        completions: Completions,
        caller: Any,
        on_request: "Callable[[UnaryCall], None]",
        *,
        watched: bool,
    ) -> None:
        super().__init__(event, slot, completions, caller, watched=watched)
        self.request = b""
        """The message as it was received, decompressed."""
        self._on_request_do = on_request
        completions.begin(self._core, (core.ReceiveMessageOperation(core.NO_FLAGS),), self._on_request)

    def reply(self, message: bytes) -> None:
        """Answers with a message. If the caller has left, nothing is sent, and that is not an error."""
        if type(message) is not bytes:
            raise TypeError("a message is bytes")
        self._finish((self._send_initial_metadata(), core.SendMessageOperation(message, core.NO_FLAGS)))

    def fail(self, status: Status) -> None:
        """Answers with a status other than OK."""
        if status.code is grpc.StatusCode.OK:
            raise ValueError("OK is not a failure")
        self._finish((self._send_initial_metadata(),), status)

    def _send_initial_metadata(self) -> Any:
        initial = self.initial_metadata
        return core.SendInitialMetadataOperation(checked(initial) if initial else (), core.NO_FLAGS)

    def _on_request(self, event: Any) -> None:
        request = event.batch_operations[0].message()
        if request is not None:
            self.request = request
            self._on_request_do(self)
        elif not self.answered:
            # Most often the caller has left, and this goes nowhere.
            self.fail(NO_REQUEST)


def _auth_context(core_call: Any) -> Mapping[str, Sequence[bytes]]:
    return {key.decode(): values for key, values in (core.auth_context(core_call) or {}).items()}
