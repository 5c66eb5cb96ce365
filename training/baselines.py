# SPDX-License-Identifier: Apache-2.0
"""Captions without a captioner: the most frequent words, and the name of the nearest known photo.

Pure text and numpy; knows no model. Which features photos are compared by is the caller's choice.
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
    """The last two words most names have, what guessing without looking would say; of equals the first to come.

    Raises:
        ValueError: there are no names.
    """
    if not names:
        raise ValueError("there is not one name to count the last words of")
    return Counter(" ".join(words_of(name)[-QUERY_WORDS:]) for name in names).most_common(1)[0][0]


def pixel_features(pixels: npt.NDArray[np.uint8]) -> FloatArray:
    """Photos uint8 [n, height, width, 3] -> float32 [n, 960], each reduced to 20 x 16 pixels by averaging, 0 to 255."""
    size = (THUMBNAIL_WIDTH, THUMBNAIL_HEIGHT)
    features = np.empty((len(pixels), THUMBNAIL_HEIGHT * THUMBNAIL_WIDTH * 3), np.float32)
    for row, photo in zip(features, pixels, strict=True):
        row[:] = np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BOX), np.float32).ravel()
    return features


def unit_length(embeddings: FloatArray) -> FloatArray:
    """Rows divided by their L2 norm: the nearest by distance is then the nearest by cosine."""
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
    """For each photo the name of the known photo nearest by Euclidean distance that has another name.

    Products of one name (case and spaces aside) are near-twins: with them among the known ones the name would be
    copied, not found. So they are left out, and a photo may stand among the known ones itself.

    Args:
        features: float32 [n, F].
        known_features: float32 [m, F].
        chunk: photos per matrix product; each needs 4 x m bytes.

    Raises:
        ValueError: lengths do not match, or a photo has no known one of another name.
    """
    if len(names) != len(features) or len(known_names) != len(known_features):
        raise ValueError(
            f"{len(names)} names have {len(features)} photos and {len(known_names)} known names "
            f"{len(known_features)}: each needs its own"
        )
    if not known_names:
        raise ValueError("there is not one known photo to be near to")
    groups: dict[str, int] = {}
    own = np.array([groups.setdefault(_folded(name), len(groups)) for name in names], np.int64)
    known = np.array([groups.setdefault(_folded(name), len(groups)) for name in known_names], np.int64)
    # |a - b|^2 = |a|^2 - 2 ab + |b|^2, |a|^2 is the same for all b. Around zero, float32 loses less in the difference.
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
                        f"all {len(known_names)} known photos have the name {names[start + row]!r}: give more of them"
                    )
                found.append(known_names[column])
            bar.update(len(closeness))
    return found


def _folded(name: str) -> str:
    """As `is_validation` reads a name."""
    return " ".join(name.lower().split())
