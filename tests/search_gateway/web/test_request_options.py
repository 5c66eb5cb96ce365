# SPDX-License-Identifier: Apache-2.0
"""Options of the address and the form become the message of search.proto."""

from __future__ import annotations

import pytest

from search_api import search_pb2
from search_gateway.web.problems import HttpRequestError
from search_gateway.web.request_options import RULES, caption_request, search_request


def test_every_option_has_its_field() -> None:
    options = {
        "num_beams": "4",
        "length_penalty": "-0.5",
        "max_tokens": "12",
        "query_rule": "full_caption",
        "region": "0.5,0,0.25,1",
        "query_override": "leather bag",
        "override_colour": "red",
        "override_thing": "jeans",
        "exclude": "striped,navy blue",
        "provider": "catalog",
        "max_results": "7",
        "min_visual_score": "-1",
        "min_semantic_score": "0.5",
        "min_price": "1.25",
        "max_price": "1e6",
        "available": "false",
        "category": "Men's shirts",
        "include_dropped": "true",
    }
    expected = search_pb2.SearchRequest(
        decoding=search_pb2.DecodingOptions(num_beams=4, length_penalty=-0.5, max_tokens=12),
        query_rule=search_pb2.QUERY_RULE_FULL_CAPTION,
        region=search_pb2.Region(x=0.5, y=0, width=0.25, height=1),
        query_override="leather bag",
        word_override=search_pb2.WordOverride(colour="red", thing="jeans"),
        exclude=["striped", "navy blue"],
        provider="catalog",
        max_results=7,
        refinement=search_pb2.RefinementOptions(min_visual_score=-1, min_semantic_score=0.5),
        filters=search_pb2.Filters(min_price=1.25, max_price=1e6, available=False, categories=["Men's shirts"]),
        explain=True,
    )
    assert search_request(options.items()) == expected
    not_set = {
        name for name in expected.DESCRIPTOR.fields_by_name if not any(f.name == name for f, _ in expected.ListFields())
    }
    assert not_set == {"photo"}, "each field of the proto has an option"


def test_options_that_are_not_given_are_not_set() -> None:
    assert search_request(()) == search_pb2.SearchRequest()
    assert caption_request(()) == search_pb2.CaptionRequest()
    zero = search_request([("min_semantic_score", "0"), ("include_dropped", "false")])
    assert zero.refinement.HasField("min_semantic_score")


def test_caption_has_the_options_of_a_caption() -> None:
    options = [("num_beams", "2"), ("region", "0,0,1,0.5"), ("query_rule", "last_two_words")]
    assert caption_request(options) == search_pb2.CaptionRequest(
        decoding=search_pb2.DecodingOptions(num_beams=2),
        region=search_pb2.Region(width=1, height=0.5),
        query_rule=search_pb2.QUERY_RULE_LAST_TWO_WORDS,
    )
    with pytest.raises(HttpRequestError, match="'max_results' is no option of this method"):
        caption_request([("max_results", "2")])


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("max_result", "3", "'max_result' is no option of this method: did you mean max_results?"),
        ("max_results", "ten", "max_results is 'ten': give a whole number"),
        ("max_results", "-1", "max_results is -1, outside of its limits: /openapi.json has them"),
        ("max_results", "4294967296", "max_results is 4294967296, outside of its limits: /openapi.json has them"),
        ("max_results", "٣", "max_results is '٣': give a whole number"),
        ("min_visual_score", "", "min_visual_score is '': give a number"),
        ("min_visual_score", "nan", "min_visual_score is 'nan': give a number"),
        ("min_visual_score", "1e999", "min_visual_score is '1e999': give a number"),
        ("include_dropped", "yes", "include_dropped is 'yes': give true or false"),
        ("query_rule", "first_word", f"query_rule is 'first_word': give one of {', '.join(RULES)}"),
        ("region", "0,0,1", "region is '0,0,1': give x,y,width,height as fractions of the photo, 0 to 1"),
        ("region", "0,0,1,a", "region is 'a': give a number"),
        ("query_override", "x" * 1001, "query_override has 1001 characters; the limit is 1000"),
        ("query_override", "\ud800", "query_override is no text in UTF-8: encode it as UTF-8"),
        ("query_override", "red \ufffd", "query_override is no text in UTF-8: encode it as UTF-8"),
    ],
)  # fmt: skip
def test_text_that_cannot_be_read_is_refused_with_its_name(name: str, text: str, says: str) -> None:
    with pytest.raises(HttpRequestError) as caught:
        search_request([(name, text)])
    assert str(caught.value) == says
    assert caught.value.http_status == 400


def test_option_given_twice_is_refused() -> None:
    with pytest.raises(HttpRequestError, match="max_results is given twice: give it once"):
        search_request([("max_results", "1"), ("provider", "catalog"), ("max_results", "1")])
