# SPDX-License-Identifier: Apache-2.0
"""The gateway as its callers meet it: a real Triton behind, a real gRPC channel in front, real image files."""

from __future__ import annotations

import asyncio
import io
import os
import re
import shutil
import signal
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from PIL import Image

from captioner.model_contract import ModelContract, model_fingerprint
from captioner.query import Query, words_of
from search_api import search_pb2, search_pb2_grpc
from search_gateway.catalog.store import CatalogStore
from search_gateway.config import GatewayConfig
from search_gateway.errors import ProviderError
from search_gateway.providers.base import Candidate, ProviderTerms
from search_gateway.server import Gateway
from search_gateway.triton.embedded import EmbeddedTriton
from tests.conftest import MODELS, GatewayThread, jpeg

pytestmark = pytest.mark.triton

StartGateway = Callable[..., str]

# What must never reach a caller: paths, Python's words for things, addresses of what stands behind.
INTERNAL_TEXT = re.compile(
    r"/[a-z]+/|Traceback|Error\b|Exception|0x[0-9a-f]+|\bgrpc\b|127\.0\.0\.1|tritonserver|\.py\b"
)


class ScriptedProvider:
    """A provider whose answers a test writes; pictures come as bytes, so that nothing is fetched."""

    terms = ProviderTerms()

    def __init__(self, candidates: list[Candidate] | None = None, problem: Exception | None = None):
        self._candidates = candidates or []
        self._problem = problem
        self.queries: list[str] = []

    @property
    def name(self) -> str:
        return "scripted"

    async def find(
        self, query: Query, max_candidates: int, timeout_seconds: float, embedding: Any = None
    ) -> list[Candidate]:
        self.queries.append(query.text)
        if self._problem is not None:
            raise self._problem
        return self._candidates[:max_candidates]

    async def close(self) -> None:
        pass


def candidate(title: str, picture: bytes) -> Candidate:
    return Candidate(title=title, url="https://shop.example/1", thumbnail_url="", source="scripted", thumbnail=picture)


@pytest.fixture
def connect() -> Iterator[Callable[[str], search_pb2_grpc.SearchServiceStub]]:
    channels: list[grpc.Channel] = []

    def open_stub(address: str) -> search_pb2_grpc.SearchServiceStub:
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        channels.append(grpc.insecure_channel(address, options=options))
        return search_pb2_grpc.SearchServiceStub(channels[-1])

    yield open_stub
    for channel in channels:
        channel.close()


def assert_fit_for_callers(text: str) -> None:
    assert text, "an error without a word"
    assert not INTERNAL_TEXT.search(text), f"internal text reached the caller: {text}"


def rejected(call: Callable[[], Any]) -> grpc.RpcError:
    """The error of a call that must fail, its text checked."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert_fit_for_callers(caught.value.details())
    return caught.value


def test_photo_becomes_caption_query_and_results(
    start_gateway: StartGateway, connect: Any, catalogue: Path, photo: bytes
) -> None:
    stub = connect(start_gateway(providers=None, catalog=catalogue, min_visual_score=-1.0))
    answer = stub.Search(search_pb2.SearchRequest(photo=photo, provider="catalog"), timeout=30)
    assert answer.caption.text
    assert answer.query == " ".join(words_of(answer.caption.text)[-2:]).lower()
    assert [word.text for word in answer.caption.words] == answer.caption.text.split()
    assert all(0 < word.probability <= 1 for word in answer.caption.words)
    assert answer.provider == "catalog"
    assert answer.results
    assert [result.score for result in answer.results] == sorted((r.score for r in answer.results), reverse=True)
    assert all(result.reason and result.thumbnail for result in answer.results)
    counts = answer.counts
    assert counts.found == (
        counts.unfetchable + counts.undecodable + counts.dropped_visual + counts.dropped_semantic
        + counts.duplicates + counts.over_limit + counts.kept
    )  # fmt: skip
    stages = [timing.stage for timing in answer.timings]
    assert stages == [
        "preprocess",
        "queue",
        "encode",
        "prefill",
        "decode",
        "query",
        "search",
        "thumbnails",
        "refine",
        "total",
    ]
    assert not answer.degraded


def test_default_model_reads_our_drawings(start_gateway: StartGateway, connect: Any) -> None:
    stub = connect(start_gateway(providers=[ScriptedProvider()]))
    wanted = [("Handbag", "Red"), ("Jeans", "Blue"), ("T-shirt", "Green"), ("Watch", "Black"), ("Skirt", "Yellow")]
    queries = [
        stub.Caption(search_pb2.CaptionRequest(photo=jpeg(garment, colour, seed=7)), timeout=30).query
        for garment, colour in wanted
    ]
    right = sum(
        query == f"{colour} {garment}".lower() for query, (garment, colour) in zip(queries, wanted, strict=True)
    )
    assert right >= 4, queries


def test_same_photo_gives_same_words_alone_and_in_company(start_gateway: StartGateway, connect: Any) -> None:
    stub = connect(start_gateway(providers=[ScriptedProvider()]))
    colours = ("Black", "Blue", "Red", "Green", "Yellow", "Pink", "Brown", "Orange")
    garments = ("T-shirt", "Shoes", "Backpack", "Sunglasses")
    photos = [jpeg(garment, colour, seed=3) for garment in garments for colour in colours]
    requests = [
        search_pb2.CaptionRequest(photo=one, decoding=search_pb2.DecodingOptions(num_beams=4 if i % 4 == 0 else 1))
        for i, one in enumerate(photos)
    ]
    alone = [stub.Caption(request, timeout=30).caption.text for request in requests]
    together = [future.result().caption.text for future in [stub.Caption.future(r, timeout=60) for r in requests]]
    assert together == alone
    assert len(set(alone)) > 8, "photos of all kinds have all the same words"


def test_beam_search_returns_its_other_hypotheses(start_gateway: StartGateway, connect: Any, photo: bytes) -> None:
    stub = connect(start_gateway(providers=[ScriptedProvider()]))
    request = search_pb2.CaptionRequest(photo=photo, decoding=search_pb2.DecodingOptions(num_beams=4))
    caption = stub.Caption(request, timeout=30).caption
    assert len(caption.alternatives) == 3
    assert caption.log_probability < 0


def test_stream_sends_caption_then_query_then_results_then_summary(
    start_gateway: StartGateway, connect: Any, catalogue: Path, photo: bytes
) -> None:
    stub = connect(start_gateway(catalog=catalogue, min_visual_score=-1.0))
    request = search_pb2.SearchRequest(photo=photo, provider="catalog")
    kinds = [event.WhichOneof("event") for event in stub.StreamSearch(request, timeout=30)]
    whole = stub.Search(request, timeout=30)
    assert kinds == ["caption", "query", *["result"] * len(whole.results), "summary"]


def test_query_override_searches_without_captioning(start_gateway: StartGateway, connect: Any, photo: bytes) -> None:
    provider = ScriptedProvider([candidate("Leather Wallet", photo)])
    stub = connect(start_gateway(providers=[provider]))
    answer = stub.Search(search_pb2.SearchRequest(photo=photo, query_override="leather  wallet"), timeout=30)
    assert provider.queries == ["leather wallet"]
    assert not answer.HasField("caption")
    assert answer.results[0].visual_score == pytest.approx(1, abs=1e-3)
    assert "decode" not in [timing.stage for timing in answer.timings]


def test_readings_say_what_the_photo_may_be_called(start_gateway: StartGateway, connect: Any, photo: bytes) -> None:
    provider = ScriptedProvider([candidate("Leather Wallet", photo)])
    request = search_pb2.SearchRequest(photo=photo)
    of_caption = connect(start_gateway(providers=[provider])).Search(request, timeout=30).readings
    assert sum(one.probability for one in of_caption) == pytest.approx(1)
    assert of_caption[0].query == provider.queries[0]
    assert "leather wallet" not in [one.query for one in of_caption], "the web finds by words and only repeats them"

    given = search_pb2.SearchRequest(photo=photo, query_override="red shoes")
    (certain,) = connect(start_gateway(providers=[provider])).Search(given, timeout=30).readings
    assert (certain.query, certain.probability) == ("red shoes", 1.0)


def test_products_that_look_alike_have_a_say_in_what_the_photo_is(
    start_gateway: StartGateway, connect: Any, photo: bytes
) -> None:
    embedding = np.zeros(ModelContract.load(MODELS).hidden_size, np.float32)
    embedding[0] = 1.0
    neighbour = replace(candidate("Leather Wallet", photo), embedding=embedding, is_nearest_neighbour=True)
    stub = connect(start_gateway(providers=[ScriptedProvider([neighbour])], neighbour_weight=0.75, min_visual_score=-1))
    answer = stub.Search(search_pb2.SearchRequest(photo=photo), timeout=30)
    assert answer.readings[0].query == answer.query, "what is searched for is the caption's"
    assert answer.readings[1].query == "leather wallet"
    assert answer.readings[1].probability == pytest.approx(0.75)
    override = search_pb2.WordOverride(colour="green")
    answer = stub.Search(search_pb2.SearchRequest(photo=photo, word_override=override), timeout=30)
    assert all("green" in one.query.split() for one in answer.readings), "whoever said it, the caller knows better"


def test_word_override_changes_one_word_of_the_captions_query(
    start_gateway: StartGateway, connect: Any, photo: bytes
) -> None:
    provider = ScriptedProvider([candidate("Green Socks", photo)])
    stub = connect(start_gateway(providers=[provider], min_semantic_score=0.0))
    override = search_pb2.WordOverride(colour="green", thing="socks")
    answer = stub.Search(search_pb2.SearchRequest(photo=photo, word_override=override), timeout=30)
    assert answer.caption.text, "it is captioned as ever"
    assert answer.query == provider.queries[0] == "green socks"
    override = search_pb2.WordOverride(colour="green")
    answer = stub.Search(search_pb2.SearchRequest(photo=photo, word_override=override), timeout=30)
    own = " ".join(words_of(answer.caption.text)[-2:]).lower()
    assert "green" in answer.query.split()
    assert answer.query.split()[-1] == own.split()[-1]


def test_same_picture_of_two_shops_is_one_result(start_gateway: StartGateway, connect: Any, photo: bytes) -> None:
    file = io.BytesIO()
    Image.open(io.BytesIO(photo)).save(file, "JPEG", quality=88)
    others = [
        candidate("red handbag", photo),
        candidate("red handbag at half the price", file.getvalue()),
        candidate("red handbag", jpeg("Handbag", "Green")),
    ]
    stub = connect(start_gateway(providers=[ScriptedProvider(others)], min_visual_score=-1.0))
    answer = stub.Search(search_pb2.SearchRequest(photo=photo, query_override="red handbag", explain=True), timeout=30)
    assert [one.title for one in answer.results[0].duplicates] == ["red handbag at half the price"]
    assert "the same picture was found once more (scripted)" in answer.results[0].reason
    assert [one.verdict for one in answer.dropped] == [search_pb2.VERDICT_DROPPED_DUPLICATE]
    counts = answer.counts
    assert (counts.found, counts.kept, counts.duplicates) == (3, 2, 1)


def test_results_that_look_different_are_dropped_with_a_reason(
    start_gateway: StartGateway, connect: Any, photo: bytes
) -> None:
    others = [candidate("red handbag", photo), candidate("red handbag", jpeg("Socks", "Green"))]
    stub = connect(start_gateway(providers=[ScriptedProvider(others)], min_visual_score=0.95))
    answer = stub.Search(search_pb2.SearchRequest(photo=photo, query_override="red handbag", explain=True), timeout=30)
    assert len(answer.results) == 1
    assert [one.verdict for one in answer.dropped] == [search_pb2.VERDICT_DROPPED_VISUAL]
    assert "0.95" in answer.dropped[0].reason


def test_empty_answer_explains_itself(start_gateway: StartGateway, connect: Any, photo: bytes) -> None:
    others = [candidate("green socks", jpeg("Socks", "Green")), candidate("red handbag", b"not a picture")]
    stub = connect(start_gateway(providers=[ScriptedProvider(others)], min_semantic_score=1.0, min_visual_score=-1.0))
    answer = stub.Search(search_pb2.SearchRequest(photo=photo, query_override="red handbag"), timeout=30)
    assert not answer.results
    assert "1 does not agree with the words" in answer.empty_reason
    assert "broken thumbnail" in answer.empty_reason
    assert answer.nearest_miss.title == "green socks"
    assert answer.counts.undecodable == 1
    assert [one.part for one in answer.degraded] == ["thumbnails"]


def test_empty_catalogue_is_an_empty_answer(
    start_gateway: StartGateway, connect: Any, tmp_path: Path, photo: bytes
) -> None:
    out = tmp_path / "empty.sqlite"
    fingerprint = model_fingerprint(ModelContract.load(MODELS))
    CatalogStore.open_for_writing(out, photos_folder=tmp_path, model_fingerprint=fingerprint).close()
    stub = connect(start_gateway(catalog=out))
    answer = stub.Search(search_pb2.SearchRequest(photo=photo, provider="catalog"), timeout=30)
    assert not answer.results
    assert answer.empty_reason.startswith("catalog has nothing for")
    assert answer.caption.text


def test_catalogue_that_is_deleted_or_replaced_needs_no_restart(
    start_gateway: StartGateway, connect: Any, catalogue: Path, tmp_path: Path, photo: bytes
) -> None:
    live, other = tmp_path / "live.sqlite", tmp_path / "other.sqlite"
    shutil.copy(catalogue, live)
    fingerprint = model_fingerprint(ModelContract.load(MODELS))
    CatalogStore.open_for_writing(other, photos_folder=tmp_path, model_fingerprint=fingerprint).close()
    stub = connect(start_gateway(catalog=live))

    def answer_once(is_so: Callable[[search_pb2.SearchResponse], bool]) -> search_pb2.SearchResponse:
        """The first answer of which this is so; the gateway looks at the file every two seconds."""
        deadline = time.monotonic() + 200
        while True:
            answer = stub.Search(search_pb2.SearchRequest(photo=photo, provider="catalog"), timeout=30)
            if is_so(answer):
                return answer
            assert time.monotonic() < deadline

    assert answer_once(lambda answer: bool(answer.results)).degraded == []
    live.unlink()
    degraded = answer_once(lambda answer: bool(answer.degraded))
    assert degraded.results
    assert [one.part for one in degraded.degraded] == ["catalog"]
    assert "missing" in degraded.degraded[0].reason
    assert_fit_for_callers(degraded.degraded[0].reason)
    other.rename(live)
    assert not answer_once(lambda answer: not answer.degraded).results


def test_provider_that_raises_degrades_the_answer(start_gateway: StartGateway, connect: Any, photo: bytes) -> None:
    broken = ScriptedProvider(problem=ZeroDivisionError("/etc/secret of class Foo"))
    stub = connect(start_gateway(providers=[broken]))
    answer = stub.Search(search_pb2.SearchRequest(photo=photo), timeout=30)
    assert answer.caption.text
    assert [one.part for one in answer.degraded] == ["scripted"]
    assert_fit_for_callers(answer.degraded[0].reason)
    assert answer.empty_reason


def test_provider_failure_names_the_provider(start_gateway: StartGateway, connect: Any, photo: bytes) -> None:
    stub = connect(start_gateway(providers=[ScriptedProvider(problem=ProviderError("it is closed on Sundays"))]))
    answer = stub.Search(search_pb2.SearchRequest(photo=photo), timeout=30)
    assert [(one.part, one.reason) for one in answer.degraded] == [("scripted", "it is closed on Sundays")]


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    idat = b"IDAT" + zlib.compress(b"\0" * 100)
    chunks = (
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in (ihdr, idat)
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def truncated() -> bytes:
    whole = jpeg("Handbag", "Red")
    return whole[: len(whole) // 2]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "0 bytes"),
        (b"a photo of a red handbag", "is not a JPEG"),
        (truncated(), "damaged or cut short"),
        (png_header(0, 0), "JPEG, PNG, WebP or GIF"),
        (png_header(300_000, 300_000), "90,000,000,000 pixels; the limit is 25,000,000"),
        (png_header(16_000, 16_000), "256,000,000 pixels; the limit is 25,000,000"),
        (b"\xff\xd8" + b"x" * (8 * 2**20), "8,388,610 bytes; the limit is 8,388,608"),
    ],
    ids=["empty", "text", "truncated", "0x0", "90 gigapixels", "256 megapixels", "too many bytes"],
)
@pytest.mark.parametrize("method", ["Caption", "Search"])
def test_bad_photo_is_an_invalid_argument(
    start_gateway: StartGateway, connect: Any, method: str, data: bytes, says: str
) -> None:
    stub = connect(start_gateway(providers=[ScriptedProvider()]))
    request = (search_pb2.CaptionRequest if method == "Caption" else search_pb2.SearchRequest)(photo=data)
    error = rejected(lambda: getattr(stub, method)(request, timeout=30))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert says in error.details()
    # It goes on serving.
    assert stub.Caption(search_pb2.CaptionRequest(photo=jpeg("Tie", "Red")), timeout=30).caption.text


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"provider": "altavista"}, "there is no provider 'altavista'; this server has: scripted"),
        ({"provider": "x" * 500}, "there is no provider"),
        ({"decoding": search_pb2.DecodingOptions(num_beams=0)}, "decoding.num_beams is 0: it goes from 1 to 8"),
        ({"decoding": search_pb2.DecodingOptions(num_beams=1000)}, "decoding.num_beams is 1000: it goes from 1 to 8"),
        ({"decoding": search_pb2.DecodingOptions(length_penalty=float("nan"))}, "decoding.length_penalty is nan"),
        ({"decoding": search_pb2.DecodingOptions(max_tokens=0)}, "decoding.max_tokens is 0"),
        ({"max_results": 0}, "max_results is 0: it goes from 1 to 100"),
        ({"max_results": 1000}, "max_results is 1000: it goes from 1 to 100"),
        ({"query_override": " "}, "query_override is empty"),
        ({"query_override": "w" * 201}, "201 characters; the limit is 200"),
        ({"word_override": search_pb2.WordOverride(thing=" ")}, "word_override.thing is ' '"),
        ({"word_override": search_pb2.WordOverride(colour="c" * 51)}, "51 characters; the limit is 50"),
        (
            {"word_override": search_pb2.WordOverride(colour="red"), "query_override": "red dress"},
            "word_override.colour and query_override are both set",
        ),
        ({"query_rule": 9}, "query_rule is 9"),
        ({"refinement": search_pb2.RefinementOptions(min_visual_score=2)}, "refinement.min_visual_score is 2"),
    ],
)
def test_bad_option_is_an_invalid_argument(
    start_gateway: StartGateway, connect: Any, photo: bytes, fields: dict[str, Any], says: str
) -> None:
    stub = connect(start_gateway(providers=[ScriptedProvider()]))
    error = rejected(lambda: stub.Search(search_pb2.SearchRequest(photo=photo, **fields), timeout=30))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert says in error.details()


def test_deadline_of_a_millisecond_is_told_and_leaves_nothing_behind(
    start_gateway: StartGateway, connect: Any, photo: bytes
) -> None:
    stub = connect(start_gateway(providers=[ScriptedProvider()], max_in_flight=4))
    for _ in range(20):
        with pytest.raises(grpc.RpcError) as caught:
            stub.Caption(search_pb2.CaptionRequest(photo=photo), timeout=0.001)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_for_a_place(stub, photo)


def wait_for_a_place(stub: Any, photo: bytes) -> None:
    """Caption a photo: places are free again as soon as the server has heard that their callers left."""
    end = time.monotonic() + 100
    while (error := stub.Caption.future(search_pb2.CaptionRequest(photo=photo), timeout=30).exception()) is not None:
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert time.monotonic() < end, "callers that left keep their places"


def test_cancelled_streams_leave_nothing_behind(start_gateway: StartGateway, connect: Any, photo: bytes) -> None:
    others = [candidate(f"red handbag {i}", photo) for i in range(10)]
    stub = connect(start_gateway(providers=[ScriptedProvider(others)], max_in_flight=2))
    for _ in range(10):
        stream = stub.StreamSearch(search_pb2.SearchRequest(photo=photo), timeout=30)
        assert next(stream).caption.text
        stream.cancel()
        wait_for_a_place(stub, photo)


def test_full_server_refuses_with_retry_info(start_gateway: StartGateway, connect: Any, photo: bytes) -> None:
    entered, release = threading.Event(), threading.Event()

    class SlowProvider(ScriptedProvider):
        async def find(
            self, query: Query, max_candidates: int, timeout_seconds: float, embedding: Any = None
        ) -> list[Candidate]:
            entered.set()
            await asyncio.to_thread(release.wait, 20)
            return []

    stub = connect(start_gateway(providers=[SlowProvider()], max_in_flight=1))
    first = stub.Search.future(search_pb2.SearchRequest(photo=photo), timeout=30)
    assert entered.wait(20)
    error = rejected(lambda: stub.Caption(search_pb2.CaptionRequest(photo=photo), timeout=30))
    release.set()
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    detail = error_details_pb2.RetryInfo()
    status = rpc_status.from_call(error)
    assert status is not None
    assert status.details[0].Unpack(detail)
    assert 500 <= detail.retry_delay.ToMilliseconds() <= 1000  # spread, so that not all come back at once
    assert first.result().caption.text


def test_request_id_comes_back(start_gateway: StartGateway, connect: Any, photo: bytes) -> None:
    stub = connect(start_gateway(providers=[ScriptedProvider()]))
    request = search_pb2.CaptionRequest(photo=photo)
    _, call = stub.Caption.with_call(request, timeout=30, metadata=(("x-request-id", "abc-123"),))
    assert dict(call.trailing_metadata())["x-request-id"] == "abc-123"
    _, call = stub.Caption.with_call(request, timeout=30, metadata=(("x-request-id", "not well formed: " + "x" * 80),))
    assert re.fullmatch(r"[0-9a-f]{32}", dict(call.trailing_metadata())["x-request-id"])


def test_compressed_requests_are_refused_before_they_are_inflated(start_gateway: StartGateway, photo: bytes) -> None:
    with grpc.insecure_channel(start_gateway(providers=[ScriptedProvider()])) as channel:
        stub = search_pb2_grpc.SearchServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Caption(search_pb2.CaptionRequest(photo=photo), timeout=30, compression=grpc.Compression.Gzip)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_reflection_and_health_answer(start_gateway: StartGateway) -> None:
    with grpc.insecure_channel(start_gateway(providers=[ScriptedProvider()])) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "captrieve.v1.SearchService"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            health.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=5)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        names = {
            service.name
            for response in stub.ServerReflectionInfo(iter([request]), timeout=5)
            for service in response.list_services_response.service
        }
    assert {"captrieve.v1.SearchService", "grpc.health.v1.Health"} <= names


def test_provider_none_of_whose_pictures_can_be_seen_gives_way_to_the_next(
    start_gateway: StartGateway, connect: Any, photo: bytes
) -> None:
    class Blind(ScriptedProvider):
        @property
        def name(self) -> str:
            return "blind"

    unseen = candidate("red handbag", b"behind a proxy, say")
    seen = candidate("red handbag", photo)
    stub = connect(start_gateway(providers=[Blind([unseen]), ScriptedProvider([seen])]))
    answer = stub.Search(search_pb2.SearchRequest(photo=photo, query_override="red handbag"), timeout=30)
    assert answer.provider == "scripted"
    assert len(answer.results) == 1
    assert [one.part for one in answer.degraded] == ["thumbnails"]
    alone = stub.Search(
        search_pb2.SearchRequest(photo=photo, query_override="red handbag", provider="blind"), timeout=30
    )
    assert alone.counts.undecodable == 1
    assert "broken thumbnail" in alone.empty_reason


@pytest.mark.usefixtures("short_intervals")
def test_dead_model_is_noticed_and_started_again(photo: bytes) -> None:
    """Triton lives and calls itself ready, but the process behind one of its models is gone."""
    pytest.importorskip("pytriton", reason="THE REAL TRITON IS NOT TESTED: install the gateway extra")
    config = GatewayConfig(listen_address="127.0.0.1:0", admin_address="", model_repository=MODELS)
    thread = GatewayThread(lambda: Gateway(config, providers=[ScriptedProvider()]))
    address = thread.start()
    try:
        with grpc.insecure_channel(address) as channel:
            stub = search_pb2_grpc.SearchServiceStub(channel)
            health = health_pb2_grpc.HealthStub(channel)
            request = search_pb2.CaptionRequest(photo=photo)
            expected = stub.Caption(request, timeout=30).caption.text
            before = thread.gateway.triton.pid
            os.kill(_worker_of(before, "vit_encoder"), signal.SIGKILL)
            seen_down = False
            end = time.monotonic() + 200
            while time.monotonic() < end:
                status = health.Check(
                    health_pb2.HealthCheckRequest(service="captrieve.v1.SearchService"), timeout=5
                ).status
                seen_down |= status == health_pb2.HealthCheckResponse.NOT_SERVING
                if seen_down and status == health_pb2.HealthCheckResponse.SERVING:
                    break
                time.sleep(0.05)
            assert seen_down, "health said SERVING all the time"
            while stub.Caption.future(request, timeout=20).exception() is not None:
                assert time.monotonic() < end, "the model did not come back"
                time.sleep(0.1)
            assert stub.Caption(request, timeout=20).caption.text == expected
            assert thread.gateway.triton.pid != before
    finally:
        thread.stop()


def _worker_of(triton_pid: int, model: str) -> int:
    """Process id of the python stub that runs a model for this Triton."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().decode(errors="replace")
            parent = int((entry / "stat").read_text().rsplit(") ", 1)[1].split()[1])
        except OSError:
            continue
        if parent == triton_pid and "triton_python_backend_stub" in line and model in line:
            return int(entry.name)
    raise AssertionError(f"Triton {triton_pid} has no worker for {model}")


@pytest.mark.usefixtures("short_intervals")
def test_triton_stopped_in_the_middle_is_unavailable_and_comes_back(photo: bytes) -> None:
    """The embedded Triton is killed under load; callers are told, health says so, and the gateway starts it again."""
    pytest.importorskip("pytriton", reason="THE REAL TRITON IS NOT TESTED: install the gateway extra")
    config = GatewayConfig(listen_address="127.0.0.1:0", admin_address="", model_repository=MODELS)
    thread = GatewayThread(lambda: Gateway(config, providers=[ScriptedProvider()]))
    address = thread.start()
    try:
        with grpc.insecure_channel(address) as channel:
            stub = search_pb2_grpc.SearchServiceStub(channel)
            health = health_pb2_grpc.HealthStub(channel)
            request = search_pb2.CaptionRequest(photo=photo)
            expected = stub.Caption(request, timeout=30).caption.text
            calls = [stub.Caption.future(request, timeout=100) for _ in range(24)]
            triton: EmbeddedTriton = thread.gateway.triton
            os.kill(triton.pid, signal.SIGKILL)
            codes = []
            for call in calls:
                error = call.exception()
                if error is None:
                    assert call.result().caption.text == expected
                else:
                    assert_fit_for_callers(error.details())
                codes.append(error.code() if error else grpc.StatusCode.OK)
            assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
            assert grpc.StatusCode.UNAVAILABLE in codes
            end = time.monotonic() + 200
            while True:  # healthy again by itself
                status = health.Check(
                    health_pb2.HealthCheckRequest(service="captrieve.v1.SearchService"), timeout=5
                ).status
                if status == health_pb2.HealthCheckResponse.SERVING:
                    try:
                        assert stub.Caption(request, timeout=20).caption.text == expected
                        break
                    except grpc.RpcError:
                        pass
                assert time.monotonic() < end, "Triton did not come back"
                time.sleep(0.1)
    finally:
        thread.stop()


def test_stop_finishes_what_is_in_flight(triton_address: str, connect: Any, photo: bytes) -> None:
    entered, release = threading.Event(), threading.Event()

    class SlowProvider(ScriptedProvider):
        async def find(
            self, query: Query, max_candidates: int, timeout_seconds: float, embedding: Any = None
        ) -> list[Candidate]:
            entered.set()
            await asyncio.to_thread(release.wait, 20)
            return [candidate("red handbag", photo)]

    config = GatewayConfig(
        listen_address="127.0.0.1:0", admin_address="", triton_address=(triton_address,), model_repository=MODELS
    )
    thread = GatewayThread(lambda: Gateway(config, providers=[SlowProvider()]))
    stub = connect(thread.start())
    call = stub.Search.future(search_pb2.SearchRequest(photo=photo, query_override="red handbag"), timeout=30)
    assert entered.wait(20)
    stopper = threading.Thread(target=thread.stop)
    stopper.start()
    release.set()
    assert len(call.result().results) == 1
    stopper.join(30)
    assert not stopper.is_alive()


def test_repository_without_a_configuration_for_the_embedded_triton_is_served(
    tmp_path: Path, connect: Any, photo: bytes, start_gateway: StartGateway
) -> None:
    pytest.importorskip("pytriton", reason="THE REAL TRITON IS NOT TESTED: install the embedded extra")
    models = Path(shutil.copytree(MODELS, tmp_path / "models", ignore=shutil.ignore_patterns("configs")))
    thread = GatewayThread(
        lambda: Gateway(
            GatewayConfig(listen_address="127.0.0.1:0", admin_address="", model_repository=models),
            providers=[ScriptedProvider()],
        )
    )
    request = search_pb2.CaptionRequest(photo=photo, decoding=search_pb2.DecodingOptions(num_beams=3))
    try:
        answer = connect(thread.start()).Caption(request, timeout=30)
    finally:
        thread.stop()
    expected = connect(start_gateway(providers=[ScriptedProvider()])).Caption(request, timeout=30)
    assert [word.text for word in answer.caption.words] == [word.text for word in expected.caption.words]
    # Probes of the gateways may share a batch with the photo, which changes the last bits.
    assert answer.caption.log_probability == pytest.approx(expected.caption.log_probability, rel=1e-4)
    assert [one.text for one in answer.caption.alternatives] == [one.text for one in expected.caption.alternatives]


def test_grey_photo_with_alpha_is_read_like_any_other(start_gateway: StartGateway, connect: Any) -> None:
    file = io.BytesIO()
    Image.new("LA", (300, 20), (0, 0)).save(file, "PNG")
    stub = connect(start_gateway(providers=[ScriptedProvider()]))
    assert stub.Caption(search_pb2.CaptionRequest(photo=file.getvalue()), timeout=30).model
