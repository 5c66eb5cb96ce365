# SPDX-License-Identifier: Apache-2.0
"""Tests of the words titles and queries have in common; pure text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_gateway.catalog.text_analysis import (
    MAX_QUERY_WORDS,
    index_words,
    one_line,
    query_phrases,
)

# What FTS5 cannot take for anything but phrases: quoted text without a quote, and our own OR.
PHRASES_ONLY = re.compile(r'"[^"]+"( OR "[^"]+")?')


@pytest.mark.parametrize(
    "title",
    ["T-Shirt", "t-shirt", "TShirt", "T Shirt", "T - Shirt", "Tee", "tee-shirt", "Ｔ-shirt"],
)
def test_every_spelling_of_a_t_shirt_is_one_word(title: str) -> None:
    assert "tshirt" in index_words(f"Blue {title}").split()
    assert '"tshirt"' in query_phrases(["blue", title])[-1]


def test_a_t_shirt_is_no_shirt() -> None:
    assert index_words("Navy T-shirt").split() == ["navy", "tshirt"]


def test_parts_of_a_word_with_hyphens_are_found_where_they_can_stand_alone() -> None:
    assert index_words("Off-White G-Shock") == "offwhite off white gshock"
    assert query_phrases(["off-white"]) == ['"offwhite" OR "off white"']
    assert query_phrases(["g-shock"]) == ['"gshock"']


def test_title_as_it_stands_in_addresses_is_found_by_its_words() -> None:
    assert index_words("nike-men-blue-t-shirt").split()[1:] == ["nike", "men", "blue", "tshirt"]


def test_foreign_words_are_found_by_their_english() -> None:
    assert index_words("Rote Damenhandtasche").split() == ["rote", "damenhandtasche", "red", "handbag"]


def test_apostrophes_join_so_that_the_plural_rule_takes_the_s_away() -> None:
    assert index_words("Men's Levi\u2019s") == "mens levis"


def test_a_word_counts_once() -> None:
    assert query_phrases(["Blue", "blue", "BLUE"]) == ['"blue"']


@pytest.mark.parametrize("words", [[], [""], ["  "], ["-"], ['"'], ["*", "^"], ["\0"], ["\u0301"]])
def test_nothing_to_look_for_is_no_phrase(words: list[str]) -> None:
    assert query_phrases(words) == []


@given(st.lists(st.text(), max_size=8))
def test_any_text_becomes_quoted_phrases(words: list[str]) -> None:
    phrases = query_phrases(words)
    assert len(phrases) <= MAX_QUERY_WORDS
    for phrase in phrases:
        assert PHRASES_ONLY.fullmatch(phrase)
        assert "\0" not in phrase


def test_a_long_query_is_cut() -> None:
    many = [f"word{number}" for number in range(5000)]
    assert len(query_phrases(many)) == MAX_QUERY_WORDS
    assert len("".join(query_phrases(["x" * 10_000]))) < 100


@given(st.text(alphabet=st.characters()))
def test_one_line_can_be_stored(text: str) -> None:
    line = one_line(text)
    assert "\0" not in line
    assert line.encode().decode() == line
    assert line.splitlines() in ([], [line])
