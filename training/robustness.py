# SPDX-License-Identifier: Apache-2.0
"""Accuracy on degraded photos: each picture is degraded at its file's size, then fitted and captioned as usual."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from captioner.preprocessing import fit_photo, open_photo
from training.captioning import CheckpointCaptioner
from training.label_words import label_accuracy
from training.photo_degradations import DEGRADATIONS, Degradation
from training.prepare_data import Product
from training.word_metrics import word_metrics

CLEAN = "clean"

ReadFile = Callable[[Product], bytes]


def generator_of(degradation: str, product_id: str) -> np.random.Generator:
    """The random numbers of one photo's degradation, the same on every machine and whatever else is measured."""
    digest = hashlib.sha256(f"{degradation}/{product_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def degraded_pixels(
    captioner: CheckpointCaptioner,
    products: Sequence[Product],
    read_file: ReadFile,
    name: str,
    degrade: Degradation,
    *,
    progress: bool = True,
) -> npt.NDArray[np.uint8]:
    """The degraded photos at the encoder's size, uint8 [n, height, width, 3]."""
    pixels = np.empty((len(products), captioner.height, captioner.width, 3), np.uint8)
    for row, product in zip(pixels, tqdm(products, desc=name, unit="photo", disable=not progress), strict=True):
        picture = degrade(open_photo(read_file(product)), generator_of(name, product.id))
        row[:] = fit_photo(picture, **captioner.photo_shape)
    return pixels


def measure_robustness(
    captioner: CheckpointCaptioner,
    products: Sequence[Product],
    read_file: ReadFile,
    *,
    degradations: Mapping[str, Degradation] | None = None,
    progress: bool = True,
) -> dict[str, dict[str, float]]:
    """Measure captions of degraded photos.

    Args:
        captioner: captions the photos.
        products: the true names and labels.
        read_file: returns the bytes of a product's image file.
        degradations: name -> degradation; None: all of them.
        progress: show progress bars on stderr.

    Returns:
        Degradation -> figure -> share of right captions, "clean" first.

    Raises:
        ValueError: there are no products.
        OSError: a file cannot be read.
        ImageError: a file is not a readable image.
    """
    results: dict[str, dict[str, float]] = {}
    chosen = {CLEAN: _unchanged, **(DEGRADATIONS if degradations is None else degradations)}
    for name, degrade in chosen.items():
        pixels = degraded_pixels(captioner, products, read_file, name, degrade, progress=progress)
        described = captioner.describe(pixels, progress=f"{name}, captions" if progress else None)
        captions = captioner.served_captions(described)
        words = word_metrics(captions, [product.name for product in products])
        labels = label_accuracy(captions, products)
        results[name] = {
            "last_word_accuracy": words.last_word_accuracy,
            "last_two_normalised": words.last_two_normalised,
            "type_accuracy": labels.type_accuracy,
            "colour_accuracy": labels.colour_accuracy,
        }
    return results


def _unchanged(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return picture
