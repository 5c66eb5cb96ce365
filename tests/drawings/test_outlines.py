# SPDX-License-Identifier: Apache-2.0
"""The points that garments are drawn from."""

from __future__ import annotations

import pytest

from drawings.outlines import bend, both, ellipse, flip, mirrored


def test_bend_passes_through_its_points_and_is_smooth_between() -> None:
    points = [(0.0, 0.0), (10.0, 0.0), (10.0, 10.0)]
    line = bend(*points)
    assert line[0] == points[0]
    assert line[8] == points[1]
    assert line[-1] == points[2]
    assert len(line) == 2 * 8 + 1
    assert max(x for x, _ in line) > 10  # it swings out of the corner


def test_closed_bend_passes_through_its_points_and_comes_back() -> None:
    points = [(0.0, 0.0), (10.0, 0.0), (10.0, 10.0), (0.0, 10.0)]
    line = bend(*points, closed=True)
    assert set(points) <= set(line)
    assert len(line) == 4 * 8


def test_ellipse_lies_around_its_middle() -> None:
    points = ellipse(3, -2, 5, 1)
    assert len(points) == 36
    assert all(((x - 3) / 5) ** 2 + (y + 2) ** 2 == pytest.approx(1) for x, y in points)


def test_both_halves_make_a_closed_symmetric_shape() -> None:
    right = [(1.0, 0.0), (4.0, 5.0), (2.0, 9.0)]
    assert both(right) == [*right, (-2.0, 9.0), (-4.0, 5.0), (-1.0, 0.0)]
    assert flip(flip(right)) == right


def test_mirrored_draws_both_sides() -> None:
    drawn: list[object] = []
    mirrored(drawn.append, [(1.0, 2.0)])
    assert drawn == [[(1.0, 2.0)], [(-1.0, 2.0)]]
