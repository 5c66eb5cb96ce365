# SPDX-License-Identifier: Apache-2.0
"""Candidates -> results: those that look like the photo and agree with the words, best first, each with its reason.

Pure numpy; knows nothing about where candidates come from or how thumbnails are fetched.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from search_gateway.candidates import Candidate
from search_gateway.word_agreement import Synonyms, agreement


class Verdict(enum.Enum):
    KEPT = "kept"
    DROPPED_VISUAL = "dropped_visual"
    DROPPED_SEMANTIC = "dropped_semantic"
    DROPPED_UNFETCHABLE = "dropped_unfetchable"
    DROPPED_UNDECODABLE = "dropped_undecodable"
    DROPPED_OVER_LIMIT = "dropped_over_limit"


@dataclass(frozen=True, kw_only=True)
class RefinementLimits:
    min_visual_score: float  # cosine, -1 to 1
    min_semantic_score: float  # share of the query's words, 0 to 1
    max_results: int
    visual_weight: float  # of the visual score in the final one; the semantic score has the rest


@dataclass(frozen=True)
class Seen:
    """A candidate and what its thumbnail gave: an embedding, or the verdict that says why there is none."""

    candidate: Candidate
    embedding: npt.NDArray[np.float32] | None
    thumbnail: bytes | None = None
    failure: Verdict | None = None


@dataclass(frozen=True)
class Judged:
    candidate: Candidate
    thumbnail: bytes | None
    visual_score: float
    semantic_score: float
    score: float
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class Refined:
    kept: list[Judged]  # best first
    dropped: list[Judged]  # best first
    counts: Counter[Verdict]


def refine(
    photo: npt.NDArray[np.float32], query: str, seen: Sequence[Seen], limits: RefinementLimits, synonyms: Synonyms
) -> Refined:
    """Score, filter and order.

    Args:
        photo: the photo's embedding, [D], L2-normalised as those of the candidates.
    """
    judged = [_judge(photo, query, one, limits, synonyms) for one in seen]
    # Python's sort is stable: among equals the provider's order, its own idea of relevance, stays.
    judged.sort(key=lambda one: -one.score)
    kept = [one for one in judged if one.verdict is Verdict.KEPT]
    over = [
        _with_verdict(one, Verdict.DROPPED_OVER_LIMIT, f"{limits.max_results} better results were found")
        for one in kept[limits.max_results :]
    ]
    kept = kept[: limits.max_results]
    rejected = [one for one in judged if one.verdict is not Verdict.KEPT]
    # What nobody could look at has no score: it is never nearer than what was seen.
    unseen = (Verdict.DROPPED_UNFETCHABLE, Verdict.DROPPED_UNDECODABLE)
    dropped = sorted(over + rejected, key=lambda one: (one.verdict in unseen, -one.score))
    return Refined(kept, dropped, Counter(one.verdict for one in kept + dropped))


def _judge(
    photo: npt.NDArray[np.float32], query: str, seen: Seen, limits: RefinementLimits, synonyms: Synonyms
) -> Judged:
    semantic, missing = agreement(query, seen.candidate.title, synonyms)
    if seen.embedding is None:
        verdict = seen.failure or Verdict.DROPPED_UNFETCHABLE
        what = "fetched" if verdict is Verdict.DROPPED_UNFETCHABLE else "read"
        return Judged(seen.candidate, None, 0.0, semantic, 0.0, verdict, f"its thumbnail could not be {what}")
    visual = float(np.clip(photo @ seen.embedding, -1.0, 1.0))
    score = limits.visual_weight * visual + (1 - limits.visual_weight) * semantic
    words = "has every word" if not missing else f"lacks {' and '.join(repr(word) for word in missing)}"
    if visual < limits.min_visual_score:
        verdict = Verdict.DROPPED_VISUAL
        reason = f"looks too different: {visual:.2f}, the least is {limits.min_visual_score:.2f}"
    elif semantic < limits.min_semantic_score:
        verdict = Verdict.DROPPED_SEMANTIC
        reason = f"its title {words}: {semantic:.2f}, the least is {limits.min_semantic_score:.2f}"
    else:
        verdict = Verdict.KEPT
        reason = f"looks like the photo ({visual:.2f}) and its title {words}"
    return Judged(seen.candidate, seen.thumbnail, visual, semantic, score, verdict, reason)


def _with_verdict(judged: Judged, verdict: Verdict, reason: str) -> Judged:
    return Judged(
        judged.candidate, judged.thumbnail, judged.visual_score, judged.semantic_score, judged.score, verdict, reason
    )
