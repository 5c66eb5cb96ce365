# SPDX-License-Identifier: Apache-2.0
"""What title styles cost."""

from __future__ import annotations

import numpy as np

from benchmarks.retrieval.metrics import Bootstrap
from benchmarks.retrieval.style_table import METRICS, STYLE_SYSTEMS, UNCHANGED, meets_aim, style_rows, style_table
from benchmarks.retrieval.systems import OURS, VISUAL


def metrics(value: float) -> dict[str, np.ndarray]:
    return {metric: np.full(10, value) for metric in METRICS}


def test_losses_are_those_against_unchanged_titles() -> None:
    scores = {
        style: {system: metrics(value) for system in STYLE_SYSTEMS}
        for style, value in ((UNCHANGED, 0.75), ("slug", 0.5), ("size", 0.735))
    }
    rows = style_rows(scores, Bootstrap(10))
    assert rows["slug"][OURS]["minus unchanged"]["nDCG@10"]["mean"] == -0.25
    assert [meets_aim(row[OURS]) for row in rows.values()] == [True, False, True]
    visual = {metric: {"mean": 0.5, "low": 0.4, "high": 0.6} for metric in METRICS}
    text = style_table({"queries": 10, "gallery": 99, "styles": rows, VISUAL: visual})
    assert (
        "| slug | 0.500 (0.500–0.500) | -0.250 (-0.250 to -0.250) | 0.500 | -25.0 | 0.500 | 0.500 | 0.500 | no |"
        in text
    )
    assert "10 queries, 99 products" in text
