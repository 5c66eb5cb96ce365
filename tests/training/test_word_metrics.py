# SPDX-License-Identifier: Apache-2.0
"""How often the words a search would use are right."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.word_metrics import WordMetrics, word_metrics

ALL_RIGHT = WordMetrics(1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
CAPTIONS = st.lists(st.sampled_from(["Blue", "blue", "Shirt", "Shirts", "T-shirt", "Men"]), max_size=4).map(" ".join)


def metrics(caption: str, name: str) -> dict[str, float]:
    return dataclasses.asdict(word_metrics([caption], [name]))


def test_the_name_itself_is_all_right() -> None:
    assert word_metrics(["Turtle Check Men Navy Blue Shirt"], ["Turtle Check Men Navy Blue Shirt"]) == ALL_RIGHT


@pytest.mark.parametrize(
    ("caption", "name", "right"),
    [
        ("Puma Blue Shirt", "Nike Blue Shirt", {"exact", "normalised", "last", "second", "any order"}),
        ("Puma blue Shirts", "Nike Blue Shirt", {"normalised", "last", "second", "any order"}),
        ("Men Blue T-Shirts", "Men Blue Tshirt", {"normalised", "last", "second", "any order"}),
        ("Puma Red Shirt", "Puma Blue Shirt", {"last"}),
        ("Puma Blue Tie", "Puma Blue Shirt", {"second"}),
        ("Puma Shirt Blue", "Puma Blue Shirt", {"any order"}),
        ("Red Tie", "Blue Shirt", set()),
        ("Shirt", "Shirt", {"exact", "normalised", "last", "second", "any order", "whole"}),
        ("Shirt", "Blue Shirt", {"last"}),
        ("", "Blue Shirt", set()),
        ("Blue  Shirt ", "Blue Shirt", {"exact", "normalised", "last", "second", "any order", "whole"}),
        ("(Blue) Shirt!", "Blue Shirt", {"exact", "normalised", "last", "second", "any order"}),
    ],
)
def test_what_is_right_of_a_caption(caption: str, name: str, right: set[str]) -> None:
    keys = {
        "exact": "last_two_exact",
        "normalised": "last_two_normalised",
        "last": "last_word_accuracy",
        "second": "second_last_accuracy",
        "any order": "order_free_accuracy",
        "whole": "whole_caption_exact",
    }
    assert metrics(caption, name) == {key: float(what in right) for what, key in keys.items()}


def test_shares_are_of_all_captions() -> None:
    result = word_metrics(["Blue Shirt", "Red Shirt", "Red Tie", "Blue Shirts"], ["Blue Shirt"] * 4)
    assert result == WordMetrics(
        last_two_exact=0.25,
        last_two_normalised=0.5,
        last_word_accuracy=0.75,
        second_last_accuracy=0.5,
        order_free_accuracy=0.5,
        whole_caption_exact=0.25,
    )


def test_swapped_words_are_right_in_free_order_only() -> None:
    """On our set both figures agree, for hardly any name ends the other way round; this tells them apart."""
    result = word_metrics(["Puma Shirts blue", "Reebok Red T-shirt"], ["Puma Blue Shirt", "Reebok Men T-shirt Red"])
    assert result.order_free_accuracy == 1
    assert result.last_two_normalised == result.last_word_accuracy == result.second_last_accuracy == 0


def test_nothing_to_compare_is_an_error_and_not_a_perfect_score() -> None:
    with pytest.raises(ValueError, match="no captions"):
        word_metrics([], [])


@pytest.mark.parametrize(("captions", "names"), [(["a"], []), (["a"], ["a", "b"]), (["a", "b"], ["a"])])
def test_lists_of_different_lengths_are_an_error(captions: list[str], names: list[str]) -> None:
    with pytest.raises(ValueError, match="zip"):
        word_metrics(captions, names)


@given(st.lists(st.tuples(CAPTIONS, CAPTIONS), min_size=1, max_size=6))
@settings(deadline=None)
def test_stricter_figures_are_never_higher(pairs: list[tuple[str, str]]) -> None:
    result = word_metrics([caption for caption, _ in pairs], [name for _, name in pairs])
    assert 0 <= result.whole_caption_exact <= result.last_two_exact <= result.last_two_normalised <= 1
    assert result.last_two_normalised <= min(result.last_word_accuracy, result.second_last_accuracy)
    assert result.last_two_normalised <= result.order_free_accuracy <= 1
