# SPDX-License-Identifier: Apache-2.0
"""Captions without a captioner."""

from __future__ import annotations

import numpy as np
import pytest

from training.baselines import most_frequent_pair, nearest_names, pixel_features, unit_length


def test_most_frequent_pair_is_of_the_last_two_words() -> None:
    assert most_frequent_pair(["Nike Men Blue Shirt", "Puma Blue Shirt", "Puma Red Cap", "Tie"]) == "Blue Shirt"


def test_of_equally_frequent_pairs_the_first_is_taken() -> None:
    assert most_frequent_pair(["Red Cap", "Blue Tie"]) == "Red Cap"


def test_pair_of_no_names_is_refused() -> None:
    with pytest.raises(ValueError, match="no names"):
        most_frequent_pair([])


def test_pixel_features_are_means_of_blocks() -> None:
    photo = np.zeros((80, 64, 3), np.uint8)
    photo[:4, :4, 0] = np.arange(16, dtype=np.uint8).reshape(4, 4) * 2  # mean 15
    features = pixel_features(photo[None])
    assert features.shape == (1, 20 * 16 * 3)
    assert features[0, 0] == 15
    assert features[0, 1:].sum() == 0


def test_pixel_features_of_any_size_have_one_length() -> None:
    assert pixel_features(np.zeros((2, 224, 224, 3), np.uint8)).shape == (2, 960)


def test_unit_length_rows_and_zeros() -> None:
    rows = unit_length(np.array([[3, 4], [0, 0]], np.float32))
    assert rows.dtype == np.float32
    assert rows.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0]]


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_nearest_is_what_comparing_all_pairs_finds(chunk: int) -> None:
    rng = np.random.default_rng(1)
    asked, known = rng.normal(50, 10, (40, 12)).astype(np.float32), rng.normal(50, 10, (60, 12)).astype(np.float32)
    known_names = [f"known {i}" for i in range(60)]
    distances = ((asked[:, None] - known[None]) ** 2).sum(axis=2)
    expected = [known_names[i] for i in distances.argmin(axis=1)]
    assert nearest_names([f"asked {i}" for i in range(40)], asked, known_names, known, chunk=chunk) == expected


def test_nearest_of_unit_length_is_nearest_by_cosine() -> None:
    asked = np.array([[1, 1]], np.float32)
    known = np.array([[1, 0.5], [90, 100]], np.float32)
    assert nearest_names(["a"], asked, ["near", "same direction"], known) == ["near"]
    assert nearest_names(["a"], unit_length(asked), ["near", "same direction"], unit_length(known)) == [
        "same direction"
    ]


def test_products_of_one_name_are_never_nearest_to_each_other() -> None:
    names = ["Blue Shirt", "blue  shirt", "Red Cap"]
    features = np.array([[0], [0.1], [5]], np.float32)
    assert nearest_names(names, features, names, features) == ["Red Cap", "Red Cap", "blue  shirt"]


def test_photo_without_a_known_one_of_another_name_is_refused() -> None:
    one = np.zeros((1, 2), np.float32)
    with pytest.raises(ValueError, match="have the name 'Red Cap'"):
        nearest_names(["Red Cap"], one, ["Red Cap"], one)
    with pytest.raises(ValueError, match="no known photos"):
        nearest_names(["Red Cap"], one, [], one[:0])


def test_names_and_features_of_other_lengths_are_refused() -> None:
    one = np.zeros((1, 2), np.float32)
    with pytest.raises(ValueError, match="1 names with 1 photos, 2 known names with 1 photos"):
        nearest_names(["a"], one, ["b", "c"], one)
