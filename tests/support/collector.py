"""An OpenTelemetry collector within the test: takes traces and metrics over gRPC, and keeps them as they came."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector(trace_service_pb2_grpc.TraceServiceServicer, metrics_service_pb2_grpc.MetricsServiceServicer):
    """What has been received."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.authorizations: set[str | None] = set()
        """The `authorization` metadata of the requests."""
        self.port = 0

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802  as the protocol has it
        """Receives traces or metrics."""
        self.requests.append(request)
        self.authorizations.add(dict(context.invocation_metadata()).get("authorization"))
        if isinstance(request, trace_service_pb2.ExportTraceServiceRequest):
            return trace_service_pb2.ExportTraceServiceResponse()
        return metrics_service_pb2.ExportMetricsServiceResponse()

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that make a service send here, and soon."""
        return {
            "CATRACA_OTEL": "true",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "OTEL_METRIC_EXPORT_INTERVAL": "100",
        }

    @property
    def everything(self) -> bytes:
        """All bytes."""
        return b"".join(each.SerializeToString() for each in tuple(self.requests))

    def spans(self) -> list[Span]:
        """Returns all spans."""
        return [
            span
            for request in tuple(self.requests)
            if isinstance(request, trace_service_pb2.ExportTraceServiceRequest)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def resources(self) -> list[dict[str, Any]]:
        """Returns the sender of each request."""
        found = []
        for request in tuple(self.requests):
            traces = isinstance(request, trace_service_pb2.ExportTraceServiceRequest)
            (each,) = request.resource_spans if traces else request.resource_metrics
            found.append(attributes(each.resource.attributes))
        return found

    def last_metrics(self) -> dict[str, Any]:
        """Returns the metrics of the last request, by name."""
        for request in reversed(tuple(self.requests)):
            if isinstance(request, metrics_service_pb2.ExportMetricsServiceRequest):
                (resource,) = request.resource_metrics
                (scope,) = resource.scope_metrics
                return {metric.name: metric for metric in scope.metrics}
        return {}


def attributes(pairs: Any) -> dict[str, Any]:
    """Returns attributes as a mapping."""

    def value(pair: KeyValue) -> Any:
        kind = pair.value.WhichOneof("value")
        assert kind is not None
        return getattr(pair.value, kind)

    return {pair.key: value(pair) for pair in pairs}


@contextmanager
def collecting() -> Iterator[Collector]:
    """Runs a collector."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call] # generated
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call] # generated
    collector.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()
