# SPDX-License-Identifier: Apache-2.0
"""Parameters of any protobuf kind become the values that a caller asks for, or a sentence."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.preprocessing import Region
from captioner.query import QueryRule
from search_gateway.api.request_validation import RequestValues
from search_gateway.errors import BadRequestError
from search_gateway.kserve.protocol import service_pb2
from search_gateway.kserve.request_parameters import (
    CAPTION_PARAMETERS,
    SEARCH_PARAMETERS,
    parameter_values,
    timeout_seconds,
)

Parameter = service_pb2.InferParameter


def parameter(value: Any) -> Any:
    """As tritonclient sends it."""
    match value:
        case str():
            return Parameter(string_param=value)
        case bool():
            return Parameter(bool_param=value)
        case int():
            return Parameter(int64_param=value)
        case _:
            return Parameter(double_param=value)


def caption_values(given: dict[str, Any]) -> RequestValues:
    return parameter_values(given, CAPTION_PARAMETERS)


def search_values(given: dict[str, Any]) -> RequestValues:
    return parameter_values(given, SEARCH_PARAMETERS)


def parameters(**values: Any) -> dict[str, Any]:
    return {name: value if isinstance(value, Parameter) else parameter(value) for name, value in values.items()}


@pytest.mark.parametrize("four", [4, 4.0, "4", Parameter(uint64_param=4)], ids=repr)
def test_same_number_in_any_kind_is_the_same_number(four: Any) -> None:
    assert caption_values(parameters(num_beams=four)).num_beams == 4
    assert caption_values(parameters(max_tokens=four)).max_tokens == 4
    assert caption_values(parameters(length_penalty=four)).length_penalty == 4.0
    assert search_values(parameters(max_results=four)).max_results == 4
    assert timeout_seconds(parameters(timeout=four)) == 4e-6


def test_search_has_all_parameters_of_search_proto() -> None:
    values = search_values(
        parameters(
            num_beams=2, length_penalty=0.5, max_tokens=9, query_rule="full_caption", max_results=3,
            min_visual_score=-1, min_semantic_score="0.25", provider="catalog", query_override=501,
            region="0.5,0,0.5,1",
        )
    )  # fmt: skip
    assert values == RequestValues(
        num_beams=2, length_penalty=0.5, max_tokens=9, query_rule=QueryRule.FULL_CAPTION, max_results=3,
        min_visual_score=-1.0, min_semantic_score=0.25, provider="catalog", query_override="501",
        region=Region(0.5, 0.0, 0.5, 1.0),
    )  # fmt: skip
    words = search_values(parameters(colour="red", thing="bag"))
    assert words == RequestValues(colour="red", thing="bag")
    filters = search_values(parameters(min_price="1.5", max_price=3, available=True, categories="Ties"))
    assert filters == RequestValues(min_price=1.5, max_price=3.0, available=True, categories=("Ties",))
    assert caption_values(parameters(region="0,0,1,0.5")) == RequestValues(region=Region(0, 0, 1, 0.5))


@pytest.mark.parametrize("name", ["last_two_words", "full_caption", "likeliest_words"])
def test_every_query_rule_has_its_name(name: str) -> None:
    assert caption_values(parameters(query_rule=name)).query_rule is QueryRule[name.upper()]


def test_nothing_given_is_nothing_set() -> None:
    assert caption_values({}) == RequestValues()
    assert search_values({}) == RequestValues()
    assert timeout_seconds({}) is None


def test_tritons_own_parameters_are_passed_over() -> None:
    own = parameters(
        triton_enable_empty_final_response=True, priority=1, sequence_id=7, sequence_start=True, sequence_end=False,
        binary_data_output=True, timeout=1000,
    )  # fmt: skip
    assert caption_values(own) == RequestValues()
    assert search_values(own) == RequestValues()


def test_unknown_parameter_is_named_and_the_known_ones_listed() -> None:
    with pytest.raises(BadRequestError) as refusal:
        caption_values(parameters(max_results=4))
    assert str(refusal.value) == (
        "there is no parameter 'max_results'; "
        "this model has: num_beams, length_penalty, max_tokens, query_rule, region, timeout"
    )
    with pytest.raises(BadRequestError, match="there is no parameter 'beams'.*query_override"):
        search_values(parameters(beams=4))


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("num_beams", 4.5, "num_beams is 4.5: it must be a whole number"),
        ("num_beams", "four", "num_beams is 'four': it must be a whole number"),
        ("num_beams", "", "num_beams is '': it must be a whole number"),
        ("num_beams", math.inf, "num_beams is inf: it must be a whole number"),
        ("num_beams", math.nan, "num_beams is nan: it must be a whole number"),
        ("num_beams", "9" * 5000, "it must be a whole number"),
        ("length_penalty", "long", "length_penalty is 'long': it must be a number"),
        (
            "query_rule",
            "first",
            "query_rule is 'first': write last_two_words, full_caption, likeliest_words or salient",
        ),
        ("query_rule", 1, "query_rule is 1: write last_two_words, full_caption, likeliest_words or salient"),
        ("provider", True, "provider is True: it must be a text"),
        ("query_override", 2.5, "query_override is 2.5: it must be a text"),
        ("region", "0,0,1", "region is '0,0,1': it must be x,y,width,height in fractions of the photo"),
        ("region", "0,0,1,wide", "region is 'wide': it must be a number"),
        ("num_beams", Parameter(), "parameter num_beams has no value"),
    ],
)
def test_wrong_value_is_told_with_its_name(name: str, value: Any, says: str) -> None:
    with pytest.raises(BadRequestError) as refusal:
        search_values(parameters(**{name: value}))
    assert says in str(refusal.value)
    assert len(str(refusal.value)) < 300


def test_timeout_is_in_microseconds_and_nought_is_none() -> None:
    assert timeout_seconds(parameters(timeout=2_500_000)) == 2.5
    assert timeout_seconds(parameters(timeout=0)) is None
    with pytest.raises(BadRequestError, match="timeout is -1: it is a number of microseconds, 0 for none"):
        timeout_seconds(parameters(timeout=-1))


_any_value = st.one_of(
    st.text(max_size=30), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.just(Parameter())
)


@settings(deadline=None)
@given(st.sampled_from(["num_beams", "length_penalty", "query_rule", "provider", "timeout", "other"]), _any_value)
def test_any_value_is_taken_or_refused(name: str, value: Any) -> None:
    for read in (caption_values, search_values, timeout_seconds):
        with contextlib.suppress(BadRequestError):
            read(parameters(**{name: value}))
