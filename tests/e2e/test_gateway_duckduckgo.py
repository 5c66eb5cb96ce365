# SPDX-License-Identifier: Apache-2.0
"""The whole way to the web, with the web on loopback: ddgs, TLS, thumbnails are real, DuckDuckGo and Bing are ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from search_api import search_pb2, search_pb2_grpc
from search_gateway.thumbnails.fetcher import ThumbnailFetcher, ThumbnailPolicy
from tests.conftest import jpeg
from tests.fakes.fake_duckduckgo import FakeDuckDuckGo, Row, rows_for
from tests.fakes.thumbnail_server import HOST, ThumbnailServer, always_the_server, answer, only_the_server

pytestmark = pytest.mark.triton

QUERY = "red handbag"


@pytest.fixture(scope="module")
def pictures() -> Iterator[ThumbnailServer]:
    """Bing's thumbnails: a handbag like the photo, green socks, and one that is broken."""
    server = ThumbnailServer()
    server.start()
    server.answers["/handbag"] = answer(jpeg("Handbag", "Red", seed=98))
    server.answers["/socks"] = answer(jpeg("Socks", "Green"))
    server.answers["/broken"] = answer(b"\xff\xd8 this is no picture")
    yield server
    server.stop()


@pytest.fixture
def web(pictures: ThumbnailServer) -> Iterator[FakeDuckDuckGo]:
    def rows(query: str) -> list[Row]:
        paths = ("/handbag", "/socks", "/broken", "/missing")
        return [
            {**row, "thumbnail": f"https://{HOST}:{pictures.port}{path}"}
            for row, path in zip(rows_for(query), paths, strict=False)
        ]

    with FakeDuckDuckGo(rows=rows) as fake:
        yield fake


@pytest.fixture
def stub(
    start_gateway: Callable[..., str], web: FakeDuckDuckGo, pictures: ThumbnailServer
) -> Iterator[search_pb2_grpc.SearchServiceStub]:
    def fetcher() -> ThumbnailFetcher:
        policy = ThumbnailPolicy(
            allowed_hosts=(HOST.replace(".", r"\."),), port=pictures.port, address_is_allowed=only_the_server
        )
        return ThumbnailFetcher(policy, resolve=always_the_server, ssl_context=pictures.client_context)

    address = start_gateway(
        provider_names=("duckduckgo",),
        thumbnails=fetcher,
        duckduckgo_proxy=web.proxy_url,
        duckduckgo_ca_file=web.ca_path,
    )
    with grpc.insecure_channel(address) as channel:
        yield search_pb2_grpc.SearchServiceStub(channel)


def request(photo: bytes, **fields: Any) -> search_pb2.SearchRequest:
    return search_pb2.SearchRequest(photo=photo, query_override=QUERY, explain=True, **fields)


def test_results_come_through(stub: Any, web: FakeDuckDuckGo, photo: bytes) -> None:
    got = stub.Search(request(photo), timeout=30)
    assert web.queries == [QUERY]
    assert got.provider == "duckduckgo"
    assert [result.title for result in got.results] == ["Red Handbag 0"]
    result = got.results[0]
    assert result.thumbnail == jpeg("Handbag", "Red", seed=98)
    assert result.url.startswith("https://shop.example/products/")
    assert (result.width, result.height) == (600, 800)
    assert {one.title: one.verdict for one in got.dropped} == {
        "Red Handbag 1": search_pb2.VERDICT_DROPPED_VISUAL,
        "Red Handbag 2": search_pb2.VERDICT_DROPPED_UNDECODABLE,
        "Red Handbag 3": search_pb2.VERDICT_DROPPED_UNFETCHABLE,
    }
    assert [one.part for one in got.degraded] == ["thumbnails"]


def test_caption_becomes_the_query(stub: Any, web: FakeDuckDuckGo, photo: bytes) -> None:
    got = stub.Search(search_pb2.SearchRequest(photo=photo), timeout=30)
    assert web.queries == [got.query]


@pytest.mark.parametrize("behaviour", ["forbidden", "limited", "garbage", "reset", "empty"])
def test_refusal_degrades_the_answer(stub: Any, web: FakeDuckDuckGo, photo: bytes, behaviour: Any) -> None:
    web.behaviour = behaviour
    got = stub.Search(search_pb2.SearchRequest(photo=photo), timeout=30)
    assert got.caption.text, "the words are worth having"
    assert not got.results
    assert [one.part for one in got.degraded] == ["duckduckgo"]
    assert "DuckDuckGo" in got.degraded[0].reason
    assert got.empty_reason == "no provider answered: see `degraded`"


def test_stall_respects_the_deadline(stub: Any, web: FakeDuckDuckGo, photo: bytes) -> None:
    web.behaviour = "stall"
    got = stub.Search(search_pb2.SearchRequest(photo=photo), timeout=5)
    assert web.is_stalled.is_set()
    assert got.caption.text
    assert [one.part for one in got.degraded] == ["duckduckgo"]
