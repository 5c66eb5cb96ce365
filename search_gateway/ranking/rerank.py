# SPDX-License-Identifier: Apache-2.0
"""Keeps the candidates that look like the photo and agree with the words, best first, and gives reasons."""

from __future__ import annotations

import enum
import itertools
import math
import textwrap
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from captioner.query import Query
from search_gateway.providers.base import Candidate
from search_gateway.ranking.duplicates import Picture, is_same_picture, normalised_url
from search_gateway.ranking.expected_agreement import ExpectedAgreement
from search_gateway.ranking.findings import Finding, title_wording
from search_gateway.ranking.product_reading import (
    PICTURE,
    SIMILAR_TITLES,
    Grades,
    ProductReading,
    ReadingWeights,
    borrowed,
    cosines,
    excluded_in,
)
from search_gateway.ranking.query_hypotheses import QueryHypotheses
from search_gateway.ranking.word_agreement import Synonyms

_TITLE_CHARACTERS = 60  # of a title in a reason
_SILENCE = (PICTURE, SIMILAR_TITLES)
_ROUNDING = 1e-5  # of cosines that are computed together, and of shares
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
class RefinementLimits(ReadingWeights):
    """Thresholds and weights; those of words and readings are in the bases."""

    min_visual_score: float  # cosine, -1 to 1
    min_semantic_score: float  # agreement with the query hypotheses, 0 to 1
    max_results: int
    visual_weight: float  # of the visual score in the final score; the semantic score has the rest
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
    contributions: tuple[tuple[str, float], ...] = ()  # what adds up to the score, by name; only if asked for
    findings: tuple[Finding, ...] = ()  # what the reason says, for programs


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
    reading: ProductReading | None = None,
    *,
    excluded: Sequence[str] = (),
    explain: bool = True,
) -> RerankResult:
    """Score and filter candidates, merge duplicates, and sort.

    Args:
        photo: the photo's embedding, [D], L2-normalised as those of the candidates.
        query: what was searched for.
        hypotheses: what titles must agree with; `QueryHypotheses.certain(query)` if the caller gave the query.
        seen: the candidates with their embeddings.
        limits: thresholds and weights.
        synonyms: words that agree with each other.
        reading: what the photo shows, for titles that are read as a whole; None: they are compared word by word.
        excluded: words that no title of a result may have.
        explain: whether dropped candidates but the best have a reason, and all candidates their contributions.
    """
    agreement = ExpectedAgreement(query, hypotheses, synonyms, limits)
    seen, embeddings, has_embedding = _comparable(seen, len(photo))
    titles = [one.candidate.title for one in seen]
    grades = (
        agreement.grades(titles) if reading is None else reading.grades(titles, synonyms, embeddings, has_embedding)
    )
    grades = borrowed(grades, embeddings, has_embedding)
    visual = cosines(photo, embeddings) if reading is None else reading.looks(photo, embeddings)
    scores = limits.visual_weight * visual + (1 - limits.visual_weight) * grades.scores
    banned = [excluded_in(title, excluded, synonyms) for title in titles]
    least = -1.0 if reading is not None and reading.another_type else limits.min_visual_score
    verdicts = _filtered(seen, has_embedding, banned, visual, grades, replace(limits, min_visual_score=least))
    ranked = np.where(has_embedding, scores, 0.0)
    # The sort is stable: equal candidates stay in the provider's order of relevance.
    order: list[int] = np.argsort(-ranked, kind="stable").tolist()
    copies = _copies([seen[place] for place in order], [verdicts[place] for place in order], embeddings[order], limits)
    # A copy with an excluded title is not shown beside the result either.
    originals = {
        order[one]: [order[other] for other in others if not banned[order[other]]] for one, others in copies.items()
    }
    for place in itertools.chain.from_iterable(originals.values()):
        verdicts[place] = Verdict.DROPPED_DUPLICATE
    found = [place for place in order if verdicts[place] is Verdict.KEPT]
    chosen, cap, over_share = _within_limits([seen[place].candidate.provider for place in found], limits)
    for number in set(range(len(found))).difference(chosen):
        verdicts[found[number]] = Verdict.DROPPED_OVER_LIMIT
    judged = _Judged(
        seen=seen,
        has_embedding=has_embedding.tolist(),
        visual=visual.tolist(),
        semantic=grades.scores.tolist(),
        scores=ranked.tolist(),
        grades=grades,
        banned=banned,
        verdicts=verdicts,
        originals=originals,
        cap=cap,
        over_share={found[number] for number in over_share},
        limits=limits,
        agreement=agreement,
        reading=reading,
    )
    # Candidates without an embedding have no score and come last.
    rest = [place for place in order if verdicts[place] is not Verdict.KEPT]
    rest.sort(key=lambda place: (not has_embedding[place], -ranked[place]))
    kept = [judged.result(found[number], explain=explain) for number in chosen]
    dropped = [
        judged.result(place, explain=explain, has_reason=explain or number == 0) for number, place in enumerate(rest)
    ]
    return RerankResult(kept, dropped, Counter(verdicts))


def _comparable(
    seen: Sequence[InspectedCandidate], width: int
) -> tuple[Sequence[InspectedCandidate], npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Return the candidates, their embeddings, float32 [n, width], and which of them have one that is finite."""
    has_embedding = np.array([one.embedding is not None for one in seen], bool)
    embeddings = np.zeros((len(seen), width), np.float32)
    if has_embedding.any():
        embeddings[has_embedding] = np.array([one.embedding for one in seen if one.embedding is not None])
    is_finite = np.isfinite(embeddings).all(axis=1)
    if not is_finite.all():  # other numbers would pass every threshold
        has_embedding &= is_finite
        embeddings[~is_finite] = 0
        seen = [
            one if good else replace(one, embedding=None, failure=Verdict.DROPPED_UNDECODABLE)
            for one, good in zip(seen, is_finite, strict=True)
        ]
    return seen, embeddings, has_embedding


def _filtered(
    seen: Sequence[InspectedCandidate],
    has_embedding: npt.NDArray[np.bool_],
    banned: Sequence[str],
    visual: npt.NDArray[np.float64],
    grades: Grades,
    limits: RefinementLimits,
) -> list[Verdict]:
    """Return what the thresholds say of each candidate, before duplicates and the number of results."""
    looks_too_different = (visual < limits.min_visual_score).tolist()
    says_too_little = (grades.says & (grades.scores < limits.min_semantic_score)).tolist()
    verdicts = []
    for place, (one, can_be_compared) in enumerate(zip(seen, has_embedding.tolist(), strict=True)):
        if not can_be_compared:
            verdict = one.failure or Verdict.DROPPED_UNFETCHABLE
        elif banned[place]:
            verdict = Verdict.DROPPED_SEMANTIC
        elif looks_too_different[place]:
            verdict = Verdict.DROPPED_VISUAL
        elif says_too_little[place]:
            verdict = Verdict.DROPPED_SEMANTIC
        else:
            verdict = Verdict.KEPT
        verdicts.append(verdict)
    return verdicts


@dataclass(frozen=True, kw_only=True, eq=False)
class _Judged:
    """n candidates with all that their results and reasons are made of.

    Attributes:
        has_embedding, visual, semantic, scores: of each. Lists: one number of an array takes longer.
        grades: the rest of them.
        banned: the excluded word in each title, or "".
        verdicts: the final ones.
        originals: place of a result -> places of its duplicates, best first.
        cap: maximum number of results of a provider.
        over_share: places of candidates beyond it.
    """

    seen: Sequence[InspectedCandidate]
    has_embedding: Sequence[bool]
    visual: Sequence[float]
    semantic: Sequence[float]
    scores: Sequence[float]
    grades: Grades
    banned: Sequence[str]
    verdicts: Sequence[Verdict]
    originals: Mapping[int, Sequence[int]]
    cap: int
    over_share: Collection[int]
    limits: RefinementLimits
    agreement: ExpectedAgreement
    reading: ProductReading | None

    def result(self, place: int, *, explain: bool, has_reason: bool = True) -> ScoredResult:
        """Return a candidate with its scores and, where asked for, its reason and the parts of its score."""
        one = self.seen[place]
        is_seen = self.has_embedding[place]
        findings = self._findings(place) if has_reason else ()
        return ScoredResult(
            one.candidate,
            one.thumbnail if is_seen else None,
            self.visual[place] if is_seen else 0.0,
            self.semantic[place],
            self.scores[place],
            self.verdicts[place],
            self._reason(place, findings) if has_reason else "",
            self._duplicates(place),
            self._contributions(place) if explain and is_seen else (),
            findings,
        )

    def _duplicates(self, place: int) -> tuple[Candidate, ...]:
        return tuple(self.seen[other].candidate for other in self.originals.get(place, ()))

    def _contributions(self, place: int) -> tuple[tuple[str, float], ...]:
        """Return what adds up to the score. Of a title that says nothing, only the part of its silence counts."""
        grades, looks = self.grades, self.limits.visual_weight
        names = [name for name in grades.parts if name not in _SILENCE]
        if not grades.says[place]:
            names = [name for name in (PICTURE if grades.known[place] else SIMILAR_TITLES,) if name in grades.parts]
        parts = ((name, (1 - looks) * float(grades.parts[name][place])) for name in names)
        return (("looks", looks * self.visual[place]), *parts)

    def _original(self, place: int) -> str:
        """Return the title of which a duplicate is a copy."""
        original = next(one for one, others in self.originals.items() if place in others)
        return self.seen[original].candidate.title

    def _findings(self, place: int) -> tuple[Finding, ...]:
        if self.verdicts[place] is Verdict.DROPPED_DUPLICATE:
            return (Finding("same_picture", (self._original(place),)),)
        if not self.has_embedding[place]:
            return ()
        if self.banned[place]:
            return (Finding("excluded", (self.banned[place],)),)
        if not self.grades.says[place]:
            return (Finding("silent"),)
        title = self.seen[place].candidate.title
        return self.agreement.findings(title, self.reading, self.semantic[place]) or (Finding("every_word"),)

    def _reason(self, place: int, findings: Sequence[Finding]) -> str:
        candidate, verdict = self.seen[place].candidate, self.verdicts[place]
        visual, semantic = self.visual[place], self.semantic[place]
        if verdict is Verdict.DROPPED_DUPLICATE:
            return f"the same picture as {_shortened(self._original(place))!r}, a better one"
        if verdict is Verdict.DROPPED_OVER_LIMIT:
            beyond = f"beyond max_results ({self.limits.max_results})"
            return f"{beyond}: {candidate.provider} has its share, {self.cap}" if place in self.over_share else beyond
        if not self.has_embedding[place]:
            what = "fetched" if verdict is Verdict.DROPPED_UNFETCHABLE else "read"
            return f"its thumbnail could not be {what}"
        if self.banned[place]:
            return f"its title says {self.banned[place]}, which is excluded"
        if verdict is Verdict.DROPPED_VISUAL:
            return f"looks too different: {_compared(visual, self.limits.min_visual_score)}"
        said = title_wording(findings)
        if verdict is Verdict.DROPPED_SEMANTIC:
            return f"its title {said}: {_compared(semantic, self.limits.min_semantic_score)}"
        is_like = visual >= self.limits.min_visual_score  # else another thing was asked for
        looks = "looks like the photo" if is_like else "need not look like the photo"
        return f"{looks} ({visual:.2f}) and its title {said}" + _elsewhere(self._duplicates(place))


def _within_limits(providers: Sequence[str], limits: RefinementLimits) -> tuple[list[int], int, set[int]]:
    """Choose the best `max_results`; each of several providers has its maximum share at most.

    Places that the other providers cannot fill go to the best of those that were over their share.

    Args:
        providers: of the candidates that passed, best first.
        limits: has the share.

    Returns:
        The chosen numbers of candidates, a provider's maximum number, and the candidates beyond it.
    """
    cap = len(providers)
    if len(set(providers)) > 1:
        cap = max(1, math.floor(limits.provider_max_share * limits.max_results + _ROUNDING))
    taken: Counter[str] = Counter()
    chosen: list[int] = []
    over_share: list[int] = []
    for number, provider in enumerate(providers):
        taken[provider] += 1
        (chosen if taken[provider] <= cap else over_share).append(number)
    places = sorted((chosen[: limits.max_results] + over_share)[: limits.max_results])
    return places, cap, set(over_share)


def _compared(score: float, minimum: float) -> str:
    """Return a score and its minimum with two digits, or with as many more as it takes to show their difference."""
    texts = ((f"{score:.{digits}f}", f"{minimum:.{digits}f}") for digits in range(2, _MAX_DIGITS + 1))
    shown, limit = next((pair for pair in texts if float(pair[0]) != float(pair[1])), (f"{score!r}", f"{minimum!r}"))
    return f"{shown}, the minimum is {limit}"


def _copies(
    seen: Sequence[InspectedCandidate],
    verdicts: Sequence[Verdict],
    embeddings: npt.NDArray[np.float32],
    limits: RefinementLimits,
) -> dict[int, list[int]]:
    """Find the candidates, best first, that show the same picture as a kept one.

    A candidate that failed a filter can be a duplicate too: a reverse search should report every place of a picture,
    whatever its title there. Duplicates of duplicates do not count, since small differences could add up.

    Returns:
        Place of a kept candidate -> places of its copies, in order.
    """
    # Only pictures that share an address or a file, or whose pixels are known and which look alike, can be the same.
    gridded = [place for place, one in enumerate(seen) if one.colour_grid is not None]
    alike: dict[int, list[int]] = {}
    if len(gridded) > 1:
        near = embeddings[gridded] @ embeddings[gridded].T >= limits.duplicate_cosine - _ROUNDING
        alike = {gridded[row]: [gridded[one] for one in np.flatnonzero(near[row])] for row in range(len(gridded))}
    keys = [_picture_keys(one) for one in seen]
    counts = Counter(itertools.chain.from_iterable(keys))
    keys = [[key for key in own if counts[key] > 1] for own in keys]
    # Most candidates of a catalogue share nothing with another one.
    places = [place for place in range(len(seen)) if keys[place] or place in alike]
    known: defaultdict[tuple[str, str | bytes], list[int]] = defaultdict(list)  # key -> originals
    copies: defaultdict[int, list[int]] = defaultdict(list)
    originals: set[int] = set()
    for place in sorted(places, key=lambda place: verdicts[place] is not Verdict.KEPT):
        one = seen[place]
        if one.embedding is None:
            continue  # nothing can be compared
        others = {other for key in keys[place] for other in known.get(key, ())}
        others.update(other for other in alike.get(place, ()) if other in originals)
        original = next(
            (
                other
                for other in sorted(others)
                if is_same_picture(
                    _picture(one),
                    _picture(seen[other]),
                    min_cosine=limits.duplicate_cosine,
                    max_difference=limits.duplicate_difference,
                )
            ),
            None,
        )
        if original is not None:
            copies[original].append(place)
        elif verdicts[place] is Verdict.KEPT:
            originals.add(place)
            for key in keys[place]:
                known[key].append(place)
    return {original: sorted(others) for original, others in copies.items()}


def _picture_keys(seen: InspectedCandidate) -> list[tuple[str, str | bytes]]:
    """Return what a candidate shares with another one that shows the same picture, unless only their pixels tell."""
    if seen.embedding is None:
        return []  # nothing can be compared
    keys: list[tuple[str, str | bytes]] = []
    if seen.thumbnail:
        keys.append(("file", seen.thumbnail))
    if seen.candidate.url:
        keys.append(("page", normalised_url(seen.candidate.url)))
    if seen.candidate.image_url:
        keys.append(("image", normalised_url(seen.candidate.image_url)))
    return keys


def _elsewhere(copies: Sequence[Candidate]) -> str:
    """Say where else a picture was found."""
    if not copies:
        return ""
    sources = ", ".join(dict.fromkeys(one.source for one in copies if one.source))
    times = "once more" if len(copies) == 1 else f"{len(copies)} more times"
    return f"; the same picture was found {times}" + (f" ({sources})" if sources else "")


def _shortened(title: str) -> str:
    return textwrap.shorten(title, _TITLE_CHARACTERS, placeholder="…")


def _picture(seen: InspectedCandidate) -> Picture:
    return Picture(
        image_url=normalised_url(seen.candidate.image_url),
        page_url=normalised_url(seen.candidate.url),
        thumbnail=seen.thumbnail,
        embedding=seen.embedding,
        colour_grid=seen.colour_grid,
    )
