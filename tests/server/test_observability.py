"""deploy/observability: the metrics of its panels and alerts are on the page of a service in use."""

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.support import observability
from tests.support.door import Door
from tests.support.metrics import free_port, labels_of, scrape
from tests.support.service import ServeProcess
from tests.support.waiting import TIMEOUT_SECONDS, eventually

from catraca.v1 import session_service_pb2 as pb
from catraca.v1.session_service_pb2_grpc import SessionServiceStub
from catraca_server.api.statuses import REASONS
from catraca_server.domain.call import Role
from catraca_server.observe.metrics import CODES
from catraca_server.observe.numbers import FAMILIES

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
PROMTOOL = shutil.which("promtool")

TARGET_LABELS = {"instance", "job"}
"""Prometheus gives them to whatever it reads."""
TARGET_METRICS = {"up": set[str]()}
"""Prometheus makes it itself."""
NOT_SHOWN: set[str] = set()
"""Metrics that are on no panel, with the reason. So far every one is on some panel."""

Page = Mapping[str, Mapping[str, set[str]]]
"""By sample name, its labels and the values that each has."""


def use_everything(stub: SessionServiceStub, key: str, weak_key: str) -> None:
    """Has every kind of call succeed, and calls fail in every way that a caller can bring about."""

    def call(method: str, request: Any, key: str = key) -> Any:
        metadata = [("authorization", f"Bearer {key}")] if key else []
        return getattr(stub, method)(request, metadata=metadata, timeout=TIMEOUT_SECONDS)

    created = call("CreateSession", pb.CreateSessionRequest(user_id="ana"))
    call("ValidateSession", pb.ValidateSessionRequest(token=created.token))
    call("ValidateSession", pb.ValidateSessionRequest(token="not a token"))
    call("GetSession", pb.GetSessionRequest(session_id=created.session.session_id))
    call("ListSessions", pb.ListSessionsRequest(user_id="ana"))
    call("RotateSession", pb.RotateSessionRequest(token=created.token))
    call("ValidateSession", pb.ValidateSessionRequest(token=created.token))  # reused
    call("RevokeUserSessions", pb.RevokeUserSessionsRequest(user_id="ana"))
    requests = [
        (pb.CreateSessionRequest(), key, grpc.StatusCode.INVALID_ARGUMENT),
        (pb.CreateSessionRequest(user_id="ana"), weak_key, grpc.StatusCode.PERMISSION_DENIED),
        (pb.CreateSessionRequest(user_id="ana"), "", grpc.StatusCode.UNAUTHENTICATED),
    ]
    for request, with_key, code in requests:
        with pytest.raises(grpc.RpcError) as refused:
            call("CreateSession", request, with_key)
        error: Any = refused.value
        assert error.code() == code


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of a service that has been used in every way."""
    door, port = Door(tmp_path_factory.mktemp("door")), free_port()
    key, weak_key = door.new_key(*Role), door.new_key(Role.VALIDATE, name="weak")
    process = ServeProcess(
        store_url="memory:",
        metrics_port=str(port),
        rotation_grace="0s",
        callers_file=str(door.callers),
        tls_cert=str(door.certificate),
        tls_key=str(door.key),
    )
    credentials = grpc.ssl_channel_credentials(door.ca.read_bytes())
    with process, grpc.secure_channel(process.target, credentials) as channel:
        stub = SessionServiceStub(channel)
        metadata = (("authorization", f"Bearer {key}"),)
        watch: Any = stub.WatchSessions(
            iter([pb.WatchSessionsRequest(start=pb.WatchStart())]), metadata=metadata, timeout=10 * TIMEOUT_SECONDS
        )
        next(watch)
        use_everything(stub, key, weak_key)
        watch.cancel()
        eventually(lambda: scrape(port)["catraca_watches"] == 0, "the watch has ended")
        found: dict[str, dict[str, set[str]]] = {}
        for sample in scrape(port):
            labels = found.setdefault(sample.partition("{")[0], {})
            for name, value in labels_of(sample).items():
                labels.setdefault(name, set()).add(value)
    return found


def panels() -> list[Mapping[str, Any]]:
    """Returns the panels that show something."""
    return [each for each in observability.dashboard()["panels"] if each["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    """Yields every expression, with the panel or the alert that has it."""
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for rule in observability.alerts():
        yield rule["alert"], rule["expr"]


def known_values(page: Page, metric: str, label: str) -> set[str]:
    """Returns what a label can be: what it is on the page, and what a caller cannot bring about."""
    closed = {
        "reason": {each.lower() for each in REASONS},
        "grpc_code": set(CODES),
    }
    return page[metric][label] | closed.get(label, set())


def test_expressions_ask_for_what_there_is(page: Page) -> None:
    """Every metric, every label and every value of a label."""
    for where, expression in expressions():
        for use in uses(expression):
            if use.metric in TARGET_METRICS:
                assert use.labels <= TARGET_LABELS, where
                continue
            assert use.metric in page, where
            assert use.labels <= page[use.metric].keys() | TARGET_LABELS, (where, use.metric)
            for label, value in use.values:
                assert value in known_values(page, use.metric, label), (where, value)


def test_legends_name_labels_that_are_left() -> None:
    """A legend of what was aggregated away is empty."""
    for panel in panels():
        for target in panel["targets"]:
            named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            grouped = re.search(r"by \(([^)]*)\)", target["expr"])
            left = set(grouped[1].split(", ")) - {"le"} if grouped else TARGET_LABELS
            assert named <= left, panel["title"]
            assert not grouped or named == left, panel["title"]


def test_every_metric_is_on_a_panel(page: Page) -> None:
    """Or it is said why not."""
    targets = [target for panel in panels() for target in panel["targets"]]
    shown = {family_of(use.metric) for target in targets for use in uses(target["expr"])}
    on_page = {family_of(name) for name in page}
    assert on_page == FAMILIES.keys(), "the service was used in every way"
    assert on_page - shown == NOT_SHOWN


def uses(expression: str) -> list[observability.Use]:
    """Returns the metrics of an expression of a panel or an alert."""
    return observability.uses(observability.filled(expression))


def family_of(sample: str) -> str:
    """Returns the metric that a sample belongs to."""
    return sample if sample in FAMILIES else re.sub(r"_(bucket|sum|count)$", "", sample)


def test_counters_are_compared_and_gauges_are_not() -> None:
    """A counter by itself says nothing; a gauge has no rate."""
    for where, expression in expressions():
        for use in uses(expression):
            is_gauge = use.metric in TARGET_METRICS or FAMILIES[family_of(use.metric)].kind == "gauge"
            assert (use.function in {"rate", "increase"}) is not is_gauge, (where, use.metric)


def test_the_layout_of_the_dashboard() -> None:
    """Panels have ids and titles of their own, lie within the grid and do not overlap; rows are where they say."""
    everything = observability.dashboard()["panels"]
    assert len({each["id"] for each in everything}) == len(everything)
    assert len({each["title"] for each in everything if each["type"] != "row"}) == len(panels())
    for panel in everything:
        position = panel["gridPos"]
        assert position["x"] + position["w"] <= 24
        if panel["type"] != "row":
            assert panel["targets"]
            assert panel["fieldConfig"]["defaults"]["unit"]
            ids = [target["refId"] for target in panel["targets"]]
            assert len(set(ids)) == len(ids)
    for one, other in combinations((each["gridPos"] for each in everything), 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)
    tops = [each["gridPos"]["y"] for each in everything]
    assert tops == sorted(tops), "a row holds what comes after it"


def test_the_dashboard_asks_the_source_that_is_chosen(page: Page) -> None:
    """It can be imported anywhere: nothing in it names a data source or an instance of its author."""
    variables = {each["name"]: each for each in observability.dashboard()["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels():
        assert [panel["datasource"], *(each["datasource"] for each in panel["targets"])] == [chosen] * (
            1 + len(panel["targets"])
        )
        for target in panel["targets"]:
            assert target["expr"].count('{instance=~"$instance"') == len(uses(target["expr"])), panel["title"]
    for name in ("job", "instance"):
        assert variables[name]["datasource"] == chosen
        metric = re.fullmatch(rf"label_values\((\w+)(?:{{.*}})?, {name}\)", variables[name]["query"]["query"])
        assert metric is not None
        assert metric[1] in page


def test_alerts_say_what_to_do() -> None:
    """Each has its own name, a severity, what is the matter, what to do, and its section of the documentation."""
    rules, document = observability.alerts(), OPERATIONS.read_text()
    headings = {
        re.sub(r"[^\w -]", "", each).lower().replace(" ", "-")
        for each in re.findall(r"^#+ (.*)", document, re.MULTILINE)
    }
    assert len({each["alert"] for each in rules}) == len(rules)
    linked = set()
    for rule in rules:
        assert rule["labels"].keys() == {"severity"}
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"].keys() == {"summary", "description"}
        said, _, link = rule["annotations"]["description"].rpartition(" docs/operations.md#")
        assert said.endswith((".", "?")), rule["alert"]
        assert link in headings, rule["alert"]
        linked.add(link)
    sections = document.partition("\n## Alerts\n")[2].partition("\n## ")[0]
    assert {each.lower() for each in re.findall(r"^### (\w+)$", sections, re.MULTILINE)} == linked, (
        "and no section is left over"
    )


def test_alerts_quote_panels_and_log_lines_that_there_are() -> None:
    """What they have people look for can be found."""
    titles = {each["title"] for each in panels()}
    code = "".join(each.read_text() for each in (OPERATIONS.parents[1] / "server").rglob("*.py"))
    names = {each["alert"] for each in observability.alerts()}
    outside = {"catraca health", "INFO replication"}
    for rule in observability.alerts():
        for quoted in re.findall(r"`([^`]+)`", rule["annotations"]["description"]):
            assert quoted in titles | names | outside or quoted in code or quoted.upper() in code, (
                rule["alert"],
                quoted,
            )


def test_templates_name_labels_that_are_left() -> None:
    """A summary about an instance needs an expression that keeps it."""
    for rule in observability.alerts():
        text = "".join(rule["annotations"].values())
        named = set(re.findall(r"\$labels\.(\w+)", text))
        grouped = re.findall(r"by \(([^)]*)\)", rule["expr"])
        left = set[str]() if "absent(" in rule["expr"] else TARGET_LABELS
        for each in grouped:
            left = left & set(each.split(", "))
        assert named <= left, rule["alert"]


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool on PATH, which evaluates rules as Prometheus does")
def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    """Prometheus would load the rules; on a quiet service none fires, and each does on one that it is about."""
    series = tmp_path / "alerts_test.yaml"
    series.write_text(observability.ALERTS_TEST.read_text().replace("[ALERTS]", f"[{observability.ALERTS}]"))
    for command in (("check", "rules", observability.ALERTS), ("test", "rules", series)):
        done = subprocess.run([str(PROMTOOL), *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
