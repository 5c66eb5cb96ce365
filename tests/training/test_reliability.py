# SPDX-License-Identifier: Apache-2.0
"""Reliability bins, calibration errors, marginals and AUROC against values that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.reliability import (
    auroc,
    equal_mass_bins,
    equal_width_bins,
    expected_calibration_error,
    reliability,
    word_at,
    word_marginals,
)


def test_error_is_the_mean_difference_over_photos() -> None:
    probabilities, right = np.array([0.9, 0.9, 0.9, 0.1]), np.array([True, True, False, False])
    bins = equal_width_bins(probabilities, right, num_bins=2)
    assert [(one.low, one.high, one.count) for one in bins] == [(0.0, 0.5, 1), (0.5, 1.0, 3)]
    assert expected_calibration_error(bins) == pytest.approx((3 * abs(0.9 - 2 / 3) + 1 * 0.1) / 4)


def test_values_on_a_bound_and_at_the_ends_are_in_one_bin_each() -> None:
    bins = equal_width_bins(np.array([0.0, 0.5, 1.0]), np.array([False, True, True]), num_bins=2)
    assert [(one.low, one.count) for one in bins] == [(0.0, 2), (0.5, 1)]


def test_bins_of_equal_mass_hold_equal_numbers() -> None:
    probabilities = np.concatenate([np.full(9, 0.99), np.linspace(0.1, 0.2, 3)])
    bins = equal_mass_bins(probabilities, np.ones(12, bool), num_bins=4)
    assert [one.count for one in bins] == [3, 3, 3, 3]
    assert (bins[0].low, bins[0].high) == (pytest.approx(0.1), pytest.approx(0.2))
    assert len(equal_mass_bins(np.array([0.2, 0.4]), np.array([True, False]))) == 2


def test_perfectly_calibrated_values_have_nearly_no_error() -> None:
    generator = np.random.default_rng(1)
    probabilities = generator.random(50_000)
    found = reliability(probabilities, generator.random(50_000) < probabilities)
    assert found["ece_equal_width"] < 0.01
    assert found["ece_equal_mass"] < 0.01
    assert len(found["bins_equal_width"]) == len(found["bins_equal_mass"]) == 15
    assert found["mean_probability"] == pytest.approx(found["accuracy"], abs=0.01)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), st.integers(1, 20))
def test_every_photo_is_in_one_bin_and_means_are_kept(rows: list[tuple[float, bool]], num_bins: int) -> None:
    probabilities, right = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    for make in (equal_width_bins, equal_mass_bins):
        bins = make(probabilities, right, num_bins)
        assert sum(one.count for one in bins) == len(rows)
        assert sum(one.count * one.accuracy for one in bins) == pytest.approx(right.sum())
        assert sum(one.count * one.probability for one in bins) == pytest.approx(probabilities.sum())
        assert all(one.low - 1e-12 <= one.probability <= one.high + 1e-12 for one in bins)
        assert abs(probabilities.mean() - right.mean()) - 1e-9 <= expected_calibration_error(bins) <= 1


@pytest.mark.parametrize(
    ("probabilities", "right", "message"),
    [([], [], "no photos"), ([0.5], [True, False], "not two lists"), ([1.5], [True], "between 0 and 1"),
     ([float("nan")], [True], "between 0 and 1")],
)  # fmt: skip
def test_what_is_no_probability_is_refused(probabilities: list[float], right: list[bool], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reliability(probabilities, right)


def test_words_of_a_query_by_place() -> None:
    assert (word_at("blue t-shirts", -1), word_at("blue t-shirts", -2)) == ("tshirt", "blue")
    assert (word_at("tshirt", -1), word_at("tshirt", -2), word_at("", -1)) == ("tshirt", "", "")


def test_marginal_sums_over_all_queries_with_the_word_in_that_place() -> None:
    classes = ["", "blue shirt", "red shirts", "shirt", "shirt dress"]
    probabilities = np.array([[0.1, 0.2, 0.3, 0.15, 0.25], [0.9, 0.1, 0.0, 0.0, 0.0]])
    assert word_marginals(probabilities, classes, -1, ["shirt", "shirt"]).tolist() == pytest.approx([0.65, 0.1])
    assert word_marginals(probabilities, classes, -2, ["shirt", "blue"]).tolist() == pytest.approx([0.25, 0.1])
    assert word_marginals(np.array([[0.6, 0.5, 0.0, 0.0, 0.0]]), ["a"] * 5, -1, ["a"]).tolist() == [1.0]


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    assert auroc([3, 4], [1, 2]) == 1.0
    assert auroc([1, 2], [3, 4]) == 0.0
    assert auroc([1, 1], [1]) == 0.5
    assert auroc([1, 3], [2]) == 0.5
    with pytest.raises(ValueError, match="0 positives and 1 negatives"):
        auroc([], [1])


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.lists(st.integers(0, 9), min_size=1, max_size=20))
def test_auroc_is_what_counting_pairs_gives(above: list[int], below: list[int]) -> None:
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in above for b in below]
    assert auroc(above, below) == pytest.approx(sum(pairs) / len(pairs))
