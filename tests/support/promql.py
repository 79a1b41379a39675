"""What the dashboard and the alerts of k8s/components/monitoring ask Prometheus, parsed."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import promql_parser
import yaml

from tests.k8s.k8s_rendering import K8S

MONITORING = K8S / "components/monitoring"
GRAFANA = {"$__rate_interval": "5m", "$__range": "6h", "$stint_job": ".*"}
"""What Grafana puts in the place of its variables."""
OF_THE_SCRAPE = {"namespace"}
"""Labels that come from the PodMonitor, not from the process."""


@dataclass(frozen=True)
class Selector:
    """Series that an expression asks for."""

    where: str
    name: str
    matchers: tuple[tuple[str, promql_parser.MatchOp, str], ...]
    grouped: frozenset[str]
    """Labels by which the expression around it groups or joins."""

    def takes(self, labels: Mapping[str, str]) -> bool:
        return all(_matches(labels.get(name, ""), op, value) for name, op, value in self.matchers)


def dashboard() -> dict[str, Any]:
    return dict(json.loads((MONITORING / "dashboard.json").read_text()))


def rule_groups() -> list[dict[str, Any]]:
    return list(yaml.safe_load((MONITORING / "alerts.yaml").read_text())["spec"]["groups"])


def expressions() -> Iterator[tuple[str, str]]:
    """Of every target and rule: where it stands, and the expression with Grafana's variables filled in."""
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            yield f"panel {panel['title']}", _filled(target["expr"])
    for group in rule_groups():
        for rule in group["rules"]:
            yield f"alert {rule['alert']}", rule["expr"]


def selectors(where: str, expression: str) -> list[Selector]:
    """Raises ValueError for what is no PromQL."""
    found: list[Selector] = []
    _collect(promql_parser.parse(expression), frozenset(), where, found)
    return found


def all_selectors() -> list[Selector]:
    return [selector for where, expression in expressions() for selector in selectors(where, expression)]


def named(prefixes: Collection[str]) -> set[str]:
    return {it.name for it in all_selectors() if it.name.startswith(tuple(prefixes))}


def _collect(node: Any, grouped: frozenset[str], where: str, found: list[Selector]) -> None:
    match node:
        case promql_parser.VectorSelector():
            matchers = tuple((m.name, m.op, m.value) for m in node.matchers.matchers)
            found.append(Selector(where, node.name, matchers, grouped))
        case promql_parser.MatrixSelector():
            _collect(node.vector_selector, grouped, where, found)
        case promql_parser.AggregateExpr():
            inner = frozenset(node.modifier.labels) if node.modifier else frozenset()
            _collect(node.expr, inner, where, found)
        case promql_parser.BinaryExpr():
            matching = node.modifier.matching if node.modifier else None
            joined = grouped | (frozenset(matching.labels) if matching else frozenset())
            for side in (node.lhs, node.rhs):
                _collect(side, joined, where, found)
        case promql_parser.Call():
            for argument in node.args:
                _collect(argument, grouped, where, found)
        case promql_parser.ParenExpr() | promql_parser.UnaryExpr():
            _collect(node.expr, grouped, where, found)


def _filled(expression: str) -> str:
    for variable, value in GRAFANA.items():
        expression = expression.replace(variable, value)
    return expression


def _matches(have: str, op: promql_parser.MatchOp, want: str) -> bool:
    match op:
        case promql_parser.MatchOp.Equal:
            return have == want
        case promql_parser.MatchOp.NotEqual:
            return have != want
        case promql_parser.MatchOp.Re:
            return re.fullmatch(want, have) is not None
        case _:
            return re.fullmatch(want, have) is None
