# SPDX-License-Identifier: Apache-2.0
"""When two spellings are one word."""

from __future__ import annotations

import itertools
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.word_folding import fold, words_of


@pytest.mark.parametrize(
    ("word", "folded"),
    [
        ("Shirt", "shirt"),
        ("SHIRTS", "shirt"),
        ("T-Shirts", "tshirt"),
        ("tshirt", "tshirt"),
        ("Watches", "watch"),
        ("brushes", "brush"),
        ("Dresses", "dress"),
        ("Boxes", "box"),
        ("Accessories", "accessory"),
        ("Ties", "tie"),
        ("Shoes", "shoe"),
        ("Jeans", "jean"),
        ("Levi's", "levi"),
        ("3/4", "34"),
    ],
)
def test_case_punctuation_and_plural_are_folded(word: str, folded: str) -> None:
    assert fold(word) == folded


@pytest.mark.parametrize("word", ["dress", "glass", "bus", "gas", "bra", "a", "as", "", "!?"])
def test_double_s_and_short_words_stay(word: str) -> None:
    assert fold(word) == "".join(character for character in word if character.isalnum())


@pytest.mark.parametrize(("one", "other"), [("tie", "top"), ("dress", "dressy"), ("watch", "match"), ("navy", "nav")])
def test_different_words_stay_different(one: str, other: str) -> None:
    assert fold(one) != fold(other)


@given(st.text())
@settings(deadline=None)
def test_a_folded_word_is_folded_already(word: str) -> None:
    folded = fold(word)
    assert folded == fold(folded)
    assert all(character.isalnum() for character in folded)


@given(st.text(alphabet=st.characters(codec="ascii", categories=["Ll"]), min_size=4))
@settings(deadline=None)
def test_case_and_hyphens_never_matter(word: str) -> None:
    assert fold(word) == fold(word.upper()) == fold(f"{word[:2]}-{word[2:]}")


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from(" \n\u2028_-.'(aé9"))))
@settings(deadline=None)
def test_words_are_what_is_between_spaces_without_the_punctuation_around_it(text: str) -> None:
    def is_around(character: str) -> bool:
        return not (character.isalnum() or character == "_")

    expected = []
    for part in unicodedata.normalize("NFC", text).split():
        word = "".join(itertools.dropwhile(is_around, part))
        expected.append("".join(itertools.dropwhile(is_around, word[::-1]))[::-1])
    assert words_of(text) == [word for word in expected if word]
