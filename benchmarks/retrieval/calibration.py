# SPDX-License-Identifier: Apache-2.0
"""The refinement's weights and thresholds by nDCG@10 on queries whose answers are known.

First the weights without filters. Their curves are flat around the best, so it is not the best by chance that is taken,
but of those that cannot be told from it the one that divides most evenly: the one-standard-error rule (Breiman et al.,
"Classification and Regression Trees", 1984) with the difference from the best of each query.

Then the semantic threshold with these weights, the strictest that costs little for candidates found by words and looks
and for those found by words alone: a filter never helps nDCG, which forgives what stands at the end, but it is what
keeps wrong pictures out. The visual threshold is shown and not chosen: in a gallery so dense ten pictures of a close
look are always found, so a strict one costs nothing here, and would leave nothing of what the web has. What it keeps:
`visual_threshold`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from benchmarks.retrieval.metrics import judge
from benchmarks.retrieval.systems import NO_FILTER, Ranking
from search_gateway.ranking.rerank import RefinementLimits

WEIGHTS = tuple(round(0.1 * step, 1) for step in range(11))
VISUAL_SCORES = (NO_FILTER, *(round(0.1 * step, 1) for step in range(10)))
SEMANTIC_SCORES = tuple(round(0.1 * step, 1) for step in range(11))
TOLERANCE = 0.005  # of nDCG@10: what keeping wrong pictures out may cost

BY_WORDS = "min_semantic_score, candidates by words alone"  # the name of its curve

# All queries, reranked with these limits.
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
    curves: dict[str, list[Point]]  # setting (and BY_WORDS) -> what its values give, the settings before it as chosen


def calibrate(
    rank_all: RankAll,
    rank_by_words: RankAll,
    grades: Sequence[npt.NDArray[np.int64]],
    start: RefinementLimits,
    *,
    progress: bool = True,
) -> Calibrated:
    """Choose neighbour_weight, visual_weight and min_semantic_score, in this order; the rest of `start` stays.

    Args:
        rank_by_words: of candidates that were found by words alone, as a web search finds them.
    """
    limits = replace(start, min_visual_score=NO_FILTER, min_semantic_score=0.0)
    curves: dict[str, list[Point]] = {}

    def curve_of(name: str, values: Sequence[float], rank: RankAll, what: str) -> list[Point]:
        found = []
        for value in tqdm(values, desc=what, unit="value", disable=not progress):
            found.append(point_of(value, rank(replace(limits, **{name: value})), grades))  # type: ignore[arg-type]
        curves[what] = found
        return found

    for name in ("neighbour_weight", "visual_weight"):
        chosen = most_even(curve_of(name, WEIGHTS, rank_all, name))
        limits = replace(limits, **{name: chosen.value})  # type: ignore[arg-type]
    curve_of("min_visual_score", VISUAL_SCORES, rank_all, "min_visual_score")
    # One limit for both kinds of providers: the milder one.
    name = "min_semantic_score"
    both = [curve_of(name, SEMANTIC_SCORES, rank_all, name), curve_of(name, SEMANTIC_SCORES, rank_by_words, BY_WORDS)]
    least = min(strictest(curve).value for curve in both)
    limits = replace(limits, min_semantic_score=least, min_visual_score=start.min_visual_score)
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
