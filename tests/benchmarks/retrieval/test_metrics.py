# SPDX-License-Identifier: Apache-2.0
"""The library's measures against values by hand and against a plain reading of their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.retrieval.metrics import METRICS, Bootstrap, judge

GRADES = np.array([2, 1, 0, 0, 2, 1])


def test_measures_by_hand() -> None:
    scores = {name: values[0] for name, values in judge([[2, 1, 0]], [GRADES]).items()}
    # Found grades 0, 1, 2; the best possible ten are 2, 2, 1, 1.
    found = 1 / math.log2(3) + 2 / math.log2(4)
    ideal = 2 + 2 / math.log2(3) + 1 / math.log2(4) + 1 / math.log2(5)
    assert scores == pytest.approx(
        {
            "nDCG@10": found / ideal,
            "P@1": 0.0,
            "P@5": 0.4,
            "P@10": 0.2,
            "MRR": 0.5,
            "P@1 colour": 0.0,
            "P@5 colour": 0.2,
            "P@10 colour": 0.1,
            "MRR colour": 1 / 3,
        }
    )
    assert tuple(scores) == METRICS


def test_perfect_answer_scores_one_and_empty_answer_zero() -> None:
    scores = judge([[0, 4, 1, 5], []], [GRADES, GRADES])
    assert scores["nDCG@10"].tolist() == pytest.approx([1.0, 0.0])
    assert scores["MRR"].tolist() == [1.0, 0.0]


def test_queries_to_which_nothing_is_relevant_are_not_scored() -> None:
    scores = judge([[0], [0]], [np.zeros(3, np.int64), np.array([1, 0, 0])])
    assert np.isnan(scores["nDCG@10"][0])
    assert scores["nDCG@10"][1] == 1.0


@given(st.data(), st.integers(1, 40))
def test_measures_are_their_definitions(data: st.DataObject, size: int) -> None:
    grades = np.array(data.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size)))
    if not grades.any():
        grades[0] = 1
    ranking = data.draw(st.permutations(range(size)))[: data.draw(st.integers(0, 15))]
    scores = {name: values[0] for name, values in judge([ranking], [grades]).items()}
    gained = [int(grades[place]) for place in ranking[:10]]

    def dcg(gains: list[int]) -> float:
        return sum(gain / math.log2(rank + 2) for rank, gain in enumerate(gains))

    assert scores["nDCG@10"] == pytest.approx(dcg(gained) / dcg(sorted(grades.tolist(), reverse=True)[:10]))
    for suffix, least in (("", 1), (" colour", 2)):
        for depth in (1, 5, 10):
            hits = sum(gain >= least for gain in gained[:depth])
            assert scores[f"P@{depth}{suffix}"] == pytest.approx(hits / depth)
        first = next((rank for rank, gain in enumerate(gained, 1) if gain >= least), math.inf)
        assert scores[f"MRR{suffix}"] == pytest.approx(1 / first)


def test_interval_is_that_of_the_mean() -> None:
    values = np.random.default_rng(5).normal(3.0, 2.0, 4000)
    estimate = Bootstrap(len(values), seed=1).interval(values)
    error = values.std() / math.sqrt(len(values))
    assert estimate.mean == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert estimate.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
    assert Bootstrap(len(values), seed=1).interval(values) == estimate


def test_differences_are_paired() -> None:
    """A constant advantage is certain, however much the queries differ."""
    one = np.random.default_rng(6).normal(size=100)
    estimate = Bootstrap(100).interval((one + 0.5) - one)
    assert (estimate.low, estimate.high) == pytest.approx((0.5, 0.5))
