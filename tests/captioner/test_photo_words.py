# SPDX-License-Identifier: Apache-2.0
"""Decoded tokens and the query head -> a caption that ends with the likeliest query."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import pytest

from captioner.caption_tokenizer import CaptionTokenizer
from captioner.captions import Word, WordAlternative
from captioner.decoding import DecodedToken, Hypothesis
from captioner.photo_words import PhotoWords, photo_words
from captioner.query import QueryRule
from captioner.query_distribution import BEAM_CAPTIONS_WEIGHT
from search_gateway.engine.scheduler import DecodedPhoto

EMBEDDING = np.zeros(2, np.float32)
CLASSES = ("", "blue shirt", "navy shirt", "blue tshirts", "watch", "sports shoes")


class Words:
    """A tokenizer each of whose tokens is a word: the tokens are places in what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def text(self, tokens: list[int]) -> str:
        return " ".join(self.said[token] for token in tokens)

    def starts_word(self, token: int) -> bool:
        return True

    def word_spans(self, tokens: list[int]) -> list[tuple[int, int]]:
        return [(place, place + 1) for place in range(len(tokens))]


def read(
    *captions: str, rule: QueryRule = QueryRule.LIKELIEST_WORDS, classes: tuple[str, ...] = CLASSES, **shares: float
) -> PhotoWords:
    """What is read of a photo: captions, best first, and the head's probabilities, blanks of queries as underscores."""
    tokenizer, hypotheses = Words(), []
    none = np.zeros(0)
    for rank, caption in enumerate(captions):
        start = len(tokenizer.said)
        tokenizer.said += caption.split()
        tokens = tuple(
            DecodedToken(token, math.log(0.9), none.astype(np.int32), none.astype(np.float32))
            for token in range(start, len(tokenizer.said))
        )
        hypotheses.append(Hypothesis(tokens, -0.5 - rank, True))
    probabilities = [shares.get(one.replace(" ", "_") or "nothing", 0.0) for one in classes]
    with np.errstate(divide="ignore"):
        logprobs = np.log(np.array(probabilities, np.float32)) if classes else None
    decoded = DecodedPhoto(EMBEDDING, hypotheses, {}, logprobs)
    return photo_words(decoded, cast(CaptionTokenizer, cast(Any, tokenizer)), classes, rule)


def test_caption_that_ends_with_the_likeliest_query_stays_as_it_is() -> None:
    words = read("Puma Men Blue Shirt", blue_shirt=0.5, navy_shirt=0.25, watch=0.15, nothing=0.1)
    assert (words.query.text, words.rule) == ("blue shirt", QueryRule.LIKELIEST_WORDS)
    assert words.caption.text == "Puma Men Blue Shirt"
    assert not words.caption.ends_edited
    assert words.no_product_probability == pytest.approx(0.1)


def test_words_of_the_query_are_as_sure_as_the_distribution() -> None:
    words = read("Puma Men Blue Shirt", blue_shirt=0.5, navy_shirt=0.25, watch=0.15, nothing=0.1).caption.words
    assert [one.text for one in words] == ["Puma", "Men", "Blue", "Shirt"]
    assert [one.probability for one in words] == pytest.approx([0.9, 0.9, 0.5, 0.75])
    assert words[2].alternatives == (WordAlternative("Navy", pytest.approx(0.25)),)
    assert words[3].alternatives == (WordAlternative("Watch", pytest.approx(0.15)),)
    assert words[3].first_probability == words[3].probability


def test_number_of_alternatives_is_limited() -> None:
    classes = ("", *(f"blue thing{letter}" for letter in "abcdef"))
    words = read("A Blue Thinga", classes=classes, **{f"blue_thing{letter}": 1 / 6 for letter in "abcdef"})
    assert len(words.caption.words[-1].alternatives) == 3


def test_best_hypothesis_that_ends_with_the_query_is_shown() -> None:
    words = read("Puma Red Dress", "Nike Blue Shirt", "Adidas Blue Shirt", blue_shirt=1.0)
    assert words.caption.text == "Nike Blue Shirt"
    assert words.caption.log_probability == -1.5
    assert [one.text for one in words.caption.alternatives] == ["Puma Red Dress", "Adidas Blue Shirt"]
    assert not words.caption.ends_edited


def test_else_the_last_two_words_are_replaced() -> None:
    words = read("Nike Men Blue Shirt", sports_shoes=0.75, blue_shirt=0.25)
    assert words.query.text == "sports shoes"
    assert words.caption.text == "Nike Men Sports Shoes"
    assert words.caption.ends_edited
    assert [one.probability for one in words.caption.words] == pytest.approx([0.9, 0.9, 0.75, 0.75])
    assert words.caption.words[3].alternatives == (WordAlternative("Shirt", pytest.approx(0.25)),)
    assert words.caption.log_probability == -0.5, "that of what was decoded"


def test_query_of_one_word_replaces_both_last_words() -> None:
    assert read("Titan Women Silver Dial", watch=1.0).caption.text == "Titan Women Watch"
    assert read("Titan Silver Watch", watch=1.0).caption.text == "Titan Silver Watch"


@pytest.mark.parametrize("caption", ["Shirt", ""])
def test_caption_of_few_words_becomes_the_query(caption: str) -> None:
    words = read(caption, sports_shoes=1.0)
    assert words.caption.text == "Sports Shoes"
    assert words.caption.words == (Word("Sports", 1.0, (), 1.0), Word("Shoes", 1.0, (), 1.0))


def test_other_spelling_of_the_query_is_spelled_as_the_query() -> None:
    words = read("Puma Men Blue T-Shirt", blue_tshirts=1.0)
    assert (words.query.text, words.caption.text) == ("blue tshirts", "Puma Men Blue Tshirts")
    assert words.caption.words[3].probability == pytest.approx(1.0)


def test_punctuation_stays_where_the_caption_stays() -> None:
    words = read("Puma (Blue) & Shirt .", blue_shirt=0.5, watch=0.5)
    assert words.caption.text == "Puma (Blue) & Shirt ."
    assert [one.probability for one in words.caption.words] == pytest.approx([0.9, 0.5, 0.9, 0.5, 0.9])
    assert read("Puma Blue & Shirt .", sports_shoes=1.0).caption.text == "Puma Sports Shoes"


def test_captions_of_beams_have_the_part_in_the_query_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captioner.query_distribution.BEAM_CAPTIONS_WEIGHT", 0.3)
    shares = {"navy_shirt": 0.4, "blue_shirt": 0.35, "watch": 0.25}
    assert read("Puma Blue Shirt", **shares).query.text == "navy shirt"
    assert read("Puma Blue Shirt", "Men Blue Shirt", **shares).query.text == "blue shirt"


@pytest.mark.parametrize(
    ("rule", "query"), [(QueryRule.LAST_TWO_WORDS, "red dress"), (QueryRule.FULL_CAPTION, "puma red dress")]
)
def test_other_rules_leave_the_caption_as_it_was_decoded(rule: QueryRule, query: str) -> None:
    words = read("Puma Red Dress", "Nike Blue Shirt", rule=rule, blue_shirt=0.9, nothing=0.1)
    assert (words.query.text, words.rule, words.caption.text) == (query, rule, "Puma Red Dress")
    assert words.caption.words[2].probability == pytest.approx(0.9)
    assert words.distribution is not None
    assert words.no_product_probability == pytest.approx(0.1 * (1 - BEAM_CAPTIONS_WEIGHT))


def test_model_without_a_head_has_no_distribution() -> None:
    words = read("Puma Red Dress", classes=(), rule=QueryRule.LAST_TWO_WORDS)
    assert (words.query.text, words.distribution, words.no_product_probability) == ("red dress", None, 0.0)


def test_salient_query_is_colour_and_thing_of_the_caption_that_ends_with_the_likeliest_query() -> None:
    classes = ("", "track pants", "blue shirt")
    words = read("Puma Men Black Pants", rule=QueryRule.SALIENT, classes=classes, track_pants=0.7, blue_shirt=0.3)
    assert (words.caption.text, words.query.text) == ("Puma Men Track Pants", "track pants")
    words = read("Puma Men Black Track Pants", rule=QueryRule.SALIENT, classes=classes, track_pants=1.0)
    assert (words.query.text, words.rule) == ("black track pants", QueryRule.SALIENT)
    assert words.caption.text == "Puma Men Black Track Pants"


def test_salient_query_of_a_model_without_a_query_head_is_that_of_the_decoded_caption() -> None:
    words = read("Turtle Check Men Navy Blue Shirt", rule=QueryRule.SALIENT, classes=())
    assert (words.query.text, words.paper_query) == ("navy blue shirt", "blue shirt")


def test_query_of_the_papers_rule_is_told_only_where_its_words_differ() -> None:
    shares = {"blue_shirt": 0.75, "navy_shirt": 0.25}
    assert read("Puma Men Navy Shirt", **shares).paper_query == "navy shirt"
    assert read("Puma Men Blue Shirts", **shares).paper_query == "", "plurals are the same words"
    assert read("Puma Men Blue Shirt", rule=QueryRule.LAST_TWO_WORDS, **shares).paper_query == ""
    assert read("Puma Men Blue Shirt", rule=QueryRule.FULL_CAPTION, **shares).paper_query == "blue shirt"
