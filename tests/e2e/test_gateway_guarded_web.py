# SPDX-License-Identifier: Apache-2.0
"""Cache, breaker, turns and recordings as callers of the gateway meet them: ddgs and TLS real, the web on loopback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from search_api import search_pb2, search_pb2_grpc
from search_gateway.thumbnails.fetcher import ThumbnailFetcher, ThumbnailPolicy
from tests.conftest import jpeg
from tests.fakes.fake_duckduckgo import FakeDuckDuckGo, Row, hostile_rows_for, rows_for
from tests.fakes.thumbnail_server import HOST, ThumbnailServer, always_the_server, answer, only_the_server

pytestmark = pytest.mark.triton

QUERY = "red handbag"


@pytest.fixture(scope="module")
def pictures() -> Iterator[ThumbnailServer]:
    server = ThumbnailServer()
    server.start()
    server.answers["/handbag"] = answer(jpeg("Handbag", "Red", seed=98))
    yield server
    server.stop()


def on_our_server(pictures: ThumbnailServer, rows: list[Row]) -> list[Row]:
    """Rows whose good thumbnails, Bing's, are ours: one and the same picture, at different addresses."""
    return [
        {**row, "thumbnail": f"https://{HOST}:{pictures.port}/handbag?{number}"}
        if str(row["thumbnail"]).endswith("&pid=Api")
        else row
        for number, row in enumerate(rows)
    ]


@pytest.fixture
def web(pictures: ThumbnailServer) -> Iterator[FakeDuckDuckGo]:
    with FakeDuckDuckGo(rows=lambda query: on_our_server(pictures, rows_for(query, 2))) as fake:
        yield fake


@pytest.fixture
def open_channel(start_gateway: Callable[..., str], web: FakeDuckDuckGo, pictures: ThumbnailServer) -> Iterator[Any]:
    """Starts a gateway before the fake web and connects; keyword arguments are settings."""
    channels: list[grpc.Channel] = []

    def fetcher() -> ThumbnailFetcher:
        policy = ThumbnailPolicy(
            allowed_hosts=(HOST.replace(".", r"\."),), port=pictures.port, address_is_allowed=only_the_server
        )
        return ThumbnailFetcher(policy, resolve=always_the_server, ssl_context=pictures.client_context)

    def start(provider_names: tuple[str, ...] = ("duckduckgo",), **settings: Any) -> grpc.Channel:
        given = {
            "duckduckgo_proxy": web.proxy_url,
            "duckduckgo_ca_file": web.ca_path,
            "duckduckgo_min_interval_seconds": 0.0,
        }
        address = start_gateway(provider_names=provider_names, thumbnails=fetcher, **(given | settings))
        channels.append(grpc.insecure_channel(address))
        return channels[-1]

    yield start
    for channel in channels:
        channel.close()


@pytest.fixture
def connect(open_channel: Any) -> Any:
    return lambda *arguments, **settings: search_pb2_grpc.SearchServiceStub(open_channel(*arguments, **settings))


def search(stub: Any, photo: bytes, query: str = QUERY, **fields: Any) -> search_pb2.SearchResponse:
    request = search_pb2.SearchRequest(photo=photo, query_override=query, explain=True, **fields)
    return stub.Search(request, timeout=30)


def titles(got: search_pb2.SearchResponse) -> set[str]:
    """Of everything that was found, kept or not."""
    return {result.title for result in (*got.results, *got.dropped)}


def test_cached_answer_makes_no_call(connect: Any, web: FakeDuckDuckGo, photo: bytes) -> None:
    stub = connect()
    first = search(stub, photo)
    again = search(stub, photo, "Red  HANDBAG")
    assert titles(first) == titles(again) == {row["title"] for row in rows_for(QUERY, 2)}
    assert (web.num_pages, web.queries) == (1, [QUERY])
    assert not again.degraded


def test_other_queries_are_asked(connect: Any, web: FakeDuckDuckGo, photo: bytes) -> None:
    stub = connect()
    for query in (QUERY, "handbag red", "red handbags"):
        assert titles(search(stub, photo, query)) == {row["title"] for row in rows_for(query, 2)}
    assert len(web.queries) == 3


def test_two_gateways_do_not_mix(connect: Any, web: FakeDuckDuckGo, pictures: ThumbnailServer, photo: bytes) -> None:
    with FakeDuckDuckGo(rows=lambda _: on_our_server(pictures, rows_for("another web", 1))) as other:
        stub = connect()
        other_stub = connect(duckduckgo_proxy=other.proxy_url, duckduckgo_ca_file=other.ca_path)
        for _ in range(2):
            assert titles(search(stub, photo)) == {"Red Handbag 0", "Red Handbag 1"}
            assert titles(search(other_stub, photo)) == {"Another Web 0"}
        assert (web.num_searches, other.num_searches) == (1, 1)


@pytest.mark.parametrize("behaviour", ["forbidden", "empty", "garbage", "reset", "refuse_connect"])
def test_old_answer_is_given_when_the_web_goes_down_and_says_so(
    connect: Any, web: FakeDuckDuckGo, photo: bytes, catalogue: Path, behaviour: Any
) -> None:
    stub = connect(("duckduckgo", "catalog"), catalog=catalogue, cache_ttl_seconds=0.0)
    first = search(stub, photo)
    web.behaviour = behaviour
    old = search(stub, photo)
    assert titles(old) == titles(first)
    assert old.provider == "duckduckgo"
    reasons = [one.reason for one in old.degraded if one.part == "duckduckgo"]
    assert len(reasons) == 1
    assert reasons[0].startswith("answer of ")
    assert " ago: DuckDuckGo" in reasons[0]


def test_refused_web_is_left_alone_and_the_catalogue_answers_at_once(
    connect: Any, web: FakeDuckDuckGo, photo: bytes, catalogue: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stub = connect(("duckduckgo", "catalog"), catalog=catalogue)
    web.behaviour = "forbidden"
    web.delay_seconds = 0.5
    for _ in range(3):
        assert search(stub, photo).provider == "catalog"
    num_connections = web.num_connections
    for _ in range(5):
        got = search(stub, photo)
        assert got.provider == "catalog"
        assert got.results
        assert [one.part for one in got.degraded] == ["duckduckgo"]
        assert "failed too often and is not asked" in got.degraded[0].reason
        (stage,) = [one.milliseconds for one in got.timings if one.stage == "search"]
        assert stage < 500, "as long as DuckDuckGo would take for the first of its two answers"
    assert web.num_connections == num_connections
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("search_gateway")]
    assert any("is not asked for" in message for message in ours)
    assert not any("handbag" in message.lower() for message in ours)


def test_hostile_strings_are_left_out_of_remembered_answers_too(
    connect: Any, web: FakeDuckDuckGo, pictures: ThumbnailServer, photo: bytes
) -> None:
    web.rows = lambda query: on_our_server(pictures, hostile_rows_for(query))
    stub = connect()
    for _ in range(2):
        got = search(stub, photo)
        assert titles(got) == {row["title"] for row in rows_for(QUERY)}
        for result in (*got.results, *got.dropped):
            assert result.url.startswith("https://shop.example/products/")
    assert web.num_searches == 1


def test_turn_that_comes_too_late_is_told_at_once(connect: Any, web: FakeDuckDuckGo, photo: bytes) -> None:
    stub = connect(duckduckgo_min_interval_seconds=60.0)
    assert search(stub, photo, "first").provider == "duckduckgo"
    got = search(stub, photo, "second")
    assert "at most once every 60 s" in got.degraded[0].reason
    assert titles(search(stub, photo, "first"))
    assert web.queries == ["first"]


def pictures_of(answer: search_pb2.SearchResponse) -> list[list[str]]:
    """Return the titles of each picture."""
    return [sorted([one.title, *(copy.title for copy in one.duplicates)]) for one in answer.results]


def test_what_was_recorded_is_replayed_without_the_web(
    connect: Any, web: FakeDuckDuckGo, pictures: ThumbnailServer, photo: bytes, tmp_path: Path
) -> None:
    recording = tmp_path / "answers.jsonl"
    live = search(connect(record=recording), photo)
    assert live.results
    num_connections, num_fetched = web.num_connections, len(pictures.requests)
    stub = connect(("replay",), replay=recording)
    got = search(stub, photo)
    assert got.provider == "replay"
    # Thumbnails may share a batch with others each time: the last digits of FP32 differ, and with them which of several
    # equal pictures stands for the others.
    assert pictures_of(got) == pictures_of(live)
    assert [one.score for one in got.results] == pytest.approx([one.score for one in live.results], abs=1e-5)
    assert [one.thumbnail for one in got.results] == [one.thumbnail for one in live.results]
    unknown = search(stub, photo, "green socks")
    assert not unknown.results
    assert [(one.part, one.reason.split(":")[0]) for one in unknown.degraded] == [
        ("replay", "no answer was recorded for this query")
    ]
    assert (web.num_connections, len(pictures.requests)) == (num_connections, num_fetched)


def test_cache_is_counted_where_tritons_clients_look(open_channel: Any, photo: bytes) -> None:
    from search_gateway.kserve.protocol import service_pb2, service_pb2_grpc

    channel = open_channel()
    stub = search_pb2_grpc.SearchServiceStub(channel)
    for query in (QUERY, QUERY, "blue shirt", QUERY):
        search(stub, photo, query)
    inference = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    answer = inference.ModelStatistics(service_pb2.ModelStatisticsRequest(), timeout=10)
    told = {one.name: one.inference_stats for one in answer.model_stats}
    assert (told["search"].cache_hit.count, told["search"].cache_miss.count) == (2, 2)
    assert (told["caption"].cache_hit.count, told["caption"].cache_miss.count) == (0, 0)
