# SPDX-License-Identifier: Apache-2.0
"""Two image searches asked together by a real gateway: APIs and thumbnails on loopback, TLS real."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import grpc
import pytest

from search_api import search_pb2, search_pb2_grpc
from search_gateway.thumbnails.fetcher import ThumbnailFetcher, ThumbnailPolicy
from tests.conftest import jpeg
from tests.fakes.fake_image_apis import FakeImageApis, Reply, answer_of
from tests.fakes.thumbnail_server import HOST, ThumbnailServer, always_the_server, answer, only_the_server

pytestmark = pytest.mark.triton

BAGS = ("Handbag", "Backpack")


@pytest.fixture(scope="module")
def pictures() -> Iterator[ThumbnailServer]:
    server = ThumbnailServer()
    server.start()
    for seed, garment in enumerate(BAGS):
        server.answers[f"/{garment}"] = answer(jpeg(garment, "Red", seed=90 + seed))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def web(pictures: ThumbnailServer) -> Iterator[FakeImageApis]:
    with FakeImageApis() as fake:
        for name, field in (("searxng", "thumbnail_src"), ("openverse", "thumbnail")):
            rows = answer_of(name)["results"][: len(BAGS)]
            for row, garment in zip(rows, BAGS, strict=True):
                row["title"] = f"Red {garment}"
                row[field] = f"https://{HOST}:{pictures.port}/{garment}?{name}"
                for address in ("url", "img_src", "foreign_landing_url"):
                    row[address] = f"https://{name}.example/{garment}.{address}"
            fake.replies[name] = Reply(answer_of(name) | {"results": rows, "unresponsive_engines": []})
        yield fake


def test_pictures_of_two_searches_are_merged_with_licence_and_credit(
    start_gateway: Callable[..., str], web: FakeImageApis, pictures: ThumbnailServer, photo: bytes
) -> None:
    policy = ThumbnailPolicy(port=pictures.port, address_is_allowed=only_the_server)
    settings = web.settings("searxng+openverse", "duckduckgo")
    address = start_gateway(
        provider_names=settings.pop("providers"),
        # The host is allowed because SearXNG declares it.
        thumbnails=lambda: ThumbnailFetcher(policy, resolve=always_the_server, ssl_context=pictures.client_context),
        **settings,
    )
    with grpc.insecure_channel(address) as channel:
        stub = search_pb2_grpc.SearchServiceStub(channel)
        request = search_pb2.SearchRequest(photo=photo, query_override="red handbag", explain=True)
        got = stub.Search(request, timeout=30)
        assert got.provider == "searxng+openverse"
        assert (got.counts.found, got.counts.duplicates) == (4, 1)  # the backpacks differ too much to be kept
        (bag,) = [result for result in got.results if result.title == "Red Handbag"]
        assert (bag.provider, len(bag.duplicates)) == ("searxng", 1)
        assert bag.duplicates[0].licence == "CC BY-SA 2.0"
        assert bag.duplicates[0].attribution.endswith("is licensed under CC BY-SA 2.0.")
        assert not got.degraded
        web.replies["searxng"] = Reply(b"Forbidden", status=403, kind="text/html")
        request.query_override = "red bag"
        got = stub.Search(request, timeout=30)
        assert got.provider == "openverse"
        assert {result.licence for result in (*got.results, *got.dropped)} == {"CC BY-SA 2.0"}
        ((part, reason),) = [(one.part, one.reason) for one in got.degraded]
        assert (part, "search.formats" in reason) == ("searxng", True)
        request.provider = "openverse"
        assert {result.provider for result in stub.Search(request, timeout=30).results} <= {""}
