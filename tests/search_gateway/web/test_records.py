# SPDX-License-Identifier: Apache-2.0
"""The JSON of the HTTP API is what the client's command prints with --json."""

from __future__ import annotations

import json
from typing import Any

import pytest

from captrieve_client import messages, reports
from captrieve_client._generated import search_pb2 as client_pb2
from scripted_service import empty_answer, full_answer, result
from search_api import search_pb2
from search_gateway.web import records


def with_links(record: Any) -> Any:
    """A record of the client with the links of the HTTP API."""
    if isinstance(record, list):
        return [with_links(one) for one in record]
    if isinstance(record, dict):
        return {name: "" if name == "thumbnail_url" else with_links(value) for name, value in record.items()}
    return record


def explained() -> client_pb2.SearchResponse:
    answer = full_answer()
    answer.dropped.append(result("Red Shirt", 0.4, verdict=client_pb2.VERDICT_DROPPED_VISUAL, reason="it is red"))
    answer.word_override.colour = "blue"
    answer.results[0].duplicates.add(source="bing", url="https://other.example", title="The same", licence="CC0 1.0")
    answer.results[0].licence, answer.results[0].licence_url = (
        "CC BY 4.0",
        "https://creativecommons.org/licenses/by/4.0/",
    )
    answer.results[0].attribution, answer.results[0].provider = "by Someone", "openverse"
    answer.results[0].findings.add(kind="fits", words=["blue tie"], probability=0.1)
    return answer


def given_words() -> client_pb2.SearchResponse:
    answer = empty_answer()
    answer.ClearField("caption")
    answer.ClearField("confidence")
    answer.query_rule = client_pb2.QUERY_RULE_UNSPECIFIED
    return answer


@pytest.mark.parametrize("make", [full_answer, empty_answer, explained, given_words])
@pytest.mark.parametrize("explain", [True, False])
def test_search_is_that_of_the_client(make: Any, explain: bool) -> None:
    of_client = reports.search_record("a.jpg", messages.search_answer(make()), explain=explain)
    message = search_pb2.SearchResponse.FromString(make().SerializeToString())
    ours = records.search_answer(message, "a.jpg", lambda _: "", has_dropped=explain)
    assert json.loads(json.dumps(ours)) == with_links(json.loads(json.dumps(of_client)))
    assert list(ours) == list(of_client), "in the same order"


def test_caption_is_that_of_the_client() -> None:
    answer = full_answer()
    message = client_pb2.CaptionResponse(
        caption=answer.caption,
        query=answer.query,
        timings=answer.timings,
        model=answer.model,
        query_rule=answer.query_rule,
        no_product_probability=0.1,
        confidence=0.3,
        unsure_reason="it may be no product",
        paper_query="men shirt",
    )
    of_client = reports.caption_record("a.jpg", messages.caption_answer(message))
    ours = records.caption_answer(search_pb2.CaptionResponse.FromString(message.SerializeToString()), "a.jpg")
    assert json.loads(json.dumps(ours)) == json.loads(json.dumps(of_client))


def test_thumbnail_is_a_link_and_never_another_server() -> None:
    answer = full_answer()
    answer.results[1].thumbnail_url = "https://tracker.example/1.jpg"
    message = search_pb2.SearchResponse.FromString(answer.SerializeToString())
    record = records.search_answer(message, "", lambda data: f"/v1/thumbnails/{len(data)}", has_dropped=False)
    first, second = record["results"]
    assert first["thumbnail_url"] == f"/v1/thumbnails/{len(message.results[0].thumbnail)}"
    assert second["thumbnail_url"] == ""


def test_summary_of_a_stream_has_no_results() -> None:
    message = search_pb2.SearchResponse.FromString(full_answer().SerializeToString())
    summary = records.search_answer(message, "", lambda _: "", has_dropped=False, has_results=False)
    assert "results" not in summary
    assert summary["counts"]["kept"] == 2


def test_caption_event_says_what_the_photo_alone_says() -> None:
    answer = search_pb2.SearchResponse.FromString(full_answer().SerializeToString())
    event = search_pb2.SearchEvent(
        query="blue shirt",
        readings=answer.readings,
        query_rule=answer.query_rule,
        confidence=0.25,
        unsure_reason="why",
        paper_query="men shirt",
    )
    record = records.caption_event(answer.caption, event)
    assert (record["caption"], record["query"], record["query_rule"]) == (
        "Turtle Check Men Blue Shirt", "blue shirt", "likeliest_words",
    )  # fmt: skip
    assert record["words"][0]["alternatives"] == [{"text": "Navy", "probability": 0.125}]
    assert (record["confidence"], record["unsure_reason"], record["paper_query"]) == (0.25, "why", "men shirt")
    assert record["readings"][1] == {"query": "navy shirt", "probability": 0.375}
    given = records.caption_event(None, search_pb2.SearchEvent(query="red bag"))
    assert (given["caption"], given["words"], given["confidence"], given["query_rule"]) == (None, [], None, "")
