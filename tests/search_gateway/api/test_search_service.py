# SPDX-License-Identifier: Apache-2.0
"""The place of a search among the requests in progress is free as soon as the search ends, however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from search_api import search_pb2
from search_gateway.api import search_service
from search_gateway.api.admission import Admission
from search_gateway.api.search_service import SearchService
from search_gateway.pipeline import PhotoQuery
from tests.fakes.photo_query import photo_query


class Searches:
    """A pipeline that finds a query and then works until it is told to stop."""

    contract = None

    def __init__(self) -> None:
        self.num_in_progress = 0

    async def search(self, *_: Any) -> AsyncIterator[PhotoQuery]:
        self.num_in_progress += 1
        try:
            yield photo_query("red handbag")
            await asyncio.Event().wait()
        finally:
            self.num_in_progress -= 1


class Context:
    """A caller that does not read (no `failure`) or has gone."""

    def __init__(self, failure: Exception | None = None):
        self._failure = failure
        self.is_writing = asyncio.Event()

    def time_remaining(self) -> float:
        return 30.0

    async def write(self, message: search_pb2.SearchEvent) -> None:
        assert message.query == "red handbag"
        self.is_writing.set()
        if self._failure is not None:
            raise self._failure
        await asyncio.Event().wait()


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> tuple[SearchService, Searches]:
    monkeypatch.setattr(search_service, "search_options", lambda *_: None)
    searches: Any = Searches()
    return SearchService(searches, Admission(max_in_flight=1, max_deadline_seconds=30.0), None), searches  # type: ignore[arg-type]


def is_free(service: SearchService) -> bool:
    with service._admission.admitted():
        return True


@pytest.mark.parametrize("method", ["Search", "StreamSearch"])
def test_cancelled_search_frees_its_place(service: tuple[SearchService, Searches], method: str) -> None:
    async def run() -> None:
        called, searches = service
        context: Any = Context()
        call = asyncio.create_task(getattr(called, method)(search_pb2.SearchRequest(), context))
        if method == "StreamSearch":
            await context.is_writing.wait()
        else:
            await asyncio.sleep(0)
        assert searches.num_in_progress == 1
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert searches.num_in_progress == 0
        assert is_free(called)

    asyncio.run(run())


def test_stream_that_cannot_be_written_frees_its_place(service: tuple[SearchService, Searches]) -> None:
    async def run() -> None:
        called, searches = service
        context: Any = Context(ConnectionError("gone"))
        with pytest.raises(ConnectionError) as held:  # as is, with all its frames
            await called.StreamSearch(search_pb2.SearchRequest(), context)
        assert searches.num_in_progress == 0
        assert is_free(called)
        del held

    asyncio.run(run())


def test_search_whose_answer_cannot_be_made_frees_its_place(
    service: tuple[SearchService, Searches], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        called, searches = service
        monkeypatch.setattr(SearchService, "_event_message", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError) as held:
            await called.StreamSearch(search_pb2.SearchRequest(), Context())  # type: ignore[arg-type]
        assert searches.num_in_progress == 0
        assert is_free(called)
        del held

    asyncio.run(run())
