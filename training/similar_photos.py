# SPDX-License-Identifier: Apache-2.0
"""Features by which similar training photos are found before training: ImageNet's and those of a teacher."""

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
    """Compute mean features of the pretrained trunk.

    Args:
        pixels: uint8 [n, height, width, 3].
        weights: file from `training.pretrained`.
        size: photos per batch.

    Returns:
        float32 [n, 320], `standardised`.
    """
    trunk = EfficientNetLite0().eval()
    trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch does not annotate it
    load_trunk(trunk, weights)
    parts = []
    for start in tqdm(range(0, len(pixels), size), desc="ImageNet features", unit="batch"):
        photos = torch.from_numpy(pixels[start : start + size]).permute(0, 3, 1, 2).float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            parts.append(trunk(normalise(photos)).float().mean(dim=(2, 3)).numpy())
    return standardised(np.concatenate(parts))


def standardised(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Scale features [n, F] to mean 0 and standard deviation 1 each, then rows to an L2 norm of 1; float32."""
    return _unit_rows((features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)).astype(np.float32)


def _unit_rows(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    scaled: npt.NDArray[np.float32] = features / (np.linalg.norm(features, axis=1, keepdims=True) + 1e-9)
    return scaled


def teacher_embeddings(checkpoint: Path, data: Path, products: ProductSet) -> npt.NDArray[np.float32]:
    """Embed photos with an earlier checkpoint, for which they are decoded again in its own size.

    Args:
        checkpoint: the teacher.
        data: the set that `products` come from.
        products: n products.

    Returns:
        float32 [n, D], L2-normalised rows.
    """
    teacher = CheckpointCaptioner.load(checkpoint)
    wanted = {product.id for product in products.products}
    again = load_products(data, **teacher.photo_shape, only=lambda product: product.id in wanted)
    embeddings = teacher.embeddings(again.pixels, progress="teacher's embeddings")
    rows = {product.id: row for row, product in enumerate(again.products)}
    return _unit_rows(embeddings[[rows[product.id] for product in products.products]])


def similarity_features(
    products: ProductSet, data: Path, weights: Path, teacher: Path | None
) -> npt.NDArray[np.float32]:
    """Features whose cosine measures the similarity of two training photos.

    Args:
        products: n training products.
        data: the set that they come from.
        weights: file from `training.pretrained`.
        teacher: an earlier checkpoint; None: the pretrained trunk alone.

    Returns:
        float32 [n, F], L2-normalised rows.
    """
    features = trunk_features(products.pixels, weights)
    if teacher is None:
        return features
    # With equal weights, both together rank similar products better than either alone (docs/evaluation.md).
    both = np.concatenate([features, teacher_embeddings(teacher, data, products)], axis=1)
    scaled: npt.NDArray[np.float32] = both / np.sqrt(2.0, dtype=np.float32)
    return scaled
