# SPDX-License-Identifier: Apache-2.0
"""Titles against what a photo may be called; the agreement with one query is in `test_word_agreement.py`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.colours import Colours
from captioner.query import Query
from search_gateway.ranking.expected_agreement import Agreement, ExpectedAgreement
from search_gateway.ranking.query_hypotheses import QueryHypotheses
from search_gateway.ranking.word_agreement import Synonyms, WordWeights

COLOURED = Synonyms([["navy", "blue"]], Colours(["blue", "navy", "red", "white", "black"]))

texts = st.lists(st.sampled_from(["blue", "navy", "red", "white", "shirt", "shirts", "bag", "men"]), max_size=4)


def wanted(query: str) -> Query:
    return Query.of(query, COLOURED.colours)


def read(**queries: float) -> QueryHypotheses:
    found = QueryHypotheses.weighted((wanted(query.replace("_", " ")), weight) for query, weight in queries.items())
    assert found is not None
    return found


def agreement(query: str, title: str, hypotheses: QueryHypotheses) -> Agreement:
    return ExpectedAgreement(wanted(query), hypotheses, COLOURED, WordWeights()).of(title)


UNSURE = read(blue_shirt=0.5, red_shirt=0.3, blue_bag=0.2)
# What "blue", "red", "shirt" and "bag" count; a colour that contradicts counts nothing, one left open a half.
BLUE, RED, SHIRT, BAG = 0.4 * 0.7, 0.4 * 0.3, 0.6 * 0.8, 0.6 * 0.2
BEST = BLUE + SHIRT


@pytest.mark.parametrize(
    ("title", "score", "says"),
    [
        ("Puma Blue Shirt", 1.0, "has every word"),
        (
            "Red Shirt",
            (RED + SHIRT) / BEST,
            "says red, not blue, but has every word of 'red shirt' (0.30), which the photo may be, too",
        ),
        (
            "Blue Bag",
            (BLUE + BAG) / BEST,
            "lacks 'shirt', but has every word of 'blue bag' (0.20), which the photo may be, too",
        ),
        ("Shirt", (0.2 + SHIRT) / BEST, "lacks 'blue'"),
        ("White Shirt", SHIRT / BEST, "says white, not blue"),
        ("White Hat", 0.0, "says white, not blue, and lacks 'shirt'"),
    ],
)
def test_title_counts_for_all_that_the_photo_may_be(title: str, score: float, says: str) -> None:
    found = agreement("blue shirt", title, UNSURE)
    assert (found.score, found.wording) == (pytest.approx(score), says)


def test_title_with_the_query_is_told_what_is_more_likely() -> None:
    hypotheses = read(red_bag=0.8, blue_shirt=0.2)
    found = agreement("blue shirt", "Blue Shirt", hypotheses)
    assert found.score == pytest.approx(0.25)
    assert found.wording == "has every word, but the photo is rather 'red bag' (0.80)"
    assert agreement("blue shirt", "Blue Shirt and Red Bag", hypotheses).score == 1.0, "it has both"


@given(texts.map(" ".join), texts.map(" ".join))
def test_other_hypotheses_without_probability_change_nothing(query: str, title: str) -> None:
    certain = agreement(query, title, QueryHypotheses.certain(wanted(query)))
    same = agreement(query, title, QueryHypotheses.certain(wanted(query)).mixed(UNSURE, 0.0))
    assert same == certain


@given(texts.map(" ".join), texts.map(" ".join), st.floats(0, 1))
def test_score_is_from_nothing_to_all_and_a_hypothesis_as_title_has_all(query: str, title: str, share: float) -> None:
    hypotheses = QueryHypotheses.certain(wanted(query)).mixed(UNSURE, share)
    assert 0 <= agreement(query, title, hypotheses).score <= 1
    assert max(agreement(query, one.query.text, hypotheses).score for one in hypotheses.hypotheses) == pytest.approx(
        1.0
    )


def test_a_hypothesis_without_words_agrees_with_everything() -> None:
    hypotheses = QueryHypotheses.certain(wanted("")).mixed(read(blue_shirt=1.0), 0.4)
    assert agreement("", "Blue Shirt", hypotheses).score == pytest.approx(1.0)
    assert agreement("", "White Hat", hypotheses).score == pytest.approx(0.6)
