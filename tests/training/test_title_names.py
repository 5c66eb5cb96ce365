# SPDX-License-Identifier: Apache-2.0
"""Titles made at random say what the product is, in other words and another order."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest

from captioner.title_reader import title_words
from training.prepare_data import Product
from training.title_names import OTHER_TYPE, LabelledTitle, TitleMaker

SHIRT = Product("1", "Turtle Check Men Navy Blue Shirt", "Shirts", "Navy Blue", "Men")
UNKNOWN = Product("2", "Acme Gadget", "Gadgets", "NA", "Nobody")
MAKER = TitleMaker.builtin()


def titles(product: Product, count: int = 1500, seed: int = 1) -> list[LabelledTitle]:
    draw = random.Random(seed)
    return [MAKER.title(product, draw) for _ in range(count)]


def test_same_seed_gives_the_same_titles() -> None:
    assert titles(SHIRT, 100) == titles(SHIRT, 100)
    assert titles(SHIRT, 100) != titles(SHIRT, 100, seed=2)


@pytest.mark.parametrize(
    ("what", "is_so"),
    [
        ("the name as it is", lambda text: text == SHIRT.name),
        ("another order", lambda text: sorted(text.split()) == sorted(SHIRT.name.split()) and text != SHIRT.name),
        ("no colour", lambda text: "shirt" in title_words(text) and not {"navy", "blue"} & set(title_words(text))),
        ("an audience", lambda text: "for him" in text),
        ("a size", lambda text: "- XL" in text),
        ("a pack", lambda text: "Set of 2" in text),
        ("a price", lambda text: "Rs. 499" in text),
        ("a phrase in front", lambda text: text.startswith("Buy ")),
        ("German", lambda text: "hemd" in text.lower()),
        ("Hindi-English", lambda text: "kameez" in text or "qameez" in text),
        ("a made-up brand", lambda text: SHIRT.name in text and not text.startswith("Turtle")),
        ("nothing", lambda text: text == ""),
    ],
)
def test_every_kind_of_change_occurs(what: str, is_so: Callable[[str], bool]) -> None:
    assert any(is_so(title.text) for title in titles(SHIRT, 4000)), what


def test_labels_are_those_of_the_words() -> None:
    for title in titles(SHIRT):
        words = set(title_words(title.text))
        if title.article_type == "Watches":
            assert not words & {"shirt", "hemd", "kameez"}
        if title.article_type == "Shirts" and "rot" in words:
            assert title.colour == "Red"


def test_most_titles_keep_the_product() -> None:
    types = Counter(title.article_type for title in titles(SHIRT))
    assert types["Shirts"] > 0.8 * types.total()
    assert 0.01 < types[OTHER_TYPE] / types.total() < 0.06
    assert len(types) > 20  # rare ones get titles, too


def test_other_products_have_no_colour_unless_it_is_named() -> None:
    others = [title for title in titles(SHIRT) if title.article_type == OTHER_TYPE]
    assert {title.colour for title in others} == {None, "Navy Blue"}


def test_labels_without_words_are_used_as_they_are() -> None:
    made = titles(UNKNOWN)
    assert {title.article_type for title in made} >= {"Gadgets", OTHER_TYPE}
    assert any(title.text == UNKNOWN.name for title in made)


def test_no_template_of_the_benchmark_is_used() -> None:
    """The benchmark measures on styles that nobody trained on."""
    texts = [title.text for title in titles(SHIRT, 4000)]
    for ending in (" - Size M", " for Women", "(Pack of 1)", " under $50"):
        assert not any(text.endswith(ending) and "Shirt" in text for text in texts), ending
