# SPDX-License-Identifier: Apache-2.0
"""Names -> captions: what the rule "clean" takes off, and what no rule may do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.query import query_from_caption
from training.product_names import NAME_RULES, clean_name

PIECES = [
    *("Titan", "CASIO", "Women", "T-shirt", "Bra", "Blue", "Briefs", "Lotion", "Levis", "Combo", "Pack", "of", "with"),
    *(
        "3",
        "501",
        "EX030",
        "(A205)",
        "MTP-1239D-7ADF(A205)",
        "MAYS",
        "1016-162",
        "SPF",
        "150",
        "ml",
        "75ml",
        "3/4",
        "-",
    ),
    *("(Pack", "2)", "Set", "two", "Bra-BGDR01", "#", "2Briefs", "Cheater'13"),
]
NAMES = st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map(" ".join) | st.text(max_size=30)


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("Casio Enticer Men Silver Watch MTP-1239D-7ADF(A205)", "Casio Enticer Men Silver Watch"),
        ("Casio Enticer Women Silver Watches (A380) LTP-2069D-7A2VDF", "Casio Enticer Women Silver Watches"),
        ("CASIO Edifice Men Brown Dial Chronograph Watch EX030", "CASIO Edifice Men Brown Dial Chronograph Watch"),
        ("Lotus Herbals Coral Cove Lipstick 529", "Lotus Herbals Coral Cove Lipstick"),
        ("Streetwear Rose Nail Polish # 29", "Streetwear Rose Nail Polish"),
        ("Mayhem Women Sunglasses MAYS 1016-162", "Mayhem Women Sunglasses"),
        ("Ponds Age Miracle Day Cream SPF 15 35g", "Ponds Age Miracle Day Cream"),
        ("Biotique Soothing Body Lotion with SPF 75", "Biotique Soothing Body Lotion"),
        ("Nike Fragrances Men Basic Perfume 75 ml", "Nike Fragrances Men Basic Perfume"),
        ("Amante Pink Push-Up Bra-BGDR01", "Amante Pink Push-Up Bra"),
        ("Wildcraft Men Black Rain Cheater'13", "Wildcraft Men Black Rain Cheater"),
    ],
)
def test_codes_and_numbers_at_the_end_are_taken_off(name: str, cleaned: str) -> None:
    assert clean_name(name) == cleaned


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("Puma Men Socks Pack of 3", "Puma Men Socks"),
        ("Puma Men Socks pack of three", "Puma Men Socks"),
        ("Chromozome Men White Innervests (Pack of 2)", "Chromozome Men White Innervests"),
        ("Swayam Cushion Covers (Set of 2)", "Swayam Cushion Covers"),
        ("Arrow Men Red Tie+Cufflink - Combo Pack", "Arrow Men Red Tie+Cufflink"),
        ("Levis Men Briefs Combo Pack of 2 1004", "Levis Men Briefs"),
    ],
)
def test_packs_at_the_end_are_taken_off(name: str, cleaned: str) -> None:
    assert clean_name(name) == cleaned


@pytest.mark.parametrize(
    "name",
    [
        "Levis Men 501 Jeans",
        "Puma Men Pack of 3 Socks",
        "Arrow Men Pack of Socks",
        "Biotique Bio Mud Face Pack",
        "ADIDAS Men Blue And Red Back Pack",
        "Lucera Women Silver Jewellery Set",
        "Femella Women Capri 3/4",
        "Jockey MC Men Pack Of 2Briefs",
        "Carlton London Men Black Leather Casual Shoes.",
        "DKNY",
    ],
)
def test_everything_else_stays(name: str) -> None:
    assert clean_name(name) == name


@pytest.mark.parametrize("name", ["529", "EX030", "Pack of 3", "(A205) 12", "# 29", "SPF 15"])
def test_no_name_is_left_without_a_letter(name: str) -> None:
    assert any(character.isalpha() for character in clean_name(name)) or clean_name(name) == name
    assert clean_name(name)


def test_letters_before_a_number_stay_where_they_are_a_brand() -> None:
    assert clean_name("Perfume HUGO BOSS 50") == "Perfume HUGO BOSS"
    assert clean_name("Casio SHEEN SX041") == "Casio SHEEN"


def test_the_query_of_a_cleaned_name_is_what_the_photo_shows() -> None:
    name = "Fastrack Men Blue Dial Watch NA3001SM02"
    assert query_from_caption(name) == "watch na3001sm02"
    assert query_from_caption(clean_name(name)) == "dial watch"


@given(NAMES)
def test_only_an_ending_is_taken_off(name: str) -> None:
    assert name.startswith(clean_name(name))


@given(NAMES)
def test_cleaning_twice_changes_nothing_more(name: str) -> None:
    assert clean_name(clean_name(name)) == clean_name(name)


@given(NAMES)
def test_a_name_never_becomes_empty(name: str) -> None:
    assert bool(clean_name(name).strip()) == bool(name.strip())


def test_rules_have_names_and_the_raw_one_changes_nothing() -> None:
    assert set(NAME_RULES) == {"raw", "clean"}
    assert NAME_RULES["raw"](" Lipstick 529") == " Lipstick 529"
    assert NAME_RULES["clean"]("Red Lipstick 529") == "Red Lipstick"
