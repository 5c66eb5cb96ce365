# SPDX-License-Identifier: Apache-2.0
"""The words of captions and of typed queries that an image search can use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.query import Query, QueryRule, query_from_caption
from captioner.searchable_words import salient_words, searchable_words


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("red handbag under $50", "red handbag"),
        ("red-handbag", "red handbag"),
        ("red_handbag/leather", "red handbag leather"),
        ("handbag below Rs. 1,500", "handbag"),
        ("rote Handtasche bis 50 €", "rote Handtasche"),
        ("a red handbag for my wife", "red handbag wife"),
        ("shoes size 42", "shoes"),
        ("Hemd Größe XL", "Hemd"),
        ("pack of three socks", "socks"),
        ("socks 3-pack", "socks"),
        ("100 ml perfume", "perfume"),
        ("shirt -striped", "shirt"),
        ("Off-White V-Neck T Shirt", "Off-White V-Neck t-Shirt"),
        ("watch MTP-1239D", "watch"),
        ("red-shirt-501", "red shirt"),
        ("levi's jeans", "levi's jeans"),
        ("赤い shirt", "赤い shirt"),
    ],
)
def test_noise_is_left_out_of_what_people_type(typed: str, words: str) -> None:
    assert " ".join(searchable_words(typed)) == words


def test_text_without_a_searchable_word_keeps_its_words() -> None:
    assert searchable_words("501") == ("501",)
    assert searchable_words("under $50") == ("under", "50")
    assert searchable_words("-- ") == ()


@pytest.mark.parametrize(
    ("caption", "query"),
    [
        ("Turtle Check Men Navy Blue Shirt", "navy blue shirt"),
        ("Nike Men Black Track Pants", "black track pants"),
        ("Nike Men Track Pants Black", "black track pants"),
        ("Pack of 3 Perfumes", "perfumes"),
        ("Titan Women Black Dial Watch", "black dial watch"),
        ("Jockey Men White Briefs 1004", "white briefs"),
        ("Peter England Men Striped Shirt", "striped shirt"),
        ("Red Tape Men Shoes", "men shoes"),
        ("Lucera Silver Pendant with Chain", "silver pendant"),
        ("Kids Red Shirt for Boys", "red shirt"),
        ("Blue and White Polo T-shirt", "white polo t-shirt"),
        ("Mark Taylor Men Blue Blue Shirt", "blue shirt"),
        ("Shirt - Navy Blue - M", "navy blue shirt"),
        ("Polo Men White with Lion Logo Navy Blue T-shirt", "navy blue t-shirt"),
        ("Black", "black"),
        ("001", "001"),
        ("", ""),
    ],
)
def test_salient_query_has_colour_and_thing(caption: str, query: str) -> None:
    assert query_from_caption(caption, QueryRule.SALIENT) == query


def test_typed_query_stays_as_it_is_for_the_web() -> None:
    query = Query.typed("Red-Handbag under $50")
    assert (query.text, query.words) == ("Red-Handbag under $50", ("Red", "Handbag"))
    assert query == Query.of("Red-Handbag under $50")
    assert query.key == Query.of("Red-Handbag under $50").key
    assert query.product_type == 1


@given(st.text(max_size=60))
def test_any_text_has_words_where_it_had_words(text: str) -> None:
    assert bool(searchable_words(text)) == bool(Query.of(text).words)
    assert set(salient_words(text)) <= set(searchable_words(text)) or " with " in f" {text.lower()} "
