# SPDX-License-Identifier: Apache-2.0
"""Features of the systems that the paper compares itself with: an ImageNet CNN, and colour, texture and shape.

The CNN is EfficientNet-Lite0 with ImageNet weights, without training on products. The descriptors are those of
content-based retrieval (Chutel 2022): histograms in HSV in a spatial pyramid (Lazebnik et al. 2006), uniform local
binary patterns (Ojala et al. 2002), both of the product without its white background, and histograms of oriented
gradients (Dalal and Triggs 2005). All rows have length 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from training.baselines import unit_length
from training.caption_model import normalise
from training.efficientnet_lite import EfficientNetLite0
from training.pretrained import load_trunk

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

COLOUR, TEXTURE, SHAPE = "colour", "texture", "shape"
DESCRIPTORS = (COLOUR, TEXTURE, SHAPE)
CNN_POOLINGS = ("mean", "max", "gem", "mid")
_BATCH = 64  # photos
_WHITE = 240  # least channel of the background
_HSV_BINS = (12, 3, 3)
_HOG_CELL, _HOG_BINS = 12, 9  # pixels, orientations
_GEM_POWER = 3.0  # Radenović et al. 2018
_MID_BLOCK = 10  # the last one of stride 16


@torch.no_grad()
def cnn_features(pixels: Pixels, weights: Path) -> dict[str, Floats]:
    """Pool the features of photos, uint8 [n, height, width, 3].

    Args:
        pixels: the photos.
        weights: written by `training.pretrained`.

    Returns:
        "mean", "max" and "gem" (generalised mean) of the last block, float32 [n, 320], and "mid", the generalised mean
        of the last block of stride 16, float32 [n, 112].

    Raises:
        PretrainedError: the weights cannot be read.
    """
    trunk = EfficientNetLite0().eval()
    load_trunk(trunk, weights)
    found: dict[str, list[Floats]] = {name: [] for name in CNN_POOLINGS}
    for start in tqdm(range(0, len(pixels), _BATCH), desc="ImageNet features", unit="batch"):
        # Channels come last in memory, which is twice as fast here.
        photos = torch.from_numpy(np.ascontiguousarray(pixels[start : start + _BATCH])).permute(0, 3, 1, 2).float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = trunk.stem(normalise(photos))
            for number, block in enumerate(trunk.blocks):
                features = block(features)
                if number == _MID_BLOCK:
                    found["mid"].append(_gem(features.float()))
        features = features.float()
        found["mean"].append(features.mean(dim=(2, 3)).numpy())
        found["max"].append(features.amax(dim=(2, 3)).numpy())
        found["gem"].append(_gem(features))
    return {name: unit_length(np.concatenate(parts)) for name, parts in found.items()}


def _gem(features: torch.Tensor) -> Floats:
    pooled: Floats = features.clamp(min=1e-6).pow(_GEM_POWER).mean(dim=(2, 3)).pow(1 / _GEM_POWER).numpy()
    return pooled


def descriptors(pixels: Pixels) -> dict[str, Floats]:
    """Describe photos, uint8 [n, height, width, 3], at half their size: float32 [n, D] for each of `DESCRIPTORS`."""
    found: dict[str, list[Floats]] = {name: [] for name in DESCRIPTORS}
    for start in tqdm(range(0, len(pixels), _BATCH), desc="descriptors", unit="batch"):
        batch = np.asarray(pixels[start : start + _BATCH], np.float32)
        height, width = batch.shape[1] // 2 * 2, batch.shape[2] // 2 * 2
        small = batch[:, :height, :width].reshape(len(batch), height // 2, 2, width // 2, 2, 3).mean(axis=(2, 4))
        product = (small.min(axis=3) < _WHITE).astype(np.float32)
        grey = small @ np.array([0.299, 0.587, 0.114], np.float32)
        found[COLOUR].append(_pyramid(_hsv_bins(small), product, int(np.prod(_HSV_BINS))))
        found[TEXTURE].append(_pyramid(_uniform_patterns(grey), product, _NUM_PATTERNS))
        found[SHAPE].append(_oriented_gradients(grey))
    return {name: unit_length(np.concatenate(parts)) for name, parts in found.items()}


def joined(features: Mapping[str, Floats], weights: Mapping[str, float]) -> Floats:
    """Join features so that the cosine of two rows is the weighted mean of the parts' cosines: float32 [n, D]."""
    return unit_length(np.concatenate([np.sqrt(weight) * features[name] for name, weight in weights.items()], axis=1))


def _pyramid(bins: npt.NDArray[np.int64], weights: Floats, count: int) -> Floats:
    """Histograms of bins, int64 [B, h, w], over the whole photo and its quarters; their root (Hellinger kernel)."""
    height, width = bins.shape[1] // 2, bins.shape[2] // 2
    everything = slice(None)
    cells: list[tuple[slice, slice]] = [(everything, everything)]
    cells += [
        (rows, columns)
        for rows in (slice(height), slice(height, None))
        for columns in (slice(width), slice(width, None))
    ]
    parts = []
    for rows, columns in cells:
        own = bins[:, rows, columns].reshape(len(bins), -1) + np.arange(len(bins))[:, None] * count
        weighted = weights[:, rows, columns].reshape(len(bins), -1)
        counts = np.bincount(own.ravel(), weighted.ravel(), len(bins) * count).reshape(len(bins), count)
        parts.append(np.sqrt(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)))
    return np.asarray(np.concatenate(parts, axis=1), np.float32)


def _hsv_bins(photos: Floats) -> npt.NDArray[np.int64]:
    """The bin of each pixel, [B, h, w, 3] of 0 to 255, in HSV."""
    value, least = photos.max(axis=3), photos.min(axis=3)
    spread = value - least
    red, green, blue = np.moveaxis(photos, 3, 0)
    safe = np.maximum(spread, 1e-6)
    hue = np.where(
        value == red,
        (green - blue) / safe % 6,
        np.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    saturation = spread / np.maximum(value, 1e-6)
    hues, saturations, values = _HSV_BINS
    # Grey has no hue.
    place = np.where(saturation < 0.1, 0, np.minimum((hue / 6 * hues).astype(np.int64), hues - 1))
    place = place * saturations + np.minimum((saturation * saturations).astype(np.int64), saturations - 1)
    return np.asarray(place * values + np.minimum((value / 256 * values).astype(np.int64), values - 1), np.int64)


def _pattern_numbers() -> npt.NDArray[np.int64]:
    """The number of each of 256 patterns: one for each with at most two changes in the circle, one for all others."""
    numbers, used = np.zeros(256, np.int64), 0
    for pattern in range(256):
        changes = (pattern ^ ((pattern >> 1) | (pattern & 1) << 7)).bit_count()
        if changes <= 2:
            used += 1
            numbers[pattern] = used
    return numbers


_PATTERNS = _pattern_numbers()
_NUM_PATTERNS = int(_PATTERNS.max()) + 1
_CIRCLE = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))


def _uniform_patterns(grey: Floats) -> npt.NDArray[np.int64]:
    """The local binary pattern of each pixel, [B, h, w]."""
    padded = np.pad(grey, ((0, 0), (1, 1), (1, 1)), mode="edge")
    _, height, width = grey.shape
    pattern = np.zeros(grey.shape, np.int64)
    for bit, (down, right) in enumerate(_CIRCLE):
        neighbour = padded[:, 1 + down : 1 + down + height, 1 + right : 1 + right + width]
        pattern |= (neighbour >= grey + 2).astype(np.int64) << bit  # less is noise of JPEG
    return _PATTERNS[pattern]


def _oriented_gradients(grey: Floats) -> Floats:
    """Histograms of gradients in cells, each divided by the energy of the cells around it: float32 [B, D]."""
    down, right = np.gradient(grey, axis=(1, 2))
    strength = np.hypot(down, right)
    place = np.minimum((np.arctan2(down, right) % np.pi / np.pi * _HOG_BINS).astype(np.int64), _HOG_BINS - 1)
    rows, columns = grey.shape[1] // _HOG_CELL, grey.shape[2] // _HOG_CELL
    size = (slice(None), slice(rows * _HOG_CELL), slice(columns * _HOG_CELL))
    cells = np.arange(rows * _HOG_CELL)[:, None] // _HOG_CELL * columns + np.arange(columns * _HOG_CELL) // _HOG_CELL
    numbers = (np.arange(len(grey))[:, None, None] * rows * columns + cells) * _HOG_BINS + place[size]
    counts = np.bincount(numbers.ravel(), strength[size].ravel(), len(grey) * rows * columns * _HOG_BINS)
    histograms = counts.reshape(len(grey), rows, columns, _HOG_BINS)
    energy = np.pad((histograms**2).sum(axis=3), ((0, 0), (1, 1), (1, 1)), mode="edge")
    around = sum(energy[:, down : down + rows, right : right + columns] for down in range(3) for right in range(3))
    normed = histograms / np.sqrt(around + (0.1 * 255) ** 2)[..., None]
    return np.asarray(np.minimum(normed, 0.2).reshape(len(grey), -1), np.float32)


def weight_grid(names: Sequence[str], steps: int = 5) -> list[dict[str, float]]:
    """All weights of the names in `steps` equal steps whose sum is 1."""
    if len(names) == 1:
        return [{names[0]: 1.0}]
    grid: list[dict[str, float]] = []
    for part in range(steps + 1):
        for rest in weight_grid(names[1:], steps - part) if part < steps else [dict.fromkeys(names[1:], 0.0)]:
            scale = (steps - part) / steps
            grid.append({names[0]: part / steps, **{name: weight * scale for name, weight in rest.items()}})
    return grid
