# SPDX-License-Identifier: Apache-2.0
"""The record as tables."""

from __future__ import annotations

from typing import Any

from benchmarks.retrieval.metrics import METRICS
from benchmarks.retrieval.table import table


def estimate(mean: float, spread: float = 0.01) -> dict[str, float]:
    return {"mean": mean, "low": mean - spread, "high": mean + spread}


def row(mean: float, difference: dict[str, float]) -> dict[str, Any]:
    measures = {metric: estimate(mean) for metric in METRICS}
    return {**measures, "empty": 0.125, "ms per query": 2.25, "ours minus this": difference}


def test_tables_of_a_record() -> None:
    part = {"queries": 1200, "visual only": 0.5, "ours": 0.625, "difference": estimate(0.125)}
    record = {
        "queries": 1912,
        "gallery": 39898,
        "systems": {"visual only": row(0.5, estimate(0.25)), "ours": row(0.75, estimate(0.0, 0.0))},
        "slices": {"caption: both wrong": part},
        "types": {"Shirts": part},
    }
    lines = table(record).splitlines()
    assert lines[0].startswith("1,912 queries, 39,898 products")
    assert (
        "| visual only | 0.500 (0.490–0.510) | 0.500 | 0.500 | 0.500 | 0.500 | 0.500 | 0.500 "
        "| +0.250 (+0.240 to +0.260) | 12.5 % | 2.2 |" in lines
    )
    assert next(line for line in lines if line.startswith("| ours |")).endswith("| – | 12.5 % | 2.2 |")
    assert "| caption: both wrong | 1,200 | 0.500 | 0.625 | +0.125 (+0.115 to +0.135) |" in lines
    tables = [line.count("|") for line in lines if line.startswith("|")]
    assert set(tables) == {12, 6}
