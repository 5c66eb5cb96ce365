# SPDX-License-Identifier: Apache-2.0
"""The refinement's weights and thresholds by nDCG@10 on queries whose answers are known. Knows no file and no model.

First the weights without filters. Their curves are flat around the best, so it is not the best by chance that is taken,
but of those that cannot be told from it the one that divides most evenly: the one-standard-error rule (Breiman et al.,
"Classification and Regression Trees", 1984) with the difference from the best of each query.

Then the semantic threshold with these weights: the strictest that costs little, since a
filter never helps nDCG, which forgives what stands at the end, but it is what keeps wrong pictures out. The visual
threshold is shown and not chosen: in a gallery so dense ten pictures of a close look are always found, so a strict one
costs nothing here, and would leave nothing of what the web has. What it keeps: `visual_threshold`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from benchmarks.retrieval_metrics import judge
from benchmarks.retrieval_systems import NO_FILTER, Ranking
from search_gateway.refinement import RefinementLimits

WEIGHTS = tuple(round(0.1 * step, 1) for step in range(11))
VISUAL_SCORES = (NO_FILTER, *(round(0.1 * step, 1) for step in range(10)))
SEMANTIC_SCORES = tuple(round(0.1 * step, 1) for step in range(11))
TOLERANCE = 0.005  # of nDCG@10: what keeping wrong pictures out may cost

# All queries, refined with these limits.
RankAll = Callable[[RefinementLimits], list[Ranking]]


@dataclass(frozen=True)
class Point:
    """What one value of a setting gives."""

    value: float
    ndcg: float  # nDCG@10, mean over queries
    precision: float  # of what was answered: share of results of the same articleType
    empty: float  # share of queries without a result
    ndcgs: npt.NDArray[np.float64] = field(compare=False, repr=False)  # of each query


@dataclass(frozen=True)
class Calibrated:
    limits: RefinementLimits
    curves: dict[str, list[Point]]  # setting -> what its values give, the settings before it as chosen


def calibrate(
    rank_all: RankAll, grades: Sequence[npt.NDArray[np.int64]], start: RefinementLimits, *, progress: bool = True
) -> Calibrated:
    """Choose lookalike_weight, visual_weight and min_semantic_score, in this order; the rest of `start` stays."""
    limits = replace(start, min_visual_score=NO_FILTER, min_semantic_score=0.0)
    curves: dict[str, list[Point]] = {}
    for name, values, choose in (
        ("lookalike_weight", WEIGHTS, most_even),
        ("visual_weight", WEIGHTS, most_even),
        ("min_visual_score", VISUAL_SCORES, None),
        ("min_semantic_score", SEMANTIC_SCORES, strictest),
    ):
        curve = []
        for value in tqdm(values, desc=name, unit="value", disable=not progress):
            curve.append(point_of(value, rank_all(replace(limits, **{name: value})), grades))  # type: ignore[arg-type]
        curves[name] = curve
        if choose is not None:
            limits = replace(limits, **{name: choose(curve).value})  # type: ignore[arg-type]
    limits = replace(limits, min_visual_score=start.min_visual_score)
    return Calibrated(limits, curves)


def best(curve: Sequence[Point]) -> Point:
    """The highest nDCG@10; of equals the first."""
    return max(curve, key=lambda point: point.ndcg)


def most_even(curve: Sequence[Point]) -> Point:
    """Of the values within a standard error of the best the one nearest to a half; of equals the first."""
    highest = best(curve)

    def is_near(point: Point) -> bool:
        differences = highest.ndcgs - point.ndcgs
        return bool(differences.mean() <= differences.std() / np.sqrt(len(differences)))

    return min((point for point in curve if is_near(point)), key=lambda point: round(abs(point.value - 0.5), 6))


def strictest(curve: Sequence[Point]) -> Point:
    """The highest value whose nDCG@10 is the best but for TOLERANCE."""
    least = best(curve).ndcg - TOLERANCE
    return max((point for point in curve if point.ndcg >= least), key=lambda point: point.value)


def point_of(value: float, rankings: Sequence[Ranking], grades: Sequence[npt.NDArray[np.int64]]) -> Point:
    """What answers to the same queries are worth; queries without anything relevant do not count for nDCG."""
    shown = np.concatenate([every[ranking] > 0 for every, ranking in zip(grades, rankings, strict=True)])
    ndcgs = judge(rankings, grades)["nDCG@10"]
    ndcgs = ndcgs[~np.isnan(ndcgs)]
    return Point(
        value,
        ndcg=float(ndcgs.mean()),
        ndcgs=ndcgs,
        precision=float(shown.mean()) if len(shown) else 0.0,
        empty=float(np.mean([not ranking for ranking in rankings])),
    )
