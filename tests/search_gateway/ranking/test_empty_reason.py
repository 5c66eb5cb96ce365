# SPDX-License-Identifier: Apache-2.0
"""Why an answer is empty: nothing is left out, and the nearest is named."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.colours import Colours
from captioner.photo_confidence import photo_confidence
from captioner.query import Query
from search_gateway.providers.base import Candidate
from search_gateway.ranking.empty_reason import empty_reason
from search_gateway.ranking.query_hypotheses import QueryHypotheses
from search_gateway.ranking.rerank import InspectedCandidate, RefinementLimits, RerankResult, Verdict, rerank
from search_gateway.ranking.word_agreement import Synonyms

PHOTO = np.array([1.0, 0.0], np.float32)
BLUE_SHIRT = Query.of("blue shirt", Colours())
NOTHING = RerankResult([], [], Counter())


def seen(cosine: float | None, title: str, failure: Verdict | None = None) -> InspectedCandidate:
    embedding = None if cosine is None else np.array([cosine, np.sqrt(1 - cosine**2)], np.float32)
    return InspectedCandidate(Candidate(title=title, url="", thumbnail_url="", source="shop"), embedding, None, failure)


def reranked(
    *candidates: InspectedCandidate, min_visual_score: float = 0.5, min_semantic_score: float = 0.9
) -> RerankResult:
    limits = RefinementLimits(
        min_visual_score=min_visual_score, min_semantic_score=min_semantic_score, max_results=2, visual_weight=0.5
    )
    return rerank(PHOTO, BLUE_SHIRT, QueryHypotheses.certain(BLUE_SHIRT), candidates, limits, Synonyms([]))


@pytest.mark.parametrize(
    ("query", "provider", "expected"),
    [
        ("", "", "the caption has no words to search for"),
        ("", "catalog", "the caption has no words to search for"),
        ("blue shirt", "", "no provider answered: see `degraded`"),
        ("blue shirt", "catalog", "catalog has nothing for 'blue shirt'"),
    ],
)
def test_nothing_to_rerank(query: str, provider: str, expected: str) -> None:
    assert empty_reason(Query.of(query), provider, NOTHING) == expected


def test_one_and_many_of_every_fate() -> None:
    result = reranked(
        seen(0.4, "Blue Shirt"),
        seen(0.3, "Blue Shirt"),
        seen(0.7, "Jeans"),
        seen(None, "Blue Shirt", Verdict.DROPPED_UNFETCHABLE),
        seen(None, "Blue Shirt", Verdict.DROPPED_UNDECODABLE),
        seen(None, "Blue Shirt", Verdict.DROPPED_UNDECODABLE),
    )
    assert empty_reason(BLUE_SHIRT, "catalog", result) == (
        "catalog found 6 for 'blue shirt', but 2 look too different, 1 does not agree with the words, 1 has no "
        "thumbnail that could be fetched, 2 have a broken thumbnail; the nearest, 'Blue Shirt': looks too different: "
        "0.40, the minimum is 0.50"
    )


def test_what_nobody_could_see_is_not_near() -> None:
    result = reranked(seen(None, "Blue Shirt", Verdict.DROPPED_UNFETCHABLE))
    assert empty_reason(BLUE_SHIRT, "catalog", result) == (
        "catalog found 1 for 'blue shirt', but 1 has no thumbnail that could be fetched"
    )


def test_long_title_is_cut() -> None:
    assert len(empty_reason(BLUE_SHIRT, "catalog", reranked(seen(0.1, "word " * 100)))) < 250


ANY = st.one_of(
    st.builds(seen, st.sampled_from([-1.0, 0.0, 0.5, 1.0]), st.sampled_from(["Blue Shirt", "Shirt", "7 Jeans", ""])),
    st.builds(
        seen,
        st.none(),
        st.just("Blue Shirt"),
        st.sampled_from([None, Verdict.DROPPED_UNFETCHABLE, Verdict.DROPPED_UNDECODABLE]),
    ),
)


@given(st.lists(ANY, max_size=10), st.floats(0.1, 1), st.floats(0.5, 1))
@settings(deadline=None)
def test_numbers_of_an_empty_answer_add_up(
    candidates: list[InspectedCandidate], visual: float, semantic: float
) -> None:
    result = reranked(*candidates, min_visual_score=visual, min_semantic_score=semantic)
    assert sum(result.counts.values()) == len(candidates)
    if result.kept or not candidates:
        return
    reason = empty_reason(BLUE_SHIRT, "catalog", result)
    numbers = re.findall(r"(?:but |, )(\d+) ", reason.split("; the nearest")[0])
    assert sum(map(int, numbers)) == len(candidates)
    if any(one.embedding is not None for one in candidates):
        assert reason.endswith(result.dropped[0].reason)


@pytest.mark.parametrize("verdict", [verdict for verdict in Verdict if verdict is not Verdict.KEPT])
def test_every_verdict_has_its_words(verdict: Verdict) -> None:
    (one,) = reranked(seen(0.1, "Jeans")).dropped
    result = RerankResult([], [one], Counter({verdict: 3}))
    assert re.search(r"but 3 (look|do|have|are) ", empty_reason(BLUE_SHIRT, "catalog", result))


def test_photo_that_may_show_no_product_is_told() -> None:
    reason = empty_reason(BLUE_SHIRT, "catalog", NOTHING, photo_confidence(0.88))
    assert reason == "catalog has nothing for 'blue shirt'; the photo may show no product (confidence 12%)"
    assert empty_reason(BLUE_SHIRT, "catalog", NOTHING, photo_confidence(0.1)) == "catalog has nothing for 'blue shirt'"
