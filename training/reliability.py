# SPDX-License-Identifier: Apache-2.0
"""How well probabilities are calibrated: reliability bins and the expected calibration error.

The error is that of Naeini et al. 2015 and Guo et al. 2017: over bins of photos with similar probabilities, the mean
difference between the probability and the accuracy. With bins of equal width, most photos are in the upper bins; bins
of equal mass hold the same number of photos each (Nixon et al. 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from captioner.query import words_of
from captioner.word_folding import fold

NUM_BINS = 15

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ReliabilityBin:
    """Photos with similar probabilities; there are no empty bins."""

    low: float  # lower bound of the probabilities in a bin of equal width, else the lowest probability
    high: float  # upper bound, or the highest probability
    count: int  # photos
    probability: float  # mean probability
    accuracy: float  # share of the photos that are right


def equal_width_bins(probabilities: Floats, right: Bools, num_bins: int = NUM_BINS) -> list[ReliabilityBin]:
    """Divide 0 to 1 into bins of equal width; a value on a bound is in the lower bin, 0 in the first.

    Args:
        probabilities: float [n], 0 to 1.
        right: bool [n].
        num_bins: number of bins between 0 and 1.

    Returns:
        The bins that hold a photo, lowest first.

    Raises:
        ValueError: there are no photos, the lengths differ, or a probability is not between 0 and 1.
    """
    probabilities, right = _checked(probabilities, right)
    edges = np.linspace(0, 1, num_bins + 1)
    places = np.clip(np.searchsorted(edges, probabilities, side="left") - 1, 0, num_bins - 1)
    return [
        _bin(float(edges[place]), float(edges[place + 1]), probabilities[places == place], right[places == place])
        for place in np.unique(places).tolist()
    ]


def equal_mass_bins(probabilities: Floats, right: Bools, num_bins: int = NUM_BINS) -> list[ReliabilityBin]:
    """Divide the photos, sorted by probability, into bins whose counts differ by at most one.

    Arguments, result and errors are those of `equal_width_bins`; where there are fewer photos than bins, each photo has
    its own bin.
    """
    probabilities, right = _checked(probabilities, right)
    order = np.argsort(probabilities, kind="stable")
    parts = [part for part in np.array_split(order, num_bins) if len(part)]
    return [
        _bin(float(probabilities[part[0]]), float(probabilities[part[-1]]), probabilities[part], right[part])
        for part in parts
    ]


def expected_calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """The mean over photos of the difference between their bin's probability and its accuracy, 0 to 1."""
    photos = sum(one.count for one in bins)
    return sum(one.count * abs(one.probability - one.accuracy) for one in bins) / photos


def reliability(probabilities: npt.ArrayLike, right: npt.ArrayLike) -> dict[str, Any]:
    """All calibration figures of n photos.

    Args:
        probabilities: float [n], 0 to 1.
        right: bool [n].

    Returns:
        n, mean probability, accuracy, both errors and both lists of bins, for JSON.

    Raises:
        ValueError: as of `equal_width_bins`.
    """
    values, outcomes = _checked(probabilities, right)
    wide, massive = equal_width_bins(values, outcomes), equal_mass_bins(values, outcomes)
    return {
        "n": len(values),
        "mean_probability": float(values.mean()),
        "accuracy": float(outcomes.mean()),
        "ece_equal_width": expected_calibration_error(wide),
        "ece_equal_mass": expected_calibration_error(massive),
        "bins_equal_width": [asdict(one) for one in wide],
        "bins_equal_mass": [asdict(one) for one in massive],
    }


def word_at(query: str, place: int) -> str:
    """The folded word of a query at a place: -1 is the last word, -2 the first of a pair; "" where there is none."""
    words = words_of(query)
    return fold(words[place]) if len(words) >= -place else ""


def word_marginals(probabilities: Floats, classes: Sequence[str], place: int, words: Sequence[str]) -> Floats:
    """The marginal probability of one word of each photo's query.

    Args:
        probabilities: float [n, Q], of the queries; rows sum to 1.
        classes: Q queries; "" has no words.
        place: -1 for the last word, -2 for the first of a pair.
        words: one folded word for each of n photos.

    Returns:
        float64 [n], the sum of the photo's row over the classes with that word in that place.
    """
    columns = np.array([word_at(query, place) for query in classes])
    sums = [row[columns == word].sum() for row, word in zip(probabilities, words, strict=True)]
    # Rounding can raise the sum of thousands of float32 above 1.
    return np.minimum(np.array(sums, np.float64), 1.0)


def auroc(positives: npt.ArrayLike, negatives: npt.ArrayLike) -> float:
    """Area under the ROC curve: how often a positive scores higher than a negative; equal scores count half.

    Args:
        positives: float [n].
        negatives: float [m].

    Returns:
        0 to 1; 0.5 is chance level.

    Raises:
        ValueError: one side is empty.
    """
    above, below = np.asarray(positives, np.float64), np.asarray(negatives, np.float64)
    if not len(above) or not len(below):
        raise ValueError(f"{len(above)} positives and {len(below)} negatives: at least one of each is needed")
    ordered = np.sort(below)
    wins = np.searchsorted(ordered, above, side="left") + np.searchsorted(ordered, above, side="right")
    return float(wins.mean() / 2 / len(below))


def _checked(probabilities: npt.ArrayLike, right: npt.ArrayLike) -> tuple[Floats, Bools]:
    values, outcomes = np.asarray(probabilities, np.float64), np.asarray(right, bool)
    if values.shape != outcomes.shape or values.ndim != 1:
        raise ValueError(f"probabilities {values.shape} and outcomes {outcomes.shape} are not two lists of one length")
    if not len(values):
        raise ValueError("there are no photos")
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("a probability is not between 0 and 1")
    return values, outcomes


def _bin(low: float, high: float, probabilities: Floats, right: Bools) -> ReliabilityBin:
    return ReliabilityBin(low, high, len(right), float(probabilities.mean()), float(right.mean()))
