# SPDX-License-Identifier: Apache-2.0
"""Draws clothes: chooses the varying proportions, and draws the strokes from back to front."""

from __future__ import annotations

import numpy as np

from drawings.outlines import Points, bend, both, flip, mirrored
from drawings.pen import GOLD, INK, RGB, SOLE, STITCH, Pen, Whim


def draw_t_shirt(pen: Pen, whim: Whim) -> None:
    """Draws a T-shirt."""
    reach = whim.between(-3, 0, 3)  # sleeve length
    hem = whim.between(42, 48, 53)
    wide = whim.between(23, 25.5, 28)
    neck = whim.between(9, 10.5, 12)
    deep = whim.between(-37, -35, -31)
    outline = [
        *bend((neck, -47), (20, -44), (wide + 2, -39)),
        *bend((wide + 10, -28), (43 + reach, -12 + reach)),
        *bend((33 + reach, -4 + reach), (wide, -15)),
        *bend((wide, -15), (wide - 1, 10), (wide + 0.5, hem)),
        (wide * 0.5, hem + 1.2),
    ]
    pen.fill(both(outline))
    inside = [*bend((-neck, -47), (0, -43.5), (neck, -47))]
    front = bend((neck, -47), (neck * 0.75, deep - 3.5), (0, deep), (-neck * 0.75, deep - 3.5),
                  (-neck, -47))  # fmt: skip
    pen.fill([*inside, *front], -0.5)
    pen.strap(front, 2.2, -0.1)
    for side in (1, -1):
        pen.line([(side * x, y) for x, y in bend((wide + 1, -39), (wide - 2, -28), (wide, -15))])
        cuff = [(41 + reach, -14 + reach), (31.5 + reach, -6.5 + reach)]
        pen.line([(side * (x - 0.5), y - 1) for x, y in cuff])
        pen.fold([(side * (wide - 2), -13), (side * (wide - 11), -3)], -0.2)
        pen.fold([(side * (wide - 3), 4), (side * (wide - 7), 34)], -0.15)
    pen.line(bend((-wide + 0.5, hem - 3), (0, hem - 1.8), (wide - 0.5, hem - 3)), -0.25)
    pen.fold([(-8, -20), (-6, 34)], 0.05, 7)
    pen.fold([(8, 8), (5, 42)], -0.1)


def draw_shirt(pen: Pen, whim: Whim) -> None:
    """Draws a shirt."""
    short = whim.yes(0.2, canonical=False)
    hem = whim.between(44, 49, 54)
    wide = whim.between(22, 24, 26)
    cuff_y = -2 if short else whim.between(30, 36, 41)
    cuff_x = 41 if short else whim.between(38, 41, 44)
    sleeve = [
        *bend((11, -48), (18, -45), (wide, -41), (wide + 7, -31), (cuff_x, cuff_y)),
        *bend((cuff_x - 9, cuff_y + 2.5), (wide + 4, 0 if not short else -7), (wide - 1, -16)),
    ]
    body = [(11, -48), (wide - 2, -43), *bend((wide - 1, -16), (wide - 2, 15), (wide, hem - 7)),
            *bend((wide - 3, hem - 3), (wide * 0.6, hem), (0, hem + 1))]  # fmt: skip
    for side in (1, -1):
        pen.fill([(side * x, y) for x, y in [*sleeve, (10, -30)]], -0.06)
        if not short:
            lower = [(cuff_x - 1.2, cuff_y - 7), (cuff_x - 10, cuff_y - 5)]
            pen.line([(side * x, y) for x, y in lower])
            pen.dot(side * (cuff_x - 4), cuff_y - 2.5, 0.9, 0.6)
        pen.fold([(side * (wide + 3), -20), (side * (cuff_x - 6), cuff_y - 10)], -0.15)
    pen.fill(both(body))
    for side in (1, -1):
        pen.fold([(side * (wide - 3), -12), (side * (wide - 10), 6)], -0.2)
        pen.fold([(side * (wide - 6), 8), (side * (wide - 8), hem - 6)], -0.13)
        pen.line([(side * x, y) for x, y in [(wide - 1, -38), (11, -34)]], -0.2)
    pen.line([(-2.6, -36), (-2.6, hem + 0.5)], -0.3)
    pen.line([(2.6, -36), (2.6, hem + 0.5)], -0.3)
    for y in np.linspace(-30, hem - 9, 7):
        pen.dot(0, float(y), 1.1, 0.65)
    if whim.yes(0.6, canonical=True):
        pocket = [(7, -20), (17, -20), (17, -9), (12, -6), (7, -9)]
        pen.fill(pocket, 0.05, -0.3)
        pen.line([(7, -17.5), (17, -17.5)], -0.25)
    pen.fill(bend((-9, -48), (0, -51), (9, -48), (0, -37), closed=True), -0.5)
    flap = [(9.5, -51), (13, -45), (9.5, -33), (0, -38.5), (5, -45)]
    mirrored(lambda points: pen.fill(points, 0.12, -0.5), flap)


def draw_dress(pen: Pen, whim: Whim) -> None:
    """Draws a dress."""
    hem = whim.between(44, 56, 60)
    flare = whim.between(24, 33, 38)
    waist = whim.between(-14, -10, -6)
    slim = whim.between(11, 12.5, 14)
    sleeves = whim.yes(0.35, canonical=False)
    strap = whim.between(9, 11, 13)
    if sleeves:
        arm = [(strap + 2, -57), (23, -52), (31, -40), (23, -35), (16, -40)]
        mirrored(lambda points: pen.fill(points, -0.08), arm)
    bodice = [
        (strap - 3, -58), (strap + 2, -58), *bend((strap + 2, -58), (14, -46), (17.5, -39)),
        *bend((17.5, -39), (15.5, -24), (slim, waist)),
        (0, waist + 1),
    ]  # fmt: skip
    neckline = bend((-strap + 3, -58), (-strap + 4, -49), (0, -43), (strap - 4, -49),
                     (strap - 3, -58))  # fmt: skip
    pen.fill(bend((-strap + 1, -52), (0, -49), (strap - 1, -52), (0, -40), closed=True), -0.5)
    pen.fill([*bodice, *flip(bodice)[::-1], *neckline])
    skirt = [
        *bend((slim, waist), (flare * 0.68, waist + (hem - waist) * 0.4), (flare, hem - 2)),
        *bend((flare * 0.6, hem + 1), (flare * 0.3, hem - 0.5), (0, hem + 1.5)),
    ]
    pen.fill(both(skirt))
    for share in (-0.72, -0.4, -0.12, 0.18, 0.45, 0.75):
        start = (share * slim, waist + 3)
        path = bend(start, (share * flare * 0.6, (waist + hem) / 2), (share * flare, hem - 3))
        pen.fold(path, -0.2, 2.4)
        pen.line(path[len(path) // 3 :], -0.16, 0.6)
        pen.fold([(x + 3, y) for x, y in path], 0.1, 2.4)
    pen.line(bend((-flare + 0.6, hem - 5), (0, hem - 1.6), (flare - 0.6, hem - 5)), -0.2)
    for side in (1, -1):
        pen.line([(side * x, y) for x, y in bend((9.5, waist), (9, -26), (15, -33))], -0.25)
    belt = [(slim, waist - 2.2), (slim + 0.6, waist + 2.2)]
    pen.fill(both(belt), -0.4)
    if whim.yes(0.5, canonical=True):
        pen.fill([(-1, waist), (-6, waist - 3), (-6, waist + 3)], -0.4, -0.6)
        pen.fill([(1, waist), (6, waist - 3), (6, waist + 3)], -0.4, -0.6)
        pen.dot(0, waist, 1.5, -0.3)


def draw_jeans(pen: Pen, whim: Whim) -> None:
    """Draws jeans."""
    hem = whim.between(55, 59, 61)
    leg = whim.between(-3, 0, 4)  # from slim to wide
    waist = whim.between(16, 18, 20)
    thread: RGB | float = STITCH if sum(pen.base) < 500 else -0.5
    half = [
        (waist, -59), *bend((waist, -53), (waist + 4.5, -38), (waist + 5, -20),
                             (waist + 3.5 + leg * 0.6, 15), (waist + 3 + leg, hem)),
        *bend((waist + 3 + leg, hem), (waist - 4, hem + 1), (7.5 - leg * 0.3, hem)),
        *bend((7.5 - leg * 0.3, hem), (5, 15), (1, -22)),
    ]  # fmt: skip
    pen.fill([(-waist, -59), (0, -57), (waist, -59), (waist, -55), (-waist, -55)], -0.6)
    shape = [(0, -57.4), *half]
    pen.fill([*shape, *flip(shape)[::-1]])
    for side in (1, -1):
        fade = [(side * (waist - 6), -28), (side * (waist - 7), 14)]
        pen.fold(fade, 0.2, 7)
        pen.fold([(side * (waist - 6), 24), (side * (waist - 6), 46)], 0.1, 5)
        pen.fold([(side * 3, -22), (side * 12, -27)], -0.25, 2)
        pen.fold([(side * 5, -14), (side * 13, -17)], -0.2, 2)
        for y in (10.0, 15.0, 51.0):
            pen.fold([(side * 9, y), (side * 17, y - 2)], -0.18, 1.8)
        pocket = bend((waist - 10, -51.5), (waist - 6, -44), (waist + 3.2, -41.5))
        pen.line([(side * x, y) for x, y in pocket], -0.5, 0.8)
        pen.stitches([(side * (x - 1.2), y + 1.2) for x, y in pocket], thread)
        pen.line([(side * (waist - 10), -58.5), (side * (waist - 10), -50.5)], -0.3, 1.8)
        bottom = [(side * (waist + 2.6 + leg - k * (waist - 4) / 10), hem - 2.8) for k in range(10)]
        pen.stitches(bottom, thread)
        pen.line([(side * x, y) for x, y in bend((waist + 3, -38), (waist + 3.4, 0),
                                                  (waist + 2 + leg, hem))], -0.2)  # fmt: skip
    pen.line([(-waist - 0.6, -52), (0, -50.5), (waist + 0.6, -52)], -0.45, 0.8)
    pen.stitches([(k * waist / 8, -57.4 + abs(k) * -0.12) for k in range(-8, 9)], thread)
    pen.line([(0, -57), (0, -22)], -0.5, 0.9)
    pen.stitches(bend((4.2, -50.6), (4.2, -36), (0.6, -30)), thread)
    pen.dot(0, -54.2, 1.5, GOLD)


def draw_shorts(pen: Pen, whim: Whim) -> None:
    """Draws shorts."""
    hem = whim.between(14, 22, 32)
    wide = whim.between(28, 32, 36)
    waist = whim.between(18, 20.5, 23)
    crotch = -4.0
    half = [
        (0, -33.5), (waist, -35), (waist + 0.5, -28),
        *bend((waist + 0.5, -28), (waist + 6, -8), (wide, hem - 2)),
        *bend((wide, hem - 2), (wide * 0.6, hem + 1.6), (3.5, hem + 1.5)),
        (0.8, crotch),
    ]  # fmt: skip
    pen.fill([*half, *flip(half)[::-1]])
    for side in (1, -1):
        pen.line([(side * x, y) for x, y in bend((waist - 3, -27.5), (waist + 1, -18),
                                                  (waist + 3.6, -12))], -0.5, 0.9)  # fmt: skip
        pen.line([(side * x, y) for x, y in [(wide - 0.7, hem - 6), (wide * 0.6, hem - 2.4),
                                             (3, hem - 2.5)]], -0.3)  # fmt: skip
        pen.fold([(side * 2, crotch), (side * 14, crotch - 9)], -0.22, 2.5)
        pen.fold([(side * 4, crotch + 8), (side * 12, crotch + 2)], -0.16, 2.5)
        pen.fold([(side * 17, -14), (side * 20, hem - 6)], 0.12, 5)
    pen.line([(0, -27), (0, crotch)], -0.4, 0.8)
    pen.line([(-waist - 0.3, -28), (0, -26.6), (waist + 0.3, -28)], -0.45, 0.8)
    if whim.yes(0.6, canonical=True):  # an elastic waist and a cord
        for k in range(-9, 10):
            pen.line([(k * waist / 9.6, -33.6), (k * waist / 9.6, -28.2)], -0.2, 0.5)
        cord: RGB = SOLE if sum(pen.base) < 560 else INK
        pen.line(bend((-1, -30), (-4, -22), (-3, -15)), cord, 1.1)
        pen.line(bend((1, -30), (4, -23), (4.5, -13)), cord, 1.1)
    else:
        pen.dot(0, -30.8, 1.5, 0.5)


def draw_skirt(pen: Pen, whim: Whim) -> None:
    """Draws a skirt."""
    hem = whim.between(26, 38, 50)
    flare = whim.between(28, 37, 41)
    waist = whim.between(13, 15, 17)
    half = [
        (waist, -36), *bend((waist, -36), (waist + 7, -18), (flare, hem - 3)),
        *bend((flare, hem - 3), (flare * 0.75, hem + 0.5), (flare * 0.5, hem + 0.3),
               (flare * 0.25, hem + 2), (0, hem + 1.5)),
    ]  # fmt: skip
    pen.fill(both(half))
    for k in range(-4, 5):
        share = k / 4.6
        path = bend((share * waist, -35), (share * (waist + 6), -15), (share * flare, hem - 0.3))
        pen.line(path, -0.3, 0.7)
        pen.fold([(x + 1.4, y) for x, y in path], -0.24, 2)
        pen.fold([(x + 4.6, y) for x, y in path[3:]], 0.1, 2)
    pen.line(bend((-flare + 0.7, hem - 6), (0, hem - 2), (flare - 0.7, hem - 6)), -0.2)
    pen.fill(both([(0, -41), (waist, -42), (waist + 0.6, -35.5), (0, -34)]), -0.15)
    pen.dot(waist - 4, -38.6, 1.4, 0.5)


def draw_socks(pen: Pen, whim: Whim) -> None:
    """Draws socks."""
    top = whim.between(-52, -46, -26)
    thick = whim.between(-1, 0, 2)
    patch = whim.yes(0.6, canonical=True)
    for dx, dy in ((10.0, -7.0), (-10.0, 5.0)):

        def at(points: Points, dx: float = dx, dy: float = dy) -> list[tuple[float, float]]:
            return [(x + dx, y + dy) for x, y in points]

        left, right = -21 - thick, -1 + thick
        pen.fill(at([
            (left, top), (right, top), *bend((right, top + 10), (right - 1, 4), (right + 4, 14),
            (22, 26), (29, 32), (30, 40), (24, 45), (10, 43), (-12, 37), (-22, 31), (-24, 20),
            (left + 0.5, 4), (left, top + 10)),
        ]))  # fmt: skip
        pen.fold(at([(left + 5, top + 14), (left + 5, 12)]), 0.18, 4)
        pen.fold(at([(right - 2, top + 14), (right - 3, 6)]), -0.16, 3)
        pen.fold(at(bend((-4, 10), (-10, 16), (-8, 24))), -0.25, 2)
        pen.fold(at([(4, 24), (20, 36)]), 0.12, 5)
        if patch:
            heel = bend((-23.4, 15), (-14, 20), (-11, 30), (-12, 37))
            pen.fill(at([*heel, *bend((-12, 37), (-22, 31), (-24, 20))]), -0.3)
            toe = [*bend((19, 23.6), (15, 33), (16, 44.2)), *bend((24, 45), (30, 40), (29, 32))]
            pen.fill(at(toe), -0.3)
        pen.fill(at([(left - 0.6, top - 1), (right + 0.6, top - 1), (right + 0.4, top + 10),
                     (left - 0.4, top + 10)]), -0.12)  # fmt: skip
        for k in range(1, 9):
            x = left + (right - left) * k / 9
            pen.line(at([(x, top), (x, top + 9.4)]), -0.3, 0.6)
