# SPDX-License-Identifier: Apache-2.0
"""Whether probabilities are as high as they are right: reliability bins and expected calibration error. Pure functions.

The error is that of Naeini et al. 2015 and Guo et al. 2017: over bins of photos with a similar probability, the mean
difference between that probability and the share that is right. Bins of equal width leave the upper ones crowded and
the lower ones nearly empty; bins of equal mass hold the same number of photos each (Nixon et al. 2019).
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
    """Photos of similar probability; empty bins are never made.

    Attributes:
        low, high: of the probabilities: the bin's bounds where widths are equal, else its lowest and highest value.
        count: photos.
        probability: mean.
        accuracy: share that is right.
    """

    low: float
    high: float
    count: int
    probability: float
    accuracy: float


def equal_width_bins(probabilities: Floats, right: Bools, num_bins: int = NUM_BINS) -> list[ReliabilityBin]:
    """Divide 0 to 1 into bins of one width; a value on a bound is in the lower bin, 0 in the first.

    Args:
        probabilities: float [n], 0 to 1.
        right: bool [n].
        num_bins: how many bins 0 to 1 is divided into.

    Returns:
        The bins that hold a photo, lowest first.

    Raises:
        ValueError: there is no photo, the lengths differ, or a probability is not between 0 and 1.
    """
    probabilities, right = _checked(probabilities, right)
    edges = np.linspace(0, 1, num_bins + 1)
    places = np.clip(np.searchsorted(edges, probabilities, side="left") - 1, 0, num_bins - 1)
    return [
        _bin(float(edges[place]), float(edges[place + 1]), probabilities[places == place], right[places == place])
        for place in np.unique(places).tolist()
    ]


def equal_mass_bins(probabilities: Floats, right: Bools, num_bins: int = NUM_BINS) -> list[ReliabilityBin]:
    """Divide the photos, sorted by probability, into bins whose numbers differ by one at most.

    Arguments, result and errors as `equal_width_bins`; fewer photos than bins make a bin of each.
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
    """All figures of one set of probabilities.

    Args:
        probabilities: float [n], 0 to 1.
        right: bool [n].

    Returns:
        n, mean probability, accuracy, both errors and both lists of bins, as they are printed as JSON.

    Raises:
        ValueError: as `equal_width_bins`.
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
    """The folded word of a query at a place: -1 is the last one, -2 the first of a pair; "" where there is none."""
    words = words_of(query)
    return fold(words[place]) if len(words) >= -place else ""


def word_marginals(probabilities: Floats, classes: Sequence[str], place: int, words: Sequence[str]) -> Floats:
    """How probable one word of the query is, over all queries that have it in that place.

    Args:
        probabilities: float [n, Q], of the queries; rows sum to 1.
        classes: Q queries; "" has no word in any place.
        place: -1 for the last word, -2 for the first of a pair.
        words: folded, one of each photo, n of them.

    Returns:
        float64 [n], the sum of the photo's row over the classes with that word in that place.
    """
    columns = np.array([word_at(query, place) for query in classes])
    sums = [row[columns == word].sum() for row, word in zip(probabilities, words, strict=True)]
    # Rounding may carry the sum of thousands of float32 above 1.
    return np.minimum(np.array(sums, np.float64), 1.0)


def auroc(positives: npt.ArrayLike, negatives: npt.ArrayLike) -> float:
    """How often a positive scores higher than a negative, equal scores counted half (area under the ROC curve).

    Args:
        positives: float [n].
        negatives: float [m].

    Returns:
        0 to 1; 0.5 is chance.

    Raises:
        ValueError: one side is empty.
    """
    above, below = np.asarray(positives, np.float64), np.asarray(negatives, np.float64)
    if not len(above) or not len(below):
        raise ValueError(f"{len(above)} positives and {len(below)} negatives: each side needs one")
    ordered = np.sort(below)
    wins = np.searchsorted(ordered, above, side="left") + np.searchsorted(ordered, above, side="right")
    return float(wins.mean() / 2 / len(below))


def _checked(probabilities: npt.ArrayLike, right: npt.ArrayLike) -> tuple[Floats, Bools]:
    values, outcomes = np.asarray(probabilities, np.float64), np.asarray(right, bool)
    if values.shape != outcomes.shape or values.ndim != 1:
        raise ValueError(f"probabilities {values.shape} and outcomes {outcomes.shape} are not two lists of one length")
    if not len(values):
        raise ValueError("there is not one photo")
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("a probability is not between 0 and 1")
    return values, outcomes


def _bin(low: float, high: float, probabilities: Floats, right: Bools) -> ReliabilityBin:
    return ReliabilityBin(low, high, len(right), float(probabilities.mean()), float(right.mean()))
