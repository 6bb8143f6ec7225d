"""Methods: how the calls of one path are handled."""

import asyncio
import logging
import traceback
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import grpc

from catraca_server.api.engine.calls import UnaryCall
from catraca_server.api.engine.completions import Completions
from catraca_server.api.engine.slots import Slot
from catraca_server.api.engine.statuses import Status, StatusError
from catraca_server.api.engine.streams import Stream

_T = TypeVar("_T")

logger = logging.getLogger(__name__)

DEFECT = Status(grpc.StatusCode.INTERNAL, "a defect of the server; its log has the details")
CANCELLED = Status(grpc.StatusCode.CANCELLED, "the server gave the call up")


class Work:
    """The work that a server's handlers still have to begin, and the work that they are doing."""

    def __init__(self) -> None:
        self.batches: list[BatchMethod] = []
        """The methods that have calls to hand over."""
        self.tasks: dict[asyncio.Task[Any], bytes] = {}
        """A task for each call of a coroutine handler, with the call's method."""

    def hand_over(self) -> None:
        """Hands over the calls that have come in together."""
        while self.batches:
            self.batches.pop().hand_over()

    def start_task(
        self, call: UnaryCall | Stream, handling: Coroutine[Any, Any, _T], reply: Callable[[_T], None]
    ) -> None:
        """Starts a task that handles a call. The call is answered with the result."""
        call.task = task = asyncio.create_task(handling)
        self.tasks[task] = call.method
        # A callback, not a coroutine around the handler: a task that is cancelled before it begins runs no coroutine.
        task.add_done_callback(lambda task: self._on_done(task, call, reply))

    def _on_done(self, task: "asyncio.Task[_T]", call: UnaryCall | Stream, reply: Callable[[_T], None]) -> None:
        del self.tasks[task]
        call.task = None
        if task.cancelled():
            call.fail(CANCELLED)
            return
        error = task.exception()
        try:
            if error is None:
                reply(task.result())
                return
            if isinstance(error, StatusError):
                call.fail(error.status)
                return
        except (TypeError, ValueError) as unsendable:
            error = unsendable
        log_defect(call.method, error)
        call.initial_metadata = call.trailing_metadata = ()
        call.fail(DEFECT)


class Method:
    """How the calls of one path are handled. A method belongs to one server."""

    def __init__(self) -> None:
        self._work: Work

    def bind(self, work: Work) -> None:
        """Binds it to the work of its server."""
        self._work = work

    def accept(self, event: Any, slot: Slot, completions: Completions, caller: Any) -> None:
        """Accepts a call; `caller` is what its guard returned."""
        raise NotImplementedError


class BatchMethod(Method):
    """A unary method whose handler gets all calls that have come in together; there is no task or future for each call.

    The handler is a plain function. It must answer each call soon, by `reply` or `fail`; a forgotten call keeps its
    caller waiting. An answer to a caller who has left is dropped. The call notices that only when it is answered, so
    that a handler which takes longer after all should have it watched (`UnaryCall.watch`).
    """

    def __init__(self, handler: Callable[[list[UnaryCall]], None]) -> None:
        super().__init__()
        self._handler = handler
        self._calls: list[UnaryCall] = []

    def accept(self, event: Any, slot: Slot, completions: Completions, caller: Any) -> None:  # noqa: D102  as its base says
        UnaryCall(event, slot, completions, caller, self._on_request, watched=False)

    def hand_over(self) -> None:
        """Calls the handler."""
        calls, self._calls = self._calls, []
        try:
            self._handler(calls)
        except Exception as error:  # noqa: BLE001  whatever it is, the callers get a status
            log_defect(calls[0].method, error)
            for call in calls:
                if not call.answered:
                    call.initial_metadata = call.trailing_metadata = ()
                    call.fail(DEFECT)

    def _on_request(self, call: UnaryCall) -> None:
        if not self._calls:
            self._work.batches.append(self)
        self._calls.append(call)


class UnaryMethod(Method):
    """A unary method whose handler is a coroutine function: it returns the reply, or raises StatusError.

    The handler is cancelled if the call ends first.
    """

    def __init__(self, handler: Callable[[UnaryCall], Coroutine[Any, Any, bytes]]) -> None:
        super().__init__()
        self._handler = handler

    def accept(self, event: Any, slot: Slot, completions: Completions, caller: Any) -> None:  # noqa: D102  as its base says
        UnaryCall(event, slot, completions, caller, self._on_request, watched=True)

    def _on_request(self, call: UnaryCall) -> None:
        if call.cancelled:
            call.fail(CANCELLED)
        else:
            self._work.start_task(call, self._handler(call), call.reply)


class StreamMethod(Method):
    """A method with a stream of requests, of replies, or of both. Its handler is a coroutine function.

    The handler returns to end the stream, or raises StatusError. It is cancelled if the call ends first.
    """

    def __init__(self, handler: Callable[[Stream], Coroutine[Any, Any, None]]) -> None:
        super().__init__()
        self._handler = handler

    def accept(self, event: Any, slot: Slot, completions: Completions, caller: Any) -> None:  # noqa: D102  as its base says
        slot.give_up()
        stream = Stream(event, slot, completions, caller)
        self._work.start_task(stream, self._handler(stream), stream.finish)


def log_defect(method: bytes, error: BaseException) -> None:
    """Logs where a handler failed, but not the text of the exception, which may quote a request."""
    where = "".join(traceback.format_tb(error.__traceback__))
    logger.error("the handler of %s failed: %s\n%s", method.decode(), type(error).__name__, where)
