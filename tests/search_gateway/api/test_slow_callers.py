# SPDX-License-Identifier: Apache-2.0
"""Callers that do not read, or that stop in the middle of a message, keep neither a place nor memory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from captioner.captions import Caption
from captioner.model_contract import ModelContract
from captioner.query import Query
from search_api import search_pb2, search_pb2_grpc
from search_gateway.api.admission import Admission
from search_gateway.api.error_interceptor import ErrorInterceptor
from search_gateway.api.request_memory import max_message_bytes
from search_gateway.api.search_service import SearchService
from search_gateway.config import GatewayConfig
from search_gateway.kserve.kserve_service import InferenceService
from search_gateway.kserve.protocol import service_pb2, service_pb2_grpc
from search_gateway.pipeline import CaptionAnswer, PhotoQuery
from tests.conftest import MODELS
from tests.fakes.event_loop import on_event_loop
from tests.fakes.photo_query import photo_query
from tests.fakes.raw_http2 import RawConnection, message

CAPTION = "/captrieve.v1.SearchService/Caption"
STREAM_SEARCH = "/captrieve.v1.SearchService/StreamSearch"
STREAM_INFER = "/inference.GRPCInferenceService/ModelStreamInfer"
SEARCH_REQUEST = search_pb2.SearchRequest(photo=b"photo").SerializeToString()


class ScriptedPipeline:
    """Answers at once; a search never ends by itself."""

    contract = ModelContract.load(MODELS)

    def __init__(self) -> None:
        self.searches = 0  # in progress

    async def caption(self, data: bytes, *_: object) -> CaptionAnswer:
        return CaptionAnswer(Caption("a bag", (), -1.0, True, ()), Query.of("red bag"), {"total": 1.0})

    async def search(self, data: bytes, *_: object) -> AsyncIterator[PhotoQuery]:
        self.searches += 1
        try:
            while True:
                yield photo_query("red bag")
        finally:
            self.searches -= 1


class Server:
    def __init__(self, config: GatewayConfig):
        self.pipeline: Any = ScriptedPipeline()
        self.admission = Admission(config.max_in_flight, config.max_deadline_seconds)
        self.address = ""
        self.search: Any = None
        self.infer: Any = None

    async def caption(self) -> Any:
        return await self.search.Caption(search_pb2.CaptionRequest(photo=b"photo"))


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[Server]:
    config = GatewayConfig(**settings)
    it = Server(config)
    options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", max_message_bytes(config))]
    server = grpc.aio.server(interceptors=[ErrorInterceptor(config)], options=options)
    search_pb2_grpc.add_SearchServiceServicer_to_server(  # type: ignore[no-untyped-call]
        SearchService(it.pipeline, it.admission, config), server
    )

    async def is_ready() -> bool:
        return True

    kserve = InferenceService(it.pipeline, it.admission, config, is_ready=is_ready)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(kserve, server)
    it.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        async with grpc.aio.insecure_channel(it.address) as channel:
            it.search = search_pb2_grpc.SearchServiceStub(channel)  # type: ignore[no-untyped-call]
            it.infer = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            yield it
    finally:
        await server.stop(None)


async def until(happened: Callable[[], bool]) -> None:
    """For what the server does by itself; no event tells it."""
    async with asyncio.timeout(60):
        while not happened():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def code_of(call: Any) -> grpc.StatusCode:
    with contextlib.suppress(grpc.aio.AioRpcError):
        await call
    return grpc.StatusCode(await call.code())


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


@on_event_loop
async def test_searches_whose_caller_does_not_read_end_at_the_deadline() -> None:
    async with serving(max_in_flight=3, max_deadline_seconds=2.0) as it:
        caller = await RawConnection.open(it.address, answer_window=0)
        for _ in range(3):
            await caller.send(await caller.begin(STREAM_SEARCH), message(SEARCH_REQUEST), ends=True)
        await until(lambda: it.pipeline.searches == 3)
        assert (await refusal(it.caption())).code() is grpc.StatusCode.RESOURCE_EXHAUSTED, "all places are taken"
        await until(lambda: it.pipeline.searches == 0)
        assert not any(ended.is_set() for ended in caller.ended.values()), "the caller still holds its calls"
        await it.caption()
        await caller.close()


@on_event_loop
async def test_search_whose_caller_stops_reading_later_ends_too() -> None:
    async with serving(max_in_flight=1, max_deadline_seconds=1.0) as it:
        caller = await RawConnection.open(it.address, answer_window=10_000)
        stream = await caller.begin(STREAM_SEARCH)
        await caller.send(stream, message(SEARCH_REQUEST), ends=True)
        await until(lambda: it.pipeline.searches == 1)
        await until(lambda: it.pipeline.searches == 0)
        assert caller.answer_bytes[stream] > 5_000
        await it.caption()
        await caller.close()


@on_event_loop
async def test_caller_that_reads_too_late_gets_what_it_missed_as_a_deadline() -> None:
    async with serving(max_deadline_seconds=0.5) as it:
        caller = await RawConnection.open(it.address, answer_window=0)
        stream = await caller.begin(STREAM_SEARCH)
        await caller.send(stream, message(SEARCH_REQUEST), ends=True)
        await until(lambda: it.pipeline.searches == 1)
        await until(lambda: it.pipeline.searches == 0)
        await caller.grant(stream, 1000)
        await asyncio.wait_for(caller.ended[stream].wait(), 60)
        assert caller.answer_bytes[stream] > 0
        await caller.close()


@on_event_loop
async def test_stream_of_kserve_that_does_not_read_ends(caplog: pytest.LogCaptureFixture) -> None:
    request = service_pb2.ModelInferRequest(model_name="caption")
    request.inputs.add(name="IMAGE", datatype="BYTES", shape=[1, 1]).contents.bytes_contents.append(b"photo")
    body = message(request.SerializeToString())
    caplog.set_level(logging.DEBUG, "search_gateway")
    async with serving(max_in_flight=2, max_deadline_seconds=1.5) as it:
        caller = await RawConnection.open(it.address, answer_window=0)
        for _ in range(3):
            stream = await caller.begin(STREAM_INFER)
            await caller.send(stream, 100 * body)
        async with asyncio.timeout(60):
            # What is answered, but not read, holds no place; what is being answered does.
            while (code := await code_of(it.infer.ModelInfer(request))) is not grpc.StatusCode.OK:
                assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        await until(lambda: caplog.text.count("the answer was not read before the deadline") == 3)
        await caller.grant(stream, 10_000)
        await asyncio.wait_for(caller.ended[stream].wait(), 60)
        await caller.close()


@pytest.mark.parametrize("path", [CAPTION, STREAM_SEARCH, "/inference.GRPCInferenceService/ServerLive"])
def test_message_that_never_ends_is_ended_by_time(path: str) -> None:
    @on_event_loop
    async def run() -> None:
        async with serving(receive_timeout_seconds=0.3) as it:
            caller = await RawConnection.open(it.address)
            stream = await caller.begin(path)
            await caller.send(stream, message(bytes(1000))[:-1])
            await asyncio.wait_for(caller.ended[stream].wait(), 60)
            await caller.close()

    run()


@on_event_loop
async def test_slow_uploads_make_room_for_other_callers() -> None:
    """They hold all memory that a caller may have for messages; the call after them waits for one of them only."""
    config = GatewayConfig()
    async with serving(max_bytes_in_flight=4 * max_message_bytes(config), receive_timeout_seconds=600.0) as it:
        caller = await RawConnection.open(it.address)
        streams = [await caller.begin(CAPTION) for _ in range(3)]
        for stream in streams:
            await caller.send(stream, message(bytes(1000))[:-1])
        answer = await it.caption()
        assert answer.query == "red bag"
        assert sum(caller.ended[stream].is_set() for stream in streams) <= 1
        await caller.close()


@on_event_loop
async def test_request_beyond_the_memory_is_refused_with_a_time_to_wait() -> None:
    config = GatewayConfig()
    async with serving(max_bytes_in_flight=max_message_bytes(config), receive_timeout_seconds=1.0) as it:
        arrived, release = asyncio.Event(), asyncio.Event()

        async def caption(data: bytes, *_: object) -> CaptionAnswer:
            arrived.set()
            await release.wait()
            return await ScriptedPipeline.caption(it.pipeline, data)

        it.pipeline.caption = caption
        first = asyncio.ensure_future(it.search.Caption(search_pb2.CaptionRequest(photo=b"photo")))
        await arrived.wait()
        error = await refusal(it.search.Caption(search_pb2.CaptionRequest(photo=b"photo")))
        assert error is not None
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        status = rpc_status.from_call(error)  # type: ignore[arg-type]
        assert status is not None
        detail = error_details_pb2.RetryInfo()
        assert status.details[0].Unpack(detail)
        assert detail.retry_delay.ToMilliseconds() > 0
        release.set()
        await first
