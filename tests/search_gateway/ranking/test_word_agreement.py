# SPDX-License-Identifier: Apache-2.0
"""How well a title agrees with a query, word by word."""

from __future__ import annotations

import json
from importlib import resources

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.colours import Colours
from captioner.query import Query, words_of
from captioner.word_folding import fold
from search_gateway.ranking.expected_agreement import Agreement, ExpectedAgreement
from search_gateway.ranking.query_hypotheses import QueryHypotheses
from search_gateway.ranking.word_agreement import Synonyms, WordWeights

NONE = Synonyms([])
COLOURED = Synonyms([["navy", "blue"]], Colours(["blue", "navy", "red", "white", "black"], vague=["multi"]))
TRADE = Synonyms.builtin()
GROUPS: list[list[str]] = json.loads(
    resources.files("search_gateway.ranking").joinpath("synonyms.json").read_text(encoding="utf-8")
)["groups"]


def agreement(query: str, title: str, synonyms: Synonyms, weights: WordWeights | None = None) -> Agreement:
    """Of a title with a query that is certain."""
    wanted = Query.of(query, synonyms.colours)
    return ExpectedAgreement(wanted, QueryHypotheses.certain(wanted), synonyms, weights or WordWeights()).of(title)


def score(query: str, title: str, synonyms: Synonyms = COLOURED, **weights: float) -> float:
    return agreement(query, title, synonyms, WordWeights(**weights)).score


def wording(query: str, title: str, synonyms: Synonyms = COLOURED) -> str:
    return agreement(query, title, synonyms).wording


@pytest.mark.parametrize(
    ("query", "title", "expected", "says"),
    [
        ("blue shirt", "Turtle Check Men Navy Blue Shirt", 1.0, "has every word"),
        ("blue shirt", "SHIRTS, Blue", 1.0, "has every word"),
        ("blue shirt", "Men Black Shirt", 0.6, "says black, not blue"),
        ("blue shirt", "Checked Shirt", 0.8, "lacks 'blue'"),
        ("blue shirt", "Blue and White Shirt", 0.9, "has every word and also says white"),
        ("blue shirt", "Multi Shirt", 0.8, "lacks 'blue'"),
        ("blue shirt", "Blue Bag", 0.4, "lacks 'shirt'"),
        ("blue shirt", "Blue White Bag", 0.3, "also says white, and lacks 'shirt'"),
        ("blue shirt", "Red White Bag", 0.0, "says red and white, not blue, and lacks 'shirt'"),
        ("blue shirt", "", 0.2, "lacks 'blue' and 'shirt'"),
        ("shirt", "Red Shirts", 1.0, "has every word"),
        ("shirt", "Jeans", 0.0, "lacks 'shirt'"),
        ("blue", "Navy Jeans", 1.0, "has every word"),
        ("blue", "Red Jeans", 0.0, "says red, not blue"),
        ("shoes black", "Black Sandals", 0.4, "lacks 'shoes'"),
        ("women watches", "Titan Watch", 0.6, "lacks 'women'"),
        ("women watches", "Women Bags", 0.4, "lacks 'watches'"),
        ("navy shirt 2011", "Blue Shirt", 0.8, "lacks '2011'"),
        ("red white shirt", "Red Shirt", 0.9, "lacks 'white'"),
    ],
)
def test_every_part_of_the_query_counts_by_itself(query: str, title: str, expected: float, says: str) -> None:
    found = agreement(query, title, COLOURED)
    assert (found.score, found.wording) == (pytest.approx(expected), says)


def test_another_colour_is_nearer_than_another_thing() -> None:
    assert score("blue shirt", "Black Shirt", TRADE) > score("blue shirt", "Blue Bag", TRADE)


def test_weights_say_what_a_part_is_worth() -> None:
    assert score("blue shirt", "Black Shirt", product_type_weight=0.3) == pytest.approx(0.3)
    assert score("blue shirt", "Blue Bag", product_type_weight=0.3) == pytest.approx(0.7)
    assert score("blue shirt", "Shirt", product_type_weight=0.5, unsaid_colour=0.2) == pytest.approx(0.6)
    assert score("blue shirt", "Blue White Shirt", product_type_weight=0.5, mixed_colour=0.6) == pytest.approx(0.8)


@pytest.mark.parametrize("name", ["product_type_weight", "mixed_colour", "unsaid_colour"])
@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan")])
def test_weight_outside_its_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}: it goes from 0 to 1"):
        WordWeights(**{name: value})


def test_naming_the_colour_never_costs() -> None:
    with pytest.raises(ValueError, match=r"unsaid_colour is 0\.8: it is at most mixed_colour, 0\.75"):
        WordWeights(unsaid_colour=0.8)


@pytest.mark.parametrize("query", ["", "  ", "- !"])
def test_a_query_without_words_agrees_with_everything(query: str) -> None:
    assert agreement(query, "Blue Shirt", NONE).score == 1.0
    assert agreement(query, "", NONE).score == 1.0


@pytest.mark.parametrize("title", ["Light-blue Shirt", "Blue/Navy Shirt", "Slim-fit blue shirts", "(Blue) Shirt!"])
def test_parts_of_joined_words_count(title: str) -> None:
    assert wording("blue shirt", title) == "has every word"


def test_words_inside_other_words_do_not_count() -> None:
    assert wording("tie cap", "Hoodies and Capris") == "lacks 'tie' and 'cap'"


@pytest.mark.parametrize("title", ["Navy T-Shirt", "Navy T Shirts", "Navy Tshirt", "Navy Tee", "Navy Tee-Shirt"])
@pytest.mark.parametrize("query", ["navy t-shirt", "navy tshirts", "navy t shirt", "navy tee"])
def test_every_spelling_of_a_t_shirt_is_one_word(query: str, title: str) -> None:
    assert score(query, title, TRADE) == 1.0


@pytest.mark.parametrize("title", ["Blue T-Shirt", "Blue T Shirt", "Blue Tshirt", "Blue Tee Shirt", "Blue Sweatshirt"])
def test_a_t_shirt_is_no_shirt(title: str) -> None:
    assert wording("blue shirt", title, TRADE) == "lacks 'shirt'"


@pytest.mark.parametrize("title", ["Red Tape Men Shirt", "Pink Floyd Men Shirt", "Multicoloured Shirt", "Mauve Shirt"])
def test_brands_and_vague_colours_contradict_nobody(title: str) -> None:
    assert wording("blue shirt", title, TRADE) == "lacks 'blue'"


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


WORDS = st.sampled_from(
    ["Navy", "blue", "red", "White", "T-Shirt", "Tee", "Watches", "3/4", "Light-blue", "shoe", "-", "multi"]
)
TITLES = st.lists(WORDS).map(" ".join)
SHARES = st.floats(0, 1)
WEIGHTS = st.tuples(SHARES, SHARES, SHARES).map(
    lambda values: WordWeights(
        product_type_weight=values[0],
        mixed_colour=max(values[1:3]),
        unsaid_colour=min(values[1:3]),
    )
)


@given(TITLES, TITLES, WEIGHTS)
@settings(deadline=None)
def test_score_is_a_share_and_one_for_every_word(query: str, title: str, weights: WordWeights) -> None:
    found = agreement(query, title, TRADE, weights)
    assert 0 <= found.score <= 1
    if found.wording == "has every word":
        assert found.score == pytest.approx(1)


@given(TITLES, TITLES, WEIGHTS, st.data())
@settings(deadline=None)
def test_a_wanted_word_more_never_costs(query: str, title: str, weights: WordWeights, data: st.DataObject) -> None:
    words = Query.of(query).terms
    if words:
        more = f"{title} {data.draw(st.sampled_from(words))}"
        assert agreement(query, more, TRADE, weights).score >= agreement(query, title, TRADE, weights).score - 1e-9


@given(TITLES, st.sampled_from(["black", "green", "purple"]), WEIGHTS)
@settings(deadline=None)
def test_a_colour_nobody_asked_for_never_helps(title: str, colour: str, weights: WordWeights) -> None:
    for query in ("blue shoe", "red", "navy white tee"):
        before = agreement(query, title, TRADE, weights).score
        assert agreement(query, f"{title} {colour}", TRADE, weights).score <= before + 1e-9


@given(TITLES)
@settings(deadline=None)
def test_a_title_lacks_no_word_of_its_own(title: str) -> None:
    assert "lacks" not in agreement(title, title, TRADE).wording
    assert ", not " not in agreement(title, title, TRADE).wording


def test_a_colour_inside_a_joined_word_of_the_query_contradicts_nothing() -> None:
    assert wording("light-blue red", "Light-Blue", TRADE) == "lacks 'red'"
