# SPDX-License-Identifier: Apache-2.0
"""The asyncio client against a real gRPC server on loopback: streams, many captions and health."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import grpc
import pytest

from captrieve_client import (
    AsyncSearchClient,
    Caption,
    CaptionAnswer,
    PhotoFileError,
    Query,
    RequestRejectedError,
    SearchAnswer,
    SearchClient,
    SearchClientError,
)
from captrieve_client._generated import search_pb2

from scripted_service import Failure, ScriptedService, full_answer, serving

T = TypeVar("T")


@pytest.fixture
def service() -> ScriptedService:
    return ScriptedService(full_answer())


@pytest.fixture
def address(service: ScriptedService) -> Iterator[str]:
    with serving(service) as address:
        yield address


def run_async(address: str, use: Callable[[AsyncSearchClient], Awaitable[T]]) -> T:
    async def run() -> T:
        async with AsyncSearchClient(address) as search_client:
            return await use(search_client)

    return asyncio.run(run())


# Searches


def test_answer_is_that_of_the_sync_client(address: str) -> None:
    async def search(search_client: AsyncSearchClient) -> SearchAnswer:
        return await search_client.search(b"photo")

    with SearchClient(address) as search_client:
        assert run_async(address, search) == search_client.search(b"photo")


def test_stream_brings_caption_query_results_and_the_whole_answer(service: ScriptedService, address: str) -> None:
    async def collect(search_client: AsyncSearchClient) -> list[object]:
        return [event async for event in search_client.stream_search(b"photo", max_results=2)]

    with SearchClient(address) as search_client:
        whole = search_client.search(b"photo")
    assert run_async(address, collect) == [whole.caption, Query("blue shirt"), *whole.results, whole]
    request = service.requests[-1]
    assert isinstance(request, search_pb2.SearchRequest)
    assert request.max_results == 2


def test_leaving_a_stream_cancels_the_search(service: ScriptedService, address: str) -> None:
    hold = threading.Event()
    service.before_answer = lambda photo: hold.wait(100)

    async def first_event(search_client: AsyncSearchClient) -> object:
        events = search_client.stream_search(b"photo")
        try:
            return await anext(events)
        finally:
            await events.aclose()

    try:
        assert isinstance(run_async(address, first_event), Caption)
        assert service.cancelled.wait(60)
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
                assert others.acquire(timeout=100)
        else:
            others.release()

    service.before_answer = first_waits_for_the_others

    async def captions(search_client: AsyncSearchClient) -> list[CaptionAnswer]:
        return await search_client.captions([name.encode() for name in names])

    answers = run_async(address, captions)
    assert [answer.caption.text for answer in answers] == [f"Caption of {name}" for name in names]


def test_captions_are_sent_at_once_up_to_the_concurrency(service: ScriptedService, address: str) -> None:
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

    async def captions(search_client: AsyncSearchClient) -> list[CaptionAnswer]:
        return await search_client.captions([str(number).encode() for number in range(12)], concurrency=4)

    answers = run_async(address, captions)
    assert [answer.caption.text for answer in answers] == [f"Caption of {number}" for number in range(12)]
    assert most == 4


def test_bad_photo_among_many_leaves_the_others_their_captions(
    service: ScriptedService, address: str, tmp_path: Path
) -> None:
    service.failures[b"bad"] = Failure(grpc.StatusCode.INVALID_ARGUMENT, "not a photo")
    photos: list[bytes | str | os.PathLike[str]] = [b"a", b"bad", tmp_path / "none.jpg", b"b"]

    async def collect(search_client: AsyncSearchClient) -> list[CaptionAnswer | SearchClientError]:
        return [outcome async for outcome in search_client.stream_captions(photos)]

    async def captions(search_client: AsyncSearchClient) -> list[CaptionAnswer]:
        return await search_client.captions(photos)

    first, bad, missing, last = run_async(address, collect)
    assert isinstance(first, CaptionAnswer)
    assert isinstance(last, CaptionAnswer)
    assert (first.caption.text, last.caption.text) == ("Caption of a", "Caption of b")
    assert isinstance(bad, RequestRejectedError)
    assert isinstance(missing, PhotoFileError)
    with pytest.raises(RequestRejectedError, match="not a photo"):
        run_async(address, captions)


def test_leaving_captions_early_cancels_the_rest(service: ScriptedService, address: str) -> None:
    hold = threading.Event()
    service.before_answer = lambda photo: photo == b"first" or hold.wait(100)

    async def first(search_client: AsyncSearchClient) -> None:
        outcomes = search_client.stream_captions([b"first", b"second", b"third"])
        assert isinstance(await anext(outcomes), CaptionAnswer)
        await asyncio.wait_for(outcomes.aclose(), 60)

    try:
        run_async(address, first)
    finally:
        hold.set()


def test_one_photo_instead_of_many_is_refused(address: str) -> None:
    async def captions(search_client: AsyncSearchClient) -> list[CaptionAnswer]:
        return await search_client.captions("shirt.jpg")

    with pytest.raises(TypeError, match="photos is one photo"):
        run_async(address, captions)


# Event loops


def test_client_is_made_outside_a_loop_and_used_in_several(service: ScriptedService, address: str) -> None:
    search_client = AsyncSearchClient(address)
    for _ in range(2):
        assert asyncio.run(search_client.caption(b"a")).caption.text == "Caption of a"

    async def close() -> None:
        await search_client.caption(b"a")
        await search_client.close()

    asyncio.run(close())
    asyncio.run(search_client.close())


def test_client_in_two_loops_at_once_is_refused(address: str) -> None:
    async def use() -> None:
        async with AsyncSearchClient(address) as search_client:
            await search_client.health()
            with pytest.raises(RuntimeError, match="make one client for each loop"):
                await asyncio.to_thread(lambda: asyncio.run(search_client.health()))

    asyncio.run(use())


# Health


@pytest.mark.parametrize(("ready", "status"), [(True, "serving"), (False, "not_serving")])
def test_health_is_what_the_server_says(service: ScriptedService, ready: bool, status: str) -> None:
    async def ask(search_client: AsyncSearchClient) -> str:
        return await search_client.health()

    with serving(service, ready=ready) as address:
        assert run_async(address, ask) == status
