# SPDX-License-Identifier: Apache-2.0
"""A query as it is read once: its words, its colours, its product type, and what is the same question."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.colours import Colours
from captioner.query import Query, QueryRule


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("blue shirt", "Blue  SHIRT"),
        ("blue shirt", " blue\tshirt\n"),
        ("café", "cafe\u0301"),
        ("CAFÉ", "cafe\u0301"),
        ("straße", "STRASSE"),
    ],
)
def test_same_question(one: str, other: str) -> None:
    assert Query.of(one).key == Query.of(other).key != ()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("dress shirt", "shirt dress"),
        ("black glasses", "black glass"),
        ("blue shorts", "blue short"),
        ("shirt -red", "shirt red"),
        ('"polo neck"', "polo neck"),
        ("t-shirt", "tshirt"),
        ("off white", "offwhite"),
        ("c++", "c"),
        ("???", "!!!"),
    ],
)
def test_other_question(one: str, other: str) -> None:
    assert Query.of(one).key != Query.of(other).key


@pytest.mark.parametrize("query", ["", " ", "\n\t\u3000"])
def test_no_question(query: str) -> None:
    assert Query.of(query).key == ()


@given(st.text())
def test_words_of_words_are_the_words(query: str) -> None:
    key = Query.of(query).key
    assert Query.of(" ".join(key)).key == key


@pytest.mark.parametrize(
    ("text", "terms", "colours", "product_type"),
    [
        ("blue shirt", ["blue", "shirt"], ["blue"], "shirt"),
        ("shoes black", ["shoes", "black"], ["black"], "shoes"),
        ("navy blue T Shirt", ["navy", "blue", "t-Shirt"], ["navy", "blue"], "t-Shirt"),
        ("women watches", ["women", "watches"], [], "watches"),
        ("navy shirt 2011", ["navy", "shirt", "2011"], ["navy"], "shirt"),
        ("black 501", ["black", "501"], ["black"], "501"),
        ('"polo neck" -red', ["polo", "neck", "red"], ["red"], "neck"),
        ("red", ["red"], ["red"], None),
        ("", [], [], None),
        ("- !", [], [], None),
    ],
)
def test_terms_colours_and_product_type(
    text: str, terms: list[str], colours: list[str], product_type: str | None
) -> None:
    query = Query.of(text)
    assert (query.text, list(query.terms)) == (text, terms)
    assert [terms[place] for place in sorted(query.colours)] == colours
    assert (None if query.product_type is None else terms[query.product_type]) == product_type


def test_words_are_those_of_the_text() -> None:
    assert Query.of('navy T Shirt, "polo-t" shirt').words == ("navy", "T", "Shirt", "polo-t", "shirt")


def test_colours_are_those_of_the_list_that_is_given() -> None:
    query = Query.of("blue zebra", Colours(["zebra"]))
    assert (query.colours, query.product_type) == ({1}, 0)


def test_queries_are_equal_when_their_texts_are() -> None:
    assert Query.of("blue shirt") == Query.of("blue shirt", Colours())
    assert Query.of("blue shirt") != Query.of("Blue shirt")
    assert len({Query.of("blue shirt"), Query.of("blue shirt")}) == 1


def test_query_of_a_caption_follows_the_rule() -> None:
    assert Query.of_caption("Puma Men Blue Shirt,").text == "blue shirt"
    assert Query.of_caption("Puma Men Blue Shirt", QueryRule.FULL_CAPTION).text == "puma men blue shirt"
    assert Query.of_caption("...").text == ""


@pytest.mark.parametrize(
    ("query", "colour", "product_type", "expected"),
    [
        ("blue shirt", "red", None, "red shirt"),
        ("blue shirt", None, "Jeans", "blue jeans"),
        ("blue shirt", "Red", "jeans", "red jeans"),
        ("shoes black", "red", None, "shoes red"),
        ("women watches", "red", None, "red women watches"),
        ("navy blue shirt", "red", None, "red shirt"),
        ("blue t-shirt", "red", None, "red t-shirt"),
        ("blue", None, "shirt", "blue shirt"),
        ("shirt", "navy blue", None, "navy blue shirt"),
        ("", "red", "shirt", "red shirt"),
        ("", None, "shirt", "shirt"),
        ("blue shirt", None, None, "blue shirt"),
        ("turtle men blue shirt", "red", "jeans", "turtle men red jeans"),
        ("black track pants", None, "shirt", "black shirt"),
        ("flip flops", None, "sandals", "sandals"),
        ("sports shoes", "red", "T-shirt", "red t-shirt"),
        ("black dial watch", None, "ring", "black ring"),
        ("round neck t-shirt", None, "jeans", "jeans"),
        ("printed kurta", None, "dress", "printed dress"),
        ("women watches", None, "cap", "women cap"),
        ("3 socks", None, "briefs", "briefs"),
        ("briefs 1004", "red", "trunks", "red trunks"),
        ("blue shirt", "navy blue", "track pants", "navy blue track pants"),
        ("shoes black", "red", "flip flops", "flip flops red"),
        ("blue and white polo shirt", "red", None, "red polo shirt"),
        ("light blue shirt", "black", None, "black shirt"),
        ("off white shirt", "navy blue", None, "navy blue shirt"),
        ("skin coloured bra", "red", None, "red bra"),
        ("coloured top", "red", None, "red top"),
        ("hair colour", "red", None, "red hair colour"),
    ],
)
def test_one_word_of_a_query_is_changed(
    query: str, colour: str | None, product_type: str | None, expected: str
) -> None:
    assert Query.of(query).replaced(colour=colour, product_type=product_type) == Query.of(expected)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("blue t-shirt", "Blue T Shirts"),
        ("flip flops", "flip-flop"),
        ("gray shirt", "grey shirts"),
        ("off white kurta", "off-white kurta"),
    ],
)
def test_spellings_of_one_name(one: str, other: str) -> None:
    assert Query.of(one).spelling == Query.of(other).spelling


def test_names_of_other_things_are_spelled_differently() -> None:
    texts = ["dress shirt", "shirt dress", "blue shirt", "shirt", "blue t-shirt", ""]
    assert len({Query.of(text).spelling for text in texts}) == len(texts)


def test_a_text_is_read_again_with_other_colours() -> None:
    for _ in range(2):  # what was read once is remembered
        assert Query.of("blue teal", Colours(["blue"])).colours == {0}
        assert Query.of("blue teal", Colours(["teal"])).colours == {1}
        assert Query.of("blue teal").colours == {0, 1}
