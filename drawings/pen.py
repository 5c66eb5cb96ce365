# SPDX-License-Identifier: Apache-2.0
"""The pen that draws a garment, and the choice of its proportions.

The units of a garment are x from -50 to 50 and y from -66 to 66 downwards, with the origin in the middle. A `Pen`
places and colours the garment; a `Whim` varies its proportions.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from drawings.outlines import Points, ellipse

RGB = tuple[int, int, int]

SILVER: RGB = (196, 200, 206)
GOLD: RGB = (206, 168, 84)
STITCH: RGB = (222, 160, 84)
SOLE: RGB = (238, 238, 234)
INK: RGB = (40, 42, 48)


class Whim:
    """Chooses proportions.

    Args:
        rng: random generator of varied proportions; None: always the canonical ones.
    """

    def __init__(self, rng: np.random.Generator | None) -> None:
        self._rng = rng

    def between(self, low: float, canonical: float, high: float) -> float:
        """Returns a random number from low to high, or the canonical one."""
        return canonical if self._rng is None else float(self._rng.uniform(low, high))

    def yes(self, probability: float, canonical: bool) -> bool:
        """Returns whether to draw a detail: True with this probability, or the canonical choice."""
        return canonical if self._rng is None else bool(self._rng.random() < probability)


class Pen:
    """Draws shapes in garment units on an enlarged picture, its mask and a map of folds.

    Args:
        base: colour of the garment.
        whim: varies place, size and light.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
    """

    def __init__(self, base: RGB, whim: Whim, width: int, height: int) -> None:
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
        """Returns the base colour darker (step < 0) or lighter (step > 0); very dark colours only get lighter."""
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
        """Fills a closed shape; a colour that is a number is a `tone`."""
        pixels = self._pixels(points, self._over)
        self._draw.polygon(pixels, fill=self._colour(colour))
        self._draw_mask.polygon(pixels, fill=255)
        self._stroke([*pixels, pixels[0], pixels[1]], self._colour(outline), 0.7)

    def line(self, points: Points, colour: RGB | float = -0.35, thickness: float = 0.7) -> None:
        """Draws an open line, for example a seam."""
        self._stroke(self._pixels(points, self._over), self._colour(colour), thickness)

    def strap(self, points: Points, thickness: float, colour: RGB | float = 0.0) -> None:
        """Draws a band with outlines along a line."""
        self.line(points, -0.4, thickness + 1.2)
        self.line(points, colour, thickness)

    def stitches(self, points: Points, colour: RGB | float = -0.35, thickness: float = 0.6) -> None:
        """Draws a dashed line."""
        for first in range(0, len(points) - 1, 2):
            self.line(points[first : first + 2], colour, thickness)

    def dot(self, x: float, y: float, radius: float, colour: RGB | float = 0.4) -> None:
        """Draws a small filled circle, for example a button."""
        self.fill(ellipse(x, y, radius, radius), colour, -0.5)

    def fold(self, points: Points, depth: float, thickness: float = 3.0) -> None:
        """Draws a soft shade (depth < 0) or gloss (depth > 0) along a line."""
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
        """Returns the picture, reduced and shaded, with a shadow on a light ground."""
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
