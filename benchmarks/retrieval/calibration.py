# SPDX-License-Identifier: Apache-2.0
"""Chooses the refinement's weights and semantic threshold by nDCG@10 on queries with known relevance.

The weights come first, without filters. The neighbours' weight has a peak, which is taken. The curve of the visual
weight is flat around its best value, so the choice follows the one-standard-error rule (Breiman et al.,
"Classification and Regression Trees", 1984): among the values that are within a standard error of the best, it takes
the one nearest to a half. The standard error is that of the differences between queries' scores.

The semantic threshold follows, with these weights: the strictest value that costs little nDCG, both for candidates
found by words and looks and for those found by words alone. A filter cannot raise nDCG, which hardly counts the last
results, but it keeps wrong pictures out. It stays below what the product type alone is worth, so that the right one in
another colour is shown: a user sees it as a result, whatever the grades say. The visual threshold is shown but not
chosen: this gallery always has ten pictures that look similar, so a strict threshold costs nothing here but would drop
nearly everything found on the web. `visual_threshold` measures what it keeps.
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
from search_gateway.ranking.word_agreement import WordWeights

WEIGHTS = tuple(round(0.1 * step, 1) for step in range(11))
VISUAL_SCORES = (NO_FILTER, *(round(0.1 * step, 1) for step in range(10)))
SEMANTIC_SCORES = tuple(round(0.1 * step, 1) for step in range(11))
TOLERANCE = 0.005  # of nDCG@10: what the semantic threshold may cost

BY_WORDS = "min_semantic_score, candidates by words alone"  # name of a curve

# Reranks the candidates of all queries with these limits.
RankAll = Callable[[RefinementLimits], list[Ranking]]


@dataclass(frozen=True)
class Point:
    """The scores with one value of a setting."""

    value: float  # of the setting
    ndcg: float  # nDCG@10, mean over queries
    precision: float  # share of results with the query's articleType
    empty: float  # share of queries without a result
    ndcgs: npt.NDArray[np.float64] = field(compare=False, repr=False)  # float64 [queries], nDCG@10 of each query


@dataclass(frozen=True)
class Calibrated:
    """The result of a calibration.

    Attributes:
        limits: the chosen ones.
        curves: setting (and `BY_WORDS`) -> scores of its values, with the earlier settings as chosen.
    """

    limits: RefinementLimits
    curves: dict[str, list[Point]]


def calibrate(
    rank_all: RankAll,
    rank_by_words: RankAll,
    grades: Sequence[npt.NDArray[np.int64]],
    start: RefinementLimits,
    *,
    below: float = WordWeights().product_type_weight,
    progress: bool = True,
) -> Calibrated:
    """Choose neighbour_weight, visual_weight and min_semantic_score, in this order.

    Args:
        rank_all: reranks candidates that were found by words and looks.
        rank_by_words: reranks candidates that were found by words alone, as by a web search.
        grades: of each query int64 [products].
        start: limits whose other fields are kept.
        below: what the right product in another colour is worth; min_semantic_score stays below it.
        progress: whether to show progress bars.
    """
    limits = replace(start, min_visual_score=NO_FILTER, min_semantic_score=0.0)
    curves: dict[str, list[Point]] = {}

    def curve_of(name: str, values: Sequence[float], rank: RankAll, what: str) -> list[Point]:
        found = []
        for value in tqdm(values, desc=what, unit="value", disable=not progress):
            found.append(point_of(value, rank(replace(limits, **{name: value})), grades))  # type: ignore[arg-type]
        curves[what] = found
        return found

    for name, choose in (("neighbour_weight", best), ("visual_weight", most_even)):
        chosen = choose(curve_of(name, WEIGHTS, rank_all, name))
        limits = replace(limits, **{name: chosen.value})  # type: ignore[arg-type]
    curve_of("min_visual_score", VISUAL_SCORES, rank_all, "min_visual_score")
    # Both kinds of providers have the same limit: the lower one.
    name = "min_semantic_score"
    both = [curve_of(name, SEMANTIC_SCORES, rank_all, name), curve_of(name, SEMANTIC_SCORES, rank_by_words, BY_WORDS)]
    least = min(strictest(curve, below).value for curve in both)
    limits = replace(limits, min_semantic_score=least, min_visual_score=start.min_visual_score)
    return Calibrated(limits, curves)


def best(curve: Sequence[Point]) -> Point:
    """Return the point with the highest nDCG@10, the first of equals."""
    return max(curve, key=lambda point: point.ndcg)


def most_even(curve: Sequence[Point]) -> Point:
    """Return the point nearest to 0.5 of those within a standard error of the best; the first of equals."""
    highest = best(curve)

    def is_near(point: Point) -> bool:
        differences = highest.ndcgs - point.ndcgs
        return bool(differences.mean() <= differences.std() / np.sqrt(len(differences)))

    return min((point for point in curve if is_near(point)), key=lambda point: round(abs(point.value - 0.5), 6))


def strictest(curve: Sequence[Point], below: float) -> Point:
    """Return the highest value under `below` whose nDCG@10 is within `TOLERANCE` of the best of these."""
    points = [point for point in curve if point.value < below]
    least = best(points).ndcg - TOLERANCE
    return max((point for point in points if point.ndcg >= least), key=lambda point: point.value)


def point_of(value: float, rankings: Sequence[Ranking], grades: Sequence[npt.NDArray[np.int64]]) -> Point:
    """Score the rankings of all queries; queries without a relevant product do not count for nDCG."""
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
