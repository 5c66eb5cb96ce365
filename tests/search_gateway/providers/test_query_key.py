# SPDX-License-Identifier: Apache-2.0
"""What is the same question to a search engine, and what is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_gateway.providers.query_key import query_words


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
    assert query_words(one) == query_words(other) != ()


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
    assert query_words(one) != query_words(other)


@pytest.mark.parametrize("query", ["", " ", "\n\t\u3000"])
def test_no_question(query: str) -> None:
    assert query_words(query) == ()


@given(st.text())
def test_words_of_words_are_the_words(query: str) -> None:
    words = query_words(query)
    assert query_words(" ".join(words)) == words
