# SPDX-License-Identifier: Apache-2.0
"""Queries with probabilities: of the head, of captions, and of both."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.query_distribution import (
    BEAM_CAPTIONS_WEIGHT,
    CaptionHypothesis,
    QueryDistribution,
    caption_distribution,
    head_distribution,
    photo_distribution,
)

CLASSES = ("", "blue shirt", "navy shirts", "blue tshirts", "watch")
PROBABILITIES = (0.05, 0.3, 0.25, 0.25, 0.15)


def head() -> QueryDistribution:
    return head_distribution(CLASSES, np.log(np.array(PROBABILITIES, np.float32)))


def hypothesis(text: str, log_probability: float = -1.0) -> CaptionHypothesis:
    return CaptionHypothesis(text, log_probability)


def test_head_gives_each_class_its_probability() -> None:
    assert head().probabilities == pytest.approx(dict(zip(CLASSES, PROBABILITIES, strict=True)))


def test_likeliest_is_a_product_even_where_none_is_likely() -> None:
    assert head().likeliest() == "blue shirt"
    assert QueryDistribution.of([("", 0.9), ("watch", 0.1)]).likeliest() == "watch"
    assert QueryDistribution.of([("", 1.0), ("watch", 0.0)]).likeliest() == "watch"


def test_no_product_is_told_apart() -> None:
    assert head().no_product_probability == pytest.approx(0.05)
    assert QueryDistribution.of([("watch", 1.0)]).no_product_probability == 0


def test_top_is_sorted_and_leaves_out_no_product() -> None:
    assert [query for query, _ in head().top(3)] == ["blue shirt", "navy shirts", "blue tshirts"]
    assert len(head().top(100)) == 4


def test_words_are_folded_in_marginals() -> None:
    assert head().last_word_probability("Shirts") == pytest.approx(0.55)
    assert head().last_word_probability("T-shirt") == pytest.approx(0.25)
    assert head().last_word_probability("watches") == pytest.approx(0.15)
    assert head().first_word_probability("BLUE") == pytest.approx(0.55)
    assert head().first_word_probability("watch") == 0, "the only word of a query is its last"
    assert head().last_words() == [
        ("shirt", pytest.approx(0.55)),
        ("tshirts", pytest.approx(0.25)),
        ("watch", pytest.approx(0.15)),
    ]
    assert head().first_words() == [("blue", pytest.approx(0.55)), ("navy", pytest.approx(0.25))]


def test_queries_that_are_equal_when_folded_are_one_in_its_likeliest_spelling() -> None:
    both = QueryDistribution.of([("blue shirt", 0.25), ("blue shirts", 0.35), ("watch", 0.4)])
    assert both.top(3) == [("blue shirts", pytest.approx(0.6)), ("watch", pytest.approx(0.4))]
    assert both.probability_of("blue shirt") == pytest.approx(0.6)
    assert both.probability_of("red shirt") == 0


def test_photos_with_the_same_classes_have_their_own_probabilities() -> None:
    one, other = head(), head_distribution(CLASSES, np.log(np.array([0.15, 0.05, 0.1, 0.3, 0.4], np.float32)))
    for _ in range(2):  # what was computed once is remembered
        assert [query for query, _ in one.top(2)] == ["blue shirt", "navy shirts"]
        assert [query for query, _ in other.top(2)] == ["watch", "blue tshirts"]
        assert (one.likeliest(), one.no_product_probability) == ("blue shirt", pytest.approx(0.05))
        assert (other.likeliest(), other.no_product_probability) == ("watch", pytest.approx(0.15))


def test_captions_are_weighted_by_their_probabilities() -> None:
    captions = caption_distribution(
        [hypothesis("Puma Blue Shirt", -1.0), hypothesis("Navy Shirt", -1.5), hypothesis("A Blue Shirt", -2.0)]
    )
    assert captions is not None
    blue, navy = 1 + math.exp(-1), math.exp(-0.5)
    assert captions.probabilities == pytest.approx(
        {"blue shirt": blue / (blue + navy), "navy shirt": navy / (blue + navy)}
    )


def test_captions_without_words_say_nothing() -> None:
    assert caption_distribution([hypothesis(""), hypothesis("&")]) is None
    assert caption_distribution([]) is None
    assert head().mixed(None, 0.5) == head()


def test_greedy_caption_changes_nothing_and_beams_get_their_weight() -> None:
    logprobs = np.log(np.array(PROBABILITIES, np.float32))
    assert photo_distribution(CLASSES, logprobs, [hypothesis("Red Dress")]) == head()
    beams = photo_distribution(CLASSES, logprobs, [hypothesis("Red Dress"), hypothesis("Black Red Dress")])
    assert beams.probability_of("red dress") == pytest.approx(BEAM_CAPTIONS_WEIGHT)
    assert beams.probability_of("blue shirt") == pytest.approx((1 - BEAM_CAPTIONS_WEIGHT) * 0.3)
    assert beams.no_product_probability == pytest.approx((1 - BEAM_CAPTIONS_WEIGHT) * 0.05)


words = st.sampled_from(["", "blue shirt", "blue shirts", "red", "t-shirt", "tshirts", "navy blue"])


@given(st.lists(st.tuples(words, st.floats(0.01, 1)), min_size=1), st.floats(0, 1))
def test_probabilities_add_up_to_one(weighted: list[tuple[str, float]], weight: float) -> None:
    total = sum(probability for _, probability in weighted)
    one = QueryDistribution.of((query, probability / total) for query, probability in weighted)
    mixed = one.mixed(head(), weight)
    assert sum(mixed.probabilities.values()) == pytest.approx(1)
    last = sum(probability for _, probability in mixed.last_words())
    assert last + mixed.no_product_probability == pytest.approx(1)
    assert mixed.probability_of(mixed.likeliest()) == pytest.approx(
        mixed.top(1)[0][1] if mixed.top(1) else mixed.no_product_probability
    )
