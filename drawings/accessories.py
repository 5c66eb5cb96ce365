# SPDX-License-Identifier: Apache-2.0
"""Draws bags, shoes and other accessories, in the same way as `clothes`."""

from __future__ import annotations

import numpy as np

from drawings.outlines import Points, bend, both, ellipse
from drawings.pen import GOLD, INK, RGB, SILVER, SOLE, Pen, Whim


def draw_handbag(pen: Pen, whim: Whim) -> None:
    """Draws a handbag."""
    top = whim.between(25, 27, 30)
    bottom = whim.between(32, 36, 39)
    high = whim.between(-58, -50, -44)
    floor = whim.between(34, 38, 44)
    pen.strap(bend((-14, -8), (-13, high + 14), (0, high + 2), (13, high + 14), (14, -8)),
              2.6, -0.35)  # fmt: skip
    body = [
        *bend((top - 2, -13), (top, -11), (bottom, floor - 6), (bottom - 3, floor),
               (bottom - 8, floor + 1)),
        (0, floor + 1.6),
    ]  # fmt: skip
    pen.fill(both(body))
    flap = bend((top, -12), (top + 1.5, 2), (top - 6, 10), (0, 13))
    if whim.yes(0.7, canonical=True):
        pen.fill(both([(top - 2, -13), *flap]), -0.1, -0.5)
        pen.stitches([(x * 0.94, y - 1.3) for x, y in both(flap)], 0.35)
        pen.fill([(-4, 9), (4, 9), (4, 17), (-4, 17)], GOLD, -0.6)
        pen.dot(0, 13, 1.3, (150, 116, 48))
    else:
        pen.line([(-top, -8), (top, -8)], -0.5, 0.9)
        pen.line([(-top + 4, -10.4), (top - 4, -10.4)], GOLD, 0.9)
    pen.line(bend((-bottom + 2, floor - 6), (0, floor - 4), (bottom - 2, floor - 6)), -0.35)
    front = bend((-14, -6), (-14, high + 22), (0, high + 9), (14, high + 22), (14, -6))
    pen.strap(front, 3.4, -0.12)
    for side in (-14, 14):
        pen.fill([(side - 3, -8), (side + 3, -8), (side + 2.4, 1), (side - 2.4, 1)], -0.3, -0.6)
        pen.fill(ellipse(side, -8, 3.2, 2.4), GOLD, -0.6)
    pen.fold([(-top + 4, 14), (-bottom + 9, floor - 8)], 0.25, 5)
    pen.fold([(top - 3, 14), (bottom - 6, floor - 8)], -0.16, 6)


def draw_backpack(pen: Pen, whim: Whim) -> None:
    """Draws a backpack."""
    wide = whim.between(25, 28, 31)
    top = whim.between(-50, -46, -42)
    floor = whim.between(44, 48, 52)
    pen.strap(bend((-7, top + 3), (-6, top - 6), (0, top - 9), (6, top - 6), (7, top + 3)), 2.6,
              -0.3)  # fmt: skip
    for side in (1, -1):
        path = bend((15, top + 5), (wide + 5, top + 18), (wide + 9, 0), (wide + 6, 24),
                     (wide - 2, floor - 8))  # fmt: skip
        pen.strap([(side * x, y) for x, y in path], 4, -0.3)
        pouch = bend((wide - 4, 14), (wide + 5, 18), (wide + 5, floor - 6), (wide - 4, floor - 2),
                      closed=True)  # fmt: skip
        pen.fill([(side * x, y) for x, y in pouch], -0.25)
    shell = bend((0, top), (wide * 0.62, top + 2.5), (wide - 1, top + 17), (wide, 8),
                  (wide, floor - 7), (wide - 5, floor), (0, floor + 1))  # fmt: skip
    pen.fill(both(shell))
    zip_line = bend((-wide + 4, 2), (-wide + 5, top + 20), (-wide * 0.5, top + 8), (0, top + 6),
                     (wide * 0.5, top + 8), (wide - 5, top + 20), (wide - 4, 2))  # fmt: skip
    pen.line(zip_line, -0.55, 1.5)
    pen.stitches(zip_line, SILVER, 0.5)
    pen.line([(wide - 4, 2), (wide - 4, 8)], SILVER, 1.2)
    pocket = [
        *bend((0, 9), (wide - 10, 9), (wide - 5, 13), (wide - 5, floor - 9), (wide - 8, floor - 5),
               (0, floor - 4)),
    ]  # fmt: skip
    pen.fill(both(pocket), -0.12, -0.5)
    pen.line([(-wide + 8, 16), (wide - 8, 16)], -0.6, 1.5)
    pen.stitches([(k * (wide - 8) / 12, 16.0) for k in range(-12, 13)], SILVER, 0.5)
    pen.line([(wide - 9, 16), (wide - 9, 21)], SILVER, 1.3)
    if whim.yes(0.6, canonical=True):
        pen.fill([(-6, -14), (6, -14), (6, -6), (-6, -6)], GOLD if pen.base[0] < 190 else INK, -0.5)
    pen.fold([(-wide + 8, top + 22), (-wide + 7, 4)], 0.2, 5)
    pen.fold([(-wide + 11, 24), (-wide + 11, floor - 12)], 0.15, 4)
    pen.fold([(wide - 4, top + 22), (wide - 4, floor - 6)], -0.16, 5)


def _shoe(pen: Pen, whim: Whim, dx: float, dy: float, high: float, sole: float) -> None:
    def at(points: Points) -> list[tuple[float, float]]:
        return [(x + dx, y + dy) for x, y in points]

    upper = [
        *bend((-36, 16), (-38, 4), (-36, -10), (-36.5, -17 - high)),
        *bend((-34, -18.5 - high), (-27, -13 - high), (-17, -13 - high), (-11, -17 - high)),
        *bend((-7, -19 - high), (2, -10), (14, -1), (28, 2), (37, 8), (39, 16)),
    ]
    pen.fill(at(upper))
    lining = bend((-35, -17.5 - high), (-23, -19 - high), (-9, -18.5 - high), (-17, -12.6 - high),
                   (-27, -12.6 - high), closed=True)  # fmt: skip
    pen.fill(at(lining), -0.55)
    pen.fill(at(bend((-12, -16 - high), (-8, -23 - high), (-3, -21 - high), (8, -7), (2, -8),
                      closed=True)), -0.2)  # fmt: skip
    pen.fill(at(bend((22, 1), (31, 3), (37, 8), (39, 16), (20, 16), (19, 8), closed=True)), 0.14,
             -0.35)  # fmt: skip
    pen.fill(at([*bend((-36.6, -12), (-31, -8), (-28, 4), (-29, 16)), (-36, 16), (-37.4, 4)]), -0.2)
    pen.line(at(bend((-14, -13 - high), (-6, 2), (8, 16))), -0.4, 0.8)
    pen.line(at(bend((-14, -13 - high), (-20, 2), (-17, 16))), -0.3, 0.7)
    lace: RGB = SOLE if sum(pen.base) < 600 else INK
    for k in range(5):
        x, y = -8 + k * 4.6, -15.5 - high * (1 - k / 5) + k * 3.4
        pen.line(at([(x - 2.6, y + 5.5), (x + 2.6, y - 0.6)]), lace, 1.5)
    pen.fold(at([(-22, 0), (-10, 10)]), 0.1, 4)
    pen.fold(at([(16, 4), (12, 13)]), -0.2, 2.5)
    bottom = bend((-38, 14), (-39, 19), (-36, 15 + sole), (0, 16 + sole), (33, 15.5 + sole),
                   (41, 15 + sole * 0.5), (39.5, 13), (20, 14.5), (-10, 14),
                   closed=True)  # fmt: skip
    white = SOLE if sum(pen.base) > 130 or whim.yes(0.8, canonical=True) else INK
    pen.fill(at(bottom), white, (150, 150, 152))
    pen.line(at(bend((-37, 12.4 + sole), (0, 13 + sole), (37, 12 + sole))), (172, 172, 174), 0.7)


def draw_shoes(pen: Pen, whim: Whim) -> None:
    """Draws a pair of shoes or one shoe."""
    high = whim.between(-1, 1, 9)
    sole = whim.between(5.5, 7.5, 9.5)
    if whim.yes(0.6, canonical=True):
        _shoe(pen, whim, 4, -18, high, sole)
        _shoe(pen, whim, -4, 14, high, sole)
    else:
        _shoe(pen, whim, 0, 0, high, sole)


def draw_cap(pen: Pen, whim: Whim) -> None:
    """Draws a cap."""
    tall = whim.between(-32, -28, -25)
    brim = whim.between(42, 45, 48)
    drop = whim.between(14, 17, 21)
    dome = [
        *bend((-37, 13), (-37, -3), (-29, tall + 8), (-8, tall), (10, tall + 7), (20, -6),
               (22, 9)),
        *bend((22, 9), (4, 13), (-18, 15), (-37, 13)),
    ]  # fmt: skip
    peak = bend((-2, 11), (22, 4), (36, 7), (brim, drop - 2), (brim - 3, drop + 2), (24, 15),
                 (2, 15), closed=True)  # fmt: skip
    pen.fill(dome)
    pen.fold(bend((-26, 0), (-20, -14), (-8, -21)), 0.22, 6)
    pen.fold(bend((16, 4), (15, -6), (8, -18)), -0.14, 4)
    for path in (
        bend((-8, tall), (0, -10), (2, 12)),
        bend((-8, tall), (-22, -12), (-24, 14)),
        bend((-8, tall), (12, tall + 12), (19, 8)),
    ):
        pen.line(path, -0.4, 0.8)
        pen.stitches([(x + 1.3, y) for x, y in path], -0.25, 0.5)
    for x, y in ((-10, -14), (9, -13), (-25, -10)):
        pen.dot(x, y, 1.0, -0.6)
    pen.fill(peak, -0.18, -0.55)
    pen.fold(bend((12, 10), (28, 9), (39, 13)), 0.16, 2.5)
    for inset in (0.0, 2.0):
        pen.line(bend((6, 13.4 - inset), (24, 12.6 - inset), (brim - 5, drop - 1 - inset)), -0.4,
                 0.5)  # fmt: skip
    pen.line(bend((-37, 10), (-18, 12), (2, 10.4)), -0.3)
    pen.fill(ellipse(-8, tall - 0.5, 3, 1.6), -0.1, -0.5)


def draw_watch(pen: Pen, whim: Whim) -> None:
    """Draws a watch."""
    band = whim.between(10, 12.5, 14)
    radius = whim.between(18, 20.5, 23)
    long = whim.between(52, 57, 60)
    for side in (1, -1):
        strap = [
            (-band - 1, 0), (-band, side * 20), *bend((-band + 2, side * (long - 4)),
            (-band + 5, side * long), (band - 5, side * long), (band - 2, side * (long - 4))),
            (band, side * 20), (band + 1, 0),
        ]  # fmt: skip
        pen.fill(strap)
        for inset in (-1, 1):
            seam = [(inset * (band - 2.4), side * (22 + k * (long - 27) / 15)) for k in range(16)]
            pen.stitches(seam, 0.45, 0.7)
        pen.fold([(-band * 0.4, side * 24), (-band * 0.3, side * (long - 4))], 0.16, 5)
    for k in range(3):
        pen.dot(0, 36 + k * 6, 1.2, -0.7)
    pen.fill([(-band + 1, -long - 2), (band - 1, -long - 2), (band - 1, -long + 3),
              (-band + 1, -long + 3)], SILVER, INK)  # fmt: skip
    pen.fill([(radius, -3), (radius + 4.5, -3), (radius + 4.5, 3), (radius, 3)], SILVER, INK)
    pen.fill(ellipse(0, 0, radius + 2, radius + 2), SILVER, (96, 98, 104))
    pen.fill(ellipse(0, 0, radius - 1, radius - 1), 0.0, (120, 122, 128))
    mark: RGB = (250, 250, 250) if sum(pen.base) < 470 else INK
    for hour in range(12):
        x, y = float(np.sin(hour * np.pi / 6)), -float(np.cos(hour * np.pi / 6))
        outer, inner = radius - 3, radius - (7 if hour % 3 == 0 else 5)
        pen.line([(x * outer, y * outer), (x * inner, y * inner)], mark, 1.4)
    for turn, reach, thick in (
        (whim.between(0, 10.17, 12), 0.45, 2.0), (whim.between(0, 2, 12), 0.68, 1.3),
    ):  # fmt: skip
        x, y = float(np.sin(turn * np.pi / 6)), -float(np.cos(turn * np.pi / 6))
        pen.line([(-x * 2, -y * 2), (x * reach * radius, y * reach * radius)], mark, thick)
    pen.fill(ellipse(0, 0, 1.6, 1.6), mark, mark)
    pen.fold([(-radius * 0.6, radius * 0.1), (radius * 0.1, -radius * 0.6)], 0.12, 4)


def draw_sunglasses(pen: Pen, whim: Whim) -> None:
    """Draws sunglasses."""
    wide = whim.between(16, 17.5, 18.5)
    deep = whim.between(11.5, 14, 16)
    square = whim.between(0.66, 0.8, 0.9)
    thick = whim.between(4, 4.6, 5.4)
    for side in (1, -1):  # the arms, folded out behind the front
        arm = bend((39, -6), (41, -24), (37, -31), (33, -30))
        pen.strap([(side * x, y) for x, y in arm], 3.0, -0.12)
    pen.strap(bend((-6, -4), (0, -7.5), (6, -4)), thick + 0.6)
    for side in (1, -1):
        cx = side * 21.5

        def rim(share: float, cx: float = cx, side: int = side) -> list[tuple[float, float]]:
            w, d = wide * share, deep * share
            k = square
            return bend(
                (cx - side * w, -d * 0.5), (cx - side * w * k, -d * 0.95), (cx, -d),
                (cx + side * w * k, -d), (cx + side * w * 1.08, -d * 0.75),
                (cx + side * w, d * 0.2), (cx + side * w * k * 0.85, d * 0.85), (cx, d),
                (cx - side * w * k * 0.9, d * 0.7), closed=True,
            )  # fmt: skip

        pen.fill(rim(1 + thick / wide), 0.0, -0.25)
        lens = tuple(round(part * 0.05 + 30) for part in pen.base)
        pen.fill(rim(0.97), (lens[0], lens[1], lens[2]), -0.5)
        pen.fold([(cx - wide * 0.55, deep * 0.35), (cx - wide * 0.05, -deep * 0.6)], 0.4, 3.5)
        pen.fold([(cx - wide * 0.1, deep * 0.45), (cx + wide * 0.2, -deep * 0.1)], 0.25, 1.6)
        pen.dot(side * 39.2, -deep * 0.72, 0.9, SILVER)


def draw_tie(pen: Pen, whim: Whim) -> None:
    """Draws a tie."""
    wide = whim.between(8.5, 11, 13.5)
    end = whim.between(50, 56, 60)
    pattern = whim.between(0, 0.5, 3)  # stripes, plain or dots
    tail = [(-3, -46), (3, -46), (wide * 0.55, end - 19), (wide * 0.2, end - 11), (-4, end - 18)]
    pen.fill([(x + 3.5, y) for x, y in tail], -0.3)
    blade = [(-4, -46), (4, -46), (wide, end - 12), (0, end), (-wide, end - 12)]
    pen.fill(blade)
    width_at = 4 + (wide - 4) * 0.5
    if pattern < 1:
        for y in np.arange(-40, end - 16, 9):
            half = 4 + (wide - 4) * (float(y) + 46) / (end + 34) - 0.4
            pen.fill([(-half, float(y) + half), (half, float(y) - half * 0.6),
                      (half, float(y) - half * 0.6 + 3), (-half, float(y) + half + 3)],
                     0.3, 0.3)  # fmt: skip
    elif pattern < 2:
        for row, y in enumerate(np.arange(-38, end - 14, 7)):
            half = (4 + (wide - 4) * (float(y) + 46) / (end + 34)) * 0.45
            for x in (-half, half) if row % 2 else (0.0,):
                pen.fill(ellipse(x, float(y), 0.9, 0.9), 0.45, 0.45)
    pen.fold([(-width_at * 0.35, -30), (-wide * 0.5, end - 18)], 0.15, 3)
    pen.fold([(width_at * 0.6, -30), (wide * 0.7, end - 16)], -0.16, 3)
    pen.fold([(-4, -43.5), (4, -43.5)], -0.4, 3)
    knot = [(-7, -60), (7, -60), (4.2, -46.5), (0, -45.4), (-4.2, -46.5)]
    pen.fill(knot, 0.08, -0.5)
    pen.line(bend((-6.2, -56), (-1, -52), (2, -46)), -0.25, 0.7)
