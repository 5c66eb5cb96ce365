# SPDX-License-Identifier: Apache-2.0
"""Augmentation that makes product photos look like users' photos: moved, turned, relit, on another background, blurred.

No function changes a hue, so the colour names stay right. All functions work on whole batches of tensors.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch.nn import functional

OTHER_GROUND_SHARE = 0.35  # of the photos; the same for the next ones
PHOTOGRAPHED_GROUND_SHARE = 0.5  # of the replaced backgrounds
BLURRED_SHARE = 0.15
COVERED_SHARE = 0.1
FRAMED_SHARE = 0.08
NEARLY_WHITE = 232.0  # 0 to 255; a darker pixel is not studio background


def augment(pixels: torch.Tensor, generator: torch.Generator, grounds: torch.Tensor | None = None) -> torch.Tensor:
    """Augment product photos.

    Every photo is mirrored, moved, scaled, turned, stretched and relit. A share gets another background with a shadow,
    an object in front, blur, or the frame of a screenshot.

    Args:
        pixels: float32 [B, 3, height, width], 0 to 255, on a white background.
        generator: the source of every random choice.
        grounds: float32 [n, 3, any, any], photos whose corners show floors, walls and fabric; None: backgrounds are
            drawn.

    Returns:
        Shape and range of `pixels`.
    """
    moved = move(pixels, generator)
    moved = replace_ground(moved, generator, OTHER_GROUND_SHARE, grounds)
    moved = cover(moved, generator, COVERED_SHARE)
    moved = blur(moved, generator, BLURRED_SHARE)
    moved = frame(moved, generator, FRAMED_SHARE)
    return change_light(moved, generator)


def augment_street(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Augment photos that keep their own background: they are turned and scaled more, and often coarsened.

    Args:
        pixels: float32 [B, 3, height, width], 0 to 255.
        generator: the source of every random choice.

    Returns:
        Shape and range of `pixels`.
    """
    moved = move(pixels, generator, degrees=25, scales=(0.65, 1.15), shift=0.12, slant=0.15, fill="reflection")
    moved = cover(moved, generator, COVERED_SHARE)
    moved = coarsen(moved, generator, 0.4)
    return change_light(moved, generator, light=(0.7, 1.2))


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def move(
    pixels: torch.Tensor,
    generator: torch.Generator,
    *,
    degrees: float = 12,
    scales: tuple[float, float] = (0.8, 1.2),
    shift: float = 0.08,
    slant: float = 0.1,
    fill: Literal["white", "reflection"] = "white",
) -> torch.Tensor:
    """Apply a random projective map: mirror half of the photos, turn, scale, shift, stretch by up to 7 % and tilt them.

    Args:
        pixels: float32 [B, 3, height, width], 0 to 255.
        generator: the source of every random choice.
        degrees: largest angle, in both directions.
        scales: range of the visible part's size; below 1 the photo is enlarged.
        shift: largest shift, as a share of half a side.
        slant: largest tilt: by which share one side may be nearer to the camera than the opposite one.
        fill: what appears beyond the photo's edge.

    Returns:
        Shape and range of `pixels`.
    """
    count = len(pixels)
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    angle = _uniform(count, -degrees, degrees, generator) * math.pi / 180
    scale, stretch = _uniform(count, *scales, generator), _uniform(count, 0.93, 1.07, generator)
    height, width = pixels.shape[-2:]
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    across = _uniform(count, -shift, shift, generator)
    down = _uniform(count, -shift, shift, generator)
    rows = [
        torch.stack([mirror * cosine * stretch, -sine * height / width, across], 1),
        torch.stack([mirror * sine * width / height * stretch, cosine, down], 1),
    ]
    grid = functional.affine_grid(torch.stack(rows, dim=1), list(pixels.shape), align_corners=False)
    tilt = _uniform(count, -slant, slant, generator).view(-1, 1, 1, 1) * grid[..., :1]
    tilt = tilt + _uniform(count, -slant, slant, generator).view(-1, 1, 1, 1) * grid[..., 1:]
    grid = grid / (1 + tilt)  # a projective map: what is further away is smaller
    if fill == "reflection":
        return functional.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
    # grid_sample fills with zero, which is white on the inverted photo.
    return 255 - functional.grid_sample(255 - pixels, grid, align_corners=False)


def ground_mask(pixels: torch.Tensor) -> torch.Tensor:
    """Find the white background: pixels that are nearly white and connected to the border, so that a white shirt stays.

    Args:
        pixels: float32 [B, 3, height, width], 0 to 255.

    Returns:
        float32 [B, 1, height, width], 1 on the background and 0 elsewhere.
    """
    white = (pixels.amin(dim=1, keepdim=True) > NEARLY_WHITE).float()
    mask = torch.zeros_like(white)
    mask[:, :, (0, -1), :] = white[:, :, (0, -1), :]
    mask[:, :, :, (0, -1)] = white[:, :, :, (0, -1)]
    # Geodesic dilation: grow within the white until nothing changes. The bound is for labyrinthine masks.
    for _ in range(sum(pixels.shape[-2:])):
        grown = functional.max_pool2d(mask, kernel_size=3, stride=1, padding=1) * white
        if torch.equal(grown, mask):
            break
        mask = grown
    return mask


def replace_ground(
    pixels: torch.Tensor, generator: torch.Generator, share: float, grounds: torch.Tensor | None = None
) -> torch.Tensor:
    """Put a share of the photos on another background, with a soft shadow.

    The background is a corner of one of `grounds`, or drawn: one shade with a gradient and a coarse or fine texture.
    """
    chosen = torch.rand(len(pixels), generator=generator) < share
    count = int(chosen.sum())
    if not count:
        return pixels
    height, width = pixels.shape[-2:]
    photos = pixels[chosen]
    # Tinted greys: the colours of most walls, floors and tables.
    shade = _uniform(count, 40, 250, generator).view(-1, 1, 1, 1)
    tint = (torch.rand(count, 3, 1, 1, generator=generator) - 0.5) * 50
    slope = (torch.rand(count, 2, 1, 1, generator=generator) - 0.5) * 80
    across, down = torch.linspace(-1, 1, width).view(1, 1, 1, -1), torch.linspace(-1, 1, height).view(1, 1, -1, 1)
    coarse = functional.interpolate(
        torch.randn(count, 1, max(1, height // 8), max(1, width // 8), generator=generator),
        (height, width),
        mode="bilinear",
    )
    fine = torch.randn(count, 1, height, width, generator=generator)
    strength = torch.rand(count, 2, 1, 1, generator=generator) * 20
    ground = shade + tint + slope[:, :1] * across + slope[:, 1:] * down
    ground = (ground + strength[:, :1] * coarse + strength[:, 1:] * fine).clamp(0, 255)
    if grounds is not None:
        photographed = torch.rand(count, generator=generator) < PHOTOGRAPHED_GROUND_SHARE
        if photographed.any():
            ground[photographed] = _corners(grounds, int(photographed.sum()), (height, width), generator)
    sharp = ground_mask(photos)
    # A soft edge, as a lens makes it.
    mask = functional.avg_pool2d(sharp, kernel_size=3, stride=1, padding=1, count_include_pad=False)
    ground = ground * (1 - _shadow(1 - sharp, generator))
    result = pixels.clone()
    result[chosen] = photos * (1 - mask) + ground * mask
    return result


def _corners(grounds: torch.Tensor, count: int, size: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Enlarge corners of the photos, two fifths of a side long; float32 [count, 3, *size]."""
    which = torch.randint(len(grounds), (count,), generator=generator)
    right, low = (torch.rand(count, generator=generator) < 0.5 for _ in range(2))
    zoom = 0.4
    offset = 1 - zoom
    rows = [
        torch.stack([torch.full((count,), zoom), torch.zeros(count), torch.where(right, offset, -offset)], 1),
        torch.stack([torch.zeros(count), torch.full((count,), zoom), torch.where(low, offset, -offset)], 1),
    ]
    grid = functional.affine_grid(torch.stack(rows, dim=1), [count, 3, *size], align_corners=False)
    return functional.grid_sample(grounds[which], grid, padding_mode="border", align_corners=False)


def _shadow(product: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """How much darker the background is beside each product (where `product` is 1), 0 to 0.5, float32 [B, 1, h, w]."""
    count, _, height, width = product.shape
    move_by = (int(torch.randint(1, max(2, height // 16), (1,), generator=generator)),
               int(torch.randint(1, max(2, width // 16), (1,), generator=generator)))  # fmt: skip
    moved = torch.roll(product, move_by, dims=(2, 3))
    size = 2 * max(1, width // 20) + 1
    soft = functional.avg_pool2d(moved, size, stride=1, padding=size // 2)
    return soft * _uniform(count, 0.0, 0.5, generator).view(-1, 1, 1, 1)


def cover(pixels: torch.Tensor, generator: torch.Generator, share: float) -> torch.Tensor:
    """Draw an ellipse of one skin tone at an edge of a share of the photos, like a hand in front of the product."""
    chosen = torch.rand(len(pixels), generator=generator) < share
    count = int(chosen.sum())
    if not count:
        return pixels
    height, width = pixels.shape[-2:]
    x, y = (_uniform(count, -1, 1, generator).view(-1, 1, 1, 1) for _ in range(2))
    at_side = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
    x, y = torch.where(at_side, x.sign() * 0.85, x), torch.where(at_side, y, y.sign() * 0.85)
    radii = [_uniform(count, 0.1, 0.35, generator).view(-1, 1, 1, 1) for _ in range(2)]
    across, down = torch.linspace(-1, 1, width).view(1, 1, 1, -1), torch.linspace(-1, 1, height).view(1, 1, -1, 1)
    inside = ((across - x) / radii[0]) ** 2 + ((down - y) / radii[1]) ** 2 < 1
    skin = torch.tensor([225.0, 172.0, 140.0]).view(1, 3, 1, 1) * _uniform(count, 0.35, 1.1, generator).view(
        -1, 1, 1, 1
    )
    result = pixels.clone()
    result[chosen] = torch.where(inside, skin.clamp(max=255), pixels[chosen])
    return result


def frame(pixels: torch.Tensor, generator: torch.Generator, share: float) -> torch.Tensor:
    """Shrink a share of the photos into a page with axes and tick marks, like a screenshot or a plot."""
    chosen = torch.rand(len(pixels), generator=generator) < share
    result = pixels.clone()
    height, width = pixels.shape[-2:]
    if min(height, width) < 16:
        return result  # there is no room for a frame
    for i in chosen.nonzero().flatten().tolist():
        size = float(_uniform(1, 0.55, 0.85, generator))
        inner = (max(2, round(height * size)), max(2, round(width * size)))
        top, left = ((full - part) // 2 for full, part in zip((height, width), inner, strict=True))
        dark = bool(torch.rand(1, generator=generator) < 0.3)
        result[i] = 24.0 if dark else 255.0
        ink = 230.0 if dark else 20.0
        shrunk = functional.interpolate(pixels[i : i + 1], inner, mode="bilinear", antialias=True)[0]
        result[i, :, top : top + inner[0], left : left + inner[1]] = shrunk
        if torch.rand(1, generator=generator) < 0.6:  # axes: two lines with tick marks
            result[i, :, top : top + inner[0], left - 1] = ink
            result[i, :, min(height - 1, top + inner[0]), left : left + inner[1]] = ink
            step = int(torch.randint(6, 16, (1,), generator=generator))
            result[i, :, top : top + inner[0] : step, max(0, left - 4) : left] = ink
            result[i, :, top + inner[0] : top + inner[0] + 3, left : left + inner[1] : step] = ink
    return result


def coarsen(pixels: torch.Tensor, generator: torch.Generator, share: float) -> torch.Tensor:
    """Reduce a share of the photos to between a third and two thirds of their size, then enlarge them again."""
    chosen = torch.rand(len(pixels), generator=generator) < share
    if not chosen.any():
        return pixels
    factor = float(_uniform(1, 0.33, 0.66, generator))
    size = [max(1, round(side * factor)) for side in pixels.shape[-2:]]
    small = functional.interpolate(pixels[chosen], size, mode="bilinear", antialias=True)
    result = pixels.clone()
    result[chosen] = functional.interpolate(small, pixels.shape[-2:], mode="bicubic").clamp(0, 255)
    return result


def blur(pixels: torch.Tensor, generator: torch.Generator, share: float) -> torch.Tensor:
    """Blur a share of the photos with a 3-pixel binomial kernel, blended in with a weight of 0.5 to 1."""
    chosen = torch.rand(len(pixels), generator=generator) < share
    photos = pixels[chosen]
    if not len(photos):
        return pixels
    weights = torch.tensor([1.0, 2.0, 1.0]) / 4
    kernel = (weights.view(1, -1) * weights.view(-1, 1)).expand(3, 1, 3, 3)
    blurred = functional.conv2d(functional.pad(photos, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
    amount = _uniform(len(photos), 0.5, 1.0, generator).view(-1, 1, 1, 1)
    result = pixels.clone()
    result[chosen] = photos + amount * (blurred - photos)
    return result


def change_light(
    pixels: torch.Tensor, generator: torch.Generator, light: tuple[float, float] = (0.88, 1.06)
) -> torch.Tensor:
    """Change the contrast around each photo's mean by 0.85 to 1.15, then the brightness by a factor from `light`."""
    brightness = _uniform(len(pixels), *light, generator).view(-1, 1, 1, 1)
    contrast = _uniform(len(pixels), 0.85, 1.15, generator).view(-1, 1, 1, 1)
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    return ((pixels - mean) * contrast + mean).mul(brightness).clamp(0, 255)
