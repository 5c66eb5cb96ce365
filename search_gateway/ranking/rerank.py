# SPDX-License-Identifier: Apache-2.0
"""Keeps the candidates that look like the photo and agree with the words, best first, and gives reasons."""

from __future__ import annotations

import enum
import math
import textwrap
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from captioner.query import Query
from search_gateway.providers.base import Candidate
from search_gateway.ranking.duplicates import Picture, is_same_picture, normalised_url
from search_gateway.ranking.expected_agreement import ExpectedAgreement
from search_gateway.ranking.query_hypotheses import QueryHypotheses
from search_gateway.ranking.word_agreement import Synonyms, WordWeights

_TITLE_CHARACTERS = 60  # of a title in a reason
_MAX_DIGITS = 9  # of a score in a reason: a cosine of float32 embeddings has no more


class Verdict(enum.Enum):
    """What became of a candidate."""

    KEPT = "kept"
    DROPPED_VISUAL = "dropped_visual"
    DROPPED_SEMANTIC = "dropped_semantic"
    DROPPED_UNFETCHABLE = "dropped_unfetchable"
    DROPPED_UNDECODABLE = "dropped_undecodable"
    DROPPED_OVER_LIMIT = "dropped_over_limit"
    DROPPED_DUPLICATE = "dropped_duplicate"


@dataclass(frozen=True, kw_only=True)
class RefinementLimits(WordWeights):
    """Thresholds and weights; those of single words are in `WordWeights`."""

    min_visual_score: float  # cosine, -1 to 1
    min_semantic_score: float  # agreement with the query hypotheses, 0 to 1
    max_results: int
    visual_weight: float  # of the visual score in the final score; the semantic score has the rest
    neighbour_weight: float = 0.5  # of the nearest neighbours' names; the caption has the rest
    provider_max_share: float = 1.0  # of `max_results`, if the results come from several providers
    duplicate_cosine: float = 0.96  # minimum cosine of two copies of one picture; see duplicates.py
    duplicate_difference: float = 10.0  # maximum difference of their colour grids, of 255


@dataclass(frozen=True)
class InspectedCandidate:
    """A candidate with the embedding of its thumbnail, or with the verdict that explains why it has none."""

    candidate: Candidate
    embedding: npt.NDArray[np.float32] | None
    thumbnail: bytes | None = None
    failure: Verdict | None = None
    colour_grid: npt.NDArray[np.uint8] | None = None  # see duplicates.py; None if the pixels were not decoded


@dataclass(frozen=True)
class ScoredResult:
    """A candidate with its scores, its verdict and the reason, which clients show."""

    candidate: Candidate
    thumbnail: bytes | None
    visual_score: float
    semantic_score: float
    score: float
    verdict: Verdict
    reason: str
    duplicates: tuple[Candidate, ...] = ()  # the same picture elsewhere, best first


@dataclass(frozen=True)
class RerankResult:
    """All candidates of a search, with their verdicts."""

    kept: list[ScoredResult]  # best first
    dropped: list[ScoredResult]  # best first
    counts: Counter[Verdict]


def rerank(
    photo: npt.NDArray[np.float32],
    query: Query,
    hypotheses: QueryHypotheses,
    seen: Sequence[InspectedCandidate],
    limits: RefinementLimits,
    synonyms: Synonyms,
) -> RerankResult:
    """Score and filter candidates, merge duplicates, and sort.

    Args:
        photo: the photo's embedding, [D], L2-normalised as those of the candidates.
        query: what was searched for.
        hypotheses: what titles must agree with; `QueryHypotheses.certain(query)` if the caller gave the query.
        seen: the candidates with their embeddings.
        limits: thresholds and weights.
        synonyms: words that agree with each other.
    """
    expected = ExpectedAgreement(query, hypotheses, synonyms, limits)
    pairs = [(_judge(photo, expected, one, limits), one) for one in seen]
    # The sort is stable: equal candidates stay in the provider's order of relevance.
    pairs.sort(key=lambda pair: -pair[0].score)
    judged = _with_duplicates(pairs, limits)
    kept = [one for one in judged if one.verdict is Verdict.KEPT]
    kept, over = _within_limits(kept, limits)
    rejected = [one for one in judged if one.verdict is not Verdict.KEPT]
    # Candidates without an embedding have no score and come last.
    unseen = (Verdict.DROPPED_UNFETCHABLE, Verdict.DROPPED_UNDECODABLE)
    dropped = sorted(over + rejected, key=lambda one: (one.verdict in unseen, -one.score))
    return RerankResult(kept, dropped, Counter(one.verdict for one in kept + dropped))


def _within_limits(
    kept: Sequence[ScoredResult], limits: RefinementLimits
) -> tuple[list[ScoredResult], list[ScoredResult]]:
    """Return the best `max_results` and the others; each of several providers has its maximum share at most.

    Places that the other providers cannot fill go to the best of those that were over their share.
    """
    cap = len(kept)
    if len({one.candidate.provider for one in kept}) > 1:
        cap = max(1, math.floor(limits.provider_max_share * limits.max_results))
    taken: Counter[str] = Counter()
    chosen: list[int] = []
    over_share: list[int] = []
    for place, one in enumerate(kept):
        taken[one.candidate.provider] += 1
        (chosen if taken[one.candidate.provider] <= cap else over_share).append(place)
    places = set((chosen[: limits.max_results] + over_share)[: limits.max_results])
    beyond = f"beyond max_results ({limits.max_results})"
    others = [
        replace(
            one,
            verdict=Verdict.DROPPED_OVER_LIMIT,
            reason=f"{beyond}: {one.candidate.provider} has its share, {cap}" if place in over_share else beyond,
        )
        for place, one in enumerate(kept)
        if place not in places
    ]
    return [one for place, one in enumerate(kept) if place in places], others


def _judge(
    photo: npt.NDArray[np.float32], agreement: ExpectedAgreement, seen: InspectedCandidate, limits: RefinementLimits
) -> ScoredResult:
    words = agreement.of(seen.candidate.title)
    if seen.embedding is None:
        verdict = seen.failure or Verdict.DROPPED_UNFETCHABLE
        what = "fetched" if verdict is Verdict.DROPPED_UNFETCHABLE else "read"
        return ScoredResult(seen.candidate, None, 0.0, words.score, 0.0, verdict, f"its thumbnail could not be {what}")
    visual = float(np.clip(photo @ seen.embedding, -1.0, 1.0))
    score = limits.visual_weight * visual + (1 - limits.visual_weight) * words.score
    if visual < limits.min_visual_score:
        verdict = Verdict.DROPPED_VISUAL
        reason = f"looks too different: {_compared(visual, limits.min_visual_score)}"
    elif words.score < limits.min_semantic_score:
        verdict = Verdict.DROPPED_SEMANTIC
        reason = f"its title {words.wording}: {_compared(words.score, limits.min_semantic_score)}"
    else:
        verdict = Verdict.KEPT
        reason = f"looks like the photo ({visual:.2f}) and its title {words.wording}"
    return ScoredResult(seen.candidate, seen.thumbnail, visual, words.score, score, verdict, reason)


def _compared(score: float, minimum: float) -> str:
    """Return a score and its minimum with two digits, or with as many more as it takes to show their difference."""
    texts = ((f"{score:.{digits}f}", f"{minimum:.{digits}f}") for digits in range(2, _MAX_DIGITS + 1))
    shown, limit = next((pair for pair in texts if float(pair[0]) != float(pair[1])), (f"{score!r}", f"{minimum!r}"))
    return f"{shown}, the minimum is {limit}"


def _with_duplicates(
    pairs: Sequence[tuple[ScoredResult, InspectedCandidate]], limits: RefinementLimits
) -> list[ScoredResult]:
    """Mark the results that show the same picture as a kept result; the order stays.

    A candidate that failed a filter can be a duplicate too: a reverse search should report every place of a picture,
    whatever its title there. Duplicates of duplicates do not count, since small differences could add up.
    """
    judged = [one for one, _ in pairs]
    pictures = [_picture(seen) for _, seen in pairs]
    copies: defaultdict[int, list[int]] = defaultdict(list)
    originals: list[int] = []
    for place in sorted(range(len(pairs)), key=lambda place: judged[place].verdict is not Verdict.KEPT):
        if pictures[place].embedding is None:
            continue  # nothing can be compared
        original = next(
            (
                other
                for other in originals
                if is_same_picture(
                    pictures[place],
                    pictures[other],
                    min_cosine=limits.duplicate_cosine,
                    max_difference=limits.duplicate_difference,
                )
            ),
            None,
        )
        if original is not None:
            copies[original].append(place)
        elif judged[place].verdict is Verdict.KEPT:
            originals.append(place)
    for original, places in copies.items():
        stands_for = tuple(judged[place].candidate for place in sorted(places))
        sources = ", ".join(dict.fromkeys(candidate.source for candidate in stands_for if candidate.source))
        times = "once more" if len(places) == 1 else f"{len(places)} more times"
        reason = f"{judged[original].reason}; the same picture was found {times}" + (f" ({sources})" if sources else "")
        judged[original] = replace(judged[original], duplicates=stands_for, reason=reason)
        for place in places:
            title = textwrap.shorten(judged[original].candidate.title, _TITLE_CHARACTERS, placeholder="…")
            judged[place] = replace(
                judged[place],
                verdict=Verdict.DROPPED_DUPLICATE,
                reason=f"the same picture as {title!r}, a better one",
            )
    return judged


def _picture(seen: InspectedCandidate) -> Picture:
    return Picture(
        image_url=normalised_url(seen.candidate.image_url),
        page_url=normalised_url(seen.candidate.url),
        thumbnail=seen.thumbnail,
        embedding=seen.embedding,
        colour_grid=seen.colour_grid,
    )
