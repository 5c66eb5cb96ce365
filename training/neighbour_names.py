# SPDX-License-Identifier: Apache-2.0
"""Soft targets for the decoder and the query head, from the names of similar training photos.

A photo has one name in the data and could have many others. Those of its neighbours whose names begin like its own name
give a distribution of the next token, each with the weight exp(sharpness x cosine) (Khandelwal et al. 2020,
"Generalization through Memorization: Nearest Neighbor Language Models", with photos instead of contexts as keys).
Products with the photo's own name are left out, since they add nothing to its label.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

NUM_NEIGHBOURS = 64
SHARPNESS = 40.0  # per unit of cosine
NUM_SOFT_TOKENS = 8  # the number of likeliest next tokens that are kept


@dataclass(frozen=True)
class NeighbourNames:
    """Soft targets of n training photos.

    Attributes:
        tokens: int32 [n, T, NUM_SOFT_TOKENS], next tokens.
        weights: float16 [n, T, NUM_SOFT_TOKENS], their probabilities; all 0 where no neighbour's name begins like the
            photo's own.
        query_ids: int32 [n, NUM_NEIGHBOURS], query class of each neighbour, -1 for none.
        query_weights: float16 [n, NUM_NEIGHBOURS], their probabilities.
    """

    tokens: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float16]
    query_ids: npt.NDArray[np.int32]
    query_weights: npt.NDArray[np.float16]


def nearest_neighbours(
    features: npt.NDArray[np.float32], names: Sequence[str], count: int = NUM_NEIGHBOURS, block: int = 1024
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Find the photos most similar to each photo, except those with its own name.

    Args:
        features: float32 [n, F], L2-normalised.
        names: n names.
        count: neighbours of each photo.
        block: photos per matrix product.

    Returns:
        Indices int64 [n, count] and cosines float32 [n, count], most similar first; where there are fewer neighbours,
        the cosine is -1.
    """
    _, group = np.unique(np.array(names), return_inverse=True)
    count = min(count, len(names))
    indices = np.empty((len(names), count), dtype=np.int64)
    cosines = np.empty((len(names), count), dtype=np.float32)
    for start in range(0, len(names), block):
        rows = slice(start, start + block)
        similar = features[rows] @ features.T
        similar[group[rows][:, None] == group[None, :]] = -1.0
        part = np.argpartition(-similar, count - 1, axis=1)[:, :count]
        found = np.take_along_axis(similar, part, axis=1)
        order = np.argsort(-found, axis=1)
        indices[rows] = np.take_along_axis(part, order, axis=1)
        cosines[rows] = np.take_along_axis(found, order, axis=1)
    return indices, cosines


def neighbour_names(
    features: npt.NDArray[np.float32],
    names: Sequence[str],
    tokens: npt.NDArray[np.int64],
    queries: Sequence[int | None],
) -> NeighbourNames:
    """Make soft targets of the names of similar photos.

    Args:
        features: float32 [n, F], L2-normalised.
        names: n names.
        tokens: int64 [n, T], each name's tokens and EOS, negative behind it.
        queries: the query class of each name; None where it has none.

    Returns:
        The soft targets of n photos.
    """
    indices, cosines = nearest_neighbours(features, names)
    weights = np.exp(SHARPNESS * (cosines - cosines[:, :1])) * (cosines > -1.0)
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
    ids = np.array([-1 if query is None else query for query in queries], dtype=np.int32)
    soft_tokens = np.zeros((*tokens.shape, NUM_SOFT_TOKENS), dtype=np.int32)
    soft_weights = np.zeros((*tokens.shape, NUM_SOFT_TOKENS), dtype=np.float16)
    as_lists = [[token for token in row if token >= 0] for row in tokens.tolist()]
    for row, own in enumerate(as_lists):
        alike = [
            (as_lists[index], weight)
            for index, weight in zip(indices[row].tolist(), weights[row].tolist(), strict=True)
        ]
        for position, token in enumerate(own):
            sums: defaultdict[int, float] = defaultdict(float)
            for other, weight in alike:
                if len(other) > position:
                    sums[other[position]] += weight
            total = sum(sums.values())
            if total < 1e-4:
                break
            best = sorted(sums.items(), key=lambda item: -item[1])[:NUM_SOFT_TOKENS]
            kept = sum(weight for _, weight in best)
            soft_tokens[row, position, : len(best)] = [one for one, _ in best]
            soft_weights[row, position, : len(best)] = [weight / kept for _, weight in best]
            alike = [(other, weight) for other, weight in alike if len(other) > position and other[position] == token]
    return NeighbourNames(soft_tokens, soft_weights, ids[indices], weights.astype(np.float16))
