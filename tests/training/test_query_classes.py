# SPDX-License-Identifier: Apache-2.0
"""Names -> query classes: frequent pairs, last words of the rest, and the empty one."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.query_classes import NO_PRODUCT_CLASS, QUERY_CAPTIONS_FILE, QueryClasses, QueryClassesError

NAMES = [
    *["Nike Men Blue T-shirt"] * 3,
    "Puma Men Blue T-Shirts",
    "Puma Women Red Tshirt",
    *["Brand Mauve Watch", "Brand Teal Watch", "Brand Rust Watch", "Brand Beige Watches"],
    "Brand Rare Kaftan",
]


def classes() -> QueryClasses:
    return QueryClasses.from_names(NAMES, min_count=4)


def test_pair_of_four_names_is_a_class_whatever_its_spelling() -> None:
    found = classes()
    assert found.captions == ("", "Blue T-shirt", "Watch")
    assert found.queries == ["", "blue t-shirt", "watch"]


def test_name_has_its_pair_or_its_last_word_or_nothing() -> None:
    found = classes()
    names = ["Any Blue Tshirts", "Any Violet Watch", "Any Blue Kaftan", "Watch", "", "№"]
    assert found.ids(names) == [1, 2, None, 2, None, None]


def test_no_name_is_the_empty_class() -> None:
    assert NO_PRODUCT_CLASS == 0
    assert all(one != NO_PRODUCT_CLASS for one in classes().ids([*NAMES, "", "-"]))


def test_classes_that_end_with_a_word_are_found_whatever_its_form() -> None:
    assert classes().ending_with(["tshirts"]) == [1]
    assert classes().ending_with(["WATCHES", "T-Shirt"]) == [1, 2]
    assert classes().ending_with(["blue", ""]) == []


def test_classes_are_ordered_by_frequency_then_alphabet() -> None:
    found = QueryClasses.from_names(["b x"] * 2 + ["a x"] * 2 + ["c x"] * 3, min_count=2)
    assert found.captions == ("", "c x", "a x", "b x")


def test_saved_classes_are_read_again(tmp_path: Path) -> None:
    classes().save(tmp_path)
    assert QueryClasses.load(tmp_path) == classes()


@pytest.mark.parametrize("text", [None, "no json", "{}", '["blue"]', '["", 3]', "[]"])
def test_damaged_classes_are_refused(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / QUERY_CAPTIONS_FILE).write_text(text)
    with pytest.raises(QueryClassesError, match=QUERY_CAPTIONS_FILE):
        QueryClasses.load(tmp_path)
