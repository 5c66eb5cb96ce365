# SPDX-License-Identifier: Apache-2.0
"""Rankings and graded relevance -> precision, nDCG, reciprocal rank a query, and their intervals over queries.

The measures are ir-measures' (trec_eval's: gains are the grades, discount log2(rank + 1)).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ir_measures
import numpy as np
import numpy.typing as npt
from ir_measures import RR, P, nDCG

DEPTH = 10  # results that are looked at

Floats = npt.NDArray[np.float64]

# "@2" asks for type and colour, without it for the type.
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


@dataclass(frozen=True)
class Estimate:
    """A mean over queries with the 95 % interval of its bootstrap."""

    mean: float
    low: float
    high: float


def judge(rankings: Sequence[Sequence[int]], grades: Sequence[npt.NDArray[np.int64]]) -> dict[str, Floats]:
    """Each of METRICS for each query, float64 [n].

    Args:
        rankings: for each query places in the gallery, best first; what is behind the tenth does not count.
        grades: for each query the grade of every place of the gallery, int64 [m].

    A query without relevant products in the gallery scores NaN: leave it out.
    """
    scores = {name: np.full(len(rankings), np.nan) for name in METRICS}
    relevant: dict[str, dict[str, int]] = {}
    run: dict[str, dict[str, float]] = {}
    for number, (ranking, every) in enumerate(zip(rankings, grades, strict=True)):
        # All that trec_eval needs to know: the grades of what was found, and the ten best there are (for the ideal).
        best = np.argsort(-every, kind="stable")[:DEPTH]
        if not every[best[:1]].any():
            continue
        known = {*ranking[:DEPTH], *best.tolist()}
        relevant[str(number)] = {str(place): int(every[place]) for place in known}
        run[str(number)] = {str(place): float(-rank) for rank, place in enumerate(ranking[:DEPTH])}
        for values in scores.values():
            values[number] = 0.0  # the library says nothing about queries without an answer
    names = {measure: name for name, measure in _MEASURES.items()}
    for metric in ir_measures.iter_calc(list(names), relevant, run):
        scores[names[metric.measure]][int(metric.query_id)] = metric.value
    return scores


class Bootstrap:
    """Means over resampled queries, the same ones for everything: so differences are paired.

    Percentile bootstrap, Efron 1979.
    """

    def __init__(self, num_queries: int, *, resamples: int = 2000, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        even = np.full(num_queries, 1 / num_queries)
        self._weights = generator.multinomial(num_queries, even, size=resamples) / num_queries  # [resamples, queries]

    def estimate(self, values: Floats) -> Estimate:
        """The mean of values [queries] and its interval."""
        low, high = np.percentile(self._weights @ values, [2.5, 97.5])
        return Estimate(float(values.mean()), float(low), float(high))
