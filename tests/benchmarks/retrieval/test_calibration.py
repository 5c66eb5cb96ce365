# SPDX-License-Identifier: Apache-2.0
"""Settings are chosen by nDCG, thresholds as strict as costs nothing."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.retrieval.calibration import NO_FILTER, Point, best, calibrate, most_even, strictest
from search_gateway.ranking.rerank import RefinementLimits

START = RefinementLimits(min_visual_score=0.4, min_semantic_score=0.5, visual_weight=0.5, max_results=10)


def curve(*scores: float) -> list[Point]:
    return [point(value / 10, [score]) for value, score in enumerate(scores)]


def point(value: float, ndcgs: list[float]) -> Point:
    return Point(value, float(np.mean(ndcgs)), 0.0, 0.0, np.array(ndcgs))


def test_best_and_strictest() -> None:
    points = curve(0.6, 0.7, 0.695, 0.5)
    assert best(points).value == 0.1
    assert strictest(points, 1.0).value == 0.2, "it loses no more than five thousandths"
    assert strictest(points, 0.2).value == 0.1
    assert strictest(curve(0.7, 0.69), 1.0).value == 0.0


def test_most_even_of_those_that_cannot_be_told_from_the_best() -> None:
    best_by_chance = point(0.1, [0.9, 0.5, 0.7, 0.3])
    as_good = point(0.4, [0.7, 0.6, 0.6, 0.4])
    worse_for_all = point(0.5, [0.89, 0.49, 0.69, 0.29])
    assert most_even([best_by_chance, as_good, worse_for_all]).value == 0.4
    assert most_even([best_by_chance, worse_for_all]).value == 0.1, "a small loss, but a sure one"
    for first, second in ((0.0, 1.0), (0.3, 0.7)):
        assert most_even([point(first, [0.5, 0.6]), point(second, [0.5, 0.6])]).value == first


@pytest.mark.parametrize("most_by_words", [0.3, 0.8, 1.0])
def test_each_setting_is_chosen_by_what_it_gives(most_by_words: float) -> None:
    """One query, one relevant product: higher at weights over 0.6 and 0.8, lost to filters over 0.3 and 0.8."""
    asked: list[RefinementLimits] = []

    def rank_all(limits: RefinementLimits) -> list[list[int]]:
        asked.append(limits)
        if limits.min_visual_score > 0.3 or limits.min_semantic_score > 0.8:
            return [[]]
        good = (limits.visual_weight > 0.6) + (limits.neighbour_weight > 0.8)
        return [[[0, 2, 1], [0, 1], [1, 0]][good]]

    def rank_by_words(limits: RefinementLimits) -> list[list[int]]:
        return [[] if limits.min_semantic_score > most_by_words else [1]]

    found = calibrate(rank_all, rank_by_words, [np.array([0, 2, 0])], START, progress=False)
    limits = found.limits
    assert (limits.neighbour_weight, limits.visual_weight) == (0.9, 0.7)
    assert limits.min_semantic_score == min(0.5, most_by_words), (
        "what both can bear, under the weight of the product type"
    )
    assert limits.min_visual_score == START.min_visual_score, "shown, not chosen"
    assert limits.max_results == START.max_results
    assert asked[0].min_visual_score == NO_FILTER
    assert asked[0].min_semantic_score == 0.0
    by_value = {point.value: point for point in found.curves["min_visual_score"]}
    for value, ndcg, precision, empty in ((0.3, 1.0, 0.5, 0.0), (0.4, 0.0, 0.0, 1.0)):
        found_point = by_value[value]
        assert found_point.ndcgs == pytest.approx([ndcg])
        assert (found_point.ndcg, found_point.precision, found_point.empty) == (pytest.approx(ndcg), precision, empty)
