# SPDX-License-Identifier: Apache-2.0
"""Which words are colours."""

from __future__ import annotations

import json
from importlib import resources

import pytest

from captioner.colours import Colour, Colours
from captioner.query import words_of
from captioner.word_folding import fold
from training.label_words import LabelWords

TRADE = Colours.builtin()
LISTS: dict[str, list[str]] = json.loads(
    resources.files("captioner").joinpath("colours.json").read_text(encoding="utf-8")
)


def kinds(text: str) -> list[str]:
    """The kind of each word, shortened to a letter."""
    return [kind.value[0] for kind in TRADE.kinds(text.split())]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Men Navy Blue Shirt", "nvsn"),  # navy shades the blue
        ("navy shirt", "sn"),
        ("Turquoise Blue", "vs"),
        ("Black White", "ss"),
        ("Red Tape Men Black Shoes", "nnnsn"),
        ("Pink Floyd", "nn"),
        ("cream shirt", "sn"),
        ("face cream", "nn"),
        ("lakme cream", "nn"),
        ("cream", "s"),
        ("Day Cream SPF", "nnn"),
        ("Mauve Dress", "vn"),
        ("multi", "v"),
        ("GREYS", "s"),
        ("", ""),
    ],
)
def test_words_are_colours_in_their_company(text: str, expected: str) -> None:
    assert "".join(kinds(text)) == expected


def test_no_list_means_no_colour() -> None:
    assert Colours().kinds(["blue", "red tape"]) == [Colour.NONE, Colour.NONE]


@pytest.mark.parametrize("name", LISTS)
def test_lists_hold_each_word_once_as_a_query_has_it(name: str) -> None:
    words = LISTS[name]
    assert len({fold(word) for word in words}) == len(words)
    assert all(word == word.lower() for word in words)
    assert all(len(words_of(word)) == (2 if name == "not_colours" else 1) for word in words)


def test_lists_agree_with_each_other() -> None:
    known = {*LISTS["colours"], *LISTS["vague"]}
    assert set(LISTS["shades"]) | set(LISTS["also_things"]) <= known
    assert not set(LISTS["colours"]) & set(LISTS["vague"])
    assert all(set(phrase.split()) & known for phrase in LISTS["not_colours"]), (
        "a phrase without a colour needs no entry"
    )


def test_every_colour_of_the_product_set_is_known() -> None:
    """Its baseColours, under their own names."""
    for name in {colour for colour in LabelWords.load().colours.values() if colour}:
        assert any(kind is not Colour.NONE for kind in TRADE.kinds(name.split())), name
