# SPDX-License-Identifier: Apache-2.0
"""Protobuf requests -> options: every limit from both sides, and what callers are told."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from captioner.decoding import DecodingOptions
from captioner.model_contract import ModelContract
from captioner.preprocessing import Region
from captioner.query import Query, QueryRule
from search_api import search_pb2
from search_gateway.api.request_validation import (
    RequestValues,
    decoding_options,
    query_rule,
    request_values,
    search_options,
)
from search_gateway.catalog.base import Filters
from search_gateway.config import GatewayConfig
from search_gateway.errors import BadRequestError
from search_gateway.pipeline import SearchOptions

CONTRACT = ModelContract(
    model="toy", image_height=80, image_width=64, fit="pad", num_positions=81, hidden_size=32, num_layers=2,
    num_heads=4, head_size=8, max_tokens=24, num_candidates=16, max_beams=8, tokens_per_call=4,
    vocab_size=50, bos_token_id=0,
    eos_token_id=1, pad_token_id=2,
)  # fmt: skip
WITH_HEAD = dataclasses.replace(CONTRACT, num_queries=3)
CONFIG = GatewayConfig(
    default_max_results=7, min_visual_score=0.25, min_semantic_score=0.75, visual_weight=0.5, neighbour_weight=0.125
)


def decoding(**fields: Any) -> DecodingOptions:
    request = search_pb2.CaptionRequest(decoding=search_pb2.DecodingOptions(**fields))
    return decoding_options(request_values(request), CONTRACT)


def options(config: GatewayConfig = CONFIG, **fields: Any) -> SearchOptions:
    return search_options(request_values(search_pb2.SearchRequest(**fields)), CONTRACT, config)


def rule_of(value: int, contract: ModelContract, config: GatewayConfig = CONFIG) -> QueryRule:
    request = search_pb2.CaptionRequest(query_rule=value)  # type: ignore[arg-type]  # any number goes over the wire
    return query_rule(request_values(request), contract, config)


def refinement(**fields: float) -> SearchOptions:
    return options(refinement=search_pb2.RefinementOptions(**fields))


def refusal(call: Any, **fields: Any) -> str:
    with pytest.raises(BadRequestError) as caught:
        call(**fields)
    return str(caught.value)


def test_request_that_says_nothing_gets_the_defaults() -> None:
    result = options()
    assert result.decoding == DecodingOptions(num_beams=1, length_penalty=0.0, max_tokens=24)
    assert result.query_rule is QueryRule.LAST_TWO_WORDS
    assert result.query_override is None
    assert result.provider is None
    assert result.max_candidates == CONFIG.max_candidates
    limits = result.limits
    assert (limits.min_visual_score, limits.min_semantic_score) == (0.25, 0.75)
    assert (limits.max_results, limits.visual_weight, limits.neighbour_weight) == (7, 0.5, 0.125)


def test_request_that_says_everything_gets_it() -> None:
    result = options(
        decoding=search_pb2.DecodingOptions(num_beams=4, length_penalty=0.5, max_tokens=9),
        query_rule=search_pb2.QUERY_RULE_FULL_CAPTION,
        query_override="red dress",
        provider="catalog",
        max_results=30,
        refinement=search_pb2.RefinementOptions(min_visual_score=-0.5, min_semantic_score=0.0),
    )
    assert result.decoding == DecodingOptions(num_beams=4, length_penalty=0.5, max_tokens=9)
    assert result.query_rule is QueryRule.FULL_CAPTION
    assert (result.query_override, result.provider) == (Query.of("red dress"), "catalog")
    limits = result.limits
    assert (limits.min_visual_score, limits.min_semantic_score, limits.max_results) == (-0.5, 0.0, 30)


@pytest.mark.parametrize("value", [0.4, 0.6, 0.1, 1e-7, 0.123456])
def test_minimum_is_the_callers_number_and_not_its_neighbour_in_32_bits(value: float) -> None:
    assert refinement(min_semantic_score=value).limits.min_semantic_score == value


def test_zero_is_a_value_and_not_unset() -> None:
    assert refinement(min_visual_score=0.0).limits.min_visual_score == 0.0
    assert decoding(length_penalty=0.0).length_penalty == 0.0
    assert refusal(decoding, num_beams=0) == "decoding.num_beams is 0: it goes from 1 to 8"
    assert refusal(options, max_results=0) == "max_results is 0: it goes from 1 to 100"


@pytest.mark.parametrize(
    ("call", "name", "shown", "low", "high", "below", "above"),
    [
        (decoding, "num_beams", "decoding.num_beams", 1, 8, 0, 9),
        (decoding, "max_tokens", "decoding.max_tokens", 1, 24, 0, 25),
        (decoding, "length_penalty", "decoding.length_penalty", -2, 4, -2.5, 4.25),
        (options, "max_results", "max_results", 1, 100, 0, 101),
        (refinement, "min_visual_score", "refinement.min_visual_score", -1, 1, -1.25, 1.25),
        (refinement, "min_semantic_score", "refinement.min_semantic_score", 0, 1, -0.25, 1.25),
    ],
)
def test_every_limit_holds_on_both_sides(
    call: Any, name: str, shown: str, low: float, high: float, below: float, above: float
) -> None:
    for value in (low, high):
        call(**{name: value})
    for value in (below, above):
        assert refusal(call, **{name: value}) == f"{shown} is {value}: it goes from {low} to {high}"


@pytest.mark.parametrize("name", ["num_beams", "max_tokens"])
def test_huge_numbers_are_shown_as_they_were_sent(name: str) -> None:
    assert f" is {2**32 - 1}: " in refusal(decoding, **{name: 2**32 - 1})
    assert refusal(options, max_results=1_000_001) == "max_results is 1000001: it goes from 1 to 100"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused(value: float) -> None:
    assert refusal(decoding, length_penalty=value) == f"decoding.length_penalty is {value}: it goes from -2 to 4"
    assert refusal(refinement, min_visual_score=value).startswith(f"refinement.min_visual_score is {value}: ")
    assert refusal(refinement, min_semantic_score=value).startswith(f"refinement.min_semantic_score is {value}: ")


def test_limits_of_decoding_are_the_models() -> None:
    small = ModelContract(
        model="toy", image_height=80, image_width=64, fit="pad", num_positions=81, hidden_size=32, num_layers=2,
        num_heads=4, head_size=8, max_tokens=5, num_candidates=4, max_beams=2, tokens_per_call=2,
        vocab_size=50, bos_token_id=0,
        eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    assert decoding_options(RequestValues(), small).max_tokens == 5
    with pytest.raises(BadRequestError, match="^num_beams is 3: it goes from 1 to 2"):
        decoding_options(RequestValues(num_beams=3), small)


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (search_pb2.QUERY_RULE_UNSPECIFIED, QueryRule.LAST_TWO_WORDS),
        (search_pb2.QUERY_RULE_LAST_TWO_WORDS, QueryRule.LAST_TWO_WORDS),
        (search_pb2.QUERY_RULE_FULL_CAPTION, QueryRule.FULL_CAPTION),
    ],
)
def test_query_rules_are_those_of_the_proto(value: int, rule: QueryRule) -> None:
    assert rule_of(value, CONTRACT) is rule
    if value != search_pb2.QUERY_RULE_UNSPECIFIED:
        assert rule_of(value, WITH_HEAD) is rule


def test_model_with_a_query_head_uses_it_unless_told_otherwise() -> None:
    assert rule_of(search_pb2.QUERY_RULE_UNSPECIFIED, WITH_HEAD) is QueryRule.LIKELIEST_WORDS
    assert rule_of(search_pb2.QUERY_RULE_LIKELIEST_WORDS, WITH_HEAD) is QueryRule.LIKELIEST_WORDS


def test_setting_makes_the_rule_of_requests_that_leave_it_open() -> None:
    config = GatewayConfig(query_rule="salient")
    assert rule_of(search_pb2.QUERY_RULE_UNSPECIFIED, WITH_HEAD, config) is QueryRule.SALIENT
    assert rule_of(search_pb2.QUERY_RULE_UNSPECIFIED, CONTRACT, config) is QueryRule.SALIENT
    assert rule_of(search_pb2.QUERY_RULE_LAST_TWO_WORDS, WITH_HEAD, config) is QueryRule.LAST_TWO_WORDS


def test_typed_query_is_compared_by_its_searchable_words() -> None:
    query = options(query_override="red-handbag under $50").query_override
    assert query is not None
    assert (query.text, query.words, query.terms) == ("red-handbag under $50", ("red", "handbag"), ("red", "handbag"))


def test_model_without_a_query_head_refuses_the_rule_that_needs_one() -> None:
    assert refusal(options, query_rule=search_pb2.QUERY_RULE_LIKELIEST_WORDS) == (
        "query_rule is likeliest_words: the model toy has no query head, use last_two_words or leave it unset"
    )


def test_every_query_rule_of_the_proto_is_known() -> None:
    assert {rule_of(value, WITH_HEAD) for value in search_pb2.QueryRule.values()} == set(QueryRule)


@pytest.mark.parametrize("value", [5, 99, -1, 2**31 - 1])
def test_unknown_query_rule_is_refused(value: int) -> None:
    """Protobuf lets any number through."""
    assert refusal(options, query_rule=value) == f"query_rule is {value}: it goes from 0 to 4"


def test_query_override_loses_superfluous_space() -> None:
    assert options(query_override="  red \t\n dress ").query_override == Query.of("red dress")


@pytest.mark.parametrize("text", ["", "   ", "\t\n"])
def test_empty_query_override_is_refused_with_the_remedy(text: str) -> None:
    expected = "query_override is empty: give words, or leave it unset to use the caption's"
    assert refusal(options, query_override=text) == expected


def test_control_characters_of_a_query_override_separate_words() -> None:
    assert options(query_override="red\x00dress\x1b[31m").query_override == Query.of("red dress [31m")


@pytest.mark.parametrize("text", ["...", "👕", "\x00", "- -"])
def test_query_override_without_words_is_refused(text: str) -> None:
    assert "give words" in refusal(options, query_override=text)


def test_length_of_a_query_override_has_a_limit() -> None:
    assert options(query_override="x" * 200).query_override == Query.of("x" * 200)
    assert options(query_override=" " + "é" * 200 + " ").query_override == Query.of("é" * 200)
    assert refusal(options, query_override="x" * 201) == "query_override has 201 characters; the limit is 200"


def test_provider_is_passed_on_even_where_it_is_empty() -> None:
    """The chain knows the names, and refuses this one."""
    assert options(provider="").provider == ""


def test_providers_are_asked_for_at_least_as_many_as_are_wanted() -> None:
    config = GatewayConfig(max_candidates=20)
    assert options(config, max_results=5).max_candidates == 20
    assert options(config, max_results=50).max_candidates == 50


def word_override(**words: str) -> SearchOptions:
    return options(word_override=search_pb2.WordOverride(**words))


def test_one_word_or_both_may_be_overridden() -> None:
    result = word_override(colour=" red ")
    assert (result.override_colour, result.override_product_type, result.query_override) == ("red", None, None)
    result = word_override(colour="navy  blue", thing="(T-Shirt)!")
    assert (result.override_colour, result.override_product_type) == ("navy blue", "T-Shirt")
    result = word_override(thing="navy blue track pants")
    assert (result.override_colour, result.override_product_type) == ("navy blue", "track pants")
    result = word_override(colour="green", thing="light red")
    assert (result.override_colour, result.override_product_type) == ("green", "light red")
    assert options().override_colour is options().override_product_type is None
    nothing = search_pb2.WordOverride()
    assert options(word_override=nothing, query_override="red dress").query_override == Query.of("red dress")


@pytest.mark.parametrize("name", ["colour", "thing"])
def test_bad_word_override_is_refused_with_the_remedy(name: str) -> None:
    for text in ("", "  ", "- !"):
        expected = f"word_override.{name} is {text!r}: give a word, or leave it unset"
        assert refusal(word_override, **{name: text}) == expected
    field = {"colour": "override_colour", "thing": "override_product_type"}[name]
    assert getattr(word_override(**{name: "x" * 50}), field) == "x" * 50
    assert refusal(word_override, **{name: "x" * 51}) == f"word_override.{name} has 51 characters; the limit is 50"
    override = search_pb2.WordOverride(**{name: "red"})
    assert refusal(options, word_override=override, query_override="red dress") == (
        f"word_override.{name} and query_override are both set: give one of them"
    )


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"num_beams": 0}, "num_beams is 0: it goes from 1 to 8"),
        ({"length_penalty": 1e300}, "length_penalty is 1e+300: it goes from -2 to 4"),
        ({"min_visual_score": 2.0}, "min_visual_score is 2: it goes from -1 to 1"),
        ({"max_results": 10**4000}, f"max_results is 1{'0' * 39}: it goes from 1 to 100"),
        ({"colour": ""}, "colour is '': give a word, or leave it unset"),
        ({"colour": "red", "query_override": "shirt"}, "colour and QUERY are both set: give one of them"),
        ({"query_override": " "}, "QUERY is empty: give words, or leave it unset to use the caption's"),
    ],
)
def test_messages_call_a_field_as_the_caller_does(values: dict[str, Any], says: str) -> None:
    asked = RequestValues(names={"query_override": "QUERY"}, **values)
    assert refusal(lambda: search_options(asked, CONTRACT, CONFIG)) == says


def region(**shares: float) -> SearchOptions:
    return options(region=search_pb2.Region(**{"x": 0.0, "y": 0.0, "width": 1.0, "height": 1.0, **shares}))


def test_region_is_passed_on() -> None:
    assert options().region is None
    assert region(x=0.25, width=0.5, y=0.1, height=0.9).region == Region(0.25, 0.1, 0.5, 0.9)
    assert region(x=0.7, width=0.30001).region is not None, "callers add decimals"


@pytest.mark.parametrize(
    ("shares", "says"),
    [
        ({"x": -0.1}, "region has the x -0.1: it is a fraction of the photo, from 0 to 1"),
        ({"y": 40}, "region has the y 40: it is a fraction of the photo, from 0 to 1"),
        ({"x": math.nan}, "region has the x nan: it is a fraction of the photo, from 0 to 1"),
        ({"width": 0}, "region has the width 0: it is a fraction of the photo, above 0 and at most 1"),
        ({"height": 300}, "region has the height 300: it is a fraction of the photo, above 0 and at most 1"),
        ({"x": 0.5, "width": 0.75}, "region ends at 0.5 + 0.75 = 1.25 of the photo's width: it must"),
        ({"y": 0.5, "height": 0.6}, "region ends at 0.5 + 0.6 = 1.1 of the photo's height: it must"),
    ],
)  # fmt: skip
def test_region_beyond_the_photo_is_refused(shares: dict[str, float], says: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        region(**shares)
    assert str(caught.value).removesuffix(" end within the photo, at 1") == says


def test_excluded_words_come_from_both_places_once() -> None:
    result = options(query_override="t-shirt -Striped red -3/4", exclude=["striped", " Navy  Blue ", "(Checked)"])
    assert result.query_override is not None
    assert result.query_override.text == "t-shirt red"
    assert result.excluded == ("striped", "navy blue", "checked", "3/4")
    assert options(exclude=["puma, Nike"]).excluded == ("puma", "nike")
    assert options().excluded == ()
    assert options(exclude=["red"], word_override=search_pb2.WordOverride(colour="blue")).excluded == ("red",)
    assert options(query_override="shirt - red a--b").excluded == ()
    told = options(query_override="shirt", exclude=["navy blue", "striped"])
    assert told.query_override is not None
    again = options(query_override=told.query_override.excluding(told.excluded).text)
    assert (again.query_override, again.excluded) == (told.query_override, told.excluded), "as answers write them"


def test_bad_exclusions_are_refused_with_the_remedy() -> None:
    assert refusal(options, exclude=["red", " !"]) == "exclude has ' !': give a word"
    assert refusal(options, exclude=["x" * 51]) == "exclude has a word of 51 characters; the limit is 50"
    assert refusal(options, exclude=list("abcdefghi")) == "exclude has 9 words; the limit is 8"
    assert refusal(options, query_override="-striped -red") == (
        "query_override is '-striped -red', which only excludes words: give a word to search for, too"
    )


def test_explanation_is_passed_on() -> None:
    assert options(explain=True).explain
    assert not options().explain


def filters(**fields: Any) -> Filters:
    return options(filters=search_pb2.Filters(**fields)).filters


def test_filters_are_passed_on() -> None:
    assert not options().filters
    assert filters(min_price=0) == Filters(min_price=0.0)
    assert filters(available=False, max_price=123456789.01) == Filters(max_price=123456789.01, is_available=False)
    assert filters(categories=["a", "b"]) == Filters(categories=("a", "b"))
    assert filters(categories=[" Men\0 \tShirts "]) == Filters(categories=("Men Shirts",)), "as catalogues store them"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"min_price": -0.01}, "filters.min_price is -0.01: it goes from 0 to 1e+12"),
        ({"max_price": math.nan}, "filters.max_price is nan: it goes from 0 to 1e+12"),
        ({"min_price": 2, "max_price": 1}, "filters.min_price is 2, above filters.max_price, 1: exchange them"),
        ({"categories": ["a"] * 21}, "filters.categories has 21 values; the limit is 20"),
        ({"categories": [""]}, "filters.categories has a value of 0 characters: give 1 to 200"),
        ({"categories": [" "]}, "filters.categories has a value without letters: give 1 to 200 characters"),
        ({"categories": ["a" * 201]}, "filters.categories has a value of 201 characters"),
    ],
)
def test_filters_beyond_their_limits_are_refused(fields: dict[str, Any], says: str) -> None:
    assert says in refusal(filters, **fields)
