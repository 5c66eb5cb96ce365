# SPDX-License-Identifier: Apache-2.0
"""The refinement's weights and thresholds by nDCG@10 on queries whose answers are known. Knows no file and no model.

First the weights without filters, then the semantic threshold with them: the strictest that costs little, since a
filter never helps nDCG, which forgives what stands at the end, but it is what keeps wrong pictures out. The visual
threshold is shown and not chosen: in a gallery so dense ten pictures of a close look are always found, so a strict one
costs nothing here, and would leave nothing of what the web has. What it keeps: `visual_threshold`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from benchmarks.retrieval_metrics import judge
from benchmarks.retrieval_systems import NO_FILTER, Ranking
from search_gateway.refinement import RefinementLimits

WEIGHTS = tuple(round(0.1 * step, 1) for step in range(11))
VISUAL_SCORES = (NO_FILTER, *(round(0.1 * step, 1) for step in range(10)))
SEMANTIC_SCORES = tuple(round(0.1 * step, 1) for step in range(11))
TOLERANCE = 0.01  # of nDCG@10: what keeping wrong pictures out may cost

# All queries, refined with these limits.
RankAll = Callable[[RefinementLimits], list[Ranking]]


@dataclass(frozen=True)
class Point:
    """What one value of a setting gives."""

    value: float
    ndcg: float  # nDCG@10
    precision: float  # of what was answered: share of results of the same articleType
    empty: float  # share of queries without a result


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
        ("lookalike_weight", WEIGHTS, best),
        ("visual_weight", WEIGHTS, best),
        ("min_visual_score", VISUAL_SCORES, None),
        ("min_semantic_score", SEMANTIC_SCORES, strictest),
    ):
        curve = []
        for value in tqdm(values, desc=name, unit="value", disable=not progress):
            curve.append(_point(value, rank_all(replace(limits, **{name: value})), grades))  # type: ignore[arg-type]
        curves[name] = curve
        if choose is not None:
            limits = replace(limits, **{name: choose(curve).value})  # type: ignore[arg-type]
    limits = replace(limits, min_visual_score=start.min_visual_score)
    return Calibrated(limits, curves)


def best(curve: Sequence[Point]) -> Point:
    """The highest nDCG@10; of equals the first."""
    return max(curve, key=lambda point: point.ndcg)


def strictest(curve: Sequence[Point]) -> Point:
    """The highest value whose nDCG@10 is the best but for TOLERANCE."""
    least = best(curve).ndcg - TOLERANCE
    return max((point for point in curve if point.ndcg >= least), key=lambda point: point.value)


def _point(value: float, rankings: Sequence[Ranking], grades: Sequence[npt.NDArray[np.int64]]) -> Point:
    shown = np.concatenate([every[ranking] > 0 for every, ranking in zip(grades, rankings, strict=True)])
    return Point(
        value,
        ndcg=float(np.nanmean(judge(rankings, grades)["nDCG@10"])),
        precision=float(shown.mean()) if len(shown) else 0.0,
        empty=float(np.mean([not ranking for ranking in rankings])),
    )
