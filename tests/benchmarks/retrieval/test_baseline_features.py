# SPDX-License-Identifier: Apache-2.0
"""Colour, texture and shape of drawn pictures, each told by its own descriptor."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.retrieval.baseline_features import COLOUR, DESCRIPTORS, SHAPE, TEXTURE, descriptors, joined, weight_grid


def picture(colour: tuple[int, int, int], *, wide: bool = False, striped: bool = False) -> npt.NDArray[np.uint8]:
    """A box of one colour on white, 96 x 72, with its darker stripes."""
    photo = np.full((96, 72, 3), 255, np.uint8)
    box = photo[40:60, 6:66] if wide else photo[8:88, 26:46]
    box[:] = colour
    if striped:
        box[::8] = box[1::8] = np.array(colour, np.uint8) // 2
    return photo


RED, BLUE = (200, 30, 30), (30, 30, 200)
PICTURES = np.stack([picture(RED), picture(BLUE), picture(RED, wide=True), picture(RED, striped=True)])


def test_each_descriptor_tells_what_it_is_for() -> None:
    found = descriptors(PICTURES)
    cosines = {name: rows[0] @ rows.T for name, rows in found.items()}
    for rows in found.values():
        assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-5)
    assert cosines[COLOUR][1] < 0.2 < 0.7 < cosines[COLOUR][2], "another colour, another shape"
    assert cosines[SHAPE][2] < 0.5 < cosines[SHAPE][1]
    assert cosines[TEXTURE][3] < cosines[TEXTURE][1]


def test_cosine_of_joined_features_is_the_weighted_mean() -> None:
    found = descriptors(PICTURES)
    weights = {COLOUR: 0.5, TEXTURE: 0.25, SHAPE: 0.25}
    rows = joined(found, weights)
    assert rows[0] @ rows[1] == pytest.approx(
        sum(weight * (found[name][0] @ found[name][1]) for name, weight in weights.items())
    )


def test_grid_holds_all_weights_of_sum_one() -> None:
    grid = weight_grid(DESCRIPTORS, 5)
    assert len(grid) == 21
    assert all(sum(weights.values()) == pytest.approx(1) for weights in grid)
    assert len({tuple(round(one, 3) for one in weights.values()) for weights in grid}) == 21
