"""The files of deploy/observability, as data: panels, rules, and the metrics that their expressions name."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser as promql
import yaml

DIRECTORY = Path(__file__).parents[2] / "deploy" / "observability"
ALERTS = DIRECTORY / "alerts.yaml"
ALERTS_TEST = Path(__file__).with_name("alerts_test.yaml")

_GRAFANA = {"$__rate_interval": "5m", "$instance": "any"}
"""What Grafana substitutes before Prometheus sees an expression."""


class Use(NamedTuple):
    """A metric in an expression, and what the expression needs of it."""

    metric: str
    labels: frozenset[str]
    """The labels that the expression selects by, groups by or matches on."""
    values: tuple[tuple[str, str], ...]
    """Each label with a value that the expression names, but for the targets of Prometheus."""
    function: str
    """The function that is applied to it first; empty if there is none."""


def dashboard() -> Mapping[str, Any]:
    """Returns the dashboard."""
    found: Mapping[str, Any] = json.loads((DIRECTORY / "dashboard.json").read_text())
    return found


def alerts() -> list[Mapping[str, Any]]:
    """Returns the alerting rules."""
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def filled(expression: str) -> str:
    """Returns an expression of a panel as Prometheus gets it."""
    for variable, value in _GRAFANA.items():
        expression = expression.replace(variable, value)
    return expression


def uses(expression: str) -> list[Use]:
    """Returns the metrics of an expression. Raises ValueError for what is not PromQL."""
    return list(_uses(promql.parse(expression), frozenset(), ""))


def _uses(node: promql.Expr, labels: frozenset[str], function: str) -> Iterator[Use]:
    match node:
        case promql.VectorSelector():
            assert node.name is not None, "a selector without a metric chooses from everything"
            matchers = node.matchers.matchers
            assert not node.matchers.or_matchers
            values = [(each.name, value) for each in matchers for value in _values(each)]
            yield Use(node.name, labels | {each.name for each in matchers}, tuple(values), function)
        case promql.MatrixSelector():
            yield from _uses(node.vector_selector, labels, function)
        case promql.AggregateExpr():
            yield from _uses(node.expr, _grouped(node, labels), "")
        case promql.BinaryExpr():
            assert node.modifier is None or node.modifier.matching is None, "not used here so far"
            yield from _uses(node.lhs, labels, "")
            yield from _uses(node.rhs, labels, "")
        case promql.Call():
            for each in node.args:
                more = {"le"} if node.func.name == "histogram_quantile" else set()
                yield from _uses(each, labels | more, node.func.name)
        case promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
            yield from _uses(node.expr, labels, function)
        case _:
            assert isinstance(node, promql.NumberLiteral), node


def _grouped(node: promql.AggregateExpr, labels: frozenset[str]) -> frozenset[str]:
    """Returns the labels that are needed below an aggregation; above it there are only those that it keeps."""
    if node.modifier is None:
        kept: set[str] = set()
    else:
        assert node.modifier.type == promql.AggModifierType.By, "not used here so far"
        kept = set(node.modifier.labels)
    assert labels <= kept, f"{labels - kept} is aggregated away"
    return frozenset(kept)


def _values(matcher: promql.Matcher) -> list[str]:
    if matcher.name in {"instance", "job"}:
        return []
    is_pattern = matcher.op in (promql.MatchOp.Re, promql.MatchOp.NotRe)
    return matcher.value.split("|") if is_pattern else [matcher.value]
