# SPDX-License-Identifier: Apache-2.0
"""What is sent to a real gRPC server on loopback, and what comes back as values."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from captrieve_client import (
    AlternativeCaption,
    Caption,
    CaptionAnswer,
    Counts,
    Degradation,
    Duplicate,
    Query,
    Reading,
    Result,
    SearchAnswer,
    SearchClient,
    Word,
    WordAlternative,
    WordOverride,
)
from captrieve_client._generated import search_pb2

from scripted_service import ScriptedService, empty_answer, full_answer, serving


@pytest.fixture
def service() -> ScriptedService:
    return ScriptedService(full_answer())


@pytest.fixture
def search_client(service: ScriptedService) -> Iterator[SearchClient]:
    with serving(service) as address, SearchClient(address) as search_client:
        yield search_client


def test_search_answer_arrives_whole(search_client: SearchClient) -> None:
    answer = search_client.search(b"photo")
    assert answer.caption == Caption(
        "Turtle Check Men Blue Shirt",
        (Word("Blue", 0.7, (WordAlternative("Navy", 0.125),)), Word("Shirt", 0.9)),
        -1.25,
        True,
        (AlternativeCaption("Men Blue Shirt", -2.0),),
    )
    assert (answer.query, answer.provider, answer.model) == ("blue shirt", "duckduckgo", "fashion-small")
    assert answer.counts == Counts(
        found=9, fetched=8, unfetchable=1, undecodable=1, dropped_visual=3, dropped_semantic=2, kept=2
    )
    assert answer.timings_ms == {"preprocess": 2, "encode": 20, "search": 50, "total": 100}
    assert answer.degraded == (Degradation("thumbnails", "1 of 9 did not arrive in time"),)
    assert answer.readings == (Reading("blue shirt", 0.625), Reading("navy shirt", 0.375))
    assert (answer.query_rule, answer.no_product_probability) == ("likeliest_words", 0.1)
    assert (answer.confidence, answer.unsure_reason) == (0.95, "")
    assert (answer.nearest_miss, answer.empty_reason, answer.dropped) == (None, "", ())
    first, second = answer.results
    assert first.thumbnail.startswith(b"\xff\xd8")
    assert second == Result(
        title="Blue Oxford Shirt",
        url="https://shop.example/item",
        image_url="https://shop.example/item.jpg",
        thumbnail_url="https://img.example/t.jpg",
        source="bing",
        width=600,
        height=800,
        visual_score=0.8,
        semantic_score=1.0,
        score=0.85,
        verdict="kept",
        reason="it looks like the photo and agrees with both words",
        thumbnail=b"",
    )


def test_values_have_every_field_of_their_message() -> None:
    """A field added to search.proto must be added to the client as well."""
    renamed = {"timings": "timings_ms"}
    for value, message in (
        (SearchAnswer, search_pb2.SearchResponse),
        (CaptionAnswer, search_pb2.CaptionResponse),
        (Result, search_pb2.Result),
        (Caption, search_pb2.Caption),
        (Word, search_pb2.Word),
        (WordAlternative, search_pb2.WordAlternative),
        (AlternativeCaption, search_pb2.AlternativeCaption),
        (Counts, search_pb2.Counts),
        (Degradation, search_pb2.Degradation),
        (Duplicate, search_pb2.Duplicate),
        (Reading, search_pb2.Reading),
        (WordOverride, search_pb2.WordOverride),
    ):
        fields = {renamed.get(name, name) for name in message.DESCRIPTOR.fields_by_name}
        assert set(value.__dataclass_fields__) == fields, value


def test_every_verdict_has_its_name(service: ScriptedService, search_client: SearchClient) -> None:
    for name, number in search_pb2.Verdict.items():
        service.answer.results[0].verdict = number
        assert search_client.search(b"photo").results[0].verdict == name.removeprefix("VERDICT_").lower()
    service.answer.results[0].verdict = 99  # type: ignore[assignment]
    assert search_client.search(b"photo").results[0].verdict == "unspecified"


def test_every_query_rule_has_its_name(service: ScriptedService, search_client: SearchClient) -> None:
    for name, number in search_pb2.QueryRule.items():
        service.answer.query_rule = number
        expected = "" if number == 0 else name.removeprefix("QUERY_RULE_").lower()
        assert search_client.search(b"photo").query_rule == expected
        if expected:
            search_client.caption(b"photo", query_rule=expected)  # type: ignore[arg-type]
            assert service.requests[-1].query_rule == number
    service.answer.query_rule = 99  # type: ignore[assignment]
    assert search_client.search(b"photo").query_rule == ""


def test_unset_options_are_left_to_the_server(service: ScriptedService, search_client: SearchClient) -> None:
    search_client.search(b"photo")
    (request,) = service.requests
    assert request == search_pb2.SearchRequest(
        photo=b"photo",
        decoding=search_pb2.DecodingOptions(num_beams=1),
        refinement=search_pb2.RefinementOptions(),
    )


def test_all_options_are_sent(service: ScriptedService, search_client: SearchClient) -> None:
    search_client.search(
        b"photo",
        num_beams=4,
        length_penalty=0.0,
        max_tokens=12,
        query_rule="full_caption",
        region=(0.5, 0, 0.5, 1),
        query_override="leather bag",
        provider="catalog",
        max_results=7,
        min_visual_score=0.0,
        min_semantic_score=0.5,
        explain=True,
    )
    search_client.caption(
        b"photo", num_beams=3, length_penalty=2.0, max_tokens=5, query_rule="last_two_words", region=(0, 0.25, 1, 0.5)
    )
    search, caption = service.requests
    assert search == search_pb2.SearchRequest(
        photo=b"photo",
        decoding=search_pb2.DecodingOptions(num_beams=4, length_penalty=0.0, max_tokens=12),
        query_rule=search_pb2.QUERY_RULE_FULL_CAPTION,
        query_override="leather bag",
        provider="catalog",
        max_results=7,
        refinement=search_pb2.RefinementOptions(min_visual_score=0.0, min_semantic_score=0.5),
        explain=True,
        region=search_pb2.Region(x=0.5, y=0, width=0.5, height=1),
    )
    assert caption == search_pb2.CaptionRequest(
        photo=b"photo",
        decoding=search_pb2.DecodingOptions(num_beams=3, length_penalty=2.0, max_tokens=5),
        query_rule=search_pb2.QUERY_RULE_LAST_TWO_WORDS,
        region=search_pb2.Region(x=0, y=0.25, width=1, height=0.5),
    )


def test_region_of_other_than_four_numbers_is_refused(search_client: SearchClient) -> None:
    with pytest.raises(ValueError, match="region is .*; give left edge, top edge, width and height"):
        search_client.search(b"photo", region=(0.5, 0.5))  # type: ignore[arg-type]


def test_query_event_says_what_the_photo_alone_says(search_client: SearchClient, service: ScriptedService) -> None:
    service.query_details = search_pb2.SearchEvent(
        readings=[search_pb2.Reading(query="blue shirt", probability=0.75)],
        query_rule=search_pb2.QUERY_RULE_LIKELIEST_WORDS,
        confidence=0.25,
        unsure_reason="the words are a guess",
    )
    query = next(event for event in search_client.stream_search(b"photo") if isinstance(event, Query))
    assert query == Query(
        "blue shirt",
        readings=(Reading("blue shirt", 0.75),),
        query_rule="likeliest_words",
        confidence=0.25,
        unsure_reason="the words are a guess",
    )


def test_overridden_words_are_sent(service: ScriptedService, search_client: SearchClient) -> None:
    search_client.search(b"photo", override_colour="red")
    search_client.search(b"photo", override_thing="jeans")
    first, second = service.requests
    assert first.word_override == search_pb2.WordOverride(colour="red")
    assert second.word_override == search_pb2.WordOverride(thing="jeans")


def test_duplicates_and_picture_words_arrive(service: ScriptedService, search_client: SearchClient) -> None:
    service.answer.results[0].duplicates.add(
        source="bing", url="https://other.example/1", title="Shirt", licence="CC0 1.0", attribution="by Someone"
    )
    service.answer.results[0].picture_words = "blue shirt"
    service.answer.counts.duplicates = 1
    answer = search_client.search(b"photo")
    assert answer.results[0].duplicates == (
        Duplicate("bing", "https://other.example/1", "Shirt", licence="CC0 1.0", attribution="by Someone"),
    )
    assert (answer.results[0].picture_words, answer.counts.duplicates) == ("blue shirt", 1)


def test_search_with_other_words_has_no_caption(service: ScriptedService, search_client: SearchClient) -> None:
    service.answer.ClearField("caption")
    assert search_client.search(b"photo", query_override="leather bag").caption is None


def test_empty_answer_brings_its_explanation(service: ScriptedService, search_client: SearchClient) -> None:
    service.answer = empty_answer()
    answer = search_client.search(b"photo")
    assert answer.results == ()
    assert answer.empty_reason == "all 9 candidates were dropped"
    assert answer.nearest_miss is not None
    assert answer.nearest_miss.verdict == "dropped_visual"


def test_explained_answer_lists_what_was_dropped(service: ScriptedService, search_client: SearchClient) -> None:
    service.answer.dropped.append(empty_answer().nearest_miss)
    (dropped,) = search_client.search(b"photo", explain=True).dropped
    assert (dropped.title, dropped.reason) == ("Red Shirt", "visual score 0.40 is below 0.55")


def test_unknown_query_rule_names_the_known_ones(search_client: SearchClient) -> None:
    with pytest.raises(ValueError, match=r"'first_word'.*'likeliest_words', 'last_two_words', 'full_caption'"):
        search_client.search(b"photo", query_rule="first_word")  # type: ignore[arg-type]


def test_unknown_option_is_refused(search_client: SearchClient) -> None:
    with pytest.raises(TypeError, match="beams"):
        search_client.search(b"photo", beams=4)  # type: ignore[call-arg]


def test_caption_answer_arrives_whole(search_client: SearchClient) -> None:
    answer = search_client.caption(b"shirt.jpg")
    assert answer.caption.text == "Caption of shirt.jpg"
    assert [word.text for word in answer.caption.words] == ["Blue", "Shirt"]
    assert (answer.query, answer.model) == ("blue shirt", "fashion-small")
    assert (answer.query_rule, answer.no_product_probability) == ("likeliest_words", 0.1)
    assert (answer.confidence, answer.unsure_reason) == (0.95, "")
    assert list(answer.timings_ms) == ["preprocess", "encode", "search", "total"]
