# SPDX-License-Identifier: Apache-2.0
"""How well a title agrees with a query, word by word."""

from __future__ import annotations

import json
from importlib import resources

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.query import words_of
from captioner.word_folding import fold
from search_gateway.word_agreement import Synonyms, agreement

NONE = Synonyms([])
TRADE = Synonyms.of_the_trade()
GROUPS: list[list[str]] = json.loads(
    resources.files("search_gateway").joinpath("synonyms.json").read_text(encoding="utf-8")
)["groups"]


@pytest.mark.parametrize(
    ("query", "title", "share", "missing"),
    [
        ("blue shirt", "Turtle Check Men Navy Blue Shirt", 1.0, ()),
        ("blue shirt", "SHIRTS, Blue", 1.0, ()),
        ("blue shirt", "Red Shirt", 0.5, ("blue",)),
        ("blue shirt", "Blue Jeans", 0.5, ("shirt",)),
        ("blue shirt", "Kitchen sink", 0.0, ("blue", "shirt")),
        ("blue shirt", "", 0.0, ("blue", "shirt")),
        ("shirt", "Shirts", 1.0, ()),
        ("women watches", "Titan Watch for Women", 1.0, ()),
        ("blue blue", "Blue Shirt", 1.0, ()),
        ("red blue shirt", "Red Shirt", pytest.approx(2 / 3), ("blue",)),
    ],
)
def test_share_of_the_querys_words(query: str, title: str, share: float, missing: tuple[str, ...]) -> None:
    assert agreement(query, title, NONE) == (share, missing)


@pytest.mark.parametrize("query", ["", "  ", "- !"])
def test_a_query_without_words_agrees_with_everything(query: str) -> None:
    assert agreement(query, "Blue Shirt", NONE) == (1.0, ())
    assert agreement(query, "", NONE) == (1.0, ())


@pytest.mark.parametrize("title", ["Light-blue Shirt", "Blue/White Shirt", "Slim-fit blue shirts", "(Blue) Shirt!"])
def test_parts_of_joined_words_count(title: str) -> None:
    assert agreement("blue shirt", title, NONE) == (1.0, ())


def test_words_inside_other_words_do_not_count() -> None:
    assert agreement("tie cap", "Hoodies and Capris", NONE) == (0.0, ("tie", "cap"))


@pytest.mark.parametrize("title", ["Navy T-Shirt", "Navy T Shirts", "Navy Tshirt", "Navy Tee", "Navy Tee-Shirt"])
@pytest.mark.parametrize("query", ["navy t-shirt", "navy tshirts", "navy t shirt", "navy tee"])
def test_every_spelling_of_a_t_shirt_is_one_word(query: str, title: str) -> None:
    assert agreement(query, title, TRADE) == (1.0, ())


@pytest.mark.parametrize("title", ["Blue T-Shirt", "Blue T Shirt", "Blue Tshirt", "Blue Tee Shirt", "Blue Sweatshirt"])
def test_a_t_shirt_is_no_shirt(title: str) -> None:
    assert agreement("blue shirt", title, TRADE) == (0.5, ("shirt",))


@pytest.mark.parametrize(
    ("one", "other"),
    [("navy", "Blue"), ("grey", "Gray"), ("sneakers", "Shoe"), ("purse", "Handbags"), ("offwhite", "Off-White")],
)
def test_synonyms_of_the_trade_agree(one: str, other: str) -> None:
    assert TRADE.agree(one, other)
    assert TRADE.agree(other, one)
    assert not NONE.agree(one, other) or fold(one) == fold(other)


def test_synonyms_do_not_reach_through_a_common_one() -> None:
    """A handbag is a purse and a handbag is a bag; that makes no backpack of a purse."""
    assert TRADE.agree("handbag", "bag")
    assert TRADE.agree("handbag", "purse")
    assert not TRADE.agree("bag", "purse")
    assert not TRADE.agree("bag", "backpack")


@pytest.mark.parametrize(
    ("one", "other"),
    [("red", "blue"), ("black", "navy"), ("shirt", "tshirt"), ("shoe", "sandal"), ("black", "white"), ("top", "tee")],
)
def test_what_shoppers_tell_apart_stays_apart(one: str, other: str) -> None:
    assert not TRADE.agree(one, other)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group[0])
def test_every_group_holds_different_words_that_agree(group: list[str]) -> None:
    assert len({fold(word) for word in group}) == len(group) > 1
    assert all(word == word.lower() and words_of(word) == [word] for word in group)
    assert all(TRADE.agree(one, other) for one in group for other in group)


TITLES = st.lists(st.sampled_from(["Navy", "blue", "T-Shirt", "Tee", "Watches", "3/4", "Light-blue", "shoe", "-"])).map(
    " ".join
)


@given(TITLES, TITLES)
@settings(deadline=None)
def test_share_and_missing_words_tell_the_same(query: str, title: str) -> None:
    share, missing = agreement(query, title, TRADE)
    folded = [fold(word) for word in words_of(query)]
    assert all(fold(word) in folded for word in missing)
    assert share == pytest.approx(1 - len(missing) / max(1, len(folded)))
    assert (share == 1.0) == (not missing)


@given(TITLES)
@settings(deadline=None)
def test_a_title_agrees_with_itself(title: str) -> None:
    assert agreement(title, title, TRADE) == (1.0, ())
