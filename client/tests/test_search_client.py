# SPDX-License-Identifier: Apache-2.0
"""The sync client against a real gRPC server on loopback: streams, many captions, health and closing."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from captrieve_client import (
    Caption,
    CaptionAnswer,
    PhotoFileError,
    Query,
    RequestRejectedError,
    SearchClient,
    ServerUnavailableError,
)

from scripted_service import Failure, ScriptedService, full_answer, serving

Code = grpc.StatusCode


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


# Streams


def test_stream_brings_caption_query_results_and_the_whole_answer(search_client: SearchClient) -> None:
    whole = search_client.search(b"photo")
    events = list(search_client.stream_search(b"photo"))
    assert events == [whole.caption, Query("blue shirt"), *whole.results, whole]


def test_leaving_a_stream_cancels_the_search(service: ScriptedService, search_client: SearchClient) -> None:
    hold = threading.Event()
    service.before_answer = lambda photo: hold.wait(100)
    try:
        events = search_client.stream_search(b"photo")
        assert isinstance(next(events), Caption)
        events.close()
        assert service.cancelled.wait(60)
    finally:
        hold.set()


# Many captions


def test_captions_keep_the_order_of_the_photos(service: ScriptedService, search_client: SearchClient) -> None:
    """The first photo is answered last."""
    names = [f"{number}.jpg" for number in range(8)]
    others = threading.Semaphore(0)

    def first_waits_for_the_others(photo: bytes) -> None:
        if photo == b"0.jpg":
            for _ in names[1:]:
                assert others.acquire(timeout=100)
        else:
            others.release()

    service.before_answer = first_waits_for_the_others
    answers = search_client.captions([name.encode() for name in names])
    assert [answer.caption.text for answer in answers] == [f"Caption of {name}" for name in names]


def test_captions_are_sent_at_once_up_to_the_concurrency(service: ScriptedService, search_client: SearchClient) -> None:
    together = threading.Barrier(4)
    lock = threading.Lock()
    under_way = most = 0

    def meet(photo: bytes) -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        together.wait(100)
        with lock:
            under_way -= 1

    service.before_answer = meet
    answers = search_client.captions([str(number).encode() for number in range(12)], concurrency=4)
    assert [answer.caption.text for answer in answers] == [f"Caption of {number}" for number in range(12)]
    assert most == 4


def test_bad_photo_among_many_leaves_the_others_their_captions(
    service: ScriptedService, search_client: SearchClient, tmp_path: Path
) -> None:
    service.failures[b"bad"] = Failure(Code.INVALID_ARGUMENT, "not a photo")
    photos: list[bytes | str | os.PathLike[str]] = [b"a", b"bad", tmp_path / "none.jpg", b"b"]
    first, bad, missing, last = search_client.stream_captions(photos)
    assert isinstance(first, CaptionAnswer)
    assert isinstance(last, CaptionAnswer)
    assert (first.caption.text, last.caption.text) == ("Caption of a", "Caption of b")
    assert isinstance(bad, RequestRejectedError)
    assert isinstance(missing, PhotoFileError)
    with pytest.raises(RequestRejectedError, match="not a photo"):
        search_client.captions(photos)


def test_leaving_captions_early_cancels_the_rest(service: ScriptedService, search_client: SearchClient) -> None:
    hold = threading.Event()
    service.before_answer = lambda photo: photo == b"first" or hold.wait(100)
    try:
        outcomes = search_client.stream_captions([b"first", b"second", b"third"])
        assert isinstance(next(outcomes), CaptionAnswer)
        outcomes.close()
    finally:
        hold.set()


def test_one_photo_instead_of_many_is_refused(search_client: SearchClient) -> None:
    with pytest.raises(TypeError, match="photos is one photo"):
        search_client.captions("shirt.jpg")
    with pytest.raises(ValueError, match="concurrency is 0"):
        search_client.captions([b"a"], concurrency=0)


def test_no_photos_no_captions(search_client: SearchClient) -> None:
    assert search_client.captions([]) == []


# Health and closing


@pytest.mark.parametrize(("ready", "status"), [(True, "serving"), (False, "not_serving")])
def test_health_is_what_the_server_says(service: ScriptedService, ready: bool, status: str) -> None:
    with serving(service, ready=ready) as address, SearchClient(address) as search_client:
        assert search_client.health() == status


def test_closing_ends_what_is_under_way(service: ScriptedService, address: str) -> None:
    hold = threading.Event()
    service.before_answer = lambda photo: hold.wait(100)
    search_client = SearchClient(address)
    outcomes = search_client.stream_captions([b"a"])
    closer = threading.Thread(target=lambda: service.asked.wait(100) and search_client.close())
    closer.start()
    try:
        (outcome,) = outcomes
    finally:
        hold.set()
        closer.join()
    assert isinstance(outcome, ServerUnavailableError)
    assert outcome.code is Code.CANCELLED
