# SPDX-License-Identifier: Apache-2.0
"""Candidates -> results: those that look like the photo and agree with the words, best first, each with its reason.

Pure numpy; knows nothing about where candidates come from or how thumbnails are fetched.
"""

from __future__ import annotations

import enum
import textwrap
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from search_gateway.providers.base import Candidate
from search_gateway.ranking.duplicates import Picture, is_same_picture, normalised_url
from search_gateway.ranking.expected_agreement import ExpectedAgreement
from search_gateway.ranking.query_hypotheses import Readings
from search_gateway.ranking.word_agreement import Synonyms, WordWeights

_TITLE_CHARACTERS = 60  # of a title in a reason


class Verdict(enum.Enum):
    KEPT = "kept"
    DROPPED_VISUAL = "dropped_visual"
    DROPPED_SEMANTIC = "dropped_semantic"
    DROPPED_UNFETCHABLE = "dropped_unfetchable"
    DROPPED_UNDECODABLE = "dropped_undecodable"
    DROPPED_OVER_LIMIT = "dropped_over_limit"
    DROPPED_DUPLICATE = "dropped_duplicate"


@dataclass(frozen=True, kw_only=True)
class RefinementLimits(WordWeights):
    """What is kept and what counts how much; `WordWeights` says what the words count."""

    min_visual_score: float  # cosine, -1 to 1
    min_semantic_score: float  # agreement with what the photo may be called, 0 to 1
    max_results: int
    visual_weight: float  # of the visual score in the final one; the semantic score has the rest
    lookalike_weight: float = 0.5  # of the lookalikes' names in what the photo may be called; the caption has the rest
    duplicate_cosine: float = 0.96  # what one picture has at least in common with its copies; see duplicates.py
    duplicate_difference: float = 10.0  # of their small copies, of 255


@dataclass(frozen=True)
class Seen:
    """A candidate and what its thumbnail gave: an embedding, or the verdict that says why there is none."""

    candidate: Candidate
    embedding: npt.NDArray[np.float32] | None
    thumbnail: bytes | None = None
    failure: Verdict | None = None
    small_copy: npt.NDArray[np.uint8] | None = None  # as duplicates.py makes it; None where nobody looked at the pixels
    picture_words: str = ""  # the last words of the thumbnail's own caption; empty where nobody asked for it


@dataclass(frozen=True)
class Judged:
    candidate: Candidate
    thumbnail: bytes | None
    visual_score: float
    semantic_score: float
    score: float
    verdict: Verdict
    reason: str
    is_open: bool = False  # its title leaves a word open: the picture's own caption might settle it
    picture_words: str = ""
    duplicates: tuple[Candidate, ...] = ()  # that this one stands for, best first


@dataclass(frozen=True)
class Refined:
    kept: list[Judged]  # best first
    dropped: list[Judged]  # best first
    counts: Counter[Verdict]


def refine(
    photo: npt.NDArray[np.float32],
    query: str,
    readings: Readings,
    seen: Sequence[Seen],
    limits: RefinementLimits,
    synonyms: Synonyms,
) -> Refined:
    """Score, filter, merge what is one picture, and order.

    Args:
        photo: the photo's embedding, [D], L2-normalised as those of the candidates.
        query: what was searched for.
        readings: what the photo may be called, which titles have to agree with; `Readings.certain(query)` where the
            query was given.
    """
    expected = ExpectedAgreement(query, readings, synonyms, limits)
    pairs = [(_judge(photo, expected, one, limits), one) for one in seen]
    # Python's sort is stable: among equals the provider's order, its own idea of relevance, stays.
    pairs.sort(key=lambda pair: -pair[0].score)
    judged = _with_duplicates(pairs, limits)
    kept = [one for one in judged if one.verdict is Verdict.KEPT]
    over = [
        replace(one, verdict=Verdict.DROPPED_OVER_LIMIT, reason=f"{limits.max_results} better results were found")
        for one in kept[limits.max_results :]
    ]
    kept = kept[: limits.max_results]
    rejected = [one for one in judged if one.verdict is not Verdict.KEPT]
    # What nobody could look at has no score: it is never nearer than what was seen.
    unseen = (Verdict.DROPPED_UNFETCHABLE, Verdict.DROPPED_UNDECODABLE)
    dropped = sorted(over + rejected, key=lambda one: (one.verdict in unseen, -one.score))
    return Refined(kept, dropped, Counter(one.verdict for one in kept + dropped))


def _judge(
    photo: npt.NDArray[np.float32], agreement: ExpectedAgreement, seen: Seen, limits: RefinementLimits
) -> Judged:
    words = agreement.of(seen.candidate.title, seen.picture_words)
    if seen.embedding is None:
        verdict = seen.failure or Verdict.DROPPED_UNFETCHABLE
        what = "fetched" if verdict is Verdict.DROPPED_UNFETCHABLE else "read"
        return Judged(seen.candidate, None, 0.0, words.score, 0.0, verdict, f"its thumbnail could not be {what}")
    visual = float(np.clip(photo @ seen.embedding, -1.0, 1.0))
    score = limits.visual_weight * visual + (1 - limits.visual_weight) * words.score
    picture = f"; its picture reads as {seen.picture_words!r}" if seen.picture_words else ""
    if visual < limits.min_visual_score:
        verdict = Verdict.DROPPED_VISUAL
        reason = f"looks too different: {visual:.2f}, the least is {limits.min_visual_score:.2f}"
    elif words.score < limits.min_semantic_score:
        verdict = Verdict.DROPPED_SEMANTIC
        reason = f"its title {words.wording}: {words.score:.2f}, the least is {limits.min_semantic_score:.2f}{picture}"
    else:
        verdict = Verdict.KEPT
        reason = f"looks like the photo ({visual:.2f}) and its title {words.wording}{picture}"
    return Judged(
        seen.candidate,
        seen.thumbnail,
        visual,
        words.score,
        score,
        verdict,
        reason,
        is_open=words.is_open,
        picture_words=seen.picture_words,
    )


def _with_duplicates(pairs: Sequence[tuple[Judged, Seen]], limits: RefinementLimits) -> list[Judged]:
    """In the same order, with a verdict and a reason for what is the same picture as something that is kept.

    A picture that failed a filter is a copy as well: where else a picture is found, whatever the title there, is what
    a reverse search is for. Copies of copies are not followed, or small differences could add up.
    """
    judged = [one for one, _ in pairs]
    pictures = [_picture(seen) for _, seen in pairs]
    copies: defaultdict[int, list[int]] = defaultdict(list)
    originals: list[int] = []
    for place in sorted(range(len(pairs)), key=lambda place: judged[place].verdict is not Verdict.KEPT):
        if pictures[place].embedding is None:
            continue  # nobody has seen it
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


def _picture(seen: Seen) -> Picture:
    return Picture(
        image_url=normalised_url(seen.candidate.image_url),
        page_url=normalised_url(seen.candidate.url),
        thumbnail=seen.thumbnail,
        embedding=seen.embedding,
        small_copy=seen.small_copy,
    )
