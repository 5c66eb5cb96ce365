# SPDX-License-Identifier: Apache-2.0
"""How similar training photos are found before there is a model: by a teacher and by ImageNet features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from training.caption_model import normalise
from training.captioning import CheckpointCaptioner
from training.efficientnet_lite import EfficientNetLite0
from training.prepare_data import ProductSet, load_products
from training.pretrained import load_trunk


@torch.no_grad()
def trunk_features(pixels: npt.NDArray[np.uint8], weights: Path, size: int = 128) -> npt.NDArray[np.float32]:
    """Mean features of the pretrained trunk.

    Args:
        pixels: uint8 [n, height, width, 3].
        weights: file that `training.pretrained` wrote.
        size: photos per batch.

    Returns:
        float32 [n, 320], L2-normalised after each feature has mean 0 and deviation 1 over the photos.
    """
    trunk = EfficientNetLite0().eval().to(memory_format=torch.channels_last)
    load_trunk(trunk, weights)
    parts = []
    for start in tqdm(range(0, len(pixels), size), desc="ImageNet features", unit="batch"):
        photos = torch.from_numpy(pixels[start : start + size]).permute(0, 3, 1, 2).float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            parts.append(trunk(normalise(photos)).float().mean(dim=(2, 3)).numpy())
    return standardised(np.concatenate(parts))


def standardised(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Features [n, F] with mean 0 and deviation 1 each, then L2-normalised rows."""
    centred = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)
    scaled: npt.NDArray[np.float32] = centred / (np.linalg.norm(centred, axis=1, keepdims=True) + 1e-9)
    return scaled.astype(np.float32)


def teacher_embeddings(checkpoint: Path, data: Path, products: ProductSet) -> npt.NDArray[np.float32]:
    """What the photos of `products` look like to an earlier checkpoint, float32 [n, D], L2-normalised rows.

    The teacher may read photos of another size, so they are decoded again from `data`.
    """
    teacher = CheckpointCaptioner.load(checkpoint)
    wanted = {product.id for product in products.products}
    again = load_products(
        data, height=teacher.height, width=teacher.width, fit=teacher.fit, only=lambda product: product.id in wanted
    )
    embeddings = teacher.embeddings(again.pixels, progress="teacher's embeddings")
    rows = {product.id: row for row, product in enumerate(again.products)}
    found = embeddings[[rows[product.id] for product in products.products]]
    scaled: npt.NDArray[np.float32] = found / (np.linalg.norm(found, axis=1, keepdims=True) + 1e-9)
    return scaled


def similarity_features(
    products: ProductSet, data: Path, weights: Path, teacher: Path | None
) -> npt.NDArray[np.float32]:
    """Features whose cosine says how much alike two training photos are, float32 [n, F], L2-normalised rows."""
    features = trunk_features(products.pixels, weights)
    if teacher is None:
        return features
    # Both count the same; together they rank similar products better than either (docs/evaluation.md).
    both = np.concatenate([features, teacher_embeddings(teacher, data, products)], axis=1)
    scaled: npt.NDArray[np.float32] = both / np.sqrt(2.0, dtype=np.float32)
    return scaled
