# SPDX-License-Identifier: Apache-2.0
"""Product photos as users would take them: moved, turned, in other light, on other ground, out of focus.

Colours keep their names: nothing here changes a hue. All on tensors, whole batches at once.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

OTHER_GROUND_SHARE = 0.25
BLURRED_SHARE = 0.15
NEARLY_WHITE = 232.0  # 0 to 255; darker than this is not studio ground


def augment(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror, move, scale, turn and stretch each photo a little and change its light; some get other ground or blur.

    Args:
        pixels: float32 [B, 3, height, width], 0 to 255, on white ground.
    """
    moved = move(pixels, generator)
    moved = replace_ground(moved, generator, OTHER_GROUND_SHARE)
    moved = blur(moved, generator, BLURRED_SHARE)
    return change_light(moved, generator)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def move(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror half of the photos, turn by up to 12 degrees, scale by 0.8 to 1.2, shift by up to 4 %, stretch by 7 %."""
    count = len(pixels)
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    angle = _uniform(count, -12, 12, generator) * math.pi / 180
    scale, stretch = _uniform(count, 0.8, 1.2, generator), _uniform(count, 0.93, 1.07, generator)
    height, width = pixels.shape[-2:]
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    rows = [
        torch.stack([mirror * cosine * stretch, -sine * height / width, _uniform(count, -0.08, 0.08, generator)], 1),
        torch.stack([mirror * sine * width / height * stretch, cosine, _uniform(count, -0.08, 0.08, generator)], 1),
    ]
    grid = functional.affine_grid(torch.stack(rows, dim=1), list(pixels.shape), align_corners=False)
    # grid_sample fills with zero; on the inverted photo that is white, the ground all photos stand on.
    return 255 - functional.grid_sample(255 - pixels, grid, align_corners=False)


def ground_mask(pixels: torch.Tensor) -> torch.Tensor:
    """Where a photo shows its white ground: nearly white and joined to the border, so that a white shirt stays.

    Args:
        pixels: float32 [B, 3, height, width], 0 to 255.

    Returns:
        float32 [B, 1, height, width], 1 on the ground and 0 elsewhere.
    """
    white = (pixels.amin(dim=1, keepdim=True) > NEARLY_WHITE).float()
    mask = torch.zeros_like(white)
    mask[:, :, (0, -1), :] = white[:, :, (0, -1), :]
    mask[:, :, :, (0, -1)] = white[:, :, :, (0, -1)]
    # Geodesic dilation: grow within the white until nothing changes. A bound, for mazes.
    for _ in range(sum(pixels.shape[-2:])):
        grown = functional.max_pool2d(mask, kernel_size=3, stride=1, padding=1) * white
        if torch.equal(grown, mask):
            break
        mask = grown
    return mask


def replace_ground(pixels: torch.Tensor, generator: torch.Generator, share: float) -> torch.Tensor:
    """Put a share of the photos on ground of one shade, with a gradient and with some coarse or fine texture."""
    chosen = torch.rand(len(pixels), generator=generator) < share
    count = int(chosen.sum())
    if not count:
        return pixels
    height, width = pixels.shape[-2:]
    photos = pixels[chosen]
    # Greys mostly, as walls, floors and tables are, with a tint.
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
    # A soft edge, as a lens makes it.
    mask = functional.avg_pool2d(ground_mask(photos), kernel_size=3, stride=1, padding=1, count_include_pad=False)
    result = pixels.clone()
    result[chosen] = photos * (1 - mask) + ground * mask
    return result


def blur(pixels: torch.Tensor, generator: torch.Generator, share: float) -> torch.Tensor:
    """Blur a share of the photos with a binomial kernel of 3 pixels, mixed in by 0.5 to 1."""
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


def change_light(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Brightness by 0.88 to 1.06 and contrast around the photo's mean by 0.85 to 1.15."""
    light = _uniform(len(pixels), 0.88, 1.06, generator).view(-1, 1, 1, 1)
    contrast = _uniform(len(pixels), 0.85, 1.15, generator).view(-1, 1, 1, 1)
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    return ((pixels - mean) * contrast + mean).mul(light).clamp(0, 255)
