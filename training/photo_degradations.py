# SPDX-License-Identifier: Apache-2.0
"""Typical faults of users' photos, one at a time, to measure how robust a captioner is.

Neither code nor textures are shared with `training/augmentation.py`: otherwise the measurement would only show that
training has seen its own noise.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Degradation = Callable[[Image.Image, np.random.Generator], Image.Image]
"""Maps an RGB picture to an RGB picture of the same size (framed ones are larger); random only by the generator."""

WHITE = (255, 255, 255)
MID_GREY = 128.0
NEARLY_WHITE = 238  # 0 to 255, of the darkest channel; a darker pixel is not studio background
JPEG_QUALITY = 20
HALF_WHITE = 128  # 0 to 255; pixels beside the background that are brighter contain a share of its white
BLUR_RADIUS_SHARE = 1 / 60  # of the shorter side: 1 px at 60
MAX_ROTATION_DEGREES = 15.0
CROP_SHARE = 0.8  # of each side


def jpeg_quality_20(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Compress as JPEG of quality 20, colours at half resolution: blocks and ringing."""
    data = io.BytesIO()
    picture.save(data, format="JPEG", quality=JPEG_QUALITY)
    return Image.open(data).convert("RGB")


def blur(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Blur with a Gaussian whose standard deviation is 1/60 of the shorter side (1 px at 60 px): out of focus."""
    return picture.filter(ImageFilter.GaussianBlur(min(picture.size) * BLUR_RADIUS_SHARE))


def rotation_15(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Turn about the middle by an angle from -15 to 15 degrees, uniformly drawn; the size stays, corners are cut.

    Uncovered corners are white like the studio background: grey ones would also measure another background.
    """
    angle = generator.uniform(-MAX_ROTATION_DEGREES, MAX_ROTATION_DEGREES)
    return picture.rotate(angle, resample=Image.Resampling.BICUBIC, fillcolor=WHITE)


def crop(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Cut out a random part with 80 % of each side and enlarge it to the old size: garments lose an edge."""
    width, height = picture.size
    left = generator.uniform(0, width * (1 - CROP_SHARE))
    top = generator.uniform(0, height * (1 - CROP_SHARE))
    box = (left, top, left + width * CROP_SHARE, top + height * CROP_SHARE)
    return picture.resize(picture.size, resample=Image.Resampling.BICUBIC, box=box)


def grey_ground(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Paint the studio background (`ground_mask`) mid grey, 128 of 255; a picture without it stays as it is."""
    return _on_ground(picture, np.full((picture.height, picture.width, 3), MID_GREY))


def textured_ground(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Turn the studio background (`ground_mask`) into a table or a rug: tinted, grained, lit unevenly."""
    return _on_ground(picture, _grained_surface(picture.width, picture.height, generator))


def screenshot(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Put the picture into a phone's screenshot: a page of one light or dark shade, at 50 to 75 % of its width."""
    shade = int(generator.choice([255, 245, 18]))
    width = round(picture.width / generator.uniform(0.5, 0.75))
    page = Image.new("RGB", (width, 2 * width), (shade,) * 3)
    left = (width - picture.width) // 2
    page.paste(picture, (left, round(generator.uniform(0.1, 0.9) * (page.height - picture.height))))
    return page


def plot_axes(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Put the picture into a plotting program's figure: white, with a frame, ticks and numbers along two sides."""
    margin = max(8, round(0.22 * picture.width))
    figure = Image.new("RGB", (picture.width + 2 * margin, picture.height + 2 * margin), WHITE)
    figure.paste(picture, (margin, margin))
    draw = ImageDraw.Draw(figure)
    right, bottom = margin + picture.width, margin + picture.height
    draw.rectangle((margin - 1, margin - 1, right, bottom), outline=(0, 0, 0))
    step = max(6, round(generator.uniform(0.15, 0.3) * picture.width))
    for offset in range(0, picture.height, step):
        draw.line((margin - 4, margin + offset, margin - 1, margin + offset), fill=(0, 0, 0))
        draw.text((0, margin + offset - 5), str(offset), fill=(0, 0, 0))
    for offset in range(0, picture.width, step):
        draw.line((margin + offset, bottom, margin + offset, bottom + 3), fill=(0, 0, 0))
        draw.text((margin + offset - 3, bottom + 3), str(offset), fill=(0, 0, 0))
    return figure


DEGRADATIONS: dict[str, Degradation] = {
    "jpeg_quality_20": jpeg_quality_20,
    "blur": blur,
    "rotation_15": rotation_15,
    "crop": crop,
    "grey_ground": grey_ground,
    "textured_ground": textured_ground,
    "screenshot": screenshot,
    "plot_axes": plot_axes,
}


def ground_mask(picture: Image.Image) -> npt.NDArray[np.bool_]:
    """Find the studio background: nearly white pixels that are connected to the border, so that a white shirt stays.

    A white garment without an outline against the background is taken for background: no threshold separates them.

    Returns:
        bool [height, width]; pixels are connected to those above, below, left and right of them.
    """
    white: npt.NDArray[np.bool_] = np.asarray(picture).min(axis=2) >= NEARLY_WHITE
    mask = np.zeros_like(white)
    mask[[0, -1], :], mask[:, [0, -1]] = white[[0, -1], :], white[:, [0, -1]]
    while True:
        grown = _fill_runs(_fill_runs(mask, white).T, white.T).T
        if np.array_equal(grown, mask):
            return mask
        mask = grown


def _fill_runs(mask: npt.NDArray[np.bool_], white: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Mark every horizontal run of white that contains a marked pixel, which needs fewer rounds than single pixels."""
    starts = np.ones_like(white)
    starts[:, 1:] = white[:, 1:] != white[:, :-1]
    run = np.cumsum(starts).reshape(white.shape) - 1
    is_marked = np.bincount(run.ravel(), weights=mask.ravel()) > 0
    filled: npt.NDArray[np.bool_] = is_marked[run] & white
    return filled


def _on_ground(picture: Image.Image, ground: npt.NDArray[np.float64]) -> Image.Image:
    """Replace the studio background by another one, float [height, width, 3], 0 to 255.

    A pixel beside the background mixes garment and white. Its share of white, estimated from its brightness, is also
    replaced: otherwise the garment would keep a white rim, which users' photos do not have.
    """
    mask = ground_mask(picture)
    beside = np.asarray(Image.fromarray(mask).convert("L").filter(ImageFilter.MaxFilter(3))) > 0
    pixels = np.asarray(picture).astype(np.float64)
    share = np.clip((pixels.min(axis=2) - HALF_WHITE) / (NEARLY_WHITE - HALF_WHITE), 0, 1) * beside
    share[mask] = 1
    result = pixels + share[:, :, None] * (ground - 255)
    return Image.fromarray(result.round().clip(0, 255).astype(np.uint8))


def _grained_surface(width: int, height: int, generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """Wavy grain in two shades of one tint, under light that falls off to the sides: float [height, width, 3]."""
    across, down = np.meshgrid(np.arange(width) / width, np.arange(height) / width)  # both in picture widths
    angle = generator.uniform(0, math.pi)
    along = across * math.cos(angle) + down * math.sin(angle)
    side = down * math.cos(angle) - across * math.sin(angle)
    # A few sine waves of different lengths and phases bend the stripes.
    bend = sum(
        generator.uniform(0.01, 0.05) * np.sin(2 * math.pi * (generator.uniform(0.5, 3) * along + generator.random()))
        for _ in range(3)
    )
    grain = np.sin(2 * math.pi * generator.uniform(5, 14) * (side + bend))
    weave = np.sin(2 * math.pi * generator.uniform(5, 14) * along) * generator.choice([0.0, 1.0])
    light = 1 - generator.uniform(0.1, 0.5) * np.hypot(across - generator.random(), down - generator.random())
    tint = generator.uniform(70, 220) + generator.uniform(-35, 35, size=3)
    shade = (1 + generator.uniform(0.05, 0.2) * (grain + weave) / 2) * light
    surface: npt.NDArray[np.float64] = np.clip(tint * shade[:, :, None], 0, 255)
    return surface
