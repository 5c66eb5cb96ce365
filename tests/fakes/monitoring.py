# SPDX-License-Identifier: Apache-2.0
"""Reads which metrics and labels our dashboard and alerts use."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

DASHBOARD = ROOT / "deploy" / "grafana" / "captrieve.json"
PROMETHEUS = ROOT / "deploy" / "prometheus"


def dashboard() -> dict[str, Any]:
    """Return the dashboard."""
    return dict(json.loads(DASHBOARD.read_text(encoding="utf-8")))


def expressions() -> Iterator[tuple[str, str]]:
    """Yield where an expression is used, and the expression as Prometheus gets it."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            expression = re.sub(r"\$__(rate_interval|range)", "5m", target["expr"]).replace("$instance", ".*")
            yield f"panel {panel['title']}", expression
    for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text(encoding="utf-8"))["groups"]:
        for rule in group["rules"]:
            yield f"alert {rule['alert']}", rule["expr"]


def used(expression: str) -> list[tuple[str, set[str], list[tuple[str, str]]]]:
    """Parse an expression.

    Returns:
        For each selector its metric, the labels it names, and the labels with a fixed value.
    """
    promql_parser = pytest.importorskip("promql_parser", reason="THE EXPRESSIONS ARE NOT TESTED: install promql-parser")
    found: list[tuple[str, set[str], list[tuple[str, str]]]] = []

    def look(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            matchers = node.matchers.matchers
            fixed = [(one.name, one.value) for one in matchers if one.op == promql_parser.MatchOp.Equal]
            found.append((node.name, {one.name for one in matchers}, fixed))
            return
        for name in ("expr", "lhs", "rhs", "vector_selector"):
            child = getattr(node, name, None)
            if child is not None:
                look(child)
        for child in getattr(node, "args", None) or []:
            look(child)

    look(promql_parser.parse(expression))
    return found
