# SPDX-License-Identifier: Apache-2.0
"""Candidates -> results: which are kept, in which order, and what is said about the others."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.colours import Colours
from captioner.query import Query
from search_gateway.providers.base import Candidate
from search_gateway.ranking.query_hypotheses import QueryHypotheses
from search_gateway.ranking.rerank import (
    InspectedCandidate,
    RefinementLimits,
    RerankResult,
    ScoredResult,
    Verdict,
    rerank,
)
from search_gateway.ranking.word_agreement import Synonyms

PHOTO = np.array([1.0, 0.0], np.float32)
SYNONYMS = Synonyms([], Colours(["blue", "red"]))

UNSEEN = (Verdict.DROPPED_UNFETCHABLE, Verdict.DROPPED_UNDECODABLE)


def at(cosine: float) -> npt.NDArray[np.float32]:
    """An embedding of this similarity with the photo."""
    return np.array([cosine, np.sqrt(1 - cosine**2)], np.float32)


_NUMBERS = itertools.count()


def candidate(
    title: str = "Blue Shirt", url: str = "https://shop.example/1", image_url: str = "", source: str = "shop"
) -> Candidate:
    return Candidate(title=title, url=url, thumbnail_url="", source=source, image_url=image_url)


def seen(
    cosine: float,
    title: str = "Blue Shirt",
    url: str = "",
    image_url: str = "",
    source: str = "shop",
    provider: str = "",
) -> InspectedCandidate:
    """A candidate that is a picture of its own, unless addresses say otherwise."""
    number = str(next(_NUMBERS))
    page = url or f"https://shop.example/{number}"
    found = replace(candidate(title, page, image_url, source), provider=provider)
    return InspectedCandidate(found, at(cosine), number.encode())


def unseen(failure: Verdict | None, title: str = "Blue Shirt") -> InspectedCandidate:
    return InspectedCandidate(candidate(title), None, None, failure)


def limits(
    min_visual_score: float = 0.5,
    min_semantic_score: float = 0.5,
    max_results: int = 10,
    visual_weight: float = 0.5,
    provider_max_share: float = 1.0,
) -> RefinementLimits:
    return RefinementLimits(
        min_visual_score=min_visual_score,
        min_semantic_score=min_semantic_score,
        max_results=max_results,
        visual_weight=visual_weight,
        provider_max_share=provider_max_share,
    )


def reranked(
    *candidates: InspectedCandidate, to: RefinementLimits | None = None, query: str = "blue shirt"
) -> RerankResult:
    wanted = Query.of(query, SYNONYMS.colours)
    return rerank(PHOTO, wanted, QueryHypotheses.certain(wanted), candidates, to or limits(), SYNONYMS)


def only(result: RerankResult) -> ScoredResult:
    (judged,) = result.kept + result.dropped
    return judged


def test_candidate_that_looks_alike_and_has_the_words_is_kept() -> None:
    judged = only(reranked(seen(0.8)))
    assert judged.verdict is Verdict.KEPT
    assert (judged.visual_score, judged.semantic_score) == (pytest.approx(0.8), 1.0)
    assert judged.score == pytest.approx(0.9)
    assert judged.thumbnail
    assert judged.reason == "looks like the photo (0.80) and its title has every word"


def test_candidate_that_looks_different_is_dropped_with_both_numbers() -> None:
    judged = only(reranked(seen(0.3)))
    assert judged.verdict is Verdict.DROPPED_VISUAL
    assert judged.reason == "looks too different: 0.30, the minimum is 0.50"


@pytest.mark.parametrize(
    ("visual", "minimum", "shown"),
    [
        (0.5998, 0.6, "0.5998, the minimum is 0.6000"),
        (0.599, 0.6, "0.599, the minimum is 0.600"),
        (0.594, 0.6, "0.59, the minimum is 0.60"),
        (0.6, 0.604, "0.600, the minimum is 0.604"),
        (-0.0004, 0.0, "-0.0004, the minimum is 0.0000"),
        (0.5999999, 0.6, "0.5999999, the minimum is 0.6000000"),
    ],
)
def test_scores_just_below_the_minimum_show_the_difference(visual: float, minimum: float, shown: str) -> None:
    judged = only(reranked(seen(visual), to=limits(minimum)))
    assert judged.reason == f"looks too different: {shown}"


def test_candidate_without_the_words_is_dropped_with_the_missing_ones() -> None:
    judged = only(reranked(seen(0.9, "Red Jeans")))
    assert judged.verdict is Verdict.DROPPED_SEMANTIC
    assert judged.semantic_score == 0.0
    assert judged.reason == "its title says red, not blue, and lacks 'shirt': 0.00, the minimum is 0.50"


def test_kept_candidate_may_lack_a_word_and_says_so() -> None:
    judged = only(reranked(seen(0.9, "Red Shirt")))
    assert judged.verdict is Verdict.KEPT
    assert judged.reason == "looks like the photo (0.90) and its title says red, not blue"


def test_looks_are_judged_before_words() -> None:
    assert only(reranked(seen(0.1, "Red Jeans"))).verdict is Verdict.DROPPED_VISUAL


@pytest.mark.parametrize("title", ["Blue Shirt", "Red Shirt"])
def test_least_scores_are_enough_themselves(title: str) -> None:
    share = 1.0 if title.startswith("Blue") else limits().product_type_weight
    assert only(reranked(seen(0.5, title), to=limits(0.5, share))).verdict is Verdict.KEPT
    assert only(reranked(seen(0.5, title), to=limits(0.501, share))).verdict is Verdict.DROPPED_VISUAL
    assert only(reranked(seen(0.5, "Red Jeans"), to=limits(0.5, 0.001))).verdict is Verdict.DROPPED_SEMANTIC


@pytest.mark.parametrize(
    ("failure", "verdict", "reason"),
    [
        (Verdict.DROPPED_UNFETCHABLE, Verdict.DROPPED_UNFETCHABLE, "its thumbnail could not be fetched"),
        (Verdict.DROPPED_UNDECODABLE, Verdict.DROPPED_UNDECODABLE, "its thumbnail could not be read"),
        (None, Verdict.DROPPED_UNFETCHABLE, "its thumbnail could not be fetched"),
    ],
)
def test_candidate_nobody_could_see_is_dropped(failure: Verdict | None, verdict: Verdict, reason: str) -> None:
    judged = only(reranked(unseen(failure)))
    assert (judged.verdict, judged.reason) == (verdict, reason)
    assert (judged.visual_score, judged.semantic_score, judged.score) == (0.0, 1.0, 0.0)


def test_weight_divides_the_score_between_looks_and_words() -> None:
    for weight, score in ((0.0, 0.6), (0.25, 0.675), (1.0, 0.9)):
        assert only(reranked(seen(0.9, "Red Shirt"), to=limits(visual_weight=weight))).score == pytest.approx(score)


def test_results_come_best_first_and_equals_in_the_providers_order() -> None:
    result = reranked(seen(0.6, url="a"), seen(0.9, url="b"), seen(0.6, url="c"), seen(0.7, url="d"))
    assert [one.candidate.url for one in result.kept] == ["b", "d", "a", "c"]


def test_results_over_the_limit_are_dropped_with_the_reason() -> None:
    result = reranked(seen(0.6, url="a"), seen(0.9, url="b"), seen(0.7, url="c"), to=limits(max_results=1))
    assert [one.candidate.url for one in result.kept] == ["b"]
    assert [one.candidate.url for one in result.dropped] == ["c", "a"]
    assert {one.verdict for one in result.dropped} == {Verdict.DROPPED_OVER_LIMIT}
    assert {one.reason for one in result.dropped} == {"beyond max_results (1)"}
    assert result.dropped[0].thumbnail
    assert result.counts == {Verdict.KEPT: 1, Verdict.DROPPED_OVER_LIMIT: 2}


def test_dropped_candidates_come_best_first_whatever_they_were_dropped_for() -> None:
    """The first of them is shown as the nearest miss."""
    result = reranked(
        seen(0.9, url="kept"),
        seen(0.5, "Red Shirt", url="over the limit"),
        seen(1.0, "Red jeans with every other word", url="no word"),
        seen(0.45, url="looks different"),
        to=limits(max_results=1),
    )
    assert [one.candidate.url for one in result.kept] == ["kept"]
    assert [one.candidate.url for one in result.dropped] == ["looks different", "over the limit", "no word"]


def test_nothing_found_is_an_empty_answer() -> None:
    result = reranked()
    assert (result.kept, result.dropped, result.counts) == ([], [], Counter())


def test_cosine_is_never_beyond_one() -> None:
    long = InspectedCandidate(candidate(), np.array([1.0000001, 0.0], np.float32))
    assert only(reranked(long)).visual_score == 1.0


def test_same_picture_of_several_shops_is_one_result_that_names_them() -> None:
    result = reranked(
        seen(0.8, url="a", image_url="https://img.example/1.jpg", source="one"),
        seen(0.9, url="b", image_url="http://IMG.example/1.jpg", source="two"),
        seen(0.7, url="c", image_url="https://img.example/2.jpg", source="three"),
        seen(0.9, "Jeans", url="d", image_url="https://img.example/1.jpg#x", source="four"),
    )
    assert [one.candidate.url for one in result.kept] == ["b", "c"], "the best one stays"
    assert [other.url for other in result.kept[0].duplicates] == ["a", "d"]
    assert result.kept[0].reason.endswith("has every word; the same picture was found 2 more times (one, four)")
    assert result.kept[1].duplicates == ()
    assert {one.verdict for one in result.dropped} == {Verdict.DROPPED_DUPLICATE}
    assert {one.reason for one in result.dropped} == {"the same picture as 'Blue Shirt', a better one"}
    assert result.counts == {Verdict.KEPT: 2, Verdict.DROPPED_DUPLICATE: 2}


def test_duplicates_take_no_place_of_the_results() -> None:
    copies = [seen(0.9, url=f"{i}", image_url="https://img.example/1.jpg") for i in range(4)]
    result = reranked(*copies, seen(0.6, url="other"), to=limits(max_results=2))
    assert [one.candidate.url for one in result.kept] == ["0", "other"]


def test_copies_of_what_was_dropped_are_dropped_for_the_same_reason() -> None:
    result = reranked(*(seen(0.1, image_url="https://img.example/1.jpg") for _ in range(3)))
    assert result.counts == {Verdict.DROPPED_VISUAL: 3}


def test_what_nobody_could_see_is_no_duplicate() -> None:
    one = seen(0.9, image_url="https://img.example/1.jpg")
    result = reranked(one, replace(one, embedding=None, thumbnail=None, failure=Verdict.DROPPED_UNFETCHABLE))
    assert result.counts == {Verdict.KEPT: 1, Verdict.DROPPED_UNFETCHABLE: 1}


def test_pixels_and_embedding_together_make_a_duplicate() -> None:
    grey, black = np.full((10, 8, 3), 120, np.uint8), np.zeros((10, 8, 3), np.uint8)
    alike = [replace(seen(0.9), colour_grid=grey), replace(seen(0.91), colour_grid=grey + np.uint8(8))]
    assert reranked(*alike).counts == {Verdict.KEPT: 1, Verdict.DROPPED_DUPLICATE: 1}
    assert reranked(alike[0], replace(alike[1], colour_grid=black)).counts == {Verdict.KEPT: 2}
    assert reranked(*alike, to=replace(limits(), duplicate_difference=7)).counts == {Verdict.KEPT: 2}
    assert reranked(*alike, to=replace(limits(), duplicate_cosine=0.9999)).counts == {Verdict.KEPT: 2}


def test_copies_of_copies_are_not_followed() -> None:
    """Small differences would add up to any difference."""
    row = [replace(seen(0.9), colour_grid=np.full((10, 8, 3), 2 * i, np.uint8)) for i in range(100)]
    result = reranked(*row, to=limits(max_results=100))
    assert result.counts == {Verdict.KEPT: 17, Verdict.DROPPED_DUPLICATE: 83}


ANY = st.one_of(
    st.builds(
        seen,
        st.sampled_from([-1.0, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0]),
        st.sampled_from(["Blue Shirt", "Red Shirt", "Checked Shirt", "Jeans"]),
        image_url=st.sampled_from(["", "", "https://img.example/1.jpg", "https://img.example/2.jpg"]),
    ),
    st.builds(unseen, st.sampled_from([None, Verdict.DROPPED_UNFETCHABLE, Verdict.DROPPED_UNDECODABLE])),
)
LIMITS = st.builds(limits, st.floats(-1, 1), st.floats(0, 1), st.integers(1, 5), st.floats(0, 1))


@given(st.lists(ANY, max_size=12), LIMITS)
@settings(deadline=None)
def test_counts_add_up_and_nobody_is_lost(candidates: list[InspectedCandidate], to: RefinementLimits) -> None:
    result = reranked(*candidates, to=to)
    judged = result.kept + result.dropped
    assert sum(result.counts.values()) == len(candidates) == len(judged)
    assert result.counts == Counter(one.verdict for one in judged)
    assert sorted(id(one.candidate) for one in judged) == sorted(id(one.candidate) for one in candidates)
    assert all(one.verdict is Verdict.KEPT for one in result.kept)
    assert all(one.verdict is not Verdict.KEPT for one in result.dropped)
    assert all(one.reason for one in judged)


@given(st.lists(ANY, max_size=12), LIMITS)
@settings(deadline=None)
def test_every_duplicate_stands_behind_one_result_that_passed(
    candidates: list[InspectedCandidate], to: RefinementLimits
) -> None:
    result = reranked(*candidates, to=to)
    duplicates = [one for one in result.dropped if one.verdict is Verdict.DROPPED_DUPLICATE]
    listed = [other for one in result.kept + result.dropped for other in one.duplicates]
    assert sorted(map(id, listed)) == sorted(id(one.candidate) for one in duplicates)
    for one in result.kept + result.dropped:
        if one.duplicates:
            assert one.verdict in (Verdict.KEPT, Verdict.DROPPED_OVER_LIMIT)
            assert all(other.image_url == one.candidate.image_url for other in one.duplicates)
    addresses = [one.candidate.image_url for one in result.kept if one.candidate.image_url]
    assert len(set(addresses)) == len(addresses), "one picture twice"


@given(st.lists(ANY, max_size=12), LIMITS)
@settings(deadline=None)
def test_what_is_kept_is_the_best_that_passes_both_filters(
    candidates: list[InspectedCandidate], to: RefinementLimits
) -> None:
    result = reranked(*candidates, to=to)
    unseen = [one.verdict in UNSEEN for one in result.dropped]
    assert unseen == sorted(unseen), "what nobody could look at comes last"
    for part in (result.kept, result.dropped[: unseen.count(False)]):
        scores = [one.score for one in part]
        assert scores == sorted(scores, reverse=True)
    for one in result.kept:
        assert one.visual_score >= to.min_visual_score
        assert one.semantic_score >= to.min_semantic_score
    over = [one for one in result.dropped if one.verdict is Verdict.DROPPED_OVER_LIMIT]
    assert len(result.kept) <= to.max_results
    if over:
        assert len(result.kept) == to.max_results
        assert max(one.score for one in over) <= result.kept[-1].score


def test_excluded_words_are_compared_as_words() -> None:
    titles = ("Blue Shirt Striped", "Blue Shirts with Stripes", "Blue T-Shirt", "Navy Blue Shirt", "Blue Navy Shirt")
    wanted = Query.of("blue shirt", SYNONYMS.colours)
    found = rerank(
        PHOTO, wanted, QueryHypotheses.certain(wanted), [seen(0.9, title) for title in titles],
        limits(min_semantic_score=0), SYNONYMS, excluded=("striped", "t-shirt"),
    )  # fmt: skip
    assert {one.candidate.title for one in found.kept} == {*titles[1:2], *titles[3:]}
    assert {one.reason for one in found.dropped} == {
        "its title says striped, which is excluded",
        "its title says t-shirt, which is excluded",
    }
    phrase = rerank(
        PHOTO, wanted, QueryHypotheses.certain(wanted), [seen(0.9, title) for title in titles],
        limits(min_semantic_score=0), SYNONYMS, excluded=("navy blue",),
    )  # fmt: skip
    assert {one.candidate.title for one in phrase.dropped} == {*titles[3:]}


def test_a_copy_with_an_excluded_title_is_not_shown_beside_the_other() -> None:
    wanted = Query.of("blue shirt", SYNONYMS.colours)
    copies = [seen(0.9, title, image_url="https://shop.example/1.jpg") for title in ("Blue Shirt", "Striped Shirt")]
    found = rerank(
        PHOTO, wanted, QueryHypotheses.certain(wanted), copies, limits(min_semantic_score=0), SYNONYMS,
        excluded=("striped",),
    )  # fmt: skip
    assert [(one.candidate.title, one.duplicates) for one in found.kept] == [("Blue Shirt", ())]
    assert "Striped" not in found.kept[0].reason
    [dropped] = found.dropped
    assert (dropped.verdict, dropped.reason) == (
        Verdict.DROPPED_SEMANTIC,
        "its title says striped, which is excluded",
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_embedding_that_is_no_number_is_no_result(value: float) -> None:
    broken = replace(seen(0.9), embedding=np.array([value, 0.0], np.float32))
    found = reranked(broken, seen(0.8))
    assert [one.visual_score for one in found.kept] == [pytest.approx(0.8)]
    [dropped] = found.dropped
    assert (dropped.verdict, dropped.score) == (Verdict.DROPPED_UNDECODABLE, 0)
    assert dropped.reason == "its thumbnail could not be read"


def test_titles_without_words_are_judged_by_looks() -> None:
    found = reranked(seen(0.9, "107"), seen(0.95, "IMG_2231"), seen(0.8, ""), to=limits(min_semantic_score=0.9))
    assert [one.candidate.title for one in found.kept] == ["IMG_2231", "107", ""]
    assert found.kept[0].reason == "looks like the photo (0.95) and its title does not say what it shows"


def test_contributions_of_words_add_up() -> None:
    for one in reranked(seen(0.9), seen(0.8, "Red Shirt")).kept:
        parts = dict(one.contributions)
        assert parts.keys() == {"looks", "words"}
        assert sum(parts.values()) == pytest.approx(one.score)


def test_no_provider_of_several_has_more_than_its_share() -> None:
    found = [seen(0.9 - i / 100, url=f"a{i}", provider="a") for i in range(6)]
    found += [seen(0.6 - i / 100, url=f"b{i}", provider="b") for i in range(6)]
    result = reranked(*found, to=limits(max_results=4, provider_max_share=0.75))
    assert [one.candidate.url for one in result.kept] == ["a0", "a1", "a2", "b0"]
    reasons = {one.candidate.url: one.reason for one in result.dropped}
    assert reasons["a3"] == "beyond max_results (4): a has its share, 3"
    assert reasons["b1"] == "beyond max_results (4)"


def test_a_share_is_not_cut_by_rounding() -> None:
    """0.29 * 100 is 28.999999999999996."""
    found = [seen(0.9, provider="ab"[number % 2]) for number in range(200)]
    result = reranked(*found, to=limits(max_results=100, provider_max_share=0.29))
    assert any("a has its share, 29" in one.reason for one in result.dropped)


def test_share_that_others_cannot_fill_is_given_back() -> None:
    found = [seen(0.9 - i / 100, url=f"a{i}", provider="a") for i in range(6)] + [seen(0.5, url="b0", provider="b")]
    result = reranked(*found, to=limits(max_results=6, provider_max_share=0.5))
    assert [one.candidate.url for one in result.kept] == ["a0", "a1", "a2", "a3", "a4", "b0"]


def test_single_provider_has_all_places() -> None:
    found = [seen(0.9 - i / 100, url=f"a{i}", provider="a") for i in range(6)]
    result = reranked(*found, to=limits(max_results=4, provider_max_share=0.5))
    assert len(result.kept) == 4
