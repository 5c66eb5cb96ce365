# SPDX-License-Identifier: Apache-2.0
"""Pictures without a product, from which the query head learns that class.

They are textures, shapes, stripes, text-like lines, flat colours, and photos whose tiles are shuffled: these keep the
colours and textures of real photos but show no object.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Pixels = npt.NDArray[np.uint8]


def no_product_pictures(count: int, seed: int, height: int, width: int, photos: Pixels | None = None) -> Pixels:
    """Draw pictures of all kinds in turn; the same arguments give the same pictures.

    Args:
        count: number of pictures.
        seed: of the random numbers.
        height: pixels.
        width: pixels.
        photos: uint8 [n, height, width, 3], the photos whose tiles are shuffled; None: that kind is left out.

    Returns:
        uint8 [count, height, width, 3].
    """
    rng = np.random.default_rng(seed)
    kinds = [_noise, _noise, _shapes, _stripes, _flat, _lines]
    result = np.empty((count, height, width, 3), dtype=np.uint8)
    for i in range(count):
        which = i % (len(kinds) + 4)
        if which < len(kinds) or photos is None or not len(photos):
            result[i] = kinds[which % len(kinds)](rng, height, width)
        else:
            result[i] = _shuffled(rng, photos[rng.integers(len(photos))])
    return result


def _bytes(values: npt.NDArray[np.float64]) -> Pixels:
    pixels: Pixels = np.clip(values, 0, 255).astype(np.uint8)
    return pixels


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    values = rng.integers(0, 256, 3)
    if rng.random() < 0.5:  # most surfaces are nearly grey
        values = (values.mean() + (values - values.mean()) * 0.25).astype(int)
    return int(values[0]), int(values[1]), int(values[2])


def _noise(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """Noise whose amplitude falls with frequency, as in photos of nature, with more or less correlated channels."""
    power = rng.uniform(0.6, 2.2)
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    amplitude = 1 / np.maximum(np.hypot(rows * rng.uniform(0.3, 3), columns), 1 / max(height, width)) ** power
    layers = []
    for _ in range(3):
        phase = rng.normal(size=amplitude.shape) + 1j * rng.normal(size=amplitude.shape)
        layer = np.fft.irfft2(amplitude * phase, s=(height, width))
        layers.append((layer - layer.mean()) / (layer.std() + 1e-9))
    correlation = rng.uniform(0, 1)
    mixed = np.stack([correlation * layers[0] + (1 - correlation) * layer for layer in layers], axis=-1)
    return _bytes(np.array(_colour(rng)) + mixed * rng.uniform(15, 70))


def _shapes(rng: np.random.Generator, height: int, width: int) -> Pixels:
    picture = Image.new("RGB", (width, height), _colour(rng))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(3, 25))):
        points = [
            (float(rng.uniform(-0.2, 1.2) * width), float(rng.uniform(-0.2, 1.2) * height))
            for _ in range(rng.integers(3, 7))
        ]
        if rng.random() < 0.5:
            draw.polygon(points, fill=_colour(rng))
        else:
            x, y, radius = *points[0], float(rng.uniform(3, width / 3))
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_colour(rng))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 3)))))


def _stripes(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """Stripes or checks of two colours at any angle."""
    angle, period = rng.uniform(0, np.pi), rng.uniform(4, 60)
    y, x = np.mgrid[0:height, 0:width]
    along = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period) > rng.uniform(-0.7, 0.7)
    if rng.random() < 0.4:
        along ^= np.sin(2 * np.pi * (y * np.cos(angle) - x * np.sin(angle)) / period) > 0
    both = np.where(along[..., None], np.array(_colour(rng)), np.array(_colour(rng)))
    return _bytes(both + rng.normal(0, rng.uniform(0, 12), both.shape))


def _flat(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """One colour, or a gradient between two, with a little noise."""
    share = np.linspace(0, 1, height)[:, None, None] if rng.random() < 0.7 else 0.0
    both = np.array(_colour(rng)) * (1 - share) + np.array(_colour(rng)) * share
    return _bytes(both + rng.normal(0, rng.uniform(0, 6), (height, width, 3)))


def _lines(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """A page with lines of short bars, which look like text from afar."""
    paper, ink = (_colour(rng), _colour(rng)) if rng.random() < 0.3 else ((250, 250, 248), (25, 25, 30))
    picture = Image.new("RGB", (width, height), paper)
    draw = ImageDraw.Draw(picture)
    step = int(rng.integers(5, 14))
    for top in range(step, height - step, step):
        left = int(rng.integers(4, 12))
        while left < width - 12 and rng.random() < 0.93:
            length = int(rng.integers(3, 18))
            draw.rectangle((left, top, min(width - 4, left + length), top + max(1, step // 3)), fill=ink)
            left += length + 3
    return np.asarray(picture)


def _shuffled(rng: np.random.Generator, photo: Pixels) -> Pixels:
    """The photo's tiles in another order."""
    height, width = photo.shape[:2]
    across = int(rng.choice([3, 4, 6]))
    rows, columns = height // across, width // across
    tiles = [
        photo[r * rows : (r + 1) * rows, c * columns : (c + 1) * columns] for r in range(across) for c in range(across)
    ]
    shuffled = photo.copy()  # keeps the strip at the edge that the tiles do not cover
    for place, which in enumerate(rng.permutation(len(tiles))):
        row, column = divmod(place, across)
        tile = np.rot90(tiles[which], 2 * int(rng.integers(2)))
        shuffled[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns] = tile
    return shuffled
