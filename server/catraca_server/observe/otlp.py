"""Sends traces and metrics to a collector, over OTLP. OTEL_ variables say where it is and how to send.

The metrics are the numbers of the page for Prometheus, read every minute and not counted a second time. The SDK has no
observable histogram, so its data points are made from the page's numbers directly.
"""

import asyncio
import logging
import os
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Tracer

from catraca_server.observe.numbers import FAMILIES, Snapshot, labels_of

logger = logging.getLogger(__name__)
# This logger quotes headers that it cannot read, and they may be secrets.
logging.getLogger("opentelemetry.util.re").disabled = True

NAME = "catraca"
LAST_EXPORT_SECONDS = 2.0
"""How long the last export may take when the service stops. An unreachable collector must not hold that up."""

DEFAULT_INTERVAL_MS = 60_000

_CONVENTIONS: Mapping[str, str] = {
    "grpc_server_handling_seconds": "rpc.server.call.duration",
    "catraca_store_exchange_seconds": "db.client.operation.duration",
}
"""The metrics that the semantic conventions have a name for. Any other metric has a name that translates to the page's
name in Prometheus."""


@asynccontextmanager
async def sending_spans() -> AsyncIterator[Tracer]:
    """Yields what makes spans, and sends what is left of them on the way out."""
    exporter = OTLPSpanExporter()
    processor = BatchSpanProcessor(exporter)
    provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
    provider.add_span_processor(processor)
    try:
        yield provider.get_tracer(NAME, version(NAME))
    finally:
        # In a thread: if it is stuck, the exporter's shutdown frees it.
        await _in_time(asyncio.to_thread(processor.shutdown), exporter.shutdown)


@asynccontextmanager
async def sending_numbers(snapshot: Callable[[], Awaitable[Snapshot]]) -> AsyncIterator[None]:
    """Sends the numbers repeatedly in the body, and once more on the way out."""
    exporter = OTLPMetricExporter()
    resource, began_ns = _resource(), time.time_ns()
    interval_seconds = float(os.environ.get("OTEL_METRIC_EXPORT_INTERVAL") or DEFAULT_INTERVAL_MS) / 1000
    if not interval_seconds > 0:
        raise ValueError("an interval of nothing")

    async def send() -> None:
        try:
            data = metrics_data(await snapshot(), resource, began_ns, time.time_ns())
            # The exporter has logged it if the collector does not take them. The next numbers include these.
            await asyncio.to_thread(exporter.export, data)
        except Exception:
            logger.exception("metrics not sent")

    async def send_again_and_again() -> None:
        while True:
            await asyncio.sleep(interval_seconds)
            await send()

    sending = asyncio.create_task(send_again_and_again(), name="otlp-metrics")
    try:
        yield
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        if await _in_time(send(), exporter.shutdown):
            exporter.shutdown()


def metrics_data(snapshot: Snapshot, resource: Resource, began_ns: int, now_ns: int) -> MetricsData:
    """Returns the numbers as they are sent, all of them counted since `began_ns`."""
    metrics = []
    for family, samples in snapshot.items():
        if not samples:
            continue
        kind, help_text, _ = FAMILIES[family]
        convention = _CONVENTIONS.get(family)
        bare = family.removesuffix("_total")
        name = convention or bare.removesuffix("_seconds").replace("_", ".")
        unit = "s" if bare.endswith("_seconds") else ""
        data: Histogram | Sum | Gauge
        if kind == "histogram":
            data = Histogram(_histograms(samples, convention, began_ns, now_ns), AggregationTemporality.CUMULATIVE)
        else:
            points = [NumberDataPoint(labels_of(each), began_ns, now_ns, +value) for each, value in samples.items()]
            data = Gauge(points) if kind == "gauge" else Sum(points, AggregationTemporality.CUMULATIVE, True)
        metrics.append(Metric(name, help_text, unit, data))
    scope = ScopeMetrics(InstrumentationScope(NAME, version(NAME)), metrics, "")
    return MetricsData([ResourceMetrics(resource, [scope], "")])


def _histograms(
    samples: Mapping[str, float], convention: str | None, began_ns: int, now_ns: int
) -> list[HistogramDataPoint]:
    """Returns a point for each set of labels; the page counts in each bucket what is in the smaller ones too."""
    buckets: dict[tuple[tuple[str, str], ...], dict[str, float]] = {}
    sums: dict[tuple[tuple[str, str], ...], float] = {}
    for each, value in samples.items():
        labels = labels_of(each)
        bound = labels.pop("le", None)
        key = tuple(labels.items())
        if bound is not None:
            buckets.setdefault(key, {})[bound] = value
        elif re.match(r"\w+_sum\b", each):
            sums[key] = value
    unknown: Any = None  # the least and the greatest value, which the protocol lets be left out
    points = []
    for key, counts in buckets.items():
        up_to = [int(count) for count in counts.values()]
        points.append(
            HistogramDataPoint(
                attributes=_conventional(dict(key), convention),
                start_time_unix_nano=began_ns,
                time_unix_nano=now_ns,
                count=up_to[-1],
                sum=sums[key],
                bucket_counts=[now - before for before, now in zip([0, *up_to], up_to, strict=False)],
                explicit_bounds=[float(bound) for bound in counts if bound != "+Inf"],
                min=unknown,
                max=unknown,
            )
        )
    return points


def _conventional(labels: Mapping[str, str], convention: str | None) -> dict[str, str]:
    match convention:
        case "rpc.server.call.duration":
            method = f"{labels['grpc_service']}/{labels['grpc_method']}"
            return {"rpc.system.name": "grpc", "rpc.method": "_OTHER" if method == "unknown/unknown" else method}
        case "db.client.operation.duration":
            return {"db.system.name": "redis", "db.operation.name": "PIPELINE"}
        case _:
            return dict(labels)


def _resource() -> Resource:
    """Returns the sender's description: this process, unless the variables say otherwise."""
    own = {"service.name": NAME, "service.version": version(NAME), "service.instance.id": str(uuid.uuid4())}
    said = OTELResourceDetector().detect().attributes
    return Resource.create({name: value for name, value in own.items() if name not in said})


async def _in_time(sending: Coroutine[Any, Any, None], stop: Callable[[], object]) -> bool:
    """Awaits the last of what is sent. Stops it if it takes too long, and returns False."""
    task = asyncio.create_task(sending)
    _, late = await asyncio.wait([task], timeout=LAST_EXPORT_SECONDS)
    if late:
        logger.warning("telemetry lost: the collector did not take it within %g s", LAST_EXPORT_SECONDS)
        stop()
    await task
    return not late
