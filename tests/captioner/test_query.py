# SPDX-License-Identifier: Apache-2.0
"""The query rule: the last two words of a caption, as the paper has it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.query import (
    QUERY_WORDS,
    Query,
    QueryRule,
    caption_with_query,  # isort
    caption_words,
    query_from_caption,
    words_of,
)


def test_query_keeps_last_two_words() -> None:
    assert query_from_caption("Turtle Check Men Navy Blue Shirt") == "blue shirt"


@pytest.mark.parametrize(
    ("caption", "query"),
    [
        ("", ""),
        ("   \t\n", ""),
        ("... - !", ""),
        ("Shirt", "shirt"),
        ("Blue Shirt", "blue shirt"),
        ("  Blue   Shirt  ", "blue shirt"),
        ("Men Blue\tShirt\n", "blue shirt"),
        ("Nike Women Navy T-shirt.", "navy t-shirt"),
        ("Levi's Men's Jeans", "men's jeans"),
        ("Capris (Pack of 2)", "of 2"),
        ("Men Blue , Shirt -", "blue shirt"),
        ('Puma "Ferrari" Cap', "ferrari cap"),
    ],
)
def test_punctuation_around_words_is_no_part_of_the_query(caption: str, query: str) -> None:
    assert query_from_caption(caption) == query


def test_full_caption_rule_keeps_every_word() -> None:
    caption = "Turtle Check Men, Navy (Blue) Shirt"
    assert query_from_caption(caption, QueryRule.FULL_CAPTION) == "turtle check men navy blue shirt"


def test_words_keep_case_and_what_is_inside_them() -> None:
    assert words_of("Levi's 3/4 «Off-White» T-Shirt,") == ["Levi's", "3/4", "Off-White", "T-Shirt"]


def test_composed_and_decomposed_letters_are_one_word() -> None:
    assert words_of("Rose\u0301") == words_of("Ros\u00e9") == ["Ros\u00e9"]


def test_words_of_other_scripts_are_words() -> None:
    assert query_from_caption("мужская СИНЯЯ Рубашка") == "синяя рубашка"
    assert query_from_caption("蓝色 衬衫") == "蓝色 衬衫"


@given(st.text())
@settings(deadline=None)
def test_query_is_the_end_of_the_caption_in_lower_case(caption: str) -> None:
    words = words_of(caption)
    assert all(word and not any(character.isspace() for character in word) for word in words)
    assert query_from_caption(caption) == " ".join(words[-QUERY_WORDS:]).lower()
    full = query_from_caption(caption, QueryRule.FULL_CAPTION)
    assert full.endswith(query_from_caption(caption))


@given(st.text())
@settings(deadline=None)
def test_words_of_words_are_the_same_words(text: str) -> None:
    words = words_of(text)
    assert words_of(" ".join(words)) == words


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("sports shoes", ["Sports", "Shoes"]),
        ("t-shirt", ["T-shirt"]),
        ("levi's 3/4", ["Levi's", "3/4"]),
        ("été robe", ["Été", "Robe"]),
        ("", []),
    ],
)
def test_words_of_a_query_are_written_as_in_captions(query: str, words: list[str]) -> None:
    assert caption_words(query) == words
    assert query_from_caption(" ".join(words)) == query


def test_caption_that_ends_with_the_likeliest_words_has_them_as_its_query() -> None:
    assert query_from_caption("Nike Men Sports Shoes", QueryRule.LIKELIEST_WORDS) == "sports shoes"


@pytest.mark.parametrize(
    ("caption", "query", "expected"),
    [
        ("Puma Men Black Cap", "sports shoes", "Puma Men Sports Shoes"),
        ("Nike Men Blue Shirts", "blue shirt", "Nike Men Blue Shirts"),
        ("Nike Men Blue Shirt", "watch", "Nike Men Watch"),
        ("Fossil Women Watch", "watch", "Fossil Women Watch"),
        ("Cap", "blue t-shirt", "Blue T-shirt"),
        ("", "red bag", "Red Bag"),
        ("Red Bag", "", "Red Bag"),
    ],
)
def test_caption_ends_with_the_query(caption: str, query: str, expected: str) -> None:
    assert caption_with_query(caption, query) == expected


@pytest.mark.parametrize(
    ("caption", "query", "expected"),
    [
        ("Q&Q Men Black Digital Watch M119J001Y", "digital watch", "Q&Q Men Black Digital Watch"),
        ("Puma Blue Shirts Style X", "blue shirt", "Puma Blue Shirt"),
        ("Digital Red Cap", "digital watch", "Digital Watch"),
    ],
)
def test_words_before_the_query_are_not_repeated(caption: str, query: str, expected: str) -> None:
    assert caption_with_query(caption, query) == expected


def test_excluded_words_leave_the_query() -> None:
    query = Query.of("red striped t-shirt")
    assert query.without(["Stripes", "striped"]).text == "red t-shirt"
    assert query.without(["T Shirts"]).text == "red striped"
    assert query.without(["navy"]) is query
    assert query.without(["navy red"]) is query, "another red stays wanted"
    assert Query.of("navy blue shirt").without(["navy blue"]).text == "shirt"
    assert query.without(["red", "striped", "t-shirt"]) is query, "nothing would be left to search for"


def test_image_searches_are_asked_to_exclude() -> None:
    query = Query.of("red shirt")
    asked = query.excluding(["striped", "navy blue"])
    assert asked.text == 'red shirt -striped -"navy blue"'
    assert asked.words == ("red", "shirt")
    assert asked.key != query.key
    assert query.excluding([]) is query
