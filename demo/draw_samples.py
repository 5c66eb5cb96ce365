# SPDX-License-Identifier: Apache-2.0
"""Draws fashion products in flat studio style: pictures of our own to train on and to demonstrate.

A garment is drawn in its own units (x -50..50, y -66..66 downwards, origin in the middle) by a
`_Pen`, which knows the placing and the colour; a `_Whim` turns fixed proportions into varied ones.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

RGB = tuple[int, int, int]
Points = Sequence[tuple[float, float]]

COLOURS: dict[str, RGB] = {
    "Black": (30, 30, 34),
    "White": (242, 242, 240),
    "Grey": (146, 148, 152),
    "Blue": (38, 88, 186),
    "Red": (206, 32, 42),
    "Green": (36, 138, 70),
    "Yellow": (250, 212, 46),
    "Pink": (246, 146, 186),
    "Purple": (116, 54, 156),
    "Brown": (112, 70, 40),
    "Orange": (244, 126, 28),
}
SILVER: RGB = (196, 200, 206)
GOLD: RGB = (206, 168, 84)
STITCH: RGB = (222, 160, 84)
SOLE: RGB = (238, 238, 234)
INK: RGB = (40, 42, 48)

COLUMNS = (
    "id", "gender", "masterCategory", "subCategory", "articleType", "baseColour", "season",
    "year", "usage", "productDisplayName",
)  # fmt: skip
# Garment: master category, sub-category, article type, in the words of the Kaggle data set.
_KAGGLE = {
    "T-shirt": ("Apparel", "Topwear", "Tshirts"),
    "Shirt": ("Apparel", "Topwear", "Shirts"),
    "Dress": ("Apparel", "Dress", "Dresses"),
    "Jeans": ("Apparel", "Bottomwear", "Jeans"),
    "Shorts": ("Apparel", "Bottomwear", "Shorts"),
    "Skirt": ("Apparel", "Bottomwear", "Skirts"),
    "Handbag": ("Accessories", "Bags", "Handbags"),
    "Backpack": ("Accessories", "Bags", "Backpacks"),
    "Shoes": ("Footwear", "Shoes", "Casual Shoes"),
    "Cap": ("Accessories", "Headwear", "Caps"),
    "Watch": ("Accessories", "Watches", "Watches"),
    "Sunglasses": ("Accessories", "Eyewear", "Sunglasses"),
    "Tie": ("Accessories", "Ties", "Ties"),
    "Socks": ("Apparel", "Socks", "Socks"),
}


class _Whim:
    """Chooses proportions: the canonical ones without a generator, varied ones with one."""

    def __init__(self, rng: np.random.Generator | None) -> None:
        self._rng = rng

    def between(self, low: float, canonical: float, high: float) -> float:
        return canonical if self._rng is None else float(self._rng.uniform(low, high))

    def yes(self, probability: float, canonical: bool) -> bool:
        return canonical if self._rng is None else bool(self._rng.random() < probability)


class _Pen:
    """Draws shapes in garment units on an oversized picture, its mask and a soft fold map."""

    def __init__(self, base: RGB, whim: _Whim, width: int, height: int) -> None:
        self.base = base
        self._width, self._height = width, height
        self._over = 4 if width >= 120 else 3
        size = (width * self._over, height * self._over)
        self._picture = Image.new("RGB", size, self.tone(-0.45))
        self._mask = Image.new("L", size, 0)
        self._folds = Image.new("L", (width, height), 128)
        self._draw = ImageDraw.Draw(self._picture)
        self._draw_mask = ImageDraw.Draw(self._mask)
        self._draw_folds = ImageDraw.Draw(self._folds)
        angle = np.deg2rad(whim.between(-8, 0, 8))
        self._unit = min(width / 100, height / 133) * whim.between(0.8, 0.97, 1.0)
        flip = -1.0 if whim.yes(0.5, canonical=False) else 1.0
        cos, sin = np.cos(angle) * self._unit, np.sin(angle) * self._unit
        self._matrix = np.array([[cos * flip, sin * flip], [-sin, cos]])
        self._middle = np.array(
            [
                width * whim.between(0.47, 0.5, 0.53),
                height * whim.between(0.475, 0.5, 0.525),
            ]
        )
        self._ground = whim.between(246, 255, 255)
        self._light = whim.between(0.05, 0.09, 0.13)

    def tone(self, step: float) -> RGB:
        """The base darker (step < 0) or lighter (step > 0); dark colours only get lighter."""
        luma = float(np.dot(self.base, (0.3, 0.59, 0.11)))
        target, share = (0, abs(step)) if step < 0 else (255, step)
        if luma < 60:
            target, share = 255, abs(step) * 0.55
        elif luma > 225:
            target, share = 60, abs(step) * 0.7
        red, green, blue = (round(part + (target - part) * share) for part in self.base)
        return red, green, blue

    def _pixels(self, points: Points, scale: int) -> list[tuple[float, float]]:
        placed = (np.asarray(points) @ self._matrix + self._middle) * scale
        return list(map(tuple, placed.tolist()))

    def fill(self, points: Points, colour: RGB | float = 0.0, outline: RGB | float = -0.4) -> None:
        """A closed shape; a colour given as a number is a tone of the base."""
        pixels = self._pixels(points, self._over)
        self._draw.polygon(pixels, fill=self._colour(colour))
        self._draw_mask.polygon(pixels, fill=255)
        self._stroke([*pixels, pixels[0], pixels[1]], self._colour(outline), 0.7)

    def line(self, points: Points, colour: RGB | float = -0.35, thickness: float = 0.7) -> None:
        """An open line, e.g. a seam or a strap."""
        self._stroke(self._pixels(points, self._over), self._colour(colour), thickness)

    def strap(self, points: Points, thickness: float, colour: RGB | float = 0.0) -> None:
        """An outlined band along a line."""
        self.line(points, -0.4, thickness + 1.2)
        self.line(points, colour, thickness)

    def stitches(self, points: Points, colour: RGB | float = -0.35, thickness: float = 0.6) -> None:
        """A dashed line."""
        for first in range(0, len(points) - 1, 2):
            self.line(points[first : first + 2], colour, thickness)

    def dot(self, x: float, y: float, radius: float, colour: RGB | float = 0.4) -> None:
        self.fill(_ellipse(x, y, radius, radius), colour, -0.5)

    def fold(self, points: Points, depth: float, thickness: float = 3.0) -> None:
        """A soft shade (depth < 0) or gloss (depth > 0) along a line."""
        self._draw_folds.line(
            self._pixels(points, 1),
            fill=int(np.clip(128 + depth * 128, 0, 255)),
            width=max(1, round(thickness * self._unit)),
        )

    def _colour(self, colour: RGB | float) -> RGB:
        return self.tone(colour) if isinstance(colour, int | float) else colour

    def _stroke(self, pixels: list[tuple[float, float]], colour: RGB, thickness: float) -> None:
        width = max(1, round(thickness * self._unit * self._over))
        joint = "curve" if width > 4 else None
        self._draw.line(pixels, fill=colour, width=width, joint=joint)
        self._draw_mask.line(pixels, fill=255, width=width, joint=joint)

    def finish(self) -> Image.Image:
        """Reduces, shades and puts the product with its shadow on the ground."""
        size = (self._width, self._height)
        product = np.asarray(self._picture.resize(size, Image.Resampling.LANCZOS), np.float32)
        mask_image = self._mask.resize(size, Image.Resampling.LANCZOS)
        mask = np.asarray(mask_image, np.float32)[..., None] / 255
        body = mask_image.filter(ImageFilter.GaussianBlur(2.2 * self._unit))
        rounding = np.asarray(body, np.float32)[..., None] / 255
        soft = self._folds.filter(ImageFilter.GaussianBlur(1.3 * self._unit))
        folds = np.asarray(soft, np.float32)[..., None] / 128 - 1
        across = np.linspace(1 + self._light * 0.6, 1 - self._light, self._width, dtype=np.float32)
        shade = across[None, :, None] * (0.84 + 0.16 * rounding) * (1 + folds)
        product = product * shade + np.maximum(folds, 0) * 70
        drop = round(2.0 * self._unit)
        cast = body.filter(ImageFilter.GaussianBlur(1.2 * self._unit))
        shadow = np.roll(np.asarray(cast, np.float32), (drop, drop // 2), (0, 1))[..., None] / 255
        ground = self._ground * (1 - 0.2 * shadow)
        picture = ground * (1 - mask) + product * mask
        return Image.fromarray(np.clip(picture + 0.5, 0, 255).astype(np.uint8))


def _bend(*points: tuple[float, float], closed: bool = False) -> list[tuple[float, float]]:
    """A smooth (Catmull-Rom) line through the points."""
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


_STEPS = np.linspace(0, 1, 8, endpoint=False)[None, :, None]
_CIRCLE = np.linspace(0, 2 * np.pi, 36, endpoint=False)


def _ellipse(x: float, y: float, across: float, down: float) -> list[tuple[float, float]]:
    xs, ys = x + across * np.cos(_CIRCLE), y + down * np.sin(_CIRCLE)
    return list(zip(xs.tolist(), ys.tolist(), strict=True))


def _flip(points: Points) -> list[tuple[float, float]]:
    return [(-x, y) for x, y in points]


def _both(right: Points) -> list[tuple[float, float]]:
    """A symmetric shape from its right half, given from top to bottom."""
    return [*right, *_flip(right)[::-1]]


def _mirrored(draw: Callable[[Points], None], points: Points) -> None:
    draw(points)
    draw(_flip(points))


def _t_shirt(pen: _Pen, whim: _Whim) -> None:
    reach = whim.between(-3, 0, 3)  # sleeve length
    hem = whim.between(42, 48, 53)
    wide = whim.between(23, 25.5, 28)
    neck = whim.between(9, 10.5, 12)
    deep = whim.between(-37, -35, -31)
    outline = [
        *_bend((neck, -47), (20, -44), (wide + 2, -39)),
        *_bend((wide + 10, -28), (43 + reach, -12 + reach)),
        *_bend((33 + reach, -4 + reach), (wide, -15)),
        *_bend((wide, -15), (wide - 1, 10), (wide + 0.5, hem)),
        (wide * 0.5, hem + 1.2),
    ]
    pen.fill(_both(outline))
    inside = [*_bend((-neck, -47), (0, -43.5), (neck, -47))]
    front = _bend((neck, -47), (neck * 0.75, deep - 3.5), (0, deep), (-neck * 0.75, deep - 3.5),
                  (-neck, -47))  # fmt: skip
    pen.fill([*inside, *front], -0.5)
    pen.strap(front, 2.2, -0.1)
    for side in (1, -1):
        pen.line([(side * x, y) for x, y in _bend((wide + 1, -39), (wide - 2, -28), (wide, -15))])
        cuff = [(41 + reach, -14 + reach), (31.5 + reach, -6.5 + reach)]
        pen.line([(side * (x - 0.5), y - 1) for x, y in cuff])
        pen.fold([(side * (wide - 2), -13), (side * (wide - 11), -3)], -0.2)
        pen.fold([(side * (wide - 3), 4), (side * (wide - 7), 34)], -0.15)
    pen.line(_bend((-wide + 0.5, hem - 3), (0, hem - 1.8), (wide - 0.5, hem - 3)), -0.25)
    pen.fold([(-8, -20), (-6, 34)], 0.05, 7)
    pen.fold([(8, 8), (5, 42)], -0.1)


def _shirt(pen: _Pen, whim: _Whim) -> None:
    short = whim.yes(0.2, canonical=False)
    hem = whim.between(44, 49, 54)
    wide = whim.between(22, 24, 26)
    cuff_y = -2 if short else whim.between(30, 36, 41)
    cuff_x = 41 if short else whim.between(38, 41, 44)
    sleeve = [
        *_bend((11, -48), (18, -45), (wide, -41), (wide + 7, -31), (cuff_x, cuff_y)),
        *_bend((cuff_x - 9, cuff_y + 2.5), (wide + 4, 0 if not short else -7), (wide - 1, -16)),
    ]
    body = [(11, -48), (wide - 2, -43), *_bend((wide - 1, -16), (wide - 2, 15), (wide, hem - 7)),
            *_bend((wide - 3, hem - 3), (wide * 0.6, hem), (0, hem + 1))]  # fmt: skip
    for side in (1, -1):
        pen.fill([(side * x, y) for x, y in [*sleeve, (10, -30)]], -0.06)
        if not short:
            lower = [(cuff_x - 1.2, cuff_y - 7), (cuff_x - 10, cuff_y - 5)]
            pen.line([(side * x, y) for x, y in lower])
            pen.dot(side * (cuff_x - 4), cuff_y - 2.5, 0.9, 0.6)
        pen.fold([(side * (wide + 3), -20), (side * (cuff_x - 6), cuff_y - 10)], -0.15)
    pen.fill(_both(body))
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
    pen.fill(_bend((-9, -48), (0, -51), (9, -48), (0, -37), closed=True), -0.5)
    flap = [(9.5, -51), (13, -45), (9.5, -33), (0, -38.5), (5, -45)]
    _mirrored(lambda points: pen.fill(points, 0.12, -0.5), flap)


def _dress(pen: _Pen, whim: _Whim) -> None:
    hem = whim.between(44, 56, 60)
    flare = whim.between(24, 33, 38)
    waist = whim.between(-14, -10, -6)
    slim = whim.between(11, 12.5, 14)
    sleeves = whim.yes(0.35, canonical=False)
    strap = whim.between(9, 11, 13)
    if sleeves:
        arm = [(strap + 2, -57), (23, -52), (31, -40), (23, -35), (16, -40)]
        _mirrored(lambda points: pen.fill(points, -0.08), arm)
    bodice = [
        (strap - 3, -58), (strap + 2, -58), *_bend((strap + 2, -58), (14, -46), (17.5, -39)),
        *_bend((17.5, -39), (15.5, -24), (slim, waist)),
        (0, waist + 1),
    ]  # fmt: skip
    neckline = _bend((-strap + 3, -58), (-strap + 4, -49), (0, -43), (strap - 4, -49),
                     (strap - 3, -58))  # fmt: skip
    pen.fill(_bend((-strap + 1, -52), (0, -49), (strap - 1, -52), (0, -40), closed=True), -0.5)
    pen.fill([*bodice, *_flip(bodice)[::-1], *neckline])
    skirt = [
        *_bend((slim, waist), (flare * 0.68, waist + (hem - waist) * 0.4), (flare, hem - 2)),
        *_bend((flare * 0.6, hem + 1), (flare * 0.3, hem - 0.5), (0, hem + 1.5)),
    ]
    pen.fill(_both(skirt))
    for share in (-0.72, -0.4, -0.12, 0.18, 0.45, 0.75):
        start = (share * slim, waist + 3)
        path = _bend(start, (share * flare * 0.6, (waist + hem) / 2), (share * flare, hem - 3))
        pen.fold(path, -0.2, 2.4)
        pen.line(path[len(path) // 3 :], -0.16, 0.6)
        pen.fold([(x + 3, y) for x, y in path], 0.1, 2.4)
    pen.line(_bend((-flare + 0.6, hem - 5), (0, hem - 1.6), (flare - 0.6, hem - 5)), -0.2)
    for side in (1, -1):
        pen.line([(side * x, y) for x, y in _bend((9.5, waist), (9, -26), (15, -33))], -0.25)
    belt = [(slim, waist - 2.2), (slim + 0.6, waist + 2.2)]
    pen.fill(_both(belt), -0.4)
    if whim.yes(0.5, canonical=True):
        pen.fill([(-1, waist), (-6, waist - 3), (-6, waist + 3)], -0.4, -0.6)
        pen.fill([(1, waist), (6, waist - 3), (6, waist + 3)], -0.4, -0.6)
        pen.dot(0, waist, 1.5, -0.3)


def _jeans(pen: _Pen, whim: _Whim) -> None:
    hem = whim.between(55, 59, 61)
    leg = whim.between(-3, 0, 4)  # from slim to wide
    waist = whim.between(16, 18, 20)
    thread: RGB | float = STITCH if sum(pen.base) < 500 else -0.5
    half = [
        (waist, -59), *_bend((waist, -53), (waist + 4.5, -38), (waist + 5, -20),
                             (waist + 3.5 + leg * 0.6, 15), (waist + 3 + leg, hem)),
        *_bend((waist + 3 + leg, hem), (waist - 4, hem + 1), (7.5 - leg * 0.3, hem)),
        *_bend((7.5 - leg * 0.3, hem), (5, 15), (1, -22)),
    ]  # fmt: skip
    pen.fill([(-waist, -59), (0, -57), (waist, -59), (waist, -55), (-waist, -55)], -0.6)
    shape = [(0, -57.4), *half]
    pen.fill([*shape, *_flip(shape)[::-1]])
    for side in (1, -1):
        fade = [(side * (waist - 6), -28), (side * (waist - 7), 14)]
        pen.fold(fade, 0.2, 7)
        pen.fold([(side * (waist - 6), 24), (side * (waist - 6), 46)], 0.1, 5)
        pen.fold([(side * 3, -22), (side * 12, -27)], -0.25, 2)
        pen.fold([(side * 5, -14), (side * 13, -17)], -0.2, 2)
        for y in (10.0, 15.0, 51.0):
            pen.fold([(side * 9, y), (side * 17, y - 2)], -0.18, 1.8)
        pocket = _bend((waist - 10, -51.5), (waist - 6, -44), (waist + 3.2, -41.5))
        pen.line([(side * x, y) for x, y in pocket], -0.5, 0.8)
        pen.stitches([(side * (x - 1.2), y + 1.2) for x, y in pocket], thread)
        pen.line([(side * (waist - 10), -58.5), (side * (waist - 10), -50.5)], -0.3, 1.8)
        bottom = [(side * (waist + 2.6 + leg - k * (waist - 4) / 10), hem - 2.8) for k in range(10)]
        pen.stitches(bottom, thread)
        pen.line([(side * x, y) for x, y in _bend((waist + 3, -38), (waist + 3.4, 0),
                                                  (waist + 2 + leg, hem))], -0.2)  # fmt: skip
    pen.line([(-waist - 0.6, -52), (0, -50.5), (waist + 0.6, -52)], -0.45, 0.8)
    pen.stitches([(k * waist / 8, -57.4 + abs(k) * -0.12) for k in range(-8, 9)], thread)
    pen.line([(0, -57), (0, -22)], -0.5, 0.9)
    pen.stitches(_bend((4.2, -50.6), (4.2, -36), (0.6, -30)), thread)
    pen.dot(0, -54.2, 1.5, GOLD)


def _shorts(pen: _Pen, whim: _Whim) -> None:
    hem = whim.between(14, 22, 32)
    wide = whim.between(28, 32, 36)
    waist = whim.between(18, 20.5, 23)
    crotch = -4.0
    half = [
        (0, -33.5), (waist, -35), (waist + 0.5, -28),
        *_bend((waist + 0.5, -28), (waist + 6, -8), (wide, hem - 2)),
        *_bend((wide, hem - 2), (wide * 0.6, hem + 1.6), (3.5, hem + 1.5)),
        (0.8, crotch),
    ]  # fmt: skip
    pen.fill([*half, *_flip(half)[::-1]])
    for side in (1, -1):
        pen.line([(side * x, y) for x, y in _bend((waist - 3, -27.5), (waist + 1, -18),
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
        pen.line(_bend((-1, -30), (-4, -22), (-3, -15)), cord, 1.1)
        pen.line(_bend((1, -30), (4, -23), (4.5, -13)), cord, 1.1)
    else:
        pen.dot(0, -30.8, 1.5, 0.5)


def _skirt(pen: _Pen, whim: _Whim) -> None:
    hem = whim.between(26, 38, 50)
    flare = whim.between(28, 37, 41)
    waist = whim.between(13, 15, 17)
    half = [
        (waist, -36), *_bend((waist, -36), (waist + 7, -18), (flare, hem - 3)),
        *_bend((flare, hem - 3), (flare * 0.75, hem + 0.5), (flare * 0.5, hem + 0.3),
               (flare * 0.25, hem + 2), (0, hem + 1.5)),
    ]  # fmt: skip
    pen.fill(_both(half))
    for k in range(-4, 5):
        share = k / 4.6
        path = _bend((share * waist, -35), (share * (waist + 6), -15), (share * flare, hem - 0.3))
        pen.line(path, -0.3, 0.7)
        pen.fold([(x + 1.4, y) for x, y in path], -0.24, 2)
        pen.fold([(x + 4.6, y) for x, y in path[3:]], 0.1, 2)
    pen.line(_bend((-flare + 0.7, hem - 6), (0, hem - 2), (flare - 0.7, hem - 6)), -0.2)
    pen.fill(_both([(0, -41), (waist, -42), (waist + 0.6, -35.5), (0, -34)]), -0.15)
    pen.dot(waist - 4, -38.6, 1.4, 0.5)


def _handbag(pen: _Pen, whim: _Whim) -> None:
    top = whim.between(25, 27, 30)
    bottom = whim.between(32, 36, 39)
    high = whim.between(-58, -50, -44)
    floor = whim.between(34, 38, 44)
    pen.strap(_bend((-14, -8), (-13, high + 14), (0, high + 2), (13, high + 14), (14, -8)),
              2.6, -0.35)  # fmt: skip
    body = [
        *_bend((top - 2, -13), (top, -11), (bottom, floor - 6), (bottom - 3, floor),
               (bottom - 8, floor + 1)),
        (0, floor + 1.6),
    ]  # fmt: skip
    pen.fill(_both(body))
    flap = _bend((top, -12), (top + 1.5, 2), (top - 6, 10), (0, 13))
    if whim.yes(0.7, canonical=True):
        pen.fill(_both([(top - 2, -13), *flap]), -0.1, -0.5)
        pen.stitches([(x * 0.94, y - 1.3) for x, y in _both(flap)], 0.35)
        pen.fill([(-4, 9), (4, 9), (4, 17), (-4, 17)], GOLD, -0.6)
        pen.dot(0, 13, 1.3, (150, 116, 48))
    else:
        pen.line([(-top, -8), (top, -8)], -0.5, 0.9)
        pen.line([(-top + 4, -10.4), (top - 4, -10.4)], GOLD, 0.9)
    pen.line(_bend((-bottom + 2, floor - 6), (0, floor - 4), (bottom - 2, floor - 6)), -0.35)
    front = _bend((-14, -6), (-14, high + 22), (0, high + 9), (14, high + 22), (14, -6))
    pen.strap(front, 3.4, -0.12)
    for side in (-14, 14):
        pen.fill([(side - 3, -8), (side + 3, -8), (side + 2.4, 1), (side - 2.4, 1)], -0.3, -0.6)
        pen.fill(_ellipse(side, -8, 3.2, 2.4), GOLD, -0.6)
    pen.fold([(-top + 4, 14), (-bottom + 9, floor - 8)], 0.25, 5)
    pen.fold([(top - 3, 14), (bottom - 6, floor - 8)], -0.16, 6)


def _backpack(pen: _Pen, whim: _Whim) -> None:
    wide = whim.between(25, 28, 31)
    top = whim.between(-50, -46, -42)
    floor = whim.between(44, 48, 52)
    pen.strap(_bend((-7, top + 3), (-6, top - 6), (0, top - 9), (6, top - 6), (7, top + 3)), 2.6,
              -0.3)  # fmt: skip
    for side in (1, -1):
        path = _bend((15, top + 5), (wide + 5, top + 18), (wide + 9, 0), (wide + 6, 24),
                     (wide - 2, floor - 8))  # fmt: skip
        pen.strap([(side * x, y) for x, y in path], 4, -0.3)
        pouch = _bend((wide - 4, 14), (wide + 5, 18), (wide + 5, floor - 6), (wide - 4, floor - 2),
                      closed=True)  # fmt: skip
        pen.fill([(side * x, y) for x, y in pouch], -0.25)
    shell = _bend((0, top), (wide * 0.62, top + 2.5), (wide - 1, top + 17), (wide, 8),
                  (wide, floor - 7), (wide - 5, floor), (0, floor + 1))  # fmt: skip
    pen.fill(_both(shell))
    zip_line = _bend((-wide + 4, 2), (-wide + 5, top + 20), (-wide * 0.5, top + 8), (0, top + 6),
                     (wide * 0.5, top + 8), (wide - 5, top + 20), (wide - 4, 2))  # fmt: skip
    pen.line(zip_line, -0.55, 1.5)
    pen.stitches(zip_line, SILVER, 0.5)
    pen.line([(wide - 4, 2), (wide - 4, 8)], SILVER, 1.2)
    pocket = [
        *_bend((0, 9), (wide - 10, 9), (wide - 5, 13), (wide - 5, floor - 9), (wide - 8, floor - 5),
               (0, floor - 4)),
    ]  # fmt: skip
    pen.fill(_both(pocket), -0.12, -0.5)
    pen.line([(-wide + 8, 16), (wide - 8, 16)], -0.6, 1.5)
    pen.stitches([(k * (wide - 8) / 12, 16.0) for k in range(-12, 13)], SILVER, 0.5)
    pen.line([(wide - 9, 16), (wide - 9, 21)], SILVER, 1.3)
    if whim.yes(0.6, canonical=True):
        pen.fill([(-6, -14), (6, -14), (6, -6), (-6, -6)], GOLD if pen.base[0] < 190 else INK, -0.5)
    pen.fold([(-wide + 8, top + 22), (-wide + 7, 4)], 0.2, 5)
    pen.fold([(-wide + 11, 24), (-wide + 11, floor - 12)], 0.15, 4)
    pen.fold([(wide - 4, top + 22), (wide - 4, floor - 6)], -0.16, 5)


def _shoe(pen: _Pen, whim: _Whim, dx: float, dy: float, high: float, sole: float) -> None:
    def at(points: Points) -> list[tuple[float, float]]:
        return [(x + dx, y + dy) for x, y in points]

    upper = [
        *_bend((-36, 16), (-38, 4), (-36, -10), (-36.5, -17 - high)),
        *_bend((-34, -18.5 - high), (-27, -13 - high), (-17, -13 - high), (-11, -17 - high)),
        *_bend((-7, -19 - high), (2, -10), (14, -1), (28, 2), (37, 8), (39, 16)),
    ]
    pen.fill(at(upper))
    lining = _bend((-35, -17.5 - high), (-23, -19 - high), (-9, -18.5 - high), (-17, -12.6 - high),
                   (-27, -12.6 - high), closed=True)  # fmt: skip
    pen.fill(at(lining), -0.55)
    pen.fill(at(_bend((-12, -16 - high), (-8, -23 - high), (-3, -21 - high), (8, -7), (2, -8),
                      closed=True)), -0.2)  # fmt: skip
    pen.fill(at(_bend((22, 1), (31, 3), (37, 8), (39, 16), (20, 16), (19, 8), closed=True)), 0.14,
             -0.35)  # fmt: skip
    pen.fill(at([*_bend((-36.6, -12), (-31, -8), (-28, 4), (-29, 16)), (-36, 16), (-37.4, 4)]), -0.2)
    pen.line(at(_bend((-14, -13 - high), (-6, 2), (8, 16))), -0.4, 0.8)
    pen.line(at(_bend((-14, -13 - high), (-20, 2), (-17, 16))), -0.3, 0.7)
    lace: RGB = SOLE if sum(pen.base) < 600 else INK
    for k in range(5):
        x, y = -8 + k * 4.6, -15.5 - high * (1 - k / 5) + k * 3.4
        pen.line(at([(x - 2.6, y + 5.5), (x + 2.6, y - 0.6)]), lace, 1.5)
    pen.fold(at([(-22, 0), (-10, 10)]), 0.1, 4)
    pen.fold(at([(16, 4), (12, 13)]), -0.2, 2.5)
    bottom = _bend((-38, 14), (-39, 19), (-36, 15 + sole), (0, 16 + sole), (33, 15.5 + sole),
                   (41, 15 + sole * 0.5), (39.5, 13), (20, 14.5), (-10, 14),
                   closed=True)  # fmt: skip
    white = SOLE if sum(pen.base) > 130 or whim.yes(0.8, canonical=True) else INK
    pen.fill(at(bottom), white, (150, 150, 152))
    pen.line(at(_bend((-37, 12.4 + sole), (0, 13 + sole), (37, 12 + sole))), (172, 172, 174), 0.7)


def _shoes(pen: _Pen, whim: _Whim) -> None:
    high = whim.between(-1, 1, 9)
    sole = whim.between(5.5, 7.5, 9.5)
    if whim.yes(0.6, canonical=True):
        _shoe(pen, whim, 4, -18, high, sole)
        _shoe(pen, whim, -4, 14, high, sole)
    else:
        _shoe(pen, whim, 0, 0, high, sole)


def _cap(pen: _Pen, whim: _Whim) -> None:
    tall = whim.between(-32, -28, -25)
    brim = whim.between(42, 45, 48)
    drop = whim.between(14, 17, 21)
    dome = [
        *_bend((-37, 13), (-37, -3), (-29, tall + 8), (-8, tall), (10, tall + 7), (20, -6),
               (22, 9)),
        *_bend((22, 9), (4, 13), (-18, 15), (-37, 13)),
    ]  # fmt: skip
    peak = _bend((-2, 11), (22, 4), (36, 7), (brim, drop - 2), (brim - 3, drop + 2), (24, 15),
                 (2, 15), closed=True)  # fmt: skip
    pen.fill(dome)
    pen.fold(_bend((-26, 0), (-20, -14), (-8, -21)), 0.22, 6)
    pen.fold(_bend((16, 4), (15, -6), (8, -18)), -0.14, 4)
    for path in (
        _bend((-8, tall), (0, -10), (2, 12)),
        _bend((-8, tall), (-22, -12), (-24, 14)),
        _bend((-8, tall), (12, tall + 12), (19, 8)),
    ):
        pen.line(path, -0.4, 0.8)
        pen.stitches([(x + 1.3, y) for x, y in path], -0.25, 0.5)
    for x, y in ((-10, -14), (9, -13), (-25, -10)):
        pen.dot(x, y, 1.0, -0.6)
    pen.fill(peak, -0.18, -0.55)
    pen.fold(_bend((12, 10), (28, 9), (39, 13)), 0.16, 2.5)
    for inset in (0.0, 2.0):
        pen.line(_bend((6, 13.4 - inset), (24, 12.6 - inset), (brim - 5, drop - 1 - inset)), -0.4,
                 0.5)  # fmt: skip
    pen.line(_bend((-37, 10), (-18, 12), (2, 10.4)), -0.3)
    pen.fill(_ellipse(-8, tall - 0.5, 3, 1.6), -0.1, -0.5)


def _watch(pen: _Pen, whim: _Whim) -> None:
    band = whim.between(10, 12.5, 14)
    radius = whim.between(18, 20.5, 23)
    long = whim.between(52, 57, 60)
    for side in (1, -1):
        strap = [
            (-band - 1, 0), (-band, side * 20), *_bend((-band + 2, side * (long - 4)),
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
    pen.fill(_ellipse(0, 0, radius + 2, radius + 2), SILVER, (96, 98, 104))
    pen.fill(_ellipse(0, 0, radius - 1, radius - 1), 0.0, (120, 122, 128))
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
    pen.fill(_ellipse(0, 0, 1.6, 1.6), mark, mark)
    pen.fold([(-radius * 0.6, radius * 0.1), (radius * 0.1, -radius * 0.6)], 0.12, 4)


def _sunglasses(pen: _Pen, whim: _Whim) -> None:
    wide = whim.between(16, 17.5, 18.5)
    deep = whim.between(11.5, 14, 16)
    square = whim.between(0.66, 0.8, 0.9)
    thick = whim.between(4, 4.6, 5.4)
    for side in (1, -1):  # the arms, folded out behind the front
        arm = _bend((39, -6), (41, -24), (37, -31), (33, -30))
        pen.strap([(side * x, y) for x, y in arm], 3.0, -0.12)
    pen.strap(_bend((-6, -4), (0, -7.5), (6, -4)), thick + 0.6)
    for side in (1, -1):
        cx = side * 21.5

        def rim(share: float, cx: float = cx, side: int = side) -> list[tuple[float, float]]:
            w, d = wide * share, deep * share
            k = square
            return _bend(
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


def _tie(pen: _Pen, whim: _Whim) -> None:
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
                pen.fill(_ellipse(x, float(y), 0.9, 0.9), 0.45, 0.45)
    pen.fold([(-width_at * 0.35, -30), (-wide * 0.5, end - 18)], 0.15, 3)
    pen.fold([(width_at * 0.6, -30), (wide * 0.7, end - 16)], -0.16, 3)
    pen.fold([(-4, -43.5), (4, -43.5)], -0.4, 3)
    knot = [(-7, -60), (7, -60), (4.2, -46.5), (0, -45.4), (-4.2, -46.5)]
    pen.fill(knot, 0.08, -0.5)
    pen.line(_bend((-6.2, -56), (-1, -52), (2, -46)), -0.25, 0.7)


def _socks(pen: _Pen, whim: _Whim) -> None:
    top = whim.between(-52, -46, -26)
    thick = whim.between(-1, 0, 2)
    patch = whim.yes(0.6, canonical=True)
    for dx, dy in ((10.0, -7.0), (-10.0, 5.0)):

        def at(points: Points, dx: float = dx, dy: float = dy) -> list[tuple[float, float]]:
            return [(x + dx, y + dy) for x, y in points]

        left, right = -21 - thick, -1 + thick
        pen.fill(at([
            (left, top), (right, top), *_bend((right, top + 10), (right - 1, 4), (right + 4, 14),
            (22, 26), (29, 32), (30, 40), (24, 45), (10, 43), (-12, 37), (-22, 31), (-24, 20),
            (left + 0.5, 4), (left, top + 10)),
        ]))  # fmt: skip
        pen.fold(at([(left + 5, top + 14), (left + 5, 12)]), 0.18, 4)
        pen.fold(at([(right - 2, top + 14), (right - 3, 6)]), -0.16, 3)
        pen.fold(at(_bend((-4, 10), (-10, 16), (-8, 24))), -0.25, 2)
        pen.fold(at([(4, 24), (20, 36)]), 0.12, 5)
        if patch:
            heel = _bend((-23.4, 15), (-14, 20), (-11, 30), (-12, 37))
            pen.fill(at([*heel, *_bend((-12, 37), (-22, 31), (-24, 20))]), -0.3)
            toe = [*_bend((19, 23.6), (15, 33), (16, 44.2)), *_bend((24, 45), (30, 40), (29, 32))]
            pen.fill(at(toe), -0.3)
        pen.fill(at([(left - 0.6, top - 1), (right + 0.6, top - 1), (right + 0.4, top + 10),
                     (left - 0.4, top + 10)]), -0.12)  # fmt: skip
        for k in range(1, 9):
            x = left + (right - left) * k / 9
            pen.line(at([(x, top), (x, top + 9.4)]), -0.3, 0.6)


GARMENTS: dict[str, Callable[[_Pen, _Whim], None]] = {
    "T-shirt": _t_shirt,
    "Shirt": _shirt,
    "Dress": _dress,
    "Jeans": _jeans,
    "Shorts": _shorts,
    "Skirt": _skirt,
    "Handbag": _handbag,
    "Backpack": _backpack,
    "Shoes": _shoes,
    "Cap": _cap,
    "Watch": _watch,
    "Sunglasses": _sunglasses,
    "Tie": _tie,
    "Socks": _socks,
}


def nearest_colour(rgb: Sequence[float]) -> str:
    """The name of the colour nearest to these red, green and blue values."""
    return min(COLOURS, key=lambda name: float(np.sum((np.subtract(COLOURS[name], rgb)) ** 2)))


def _shade(colour: str, rng: np.random.Generator | None) -> RGB:
    """The colour itself, or one of its shades that still bears its name with room to spare."""
    base = COLOURS[colour]
    if rng is None:
        return base
    for _ in range(8):
        shade = np.array(base) * rng.uniform(0.82, 1.16)
        shade = np.clip(shade + rng.uniform(-8, 8, 3), 8, 250)
        if colour in ("Black", "White", "Grey"):
            shade = shade.mean() + (shade - shade.mean()) * 0.2
        # Shading darkens the shade further on the way to the picture, so it is tested darker too.
        if nearest_colour(shade.tolist()) == colour == nearest_colour((shade * 0.86).tolist()):
            return round(shade[0]), round(shade[1]), round(shade[2])
    return base


def draw_sample(
    garment: str,
    colour: str,
    rng: np.random.Generator | None = None,
    width: int = 240,
    height: int = 320,
) -> Image.Image:
    """Draws the garment in the colour: always the same without `rng`, varied with it.

    Raises:
        ValueError: the garment or the colour is not one of those that can be drawn.
    """
    if garment not in GARMENTS:
        raise ValueError(f"unknown garment {garment!r}; choose one of: {', '.join(GARMENTS)}")
    if colour not in COLOURS:
        raise ValueError(f"unknown colour {colour!r}; choose one of: {', '.join(COLOURS)}")
    whim = _Whim(rng)
    pen = _Pen(_shade(colour, rng), whim, width, height)
    GARMENTS[garment](pen, whim)
    return pen.finish()


def sample_name(garment: str, colour: str) -> str:
    """The product name, which is the caption that the model learns."""
    return f"Sketch {colour} {garment}"


def _row(sample_id: int, garment: str, colour: str) -> dict[str, str]:
    master, sub, article = _KAGGLE[garment]
    values = (str(sample_id), "Unisex", master, sub, article, colour, "Summer", "2026", "Casual",
              sample_name(garment, colour))  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def _pairs() -> list[tuple[str, str]]:
    return [(garment, colour) for garment in GARMENTS for colour in COLOURS]


def write_catalogue(folder: Path) -> int:
    """Writes one varied picture of every garment in every colour, and the list of them."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    rows = []
    for sample_id, (garment, colour) in enumerate(_pairs(), start=1):
        picture = draw_sample(garment, colour, np.random.default_rng(sample_id))
        picture.save(images / f"{sample_id}.jpg", quality=88)
        rows.append(_row(sample_id, garment, colour))
    with (folder / "styles.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return len(rows)


def training_samples(count: int, seed: int, width: int, height: int) -> Iterator[tuple[Image.Image, dict[str, str]]]:
    """Varied pictures with their rows; every garment in every colour equally often, shuffled."""
    rng = np.random.default_rng(seed)
    pairs = _pairs()
    sample_id = 0
    while sample_id < count:
        for which in rng.permutation(len(pairs))[: count - sample_id]:
            sample_id += 1
            garment, colour = pairs[which]
            picture = draw_sample(garment, colour, rng, width, height)
            yield picture, _row(sample_id, garment, colour)


def contact_sheet(varied: bool = False, width: int = 120, height: int = 160) -> Image.Image:
    """All garments (rows) in all colours (columns) on one picture."""
    sheet = Image.new("RGB", (width * len(COLOURS), height * len(GARMENTS)), "white")
    for index, (garment, colour) in enumerate(_pairs()):
        row, column = divmod(index, len(COLOURS))
        rng = np.random.default_rng(index + 1) if varied else None
        sample = draw_sample(garment, colour, rng, width, height)
        sheet.paste(sample, (column * width, row * height))
    return sheet


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m demo.draw_samples", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="catalogue: images/ and styles.csv")
    parser.add_argument("--contact-sheet", type=Path, metavar="FILE.png", help="all on one picture")
    parser.add_argument("--varied", action="store_true", help="vary the drawings on the sheet")
    options = parser.parse_args(arguments)
    if options.folder is None and options.contact_sheet is None:
        parser.error("give a folder for the catalogue, --contact-sheet, or both")
    if options.folder is not None:
        print(f"{write_catalogue(options.folder)} pictures in {options.folder}")
    if options.contact_sheet is not None:
        contact_sheet(options.varied).save(options.contact_sheet)


if __name__ == "__main__":
    main()
