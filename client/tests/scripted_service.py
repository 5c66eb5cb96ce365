# SPDX-License-Identifier: Apache-2.0
"""A real gRPC server on loopback whose answers a test writes: no gateway, no Triton, no search."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import trustme
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from PIL import Image, ImageDraw

from captrieve_client._generated import search_pb2, search_pb2_grpc

CLIENT = Path(__file__).parent.parent  # the folder of the distribution captrieve-client


@dataclass
class Failure:
    """What a call ends with instead of an answer."""

    code: grpc.StatusCode
    message: str = "the script says so"
    retry_after_seconds: float | None = None
    pushback_ms: int | None = None  # the same for gRPC's own retries, as the gateway says it; -1 forbids them

    def abort(self, context: grpc.ServicerContext) -> None:
        if self.retry_after_seconds is None:
            context.abort(self.code, self.message)
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int((self.retry_after_seconds or 0) * 1e9))
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        status = rpc_status.to_status(
            status_pb2.Status(code=self.code.value[0], message=self.message, details=[detail])
        )
        if self.pushback_ms is not None:
            pushback = ("grpc-retry-pushback-ms", str(self.pushback_ms))
            status = status._replace(trailing_metadata=(*status.trailing_metadata, pushback))
        context.abort_with_status(status)


@dataclass
class ScriptedService(search_pb2_grpc.SearchServiceServicer):
    """Answers what it was told to, and remembers what it was asked."""

    answer: search_pb2.SearchResponse
    failure: Failure | None = None  # of every call
    failures: dict[bytes, Failure] = field(default_factory=dict)  # of a photo
    next_failures: list[Failure] = field(default_factory=list)  # of the next calls, one each
    before_answer: Callable[[bytes], object] = lambda photo: None
    requests: list[search_pb2.SearchRequest | search_pb2.CaptionRequest] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)  # a stream ended early
    tokens: list[str | None] = field(default_factory=list)  # the header "authorization" of each call
    asked: threading.Event = field(default_factory=threading.Event)
    query_details: search_pb2.SearchEvent = field(default_factory=search_pb2.SearchEvent)  # beside the words of a query

    def Search(self, request: search_pb2.SearchRequest, context: grpc.ServicerContext) -> search_pb2.SearchResponse:
        self._begin(request, context)
        return self.answer

    def StreamSearch(
        self, request: search_pb2.SearchRequest, context: grpc.ServicerContext
    ) -> Iterator[search_pb2.SearchEvent]:
        context.add_callback(self.cancelled.set)
        yield search_pb2.SearchEvent(caption=self.answer.caption)
        query = search_pb2.SearchEvent(query=self.answer.query)
        query.MergeFrom(self.query_details)
        yield query
        self._begin(request, context)
        for result in self.answer.results:
            yield search_pb2.SearchEvent(result=result)
        yield search_pb2.SearchEvent()  # of a kind that the client does not know
        summary = search_pb2.SearchResponse()
        summary.CopyFrom(self.answer)
        del summary.results[:]
        yield search_pb2.SearchEvent(summary=summary)

    def Caption(self, request: search_pb2.CaptionRequest, context: grpc.ServicerContext) -> search_pb2.CaptionResponse:
        self._begin(request, context)
        caption = search_pb2.Caption()
        caption.CopyFrom(self.answer.caption)
        if len(request.photo) < 20:  # a photo that is only a name
            caption.text = f"Caption of {request.photo.decode()}"
        return search_pb2.CaptionResponse(
            caption=caption,
            query=self.answer.query,
            timings=self.answer.timings,
            model=self.answer.model,
            query_rule=self.answer.query_rule,
            no_product_probability=self.answer.no_product_probability,
            confidence=self.answer.confidence if self.answer.HasField("confidence") else None,
            unsure_reason=self.answer.unsure_reason,
            paper_query=self.answer.paper_query,
        )

    def _begin(
        self,
        request: search_pb2.SearchRequest | search_pb2.CaptionRequest,
        context: grpc.ServicerContext,
    ) -> None:
        self.requests.append(request)
        metadata = dict(context.invocation_metadata())
        self.tokens.append(metadata.get("authorization"))
        self.asked.set()
        self.before_answer(request.photo)
        failure = self.next_failures.pop(0) if self.next_failures else None
        failure = failure or self.failure or self.failures.get(request.photo)
        if failure is not None:
            failure.abort(context)


@contextmanager
def serving(
    service: ScriptedService | None,
    *,
    ready: bool = True,
    port: int = 0,
    certificate: trustme.LeafCert | None = None,
    client_ca: trustme.CA | None = None,
) -> Iterator[str]:
    """Runs the server, without our service where None is given and with TLS where there is a certificate.

    With `client_ca`, clients need a certificate of it.
    """
    server = grpc.server(futures.ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
    if service is not None:
        search_pb2_grpc.add_SearchServiceServicer_to_server(service, server)
    status = health_pb2.HealthCheckResponse
    health_servicer = health.HealthServicer()
    health_servicer.set("captrieve.v1.SearchService", status.SERVING if ready else status.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    if certificate is None:
        port = server.add_insecure_port(f"127.0.0.1:{port}")
    else:
        chain = b"".join(part.bytes() for part in certificate.cert_chain_pems)
        pair = (certificate.private_key_pem.bytes(), chain)
        authority = None if client_ca is None else client_ca.cert_pem.bytes()
        credentials = grpc.ssl_server_credentials([pair], authority, client_ca is not None)
        port = server.add_secure_port(f"127.0.0.1:{port}", credentials)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def photo_bytes(size: int = 96) -> bytes:
    """A small JPEG of a blue shirt, three units wide and four high."""
    sheet = Image.new("RGB", (size, size * 4 // 3), "white")
    outline = [(3, 3), (5, 2), (7, 2), (9, 3), (11, 6), (9, 7), (9, 13), (3, 13), (3, 7), (1, 6)]
    ImageDraw.Draw(sheet).polygon([(x * size / 12, y * size / 12) for x, y in outline], fill=(40, 80, 170))
    file = io.BytesIO()
    sheet.save(file, "JPEG")
    return file.getvalue()


def result(title: str = "Blue Shirt", score: float = 0.9, **fields: object) -> search_pb2.Result:
    """A result that was kept, unless its fields say otherwise."""
    values: dict[str, object] = {
        "url": "https://shop.example/item",
        "image_url": "https://shop.example/item.jpg",
        "thumbnail_url": "https://img.example/t.jpg",
        "source": "bing",
        "width": 600,
        "height": 800,
        "visual_score": 0.8,
        "semantic_score": 1.0,
        "verdict": search_pb2.VERDICT_KEPT,
        "reason": "it looks like the photo and agrees with both words",
    }
    return search_pb2.Result(title=title, score=score, **{**values, **fields})  # type: ignore[arg-type]


def full_answer() -> search_pb2.SearchResponse:
    """Two results, one of them with a thumbnail, and something degraded."""
    navy = search_pb2.WordAlternative(text="Navy", probability=0.125)
    stages = (("preprocess", 2), ("encode", 20), ("search", 50), ("total", 100))
    return search_pb2.SearchResponse(
        caption=search_pb2.Caption(
            text="Turtle Check Men Blue Shirt",
            words=[
                search_pb2.Word(text="Blue", probability=0.7, alternatives=[navy]),
                search_pb2.Word(text="Shirt", probability=0.9),
            ],
            log_probability=-1.25,
            complete=True,
            alternatives=[search_pb2.AlternativeCaption(text="Men Blue Shirt", log_probability=-2)],
        ),
        query="blue shirt",
        provider="duckduckgo",
        results=[
            result("Men's Blue Shirt", 0.95, thumbnail=photo_bytes()),
            result("Blue Oxford Shirt", 0.85),
        ],
        counts=search_pb2.Counts(
            found=9, fetched=8, unfetchable=1, undecodable=1, dropped_visual=3, dropped_semantic=2, kept=2
        ),
        timings=[search_pb2.StageTime(stage=stage, milliseconds=ms) for stage, ms in stages],
        degraded=[search_pb2.Degradation(part="thumbnails", reason="1 of 9 did not arrive in time")],
        model="fashion-small",
        readings=[
            search_pb2.Reading(query="blue shirt", probability=0.625),
            search_pb2.Reading(query="navy shirt", probability=0.375),
        ],
        query_rule=search_pb2.QUERY_RULE_LIKELIEST_WORDS,
        no_product_probability=0.1,
        confidence=0.95,
    )


def empty_answer() -> search_pb2.SearchResponse:
    """Nothing kept, and why."""
    answer = full_answer()
    del answer.results[:]
    answer.counts.kept = 0
    answer.empty_reason = "all 9 candidates were dropped"
    answer.nearest_miss.CopyFrom(
        result("Red Shirt", 0.4, verdict=search_pb2.VERDICT_DROPPED_VISUAL, reason="visual score 0.40 is below 0.55")
    )
    return answer


def client_environment(**variables: str) -> dict[str, str]:
    """The environment of a client in a process of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CAPTRIEVE_")}
    return {**kept, "PYTHONPATH": str(CLIENT), **variables}
