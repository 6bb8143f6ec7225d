"""Traces: a span for each call, and below it one for each request that it makes to the store.

The names are those of OpenTelemetry's semantic conventions for RPC and for Redis. A call continues the trace that its
`traceparent` names. The sampler decides whether it is recorded; by default it follows the caller's decision. Spans hold
names of methods and commands, numbers and statuses; nothing of a request gets into them.

Validations that come together share a request to the store. Each recorded call has a span of its own for that request,
with the same beginning and end, because each call waits for it; the span has the number of commands in the request.
"""

import re
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from catraca_server.observe.metrics import CODES, Metrics

_STATUSES = tuple(
    "CANCELLED" if each == "Canceled" else re.sub(r"(?<=[a-z])(?=[A-Z])", "_", each).upper() for each in CODES
)
"""gRPC's names of the statuses, by number."""

_ERRORS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""The statuses for which the server is at fault, and not its caller."""

_PROPAGATOR = TraceContextTextMapPropagator()
_TRACEPARENT = "traceparent"
_NO_PARENT = Context()
_UNRECORDED = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f][02468ace]")
"""The `traceparent` of a caller that does not record. Asking the SDK costs ten times as much as checking it here."""

_recorded: ContextVar[Sequence[Span]] = ContextVar("recorded", default=())
"""The spans of the recorded calls that are being served here."""


class ServedCall(Protocol):
    """A call of the engine."""

    @property
    def observed(self) -> Any:
        """What `Tracing.started` returned for the call."""


_Call = TypeVar("_Call", bound=ServedCall)


class Tracing:
    """Makes spans. It is an `Observer` of the engine, which passes everything on to `metrics`, and a `RequestObserver`.

    Calls of `methods` are traced, by their paths, and those of methods that do not exist; others, such as health
    probes, are not. `address` has attributes of every span of a call: `server.address` and `server.port`.
    `follows_callers`: the sampler never records what a caller does not record, and need not be asked then.
    """

    def __init__(
        self,
        tracer: Tracer,
        metrics: Metrics,
        methods: Iterable[str],
        address: Mapping[str, str | int],
        *,
        follows_callers: bool,
    ) -> None:
        self._tracer = tracer
        self._follows_callers = follows_callers
        self._metrics = metrics
        names = {b"": "_OTHER"} | {path.encode(): path[1:] for path in methods}
        self._calls = {
            # The span of an unknown method must not be named by the caller.
            path: ("grpc" if not path else name, {"rpc.system.name": "grpc", "rpc.method": name, **address})
            for path, name in names.items()
        }

    def started(self, method: bytes, metadata: Iterable[tuple[str, str | bytes]]) -> Span | None:
        """Begins the span of a call, if it is recorded."""
        self._metrics.started(method)
        traced = self._calls.get(method)
        if traced is None:
            return None
        # Without `tracestate`, because it would send any text that a caller chooses with the span.
        carrier = {key: value for key, value in metadata if key == _TRACEPARENT and isinstance(value, str)}
        if carrier and self._follows_callers and _UNRECORDED.fullmatch(carrier[_TRACEPARENT]):
            return None
        name, attributes = traced
        parent = _PROPAGATOR.extract(carrier, _NO_PARENT) if carrier else _NO_PARENT
        span = self._tracer.start_span(name, parent, SpanKind.SERVER, attributes)
        return span if span.is_recording() else None

    def handled(self, observed: Span | None, method: bytes, code: int, reason: str, seconds: float) -> None:
        """Ends the span of a call."""
        self._metrics.handled(None, method, code, reason, seconds)
        if observed is None:
            return
        status = _STATUSES[code]
        observed.set_attribute("rpc.response.status_code", status)
        if reason:
            observed.set_attribute("catraca.reason", reason)
        if status in _ERRORS:
            _fail(observed, status)
        observed.end()

    def unary(
        self, handler: Callable[[_Call], Coroutine[Any, Any, bytes]]
    ) -> Callable[[_Call], Coroutine[Any, Any, bytes]]:
        """Returns a handler whose requests to the store are part of its call."""

        async def handle(call: _Call) -> bytes:
            if call.observed is not None:
                # The handler has its own task, and so its own context.
                _recorded.set((call.observed,))
            return await handler(call)

        return handle

    def batch(self, handler: Callable[[list[_Call]], None]) -> Callable[[list[_Call]], None]:
        """Returns a handler whose requests to the store are part of each of its calls."""

        def handle(calls: list[_Call]) -> None:
            recorded = [call.observed for call in calls if call.observed is not None]
            if not recorded and not _recorded.get():
                handler(calls)
                return
            # Also without recorded calls: a batch may start while others are answered that have some.
            token = _recorded.set(recorded)
            try:
                handler(calls)
            finally:
                _recorded.reset(token)

        return handle

    def is_asked_for(self) -> bool:
        """Whether a recorded call is being served here."""
        return bool(_recorded.get())

    def request_began(self, operation: str, commands: int) -> Sequence[tuple[Span, Span]]:
        """Begins the spans of a request to the store: one for each recorded call, and returns each after its call's."""
        attributes: dict[str, str | int] = {"db.system.name": "redis", "db.operation.name": operation}
        if commands > 1:
            attributes["db.operation.batch.size"] = commands
        return [
            (
                call,
                self._tracer.start_span(operation, set_span_in_context(call, _NO_PARENT), SpanKind.CLIENT, attributes),
            )
            for call in _recorded.get()
        ]

    def request_ended(self, began: Sequence[tuple[Span, Span]], error: str) -> None:
        """Ends the spans, except for calls that are over: they did not wait for a node that only others needed."""
        for call, span in began:
            if call.is_recording():
                if error:
                    _fail(span, error)
                span.end()


def _fail(span: Span, error: str) -> None:
    span.set_attribute("error.type", error)
    span.set_status(Status(StatusCode.ERROR))
