"""OpenTelemetry, if it is asked for: whether it can be used, what is to be sent, and the start of the sending.

It is an extra, and takes a while to import. So the modules that build on it are imported inside functions.
"""

import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from catraca_server.observe.metrics import Metrics
from catraca_server.observe.numbers import Snapshot

if TYPE_CHECKING:
    from catraca_server.observe.tracing import Tracing

EXTRA = "catraca[server,otel]"
_NEEDED = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.grpc")

_SIGNALS = ("TRACES", "METRICS")
_FOLLOWING_SAMPLERS = ("", "parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio")
_HEADER = re.compile(r"\s*[!#-'*+.^-`|~\w-]+\s*=[^,]*")


def problems_with_otel(environment: Mapping[str, str]) -> list[str]:
    """Returns why OpenTelemetry cannot be used as it is asked for, one line each; nothing if it can."""
    problems = []
    if not all(_is_installed(module) for module in _NEEDED):
        problems.append(f"otel is set, and OpenTelemetry is not installed: pip install '{EXTRA}', or set it to false")
    protocols = ["OTEL_EXPORTER_OTLP_PROTOCOL", *(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL" for signal in _SIGNALS)]
    problems += [
        f"{name} {value} is not supported: catraca exports over grpc, so unset it and name the collector's gRPC port"
        for name in protocols
        if (value := environment.get(name, "")) not in {"", "grpc"}
    ]
    exporters = [f"OTEL_{signal}_EXPORTER" for signal in _SIGNALS]
    problems += [
        f"{name} {value} is not supported: it can be otlp or none"
        for name in exporters
        if (value := environment.get(name, "")) not in {"", "otlp", "none"}
    ]
    headers = ["OTEL_EXPORTER_OTLP_HEADERS", *(f"OTEL_EXPORTER_OTLP_{signal}_HEADERS" for signal in _SIGNALS)]
    problems += [
        # Its value is not shown: it may be a secret.
        f"{name} must be headers as name=value, with commas between them"
        for name in headers
        if not all(_HEADER.fullmatch(each) for each in environment.get(name, "").split(",") if each.strip())
    ]
    return problems


@asynccontextmanager
async def tracing(
    metrics: Metrics, methods: Iterable[str], address: Mapping[str, str | int]
) -> AsyncIterator["Tracing | None"]:
    """Yields a `Tracing`, which makes spans (see there for the arguments), and sends the last ones on the way out.

    Yields None if no traces are wanted. Raises ValueError or OSError for OTEL_ variables that cannot be used.
    """
    if not _is_wanted("TRACES"):
        yield None
        return
    from catraca_server.observe.otlp import sending_spans  # noqa: PLC0415  see above
    from catraca_server.observe.tracing import Tracing  # noqa: PLC0415

    async with sending_spans() as tracer:
        follows_callers = os.environ.get("OTEL_TRACES_SAMPLER", "").strip().lower() in _FOLLOWING_SAMPLERS
        yield Tracing(tracer, metrics, methods, address, follows_callers=follows_callers)


@asynccontextmanager
async def sending_metrics(snapshot: Callable[[], Awaitable[Snapshot]]) -> AsyncIterator[None]:
    """Sends the numbers in the body, if they are wanted, and on the way out. Raises as `tracing` does."""
    if not _is_wanted("METRICS"):
        yield
        return
    from catraca_server.observe.otlp import sending_numbers  # noqa: PLC0415  see above

    async with sending_numbers(snapshot):
        yield


def _is_wanted(signal: str) -> bool:
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return not disabled and os.environ.get(f"OTEL_{signal}_EXPORTER", "") != "none"


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
