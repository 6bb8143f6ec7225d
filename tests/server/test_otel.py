"""OpenTelemetry: the spans of calls, the metrics of the page, and nothing without being asked."""

import secrets
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import accumulate
from typing import Any

import grpc
import pytest
from tests.support.cluster import Cluster
from tests.support.collector import Collector, attributes
from tests.support.metrics import free_port, labels_of, scrape
from tests.support.processes import workers_of
from tests.support.service import ServeProcess
from tests.support.valkey import Valkey
from tests.support.waiting import TIMEOUT_SECONDS, eventually
from tests.support.wire import create, stub_of, validate

from catraca.v1 import session_pb2, session_service_pb2 as pb
from catraca.v1.session_service_pb2_grpc import SessionServiceStub
from catraca_server.api.handlers import METHOD_ROLES
from catraca_server.api.method_types import method_types
from catraca_server.observe import otel
from catraca_server.observe.metrics import Metrics

SERVICE = "catraca.v1.SessionService"
SERVER, CLIENT = 2, 3
ERROR = 2


def traceparent(trace: str, parent: str, *, sampled: bool = True) -> tuple[tuple[str, str], ...]:
    """Returns the metadata of a call that is part of a trace."""
    return (("traceparent", f"00-{trace}-{parent}-{int(sampled):02d}"),)


def new_ids() -> tuple[str, str]:
    """Returns the id of a trace and of a span in it."""
    return secrets.token_hex(16), secrets.token_hex(8)


def spans_of(collector: Collector, trace: str) -> list[Any]:
    """Returns the spans of a trace."""
    return [span for span in collector.spans() if span.trace_id.hex() == trace]


def calls_of(collector: Collector, trace: str) -> list[Any]:
    """Returns the spans of calls in a trace."""
    return [span for span in spans_of(collector, trace) if span.kind == SERVER]


def failing(call: Callable[[], object]) -> grpc.StatusCode:
    """Makes a call that fails, and returns its status code."""
    with pytest.raises(grpc.RpcError) as failed:
        call()
    error: Any = failed.value
    code: grpc.StatusCode = error.code()
    return code


def test_a_call_continues_the_trace_of_its_caller(collector: Collector) -> None:
    """As a span of the server, with one below it for each request of the store; an unsampled one has none."""
    with ServeProcess(collector.environment, store_url="memory:") as process, stub_of(process.target) as stub:
        token = create(stub, "ana").token
        unsampled, parent = new_ids()
        request = pb.ValidateSessionRequest(token=token)
        stub.ValidateSession(request, metadata=traceparent(unsampled, parent, sampled=False), timeout=TIMEOUT_SECONDS)
        trace, parent = new_ids()
        stub.ValidateSession(request, metadata=traceparent(trace, parent), timeout=TIMEOUT_SECONDS)
        eventually(lambda: len(spans_of(collector, trace)) == 2, "the spans are sent")
        process.stop()
    assert not spans_of(collector, unsampled)
    (served,) = calls_of(collector, trace)
    (asked,) = (span for span in spans_of(collector, trace) if span.kind == CLIENT)
    assert served.parent_span_id.hex() == parent
    assert served.name == f"{SERVICE}/ValidateSession"
    assert attributes(served.attributes) == {
        "rpc.system.name": "grpc",
        "rpc.method": f"{SERVICE}/ValidateSession",
        "rpc.response.status_code": "OK",
        "server.address": "127.0.0.1",
    }
    assert served.status.code == 0
    assert (asked.parent_span_id, asked.name) == (served.span_id, "PIPELINE")
    assert attributes(asked.attributes) == {
        "db.system.name": "redis",
        "db.operation.name": "PIPELINE",
        "db.operation.batch.size": 2,
    }
    assert served.start_time_unix_nano <= asked.start_time_unix_nano
    assert asked.start_time_unix_nano < asked.end_time_unix_nano <= served.end_time_unix_nano
    for who in collector.resources():
        assert (who["service.name"], who["service.version"]) == ("catraca", version("catraca"))


def test_errors_have_the_status_of_the_conventions(collector: Collector) -> None:
    """What the server is to blame for is an error; what its caller did is a status."""
    traces = {}
    with (
        ServeProcess(collector.environment, store_url="memory:") as process,
        grpc.insecure_channel(process.target) as channel,
    ):
        stub = SessionServiceStub(channel)
        unknown: Any = channel.unary_unary("/made.Up/Method")
        made: list[tuple[grpc.StatusCode, Any, Any]] = [
            (grpc.StatusCode.INVALID_ARGUMENT, stub.CreateSession, pb.CreateSessionRequest()),
            (grpc.StatusCode.NOT_FOUND, stub.GetSession, pb.GetSessionRequest(session_id="0" * 22)),
            (grpc.StatusCode.UNIMPLEMENTED, unknown, b""),
        ]
        for code, method, request in made:
            trace, parent = new_ids()
            call = partial(method, request, metadata=traceparent(trace, parent), timeout=TIMEOUT_SECONDS)
            assert failing(call) is code
            traces[code] = trace
        eventually(lambda: all(calls_of(collector, trace) for trace in traces.values()), "the spans are sent")
    found = {code: calls_of(collector, trace)[0] for code, trace in traces.items()}
    for code, span in found.items():
        is_fault = code is grpc.StatusCode.UNIMPLEMENTED
        said = attributes(span.attributes)
        assert said["rpc.response.status_code"] == code.name
        assert (span.status.code == ERROR) is is_fault
        assert said.get("error.type") == (code.name if is_fault else None)
    assert attributes(found[grpc.StatusCode.NOT_FOUND].attributes)["catraca.reason"] == "SESSION_NOT_FOUND"
    other = found[grpc.StatusCode.UNIMPLEMENTED]
    assert (other.name, attributes(other.attributes)["rpc.method"]) == ("grpc", "_OTHER")
    assert b"made.Up" not in collector.everything


def test_a_store_that_fails_is_seen_in_the_trace(collector: Collector, own_valkey: Valkey) -> None:
    """The request of the store has failed, and says how; so has the call."""
    with ServeProcess(collector.environment, store_url=own_valkey.url) as process, stub_of(process.target) as stub:
        token = create(stub, "ana").token
        own_valkey.pause()
        try:
            trace, parent = new_ids()
            request = pb.ValidateSessionRequest(token=token)
            code = failing(
                lambda: stub.ValidateSession(request, metadata=traceparent(trace, parent), timeout=TIMEOUT_SECONDS)
            )
        finally:
            own_valkey.resume()
        assert code is grpc.StatusCode.UNAVAILABLE
        eventually(lambda: len(spans_of(collector, trace)) == 2, "the spans are sent")
    asked, served = sorted(spans_of(collector, trace), key=lambda span: -span.kind)
    assert (asked.status.code, attributes(asked.attributes)["error.type"]) == (ERROR, "NOT_IN_TIME")
    assert (served.status.code, attributes(served.attributes)["error.type"]) == (ERROR, "UNAVAILABLE")


@pytest.mark.parametrize(("sampler", "expected"), [("parentbased_always_off", 0), ("", 2), ("always_on", 3)])
async def test_the_sampler_of_the_environment_decides(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, sampler: str, expected: int
) -> None:
    """About a call without a trace, with one that its caller does not record, and with one that makes no sense.

    Health probes are never recorded.
    """
    for name, value in {**collector.environment, "OTEL_TRACES_SAMPLER": sampler}.items():
        monkeypatch.setenv(name, value)
    unsampled, parent = new_ids()
    strange = (("traceparent", f"00-{'0' * 32}-{parent}-00"),)
    method = b"/catraca.v1.SessionService/ValidateSession"
    async with otel.tracing(Metrics(method_types(), ()), METHOD_ROLES, {}) as tracing:
        assert tracing is not None
        for metadata in ((), strange, traceparent(unsampled, parent, sampled=False)):
            tracing.handled(tracing.started(method, metadata), method, 0, "", 0.001)
        assert tracing.started(b"/grpc.health.v1.Health/Check", ()) is None
    assert [span.name for span in collector.spans()] == [f"{SERVICE}/ValidateSession"] * expected
    assert len(spans_of(collector, unsampled)) == (sampler == "always_on")


@dataclass
class Served:
    """A call of the engine."""

    observed: object


async def test_a_batch_is_traced_for_its_own_calls_only(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if it starts while another is being answered."""
    for name, value in collector.environment.items():
        monkeypatch.setenv(name, value)
    seen: list[bool] = []
    method = b"/catraca.v1.SessionService/ValidateSession"
    async with otel.tracing(Metrics(method_types(), ()), METHOD_ROLES, {}) as tracing:
        assert tracing is not None
        inner = tracing.batch(lambda _: seen.append(tracing.is_asked_for()))

        def answer(_: list[Served]) -> None:
            seen.append(tracing.is_asked_for())
            inner([Served(None)])
            seen.append(tracing.is_asked_for())

        tracing.batch(answer)([Served(tracing.started(method, ()))])
    assert seen == [True, False, True]


def test_calls_that_share_a_request_of_the_store_have_a_span_each(collector: Collector, own_valkey: Valkey) -> None:
    """And those that are not recorded have none, though they were in the same batch."""
    with ServeProcess(collector.environment, store_url=own_valkey.url) as process, stub_of(process.target) as stub:
        request = pb.ValidateSessionRequest(token=create(stub, "ana").token)
        traces = [new_ids() for _ in range(200)]
        calls = [
            stub.ValidateSession.future(
                request, metadata=traceparent(*ids, sampled=at % 2 == 0), timeout=TIMEOUT_SECONDS
            )
            for at, ids in enumerate(traces)
        ]
        assert all(call.result().valid for call in calls)
        process.stop()
    sizes = []
    for at, (trace, _) in enumerate(traces):
        spans = spans_of(collector, trace)
        assert [span.kind for span in spans] == ([CLIENT, SERVER] if at % 2 == 0 else [])
        if spans:
            assert spans[0].parent_span_id == spans[1].span_id
            sizes.append(attributes(spans[0].attributes)["db.operation.batch.size"])
    assert max(sizes) > 2, "some came together"


def test_in_a_cluster_a_call_shows_only_what_it_waited_for(collector: Collector, valkey_cluster: Cluster) -> None:
    """A batch asks several nodes; a slower one than the call's own is not in its trace."""
    valkey_cluster.renew()
    serving = ServeProcess(collector.environment, store_url=valkey_cluster.url, store_timeout="5s")
    with serving as process, stub_of(process.target) as stub:
        tokens = [create(stub, f"user-{at}").token for at in range(20)]
        requests = [pb.ValidateSessionRequest(token=token) for token in tokens]
        calls = [stub.ValidateSession.future(request, timeout=TIMEOUT_SECONDS) for request in requests * 5]
        assert all(call.result().valid for call in calls)
        assert process.stop() == 0
    served = {span.span_id: span for span in collector.spans() if span.kind == SERVER}
    asked = [span for span in collector.spans() if span.kind == CLIENT]
    assert len(served) == 120
    assert {span.parent_span_id for span in asked} == served.keys()
    assert all(span.end_time_unix_nano <= served[span.parent_span_id].end_time_unix_nano for span in asked)


def test_nothing_secret_is_sent(collector: Collector) -> None:
    """No token, id, user or attribute, whatever succeeds and whatever fails."""
    mark = f"canary-{secrets.token_hex(16)}"
    with ServeProcess(collector.environment, store_url="memory:", rotation_grace="0s") as process:
        with stub_of(process.target) as stub:
            made = stub.CreateSession(
                pb.CreateSessionRequest(user_id=mark, attributes={mark: mark}), timeout=TIMEOUT_SECONDS
            )
            for method, request in (
                ("CreateSession", pb.CreateSessionRequest(user_id=mark, token=mark)),
                ("CreateSession", pb.CreateSessionRequest(user_id=mark, token=mark)),
                ("ValidateSession", pb.ValidateSessionRequest(token=made.token, user_id=mark)),
                ("ValidateSession", pb.ValidateSessionRequest(token=mark)),
                ("GetSession", pb.GetSessionRequest(session_id=made.session.session_id)),
                ("GetSession", pb.GetSessionRequest(session_id=mark)),
                ("UpdateSession", pb.UpdateSessionRequest(session=session_pb2.Session(session_id=mark))),
                ("RotateSession", pb.RotateSessionRequest(token=made.token)),
                ("ValidateSession", pb.ValidateSessionRequest(token=made.token)),
                ("RevokeUserSessions", pb.RevokeUserSessionsRequest(user_id=mark)),
            ):
                for ids in ((("traceparent", mark),), traceparent(*new_ids())):
                    metadata = (*ids, ("x-request-id", mark), ("tracestate", f"a={mark}"), (mark, mark))
                    call = getattr(stub, method).future(request, metadata=metadata, timeout=TIMEOUT_SECONDS)
                    call.exception()
        assert process.stop() == 0
    assert len([span for span in collector.spans() if span.kind == SERVER]) == 21
    assert collector.last_metrics()
    for secret in (mark, made.token, made.session.session_id, made.token[26:-6]):
        assert secret.encode() not in collector.everything


def sum_of(metric: Any, **labels: str) -> float:
    """Returns the sum of the points that have these labels."""
    points = getattr(metric, metric.WhichOneof("data")).data_points
    return sum(  # type: ignore[no-any-return] # generated code
        point.as_int or point.as_double for point in points if labels.items() <= attributes(point.attributes).items()
    )


def points_of(metric: Any) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Returns the numbers of a metric, each by the end of its name on the page and its labels there."""
    kind = metric.WhichOneof("data")
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for point in getattr(metric, kind).data_points:
        labels = attributes(point.attributes)
        if method := labels.pop("rpc.method", ""):
            labels["grpc_service"], _, labels["grpc_method"] = method.replace("_OTHER", "unknown/unknown").partition(
                "/"
            )
        items = {item for item in labels.items() if "." not in item[0]}
        if kind != "histogram":
            found["_total" if kind == "sum" else "", frozenset(items)] = point.as_int or point.as_double
            continue
        up_to = accumulate(point.bucket_counts)
        for bound, count in zip([*map(str, point.explicit_bounds), "+Inf"], up_to, strict=True):
            found["_bucket", frozenset({*items, ("le", bound.removesuffix(".0"))})] = count
        found["_count", frozenset(items)] = point.count
        found["_sum", frozenset(items)] = point.sum
    return found


def test_the_metrics_are_those_of_the_page(collector: Collector) -> None:
    """The same names but for what has one in the conventions, the same labels, the same values."""
    port = free_port()
    environment = collector.environment | {"OTEL_TRACES_EXPORTER": "none"}
    with ServeProcess(environment, store_url="memory:", metrics_port=str(port)) as process:
        with stub_of(process.target) as stub:
            validate(stub, create(stub, "ana").token)
            validate(stub, "not a token")
        eventually(lambda: scrape(port)['catraca_validations_total{outcome="malformed"}'] == 1, "it is counted")
        page = scrape(port)
        eventually(
            lambda: (
                bool(sent := collector.last_metrics()) and sum_of(sent["catraca.validations"], outcome="malformed") == 1
            ),
            "they are sent",
        )
        sent = collector.last_metrics()
        process.stop()
    assert not collector.spans()
    conventions = {
        "rpc.server.call.duration": "grpc_server_handling_seconds",
        "db.client.operation.duration": "catraca_store_exchange_seconds",
    }
    of_page, of_collector = {}, {}
    for sample, value in page.items():
        found = labels_of(sample)
        if sample.startswith("grpc_server_handling"):
            del found["grpc_type"]
        if "le" in found:
            found["le"] = found["le"].removesuffix(".0")
        of_page[sample.partition("{")[0], frozenset(found.items())] = value
    for name, metric in sent.items():
        page_name = conventions.get(name, name.replace(".", "_") + ("_seconds" if metric.unit == "s" else ""))
        for (end, labels), value in points_of(metric).items():
            of_collector[page_name + end, labels] = value
    assert of_collector.keys() == of_page.keys()
    # The heartbeat goes on meanwhile.
    moving = ("catraca_store_exchange_seconds", "catraca_store_waiting_commands")
    assert {key: value for key, value in of_collector.items() if not key[0].startswith(moving)} == {
        key: value for key, value in of_page.items() if not key[0].startswith(moving)
    }


@pytest.mark.skipif(sys.platform != "linux", reason="workers take Linux")
def test_workers_send_their_own_spans_and_one_sends_the_metrics(collector: Collector, valkey: Valkey) -> None:
    """Metrics are of all of them, as the page is; what a worker counted before it ended stays in."""
    # Sent once, at the end: nobody asks the workers for their numbers before that.
    environment = {**collector.environment, "OTEL_METRIC_EXPORT_INTERVAL": "3600000"}
    with ServeProcess(environment, store_url=valkey.url, workers="2", store_timeout="5s") as process:
        for at in range(16):
            options = (("grpc.use_local_subchannel_pool", 1), ("catraca.test", at))
            with grpc.insecure_channel(process.target, options) as channel:
                create(SessionServiceStub(channel), "ana")
        workers_of(process)[0].send_signal(signal.SIGTERM)
        eventually(lambda: process.log.count("serving: pid") == 3, "it is replaced")
        assert process.stop() == 0
    assert sum_of(collector.last_metrics()["catraca.sessions.created"]) == 16
    assert len([span for span in collector.spans() if span.kind == SERVER]) == 16
    instances = {each["service.instance.id"] for each in collector.resources()}
    assert len(instances) in {2, 3, 4}, "the supervisor, and each worker that had calls"
