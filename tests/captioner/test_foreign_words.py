# SPDX-License-Identifier: Apache-2.0
"""German and Hindi-English words of clothes shops."""

from __future__ import annotations

import pytest

from captioner.colours import Colour, Colours
from captioner.foreign_words import english
from search_gateway.catalog.text_analysis import query_phrases
from search_gateway.ranking.word_agreement import Synonyms


@pytest.mark.parametrize(
    ("word", "meaning"),
    [
        ("rote", "red"), ("Handtasche", "handbag"), ("Handtaschen", "handbag"), ("Damenhandtasche", "handbag"),
        ("GRÜNES", "green"), ("gruen", "green"), ("schuhe", "shoes"), ("lal", "red"), ("joote", "shoes"),
        ("rose", None), ("handbag", None), ("er", None), ("", None), ("damen", "women"),
    ],
)  # fmt: skip
def test_word_has_its_english(word: str, meaning: str | None) -> None:
    assert english(word) == meaning


def test_catalogue_is_searched_for_both_words() -> None:
    assert query_phrases(["rote", "Handtasche"]) == ['"rote" OR "red"', '"handtasche" OR "handbag"']


def test_foreign_word_agrees_with_its_english_and_is_a_colour() -> None:
    synonyms = Synonyms.builtin()
    assert synonyms.agree("Handtasche", "purse")
    assert synonyms.agree("rote", "Red")
    assert not synonyms.agree("blaue", "Red")
    assert Colours.builtin().kinds(["rote", "Handtasche"]) == [Colour.SURE, Colour.NONE]
