# SPDX-License-Identifier: Apache-2.0
"""Precision, nDCG and reciprocal rank of each query, and their intervals over queries.

The measures are those of ir-measures, which are trec_eval's: the gain is the grade, the discount log2(rank + 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import ir_measures
import numpy as np
import numpy.typing as npt
from ir_measures import RR, P, nDCG

from training.phone_accuracy import SenderBootstrap

DEPTH = 10  # number of results that count

Floats = npt.NDArray[np.float64]

# A result is relevant from grade 1 on (same articleType), for "colour" from grade 2 on (same baseColour, too).
_MEASURES = {
    "nDCG@10": nDCG @ 10,
    "P@1": P @ 1,
    "P@5": P @ 5,
    "P@10": P @ 10,
    "MRR": RR @ 10,
    "P@1 colour": P(rel=2) @ 1,
    "P@5 colour": P(rel=2) @ 5,
    "P@10 colour": P(rel=2) @ 10,
    "MRR colour": RR(rel=2) @ 10,
}
METRICS = tuple(_MEASURES)


def judge(rankings: Sequence[Sequence[int]], grades: Sequence[npt.NDArray[np.int64]]) -> dict[str, Floats]:
    """Score the rankings of n queries.

    Args:
        rankings: for each query places in the gallery, best first; only the first ten count.
        grades: for each query int64 [m], the grade of every place in the gallery.

    Returns:
        Name of `METRICS` -> float64 [n], NaN for a query without a relevant product in the gallery.
    """
    scores = {name: np.full(len(rankings), np.nan) for name in METRICS}
    relevant: dict[str, dict[str, int]] = {}
    run: dict[str, dict[str, float]] = {}
    for number, (ranking, every) in enumerate(zip(rankings, grades, strict=True)):
        # trec_eval needs only the grades of the results, and the ten best grades for the ideal ranking.
        best = np.argsort(-every, kind="stable")[:DEPTH]
        if not every[best[:1]].any():
            continue
        known = {*ranking[:DEPTH], *best.tolist()}
        relevant[str(number)] = {str(place): int(every[place]) for place in known}
        run[str(number)] = {str(place): float(-rank) for rank, place in enumerate(ranking[:DEPTH])}
        for values in scores.values():
            values[number] = 0.0  # the library returns nothing for queries without a result
    names = {measure: name for name, measure in _MEASURES.items()}
    for metric in ir_measures.iter_calc(list(names), relevant, run):
        scores[names[metric.measure]][int(metric.query_id)] = metric.value
    return scores


class Bootstrap(SenderBootstrap):
    """Intervals by the percentile bootstrap (Efron 1979) over queries; the queries take the place of senders."""

    def __init__(self, num_queries: int, *, resamples: int = 2000, seed: int = 0) -> None:
        super().__init__([f"{number:09}" for number in range(num_queries)], resamples=resamples, seed=seed)
