# SPDX-License-Identifier: Apache-2.0
"""Captions without a captioner: the most frequent pair of words, and the name of the nearest known photo.

The caller chooses the features by which photos are compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from captioner.query import QUERY_WORDS, words_of

THUMBNAIL_HEIGHT, THUMBNAIL_WIDTH = 20, 16  # pixels

FloatArray = npt.NDArray[np.float32]


def most_frequent_pair(names: Sequence[str]) -> str:
    """The last two words that most names share: the best guess without a look at the photo.

    Args:
        names: product names.

    Returns:
        Two words, or one where that is more frequent; of equally frequent ones the first that occurs.

    Raises:
        ValueError: `names` is empty.
    """
    if not names:
        raise ValueError("there are no names whose last words could be counted")
    return Counter(" ".join(words_of(name)[-QUERY_WORDS:]) for name in names).most_common(1)[0][0]


def pixel_features(pixels: npt.NDArray[np.uint8]) -> FloatArray:
    """Average photos, uint8 [n, height, width, 3], down to 20 x 16 pixels: float32 [n, 960], 0 to 255."""
    size = (THUMBNAIL_WIDTH, THUMBNAIL_HEIGHT)
    features = np.empty((len(pixels), THUMBNAIL_HEIGHT * THUMBNAIL_WIDTH * 3), np.float32)
    for row, photo in zip(features, pixels, strict=True):
        row[:] = np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BOX), np.float32).ravel()
    return features


def unit_length(embeddings: FloatArray) -> FloatArray:
    """Divide each row by its L2 norm, so that the nearest row by distance is also the nearest by cosine."""
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return np.divide(embeddings, np.maximum(norms, 1e-12), dtype=np.float32)


def nearest_names(
    names: Sequence[str],
    features: FloatArray,
    known_names: Sequence[str],
    known_features: FloatArray,
    *,
    chunk: int = 256,
    progress: str | None = None,
) -> list[str]:
    """For each photo, the name of the nearest known photo that has another name.

    Products of one name (case and spaces ignored) look nearly the same, so their name would be copied instead of
    found. They are left out, which also allows a photo to be among the known ones itself.

    Args:
        names: n names, one per photo.
        features: float32 [n, F]; the distance is Euclidean.
        known_names: m names.
        known_features: float32 [m, F].
        chunk: photos per matrix product; each takes 4 x m bytes.
        progress: title of a progress bar; None shows none.

    Returns:
        n names, each one of `known_names`.

    Raises:
        ValueError: the lengths do not match, or all known photos have a photo's own name.
    """
    if len(names) != len(features) or len(known_names) != len(known_features):
        raise ValueError(
            f"{len(names)} names with {len(features)} photos, {len(known_names)} known names with "
            f"{len(known_features)} photos: each name needs exactly one photo"
        )
    if not known_names:
        raise ValueError("there are no known photos to compare with")
    groups: dict[str, int] = {}
    own = np.array([groups.setdefault(_folded(name), len(groups)) for name in names], np.int64)
    known = np.array([groups.setdefault(_folded(name), len(groups)) for name in known_names], np.int64)
    # |a - b|^2 = |a|^2 - 2 ab + |b|^2, and |a|^2 is the same for all b. Centred features lose less in float32.
    centre = known_features.mean(axis=0)
    known_features = known_features - centre
    half_norms = 0.5 * np.einsum("ij,ij->i", known_features, known_features)
    found: list[str] = []
    with tqdm(total=len(names), desc=progress, unit="photo", disable=progress is None) as bar:
        for start in range(0, len(names), chunk):
            closeness = (features[start : start + chunk] - centre) @ known_features.T - half_norms
            closeness[own[start : start + chunk, None] == known] = -np.inf
            best = closeness.argmax(axis=1)
            for row, (column, values) in enumerate(zip(best, closeness, strict=True)):
                if values[column] == -np.inf:
                    raise ValueError(
                        f"all {len(known_names)} known photos have the name {names[start + row]!r}: give more photos"
                    )
                found.append(known_names[column])
            bar.update(len(closeness))
    return found


def _folded(name: str) -> str:
    """Lower case with single spaces, as `is_validation` compares names."""
    return " ".join(name.lower().split())
