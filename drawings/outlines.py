# SPDX-License-Identifier: Apache-2.0
"""Outlines of garments as points: smooth lines, ellipses, and shapes from their right halves.

The units are the garment's own (see `pen.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Points = Sequence[tuple[float, float]]

_STEPS = np.linspace(0, 1, 8, endpoint=False)[None, :, None]
_CIRCLE = np.linspace(0, 2 * np.pi, 36, endpoint=False)


def bend(*points: tuple[float, float], closed: bool = False) -> list[tuple[float, float]]:
    """Returns points on the smooth (Catmull-Rom) line through the given points."""
    p: npt.NDArray[np.float64] = np.asarray(points, np.float64)
    p = np.vstack([p[-1:], p, p[:2]]) if closed else np.vstack([p[:1], p, p[-1:]])
    before, start, end, after = p[:-3, None], p[1:-2, None], p[2:-1, None], p[3:, None]
    t = _STEPS
    curve = 0.5 * (
        2 * start
        + (end - before) * t
        + (2 * before - 5 * start + 4 * end - after) * t**2
        + (3 * start - before - 3 * end + after) * t**3
    )
    flat = curve.reshape(-1, 2).tolist()
    return [(x, y) for x, y in flat] + ([] if closed else [points[-1]])


def ellipse(x: float, y: float, across: float, down: float) -> list[tuple[float, float]]:
    """Returns points on the ellipse around (x, y) with these half axes."""
    xs, ys = x + across * np.cos(_CIRCLE), y + down * np.sin(_CIRCLE)
    return list(zip(xs.tolist(), ys.tolist(), strict=True))


def flip(points: Points) -> list[tuple[float, float]]:
    """Returns the points mirrored at the middle line."""
    return [(-x, y) for x, y in points]


def both(right: Points) -> list[tuple[float, float]]:
    """Returns a symmetric shape from its right half, whose points go from top to bottom."""
    return [*right, *flip(right)[::-1]]


def mirrored(draw: Callable[[Points], None], points: Points) -> None:
    """Draws the points on both sides of the middle line."""
    draw(points)
    draw(flip(points))
