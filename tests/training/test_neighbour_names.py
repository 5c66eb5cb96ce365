# SPDX-License-Identifier: Apache-2.0
"""Soft targets: what the names of similar photos say, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from training.neighbour_names import SHARPNESS, nearest_neighbours, neighbour_names

# Photo 0 looks most like 1, less like 2; 3 has the same name as 0 and looks exactly like it.
ANGLES = np.array([0.0, 0.1, 0.2, 0.0])
FEATURES = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1).astype(np.float32)
NAMES = ["a b", "a c", "d b", "a b"]
A, B, C, D, EOS = 5, 6, 7, 8, 1
TOKENS = np.array([[A, B, EOS], [A, C, EOS], [D, B, EOS], [A, B, EOS]])


def test_photos_of_the_own_name_are_no_neighbours() -> None:
    indices, cosines = nearest_neighbours(FEATURES, NAMES, count=2)
    assert indices[0].tolist() == [1, 2]
    assert cosines[0].tolist() == pytest.approx([np.cos(0.1), np.cos(0.2)], abs=1e-6)


def test_blocks_change_nothing() -> None:
    random = np.random.default_rng(3)
    features = random.normal(size=(50, 8)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    names = [str(i % 20) for i in range(50)]
    whole, parts = (nearest_neighbours(features, names, count=9, block=block) for block in (50, 7))
    assert np.array_equal(whole[0], parts[0])
    assert np.allclose(whole[1], parts[1])


def test_next_tokens_are_those_of_neighbours_that_begin_alike() -> None:
    found = neighbour_names(FEATURES, NAMES, TOKENS, [2, 3, None, 2])
    ratio = np.exp(SHARPNESS * (np.cos(0.2) - np.cos(0.1)))
    first = {A: 1 / (1 + ratio), D: ratio / (1 + ratio)}
    said = dict(zip(found.tokens[0, 0].tolist(), found.weights[0, 0].tolist(), strict=True))
    assert {token: said[token] for token in first} == pytest.approx(first, abs=1e-3)
    # Only the neighbour that begins with A says what follows it.
    assert found.tokens[0, 1, 0] == C
    assert found.weights[0, 1].tolist() == [1.0, *[0.0] * 7]
    # None goes on as the name itself does.
    assert not found.weights[0, 2].any()
    assert found.query_ids[0].tolist()[:2] == [3, -1]
    assert found.query_weights[0, 0] == pytest.approx(first[A], abs=1e-3)


def test_photo_without_neighbours_has_no_soft_target() -> None:
    found = neighbour_names(FEATURES[:2], ["same", "same"], TOKENS[:2], [1, 1])
    assert not found.weights.any()
    assert not found.query_weights.any()
