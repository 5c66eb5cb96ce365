# SPDX-License-Identifier: Apache-2.0
"""The pen and the whim, apart from any garment."""

from __future__ import annotations

import numpy as np
import pytest

from drawings.pen import RGB, Pen, Whim

SQUARE = [(-20.0, -20.0), (20.0, -20.0), (20.0, 20.0), (-20.0, 20.0)]


def canonical_pen(base: RGB = (38, 88, 186)) -> Pen:
    return Pen(base, Whim(None), 60, 80)


def test_whim_without_a_generator_is_canonical() -> None:
    whim = Whim(None)
    assert whim.between(1, 2, 4) == 2
    assert whim.yes(0.0, canonical=True)
    assert not whim.yes(1.0, canonical=False)


def test_whim_with_a_generator_varies_within_its_limits() -> None:
    whim = Whim(np.random.default_rng(1))
    numbers = {whim.between(1, 2, 4) for _ in range(50)}
    assert len(numbers) == 50
    assert min(numbers) >= 1
    assert max(numbers) < 4
    assert {whim.yes(0.5, canonical=True) for _ in range(50)} == {True, False}
    assert not whim.yes(0.0, canonical=True)


@pytest.mark.parametrize(
    ("base", "darker", "lighter"),
    [
        ((100, 120, 140), (50, 60, 70), (178, 188, 198)),
        ((0, 0, 0), (70, 70, 70), (70, 70, 70)),  # black has no darker tone
        ((240, 240, 240), (177, 177, 177), (177, 177, 177)),  # white has no lighter one
    ],
)
def test_tone_is_one_that_can_be_told_from_the_base(base: RGB, darker: RGB, lighter: RGB) -> None:
    pen = canonical_pen(base)
    assert pen.tone(0) == base
    assert pen.tone(-0.5) == darker
    assert pen.tone(0.5) == lighter


def test_nothing_drawn_is_white_ground() -> None:
    pixels = np.asarray(canonical_pen().finish())
    assert pixels.shape == (80, 60, 3)
    assert pixels.min() == 255


def test_filled_shape_has_the_base_colour_in_the_middle_and_a_shadow_around() -> None:
    pen = canonical_pen()
    pen.fill(SQUARE)
    pixels = np.asarray(pen.finish()).astype(int)
    assert np.abs(pixels[40, 30] - pen.base).max() < 25
    below = pixels[54, 30]
    assert below.max() - below.min() == 0  # grey
    assert below[0] < 255
    assert pixels[2, 2].tolist() == [255, 255, 255]


def test_folds_shade_and_gloss_what_is_filled() -> None:
    def brightness(depth: float) -> float:
        pen = canonical_pen()
        pen.fill(SQUARE)
        pen.fold([(0, -15), (0, 15)], depth, 6)
        return float(np.asarray(pen.finish())[40, 30].mean())

    assert brightness(-0.3) < brightness(0) < brightness(0.3)


def test_stitches_leave_gaps() -> None:
    pen = canonical_pen()
    pen.stitches([(-30, 0), (-10, 0), (10, 0), (30, 0)], (0, 0, 0), 4)
    row = np.asarray(pen.finish())[40].mean(axis=1)
    assert row[18] < 128
    assert row[30] > 200
    assert row[42] < 128
