# SPDX-License-Identifier: Apache-2.0
"""What users' photos suffer and studio shots do not, one fault at a time, to measure how robust a captioner is.

Measuring instruments: on purpose neither the code nor the textures of `training/augmentation.py`, else the test would
only show that training saw its own noise. Knows no model and no data set.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Degradation = Callable[[Image.Image, np.random.Generator], Image.Image]
"""RGB picture of any size -> RGB picture, of the same size unless it is framed; the same generator state gives the same
picture."""

WHITE = (255, 255, 255)
MID_GREY = 128.0
NEARLY_WHITE = 238  # 0 to 255, of the darkest channel; below it is no studio ground
JPEG_QUALITY = 20
HALF_WHITE = 128  # the same for pixels beside the ground: from here on they hold a share of its white
BLUR_RADIUS_SHARE = 1 / 60  # of the shorter side: 1 px at 60
MAX_ROTATION_DEGREES = 15.0
CROP_SHARE = 0.8  # of each side


def jpeg_quality_20(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Compressed as JPEG of quality 20, colours at half resolution: blocks and ringing."""
    data = io.BytesIO()
    picture.save(data, format="JPEG", quality=JPEG_QUALITY)
    return Image.open(data).convert("RGB")


def blur(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Gaussian blur with a standard deviation of 1/60 of the shorter side (1 px at 60 px): out of focus."""
    return picture.filter(ImageFilter.GaussianBlur(min(picture.size) * BLUR_RADIUS_SHARE))


def rotation_15(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Turned about the middle by an angle drawn evenly from -15 to 15 degrees; the size stays, corners are cut.

    What becomes uncovered is white, as the studio ground is: grey corners would measure another ground as well.
    """
    angle = generator.uniform(-MAX_ROTATION_DEGREES, MAX_ROTATION_DEGREES)
    return picture.rotate(angle, resample=Image.Resampling.BICUBIC, fillcolor=WHITE)


def crop(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    """A part of 80 % of each side, anywhere, enlarged to the old size: garments lose an edge."""
    width, height = picture.size
    left = generator.uniform(0, width * (1 - CROP_SHARE))
    top = generator.uniform(0, height * (1 - CROP_SHARE))
    box = (left, top, left + width * CROP_SHARE, top + height * CROP_SHARE)
    return picture.resize(picture.size, resample=Image.Resampling.BICUBIC, box=box)


def grey_ground(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    """The studio ground (`ground_mask`) in even mid grey, 128 of 255; a picture without such ground stays as it is."""
    return _on_ground(picture, np.full((picture.height, picture.width, 3), MID_GREY))


def textured_ground(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    """The studio ground (`ground_mask`) as a wooden table or a woven rug: tinted, grained, lit from one side."""
    return _on_ground(picture, _grained_surface(picture.width, picture.height, generator))


def screenshot(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    """As a screenshot of a phone shows it: on a page of one light or dark shade, at 50 to 75 % of its width."""
    shade = int(generator.choice([255, 245, 18]))
    width = round(picture.width / generator.uniform(0.5, 0.75))
    page = Image.new("RGB", (width, 2 * width), (shade,) * 3)
    left = (width - picture.width) // 2
    page.paste(picture, (left, round(generator.uniform(0.1, 0.9) * (page.height - picture.height))))
    return page


def plot_axes(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    """As a plotting program shows it: in a white figure, with a frame, marks and numbers beside two of its sides."""
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
    """Where an RGB picture shows studio ground: nearly white and joined to the border, so that a white shirt stays.

    A white garment that fades into the ground without an outline is taken for ground: no threshold can tell.

    Returns:
        bool [height, width]; neighbours are those above, below, left and right.
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
    """Mark all of every horizontal run of white that has a marked pixel; far fewer rounds than pixel by pixel."""
    starts = np.ones_like(white)
    starts[:, 1:] = white[:, 1:] != white[:, :-1]
    run = np.cumsum(starts).reshape(white.shape) - 1
    is_marked = np.bincount(run.ravel(), weights=mask.ravel()) > 0
    filled: npt.NDArray[np.bool_] = is_marked[run] & white
    return filled


def _on_ground(picture: Image.Image, ground: npt.NDArray[np.float64]) -> Image.Image:
    """Replace the studio ground by another, float [height, width, 3], 0 to 255.

    A pixel beside the ground mixes garment and white, the more white the brighter it is; that share is exchanged, else
    the garment would keep a white rim that users' photos do not have.
    """
    mask = ground_mask(picture)
    beside = np.asarray(Image.fromarray(mask).convert("L").filter(ImageFilter.MaxFilter(3))) > 0
    pixels = np.asarray(picture).astype(np.float64)
    share = np.clip((pixels.min(axis=2) - HALF_WHITE) / (NEARLY_WHITE - HALF_WHITE), 0, 1) * beside
    share[mask] = 1
    result = pixels + share[:, :, None] * (ground - 255)
    return Image.fromarray(result.round().clip(0, 255).astype(np.uint8))


def _grained_surface(width: int, height: int, generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """Stripes of grain that wander, in two shades of one tint, under light that falls off: float [height, width, 3]."""
    across, down = np.meshgrid(np.arange(width) / width, np.arange(height) / width)  # both in picture widths
    angle = generator.uniform(0, math.pi)
    along = across * math.cos(angle) + down * math.sin(angle)
    side = down * math.cos(angle) - across * math.sin(angle)
    # A few sine waves of other lengths and phases bend the stripes.
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
