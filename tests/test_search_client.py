# SPDX-License-Identifier: Apache-2.0
"""The two clients against a real gRPC server on loopback."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import grpc
import pytest

from client import (
    AlternativeCaption,
    AsyncSearchClient,
    Caption,
    CaptionAnswer,
    Counts,
    Degradation,
    PhotoFileError,
    Query,
    RequestRejectedError,
    RequestTimeoutError,
    Result,
    SearchAnswer,
    SearchClient,
    SearchClientError,
    ServerOverloadedError,
    ServerUnavailableError,
    Word,
    WordAlternative,
)
from client.client_errors import _CLASS_OF, translated_errors
from client.messages import MAX_PHOTO_BYTES
from search_api import search_pb2
from tests.scripted_service import Failure, ScriptedService, empty_answer, full_answer, serving

T = TypeVar("T")
Code = grpc.StatusCode
CLASS_BY_CODE = {
    Code.INVALID_ARGUMENT: RequestRejectedError,
    Code.UNAUTHENTICATED: RequestRejectedError,
    Code.PERMISSION_DENIED: RequestRejectedError,
    Code.NOT_FOUND: RequestRejectedError,
    Code.ALREADY_EXISTS: RequestRejectedError,
    Code.FAILED_PRECONDITION: RequestRejectedError,
    Code.OUT_OF_RANGE: RequestRejectedError,
    Code.UNIMPLEMENTED: RequestRejectedError,
    Code.RESOURCE_EXHAUSTED: ServerOverloadedError,
    Code.UNAVAILABLE: ServerUnavailableError,
    Code.ABORTED: ServerUnavailableError,
    Code.CANCELLED: ServerUnavailableError,
    Code.INTERNAL: ServerUnavailableError,
    Code.UNKNOWN: ServerUnavailableError,
    Code.DATA_LOSS: ServerUnavailableError,
    Code.DEADLINE_EXCEEDED: RequestTimeoutError,
}
RETRYABLE = {Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE, Code.ABORTED, Code.DEADLINE_EXCEEDED}


@pytest.fixture
def service() -> ScriptedService:
    return ScriptedService(full_answer())


@pytest.fixture
def address(service: ScriptedService) -> Iterator[str]:
    with serving(service) as address:
        yield address


@pytest.fixture
def search_client(address: str) -> Iterator[SearchClient]:
    with SearchClient(address) as search_client:
        yield search_client


@pytest.fixture
def dead_address() -> Iterator[str]:
    """An address that is taken, so nobody else gets it, but where nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def run_async(address: str, use: Callable[[AsyncSearchClient], Awaitable[T]]) -> T:
    async def run() -> T:
        async with AsyncSearchClient(address) as search_client:
            return await use(search_client)

    return asyncio.run(run())


# What is sent and what comes back


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
    ):
        fields = {renamed.get(name, name) for name in message.DESCRIPTOR.fields_by_name}
        assert set(value.__dataclass_fields__) == fields, value


def test_every_verdict_has_its_name(service: ScriptedService, search_client: SearchClient) -> None:
    for name, number in search_pb2.Verdict.items():
        service.answer.results[0].verdict = number
        assert search_client.search(b"photo").results[0].verdict == name.removeprefix("VERDICT_").lower()
    service.answer.results[0].verdict = 99  # type: ignore[assignment]
    assert search_client.search(b"photo").results[0].verdict == "unspecified"


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
        query_override="leather bag",
        provider="catalog",
        max_results=7,
        min_visual_score=0.0,
        min_semantic_score=0.5,
        explain=True,
    )
    search_client.caption(b"photo", num_beams=3, length_penalty=2.0, max_tokens=5, query_rule="last_two_words")
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
    )
    assert caption == search_pb2.CaptionRequest(
        photo=b"photo",
        decoding=search_pb2.DecodingOptions(num_beams=3, length_penalty=2.0, max_tokens=5),
        query_rule=search_pb2.QUERY_RULE_LAST_TWO_WORDS,
    )


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
    with pytest.raises(ValueError, match=r"'first_word'.*'last_two_words', 'full_caption'"):
        search_client.search(b"photo", query_rule="first_word")  # type: ignore[arg-type]


def test_unknown_option_is_refused(search_client: SearchClient) -> None:
    with pytest.raises(TypeError, match="beams"):
        search_client.search(b"photo", beams=4)  # type: ignore[call-arg]


def test_caption_answer_arrives_whole(search_client: SearchClient) -> None:
    answer = search_client.caption(b"shirt.jpg")
    assert answer.caption.text == "Caption of shirt.jpg"
    assert [word.text for word in answer.caption.words] == ["Blue", "Shirt"]
    assert (answer.query, answer.model) == ("blue shirt", "fashion-small")
    assert list(answer.timings_ms) == ["preprocess", "encode", "search", "total"]


# Photos


def test_photo_may_be_bytes_or_a_path(service: ScriptedService, search_client: SearchClient, tmp_path: Path) -> None:
    path = tmp_path / "shirt.jpg"
    path.write_bytes(b"in a file")
    for photo in (b"in a file", str(path), path):
        search_client.search(photo)
    assert [request.photo for request in service.requests] == [b"in a file"] * 3


def test_unreadable_file_is_an_error_of_its_own(
    service: ScriptedService, search_client: SearchClient, tmp_path: Path
) -> None:
    for path, reason in (
        (tmp_path / "none.jpg", "no such file or directory"),
        (tmp_path, "is a directory"),
        ("null\0.jpg", "not a path"),
    ):
        with pytest.raises(PhotoFileError, match=reason) as caught:
            search_client.search(path)
        assert (caught.value.code, caught.value.retryable) == (Code.INVALID_ARGUMENT, False)
    assert service.requests == []


def test_photo_larger_than_a_message_is_not_sent(
    service: ScriptedService, search_client: SearchClient, tmp_path: Path
) -> None:
    path = tmp_path / "large.jpg"
    with path.open("wb") as file:
        file.truncate(100 * MAX_PHOTO_BYTES)
    with pytest.raises(RequestRejectedError, match=r"large.jpg is larger than the 16\.7 MB a request can carry"):
        search_client.search(path)
    with pytest.raises(RequestRejectedError, match="the photo is larger"):
        search_client.caption(bytes(MAX_PHOTO_BYTES + 1))
    assert service.requests == []


def test_photo_larger_than_the_server_takes_is_rejected_for_good(search_client: SearchClient) -> None:
    with pytest.raises(RequestRejectedError, match="a message was too large: send a smaller photo") as caught:
        search_client.search(bytes(5 * 2**20))  # the scripted server has gRPC's own limit of 4 MiB
    assert (caught.value.code, caught.value.retryable) == (Code.RESOURCE_EXHAUSTED, False)


def test_answer_above_grpcs_own_limit_arrives(service: ScriptedService, search_client: SearchClient) -> None:
    service.answer.results[0].thumbnail = bytes(8 * 2**20)
    assert len(search_client.search(b"photo").results[0].thumbnail) == 8 * 2**20


# Errors


def test_every_code_has_an_error_class() -> None:
    assert set(_CLASS_OF) == set(Code) - {Code.OK} == set(CLASS_BY_CODE)


@pytest.mark.parametrize("code", CLASS_BY_CODE, ids=lambda code: code.name)
def test_code_arrives_as_its_error(service: ScriptedService, address: str, code: grpc.StatusCode) -> None:
    service.failure = Failure(code, "photo is 12 MB; the limit is 8 MB")

    async def search_async(search_client: AsyncSearchClient) -> SearchAnswer:
        return await search_client.search(b"photo")

    async def stream_async(search_client: AsyncSearchClient) -> list[object]:
        return [event async for event in search_client.stream_search(b"photo")]

    with SearchClient(address) as search_client:
        calls: list[Callable[[], object]] = [
            lambda: search_client.search(b"photo"),
            lambda: search_client.caption(b"photo"),
            lambda: list(search_client.stream_search(b"photo")),
            lambda: search_client.captions([b"photo"]),
            lambda: run_async(address, search_async),
            lambda: run_async(address, stream_async),
        ]
        for call in calls:
            with pytest.raises(SearchClientError) as caught:
                call()
            error = caught.value
            assert type(error) is CLASS_BY_CODE[code]
            assert (error.code, error.retryable) == (code, code in RETRYABLE)
            assert error.retry_after_seconds is None
            if code is Code.UNIMPLEMENTED:
                assert f"what answers at {address} is not a Captrieve server" in str(error)
            else:
                assert str(error) == "photo is 12 MB; the limit is 8 MB"


def test_error_without_a_message_still_says_something(service: ScriptedService, search_client: SearchClient) -> None:
    service.failure = Failure(Code.INTERNAL, "")
    with pytest.raises(ServerUnavailableError, match="answered INTERNAL without a reason"):
        search_client.search(b"photo")


def test_full_server_says_when_to_come_back(service: ScriptedService, address: str) -> None:
    service.failure = Failure(Code.RESOURCE_EXHAUSTED, "64 requests wait already", 2.5)

    async def caption(search_client: AsyncSearchClient) -> CaptionAnswer:
        return await search_client.caption(b"photo")

    with SearchClient(address) as search_client:
        for call in (lambda: search_client.search(b"photo"), lambda: run_async(address, caption)):
            with pytest.raises(ServerOverloadedError, match="64 requests wait already") as caught:
                call()
            assert caught.value.retry_after_seconds == 2.5
            assert caught.value.retryable


def test_without_the_common_protos_only_the_pause_is_lost(
    service: ScriptedService, search_client: SearchClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.failure = Failure(Code.RESOURCE_EXHAUSTED, "full", 2.5)
    monkeypatch.setitem(sys.modules, "google.rpc", None)  # type: ignore[arg-type]
    with pytest.raises(ServerOverloadedError) as caught:
        search_client.search(b"photo")
    assert caught.value.retry_after_seconds is None


def test_damaged_status_details_do_not_hide_the_error() -> None:
    error = grpc.aio.AioRpcError(
        Code.RESOURCE_EXHAUSTED,
        grpc.aio.Metadata(),
        grpc.aio.Metadata(("grpc-status-details-bin", b"\xff\xff")),
        "full",
    )
    with pytest.raises(ServerOverloadedError, match="full"), translated_errors("here", 1):
        raise error


def test_nothing_listening_says_how_to_start_a_server(dead_address: str) -> None:
    async def search(search_client: AsyncSearchClient) -> SearchAnswer:
        return await search_client.search(b"photo")

    with SearchClient(dead_address) as search_client:
        for call in (lambda: search_client.search(b"photo"), lambda: run_async(dead_address, search)):
            with pytest.raises(ServerUnavailableError) as caught:
                call()
            assert str(caught.value) == f'no server answers at {dead_address}: start one with "make up"'
            assert caught.value.retryable


def test_unknown_host_is_a_server_that_does_not_answer() -> None:
    with (
        SearchClient("a:b:c") as search_client,
        pytest.raises(ServerUnavailableError, match="no server answers at a:b:c"),
    ):
        search_client.search(b"photo")


def test_server_that_is_no_captrieve_server_is_named() -> None:
    """Triton's gRPC port, say, which is 8001 too."""
    with serving(None) as address, SearchClient(address) as search_client:
        assert search_client.health() == "serving"
        with pytest.raises(RequestRejectedError, match="is not a Captrieve server") as caught:
            search_client.search(b"photo")
    assert not caught.value.retryable


@pytest.mark.parametrize("code", [Code.UNKNOWN, Code.UNAVAILABLE, Code.UNIMPLEMENTED])
def test_web_server_is_no_captrieve_server(code: grpc.StatusCode) -> None:
    nothing = grpc.aio.Metadata()
    error = grpc.aio.AioRpcError(code, nothing, nothing, "Received http2 header with status: 404")
    with pytest.raises(RequestRejectedError, match="what answers at here:80 is not"), translated_errors("here:80", 1):
        raise error


def test_no_answer_in_time_is_a_timeout(service: ScriptedService, search_client: SearchClient) -> None:
    hold = threading.Event()
    service.before_answer = lambda photo: hold.wait(10)
    try:
        with pytest.raises(RequestTimeoutError, match=r"no answer from 127.* within 0\.2 s") as caught:
            search_client.search(b"photo", timeout_seconds=0.2)
    finally:
        hold.set()
    assert caught.value.retryable


def test_client_finds_a_restarted_server(service: ScriptedService) -> None:
    with serving(service) as address:
        search_client = SearchClient(address)
        search_client.search(b"photo")
    with search_client:
        with pytest.raises(ServerUnavailableError):
            search_client.search(b"photo")
        with serving(service, port=int(address.split(":")[1])):
            give_up = time.monotonic() + 10
            while True:
                try:
                    assert search_client.search(b"photo").query == "blue shirt"
                    break
                except ServerUnavailableError:
                    assert time.monotonic() < give_up
                    time.sleep(0.02)


# Streams


def test_stream_brings_caption_query_results_and_the_whole_answer(address: str) -> None:
    async def collect(search_client: AsyncSearchClient) -> list[object]:
        return [event async for event in search_client.stream_search(b"photo", max_results=2)]

    with SearchClient(address) as search_client:
        whole = search_client.search(b"photo")
        for events in (list(search_client.stream_search(b"photo")), run_async(address, collect)):
            assert events == [whole.caption, Query("blue shirt"), *whole.results, whole]


def test_leaving_a_stream_cancels_the_search(service: ScriptedService, address: str) -> None:
    hold = threading.Event()
    service.before_answer = lambda photo: hold.wait(10)

    async def first_event(search_client: AsyncSearchClient) -> object:
        events = search_client.stream_search(b"photo")
        try:
            return await anext(events)
        finally:
            await events.aclose()

    try:
        with SearchClient(address) as search_client:
            events = search_client.stream_search(b"photo")
            assert isinstance(next(events), Caption)
            events.close()
            assert service.cancelled.wait(5)
            service.cancelled.clear()
            assert isinstance(run_async(address, first_event), Caption)
            assert service.cancelled.wait(5)
    finally:
        hold.set()


# Many captions


def test_captions_keep_the_order_of_the_photos(service: ScriptedService, address: str) -> None:
    """The first photo is answered last."""
    names = [f"{number}.jpg" for number in range(8)]
    others = threading.Semaphore(0)

    def first_waits_for_the_others(photo: bytes) -> None:
        if photo == b"0.jpg":
            for _ in names[1:]:
                assert others.acquire(timeout=10)
        else:
            others.release()

    service.before_answer = first_waits_for_the_others
    expected = [f"Caption of {name}" for name in names]
    photos = [name.encode() for name in names]

    async def captions(search_client: AsyncSearchClient) -> list[CaptionAnswer]:
        return await search_client.captions(photos)

    with SearchClient(address) as search_client:
        assert [answer.caption.text for answer in search_client.captions(photos)] == expected
    assert [answer.caption.text for answer in run_async(address, captions)] == expected


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_captions_are_sent_at_once_up_to_the_concurrency(service: ScriptedService, address: str, kind: str) -> None:
    together = threading.Barrier(4)
    lock = threading.Lock()
    under_way = most = 0

    def meet(photo: bytes) -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        together.wait(10)
        with lock:
            under_way -= 1

    service.before_answer = meet
    photos = [str(number).encode() for number in range(12)]

    async def captions(search_client: AsyncSearchClient) -> list[CaptionAnswer]:
        return await search_client.captions(photos, concurrency=4)

    if kind == "sync":
        with SearchClient(address) as search_client:
            answers = search_client.captions(photos, concurrency=4)
    else:
        answers = run_async(address, captions)
    assert [answer.caption.text for answer in answers] == [f"Caption of {number}" for number in range(12)]
    assert most == 4


def test_bad_photo_among_many_leaves_the_others_their_captions(
    service: ScriptedService, address: str, tmp_path: Path
) -> None:
    service.failures[b"bad"] = Failure(Code.INVALID_ARGUMENT, "not a photo")
    photos: list[bytes | str | os.PathLike[str]] = [b"a", b"bad", tmp_path / "none.jpg", b"b"]

    async def collect(search_client: AsyncSearchClient) -> list[CaptionAnswer | SearchClientError]:
        return [outcome async for outcome in search_client.stream_captions(photos)]

    with SearchClient(address) as search_client:
        for outcomes in (list(search_client.stream_captions(photos)), run_async(address, collect)):
            first, bad, missing, last = outcomes
            assert isinstance(first, CaptionAnswer)
            assert isinstance(last, CaptionAnswer)
            assert (first.caption.text, last.caption.text) == ("Caption of a", "Caption of b")
            assert isinstance(bad, RequestRejectedError)
            assert isinstance(missing, PhotoFileError)
        with pytest.raises(RequestRejectedError, match="not a photo"):
            search_client.captions(photos)


def test_leaving_captions_early_cancels_the_rest(service: ScriptedService, address: str) -> None:
    hold = threading.Event()
    service.before_answer = lambda photo: photo == b"first" or hold.wait(10)
    photos = [b"first", b"second", b"third"]

    async def first(search_client: AsyncSearchClient) -> None:
        outcomes = search_client.stream_captions(photos)
        assert isinstance(await anext(outcomes), CaptionAnswer)
        await asyncio.wait_for(outcomes.aclose(), 5)

    try:
        with SearchClient(address) as search_client:
            outcomes = search_client.stream_captions(photos)
            assert isinstance(next(outcomes), CaptionAnswer)
            outcomes.close()
        run_async(address, first)
    finally:
        hold.set()


def test_one_photo_instead_of_many_is_refused(search_client: SearchClient) -> None:
    with pytest.raises(TypeError, match="takes a sequence of photos"):
        search_client.captions("shirt.jpg")
    with pytest.raises(ValueError, match="concurrency is 0"):
        search_client.captions([b"a"], concurrency=0)


def test_no_photos_no_captions(search_client: SearchClient) -> None:
    assert search_client.captions([]) == []


# Health and closing


@pytest.mark.parametrize(("ready", "status"), [(True, "serving"), (False, "not_serving")])
def test_health_is_what_the_server_says(service: ScriptedService, ready: bool, status: str) -> None:
    async def ask(search_client: AsyncSearchClient) -> str:
        return await search_client.health()

    with serving(service, ready=ready) as address, SearchClient(address) as search_client:
        assert search_client.health() == status
        assert run_async(address, ask) == status


def test_closing_ends_what_is_under_way(service: ScriptedService, address: str) -> None:
    hold = threading.Event()
    service.before_answer = lambda photo: hold.wait(10)
    search_client = SearchClient(address)
    outcomes = search_client.stream_captions([b"a"])
    closer = threading.Thread(target=lambda: service.asked.wait(10) and search_client.close())
    closer.start()
    try:
        (outcome,) = outcomes
    finally:
        hold.set()
        closer.join()
    assert isinstance(outcome, ServerUnavailableError)
    assert outcome.code is Code.CANCELLED
