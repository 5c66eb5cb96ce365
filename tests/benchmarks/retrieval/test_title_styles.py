# SPDX-License-Identifier: Apache-2.0
"""Titles as other shops would write them."""

from __future__ import annotations

import pytest

from benchmarks.retrieval.title_styles import TITLE_STYLES

TITLE = "Turtle Check Men Navy Blue Shirt"


@pytest.mark.parametrize(
    ("style", "title"),
    [
        ("unchanged", TITLE),
        ("audience", f"{TITLE} for Women"),
        ("size", f"{TITLE} - Size M"),
        ("pack", f"{TITLE} (Pack of 1)"),
        ("colour-and-size", "Turtle Check Men Shirt Navy Blue Large"),
        ("reversed", "Shirt Blue Navy Men Check Turtle"),
        ("in-colour", "Turtle Check Men Shirt in navy blue"),
        ("capitals", "TURTLE CHECK MEN NAVY BLUE SHIRT"),
        ("slug", "turtle-check-men-navy-blue-shirt"),
        ("german", "Turtle kariert Herren Navy blau Hemd"),
        ("hinglish", "Turtle Check mardana Navy neela kameez"),
        ("no-colour", "Turtle Check Men Shirt"),
    ],
)
def test_style_changes_a_title_in_its_way(style: str, title: str) -> None:
    assert TITLE_STYLES[style](TITLE) == title


def test_drawn_parts_depend_on_the_title_alone() -> None:
    brand = TITLE_STYLES["brand"](TITLE)
    assert brand.endswith(" Women's Turtle Check Men Shirt - Navy Blue - M")
    assert TITLE_STYLES["brand"](TITLE) == brand
    code, title = TITLE_STYLES["article-code"](TITLE).split(" ", 1)
    assert (len(code), code[0], title) == (10, "0", TITLE)
    assert TITLE_STYLES["marketing"](TITLE).endswith(TITLE)
    assert TITLE_STYLES["brand"]("Plain Shirt").endswith(" Women's Plain Shirt - M"), "no colour is made up"


def test_half_of_the_titles_are_missing() -> None:
    titles = [f"Shirt {number}" for number in range(1000)]
    kept = [TITLE_STYLES["half-missing"](title) for title in titles]
    assert all(one in ("", title) for one, title in zip(kept, titles, strict=True))
    assert 450 < sum(map(bool, kept)) < 550


@pytest.mark.parametrize("style", TITLE_STYLES)
@pytest.mark.parametrize("title", ["", "Red", "Ünïcode T-Shirt, (Red)", "赤い シャツ", "a" * 500])
def test_any_title_can_have_any_style(style: str, title: str) -> None:
    assert isinstance(TITLE_STYLES[style](title), str)
