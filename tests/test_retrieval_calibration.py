# SPDX-License-Identifier: Apache-2.0
"""Settings are chosen by nDCG, thresholds as strict as costs nothing."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.retrieval_calibration import NO_FILTER, Point, best, calibrate, strictest
from search_gateway.refinement import RefinementLimits

START = RefinementLimits(min_visual_score=0.4, min_semantic_score=0.5, visual_weight=0.5, max_results=10)


def curve(*scores: float) -> list[Point]:
    return [Point(value / 10, score, 0.0, 0.0) for value, score in enumerate(scores)]


def test_best_and_strictest() -> None:
    points = curve(0.6, 0.7, 0.695, 0.5)
    assert best(points).value == 0.1
    assert strictest(points).value == 0.2, "it loses less than a hundredth"
    assert strictest(curve(0.7, 0.68)).value == 0.0


def test_each_setting_is_chosen_by_what_it_gives() -> None:
    """One query, one relevant product: first at weights over 0.6, lost to filters over 0.3 and 0.8."""
    asked: list[RefinementLimits] = []

    def rank_all(limits: RefinementLimits) -> list[list[int]]:
        asked.append(limits)
        if limits.min_visual_score > 0.3 or limits.min_semantic_score > 0.8:
            return [[]]
        return [[1, 0] if limits.visual_weight > 0.6 else [0, 1]]

    found = calibrate(rank_all, [np.array([0, 2, 0])], START, progress=False)
    limits = found.limits
    assert (limits.visual_weight, limits.min_semantic_score) == (0.7, 0.8)
    assert limits.min_visual_score == START.min_visual_score, "shown, not chosen"
    assert limits.max_results == START.max_results
    assert asked[0].min_visual_score == NO_FILTER
    assert asked[0].min_semantic_score == 0.0
    by_value = {point.value: point for point in found.curves["min_visual_score"]}
    assert by_value[0.3] == Point(0.3, ndcg=pytest.approx(1.0), precision=0.5, empty=0.0)
    assert by_value[0.4] == Point(0.4, ndcg=0.0, precision=0.0, empty=1.0)
