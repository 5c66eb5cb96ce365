# SPDX-License-Identifier: Apache-2.0
"""Nothing of a photo is alive after its answer, without the garbage collector, however the request ended."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from captioner.model_contract import ModelContract
from captioner.preprocessing import ImageLimits
from search_api import search_pb2, search_pb2_grpc
from search_gateway.api.admission import Admission
from search_gateway.api.error_interceptor import ErrorInterceptor
from search_gateway.api.search_service import SearchService
from search_gateway.config import GatewayConfig
from search_gateway.deadline import Deadline
from search_gateway.engine.inference import EncodedPhotos
from search_gateway.engine.kv_slots import KvSlotPool
from search_gateway.engine.scheduler import CaptionScheduler
from search_gateway.errors import InferenceError
from search_gateway.imaging.decoder_pool import DecoderPool
from search_gateway.kserve.kserve_service import InferenceService
from search_gateway.kserve.protocol import service_pb2, service_pb2_grpc
from search_gateway.pipeline import Pipeline
from search_gateway.triton.pool import TritonPool
from tests.conftest import MODELS, jpeg
from tests.fakes.event_loop import on_event_loop
from tests.fakes.raw_http2 import RawConnection, message

CONTRACT = ModelContract.load(MODELS)
PATHS = {
    "unary": "/captrieve.v1.SearchService/Caption",
    "streaming": "/captrieve.v1.SearchService/StreamSearch",
    "kserve": "/inference.GRPCInferenceService/ModelInfer",
    "kserve stream": "/inference.GRPCInferenceService/ModelStreamInfer",
}
MEBIBYTE = 2**20
PHOTO = jpeg("Handbag", "Red") + bytes(2 * MEBIBYTE)  # bytes after the picture are allowed
NO_PHOTO = bytes(2 * MEBIBYTE)


class Inference:
    """An encoder that fails, or hangs."""

    makes_first_tokens = True
    encoder_calls = 2

    def __init__(self, *, hangs: bool):
        self.is_called = asyncio.Event()
        self._hangs = hangs

    async def new_slot_pool(self, slots: int, beams: int) -> KvSlotPool:
        return KvSlotPool(CONTRACT, slots=slots, beams=beams)

    async def free_slot_pool(self, slot_pool: KvSlotPool) -> None:
        pass

    async def encode(self, pixels: Any, deadline: Deadline, **_: Any) -> EncodedPhotos:
        self.is_called.set()
        if self._hangs:
            await asyncio.Event().wait()
        raise InferenceError("the inference server failed") from ValueError(pixels)


class Replica:
    name, is_serving = "fake", True

    def __init__(self, inference: Any):
        self.captions = CaptionScheduler(inference, bos_token_id=0, eos_token_id=1, slots=4)


class Providers:
    def check(self, name: str | None) -> None:
        pass


@pytest.fixture
def traced(without_collector: None) -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def num_large_objects() -> int:
    """Photos, whole or a copy of most of it, that Python has allocated since the test began."""
    return sum(trace.size > MEBIBYTE for trace in tracemalloc.take_snapshot().traces)


async def until_no_photo_is_left() -> None:
    async with asyncio.timeout(100):
        while num_large_objects():  # noqa: ASYNC110  # memory has no event
            await asyncio.sleep(0.05)


def body(path: str, photo: bytes) -> bytes:
    if "ModelInfer" in path or "ModelStreamInfer" in path:
        request = service_pb2.ModelInferRequest(model_name="caption")
        request.inputs.add(name="IMAGE", datatype="BYTES", shape=[1, 1]).contents.bytes_contents.append(photo)
        return message(request.SerializeToString())
    return message(search_pb2.SearchRequest(photo=photo).SerializeToString())


@pytest.mark.parametrize("outcome", ["refused", "failed", "timed out", "cancelled", "too large"])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_photo_is_freed_without_the_garbage_collector(path: str, outcome: str, traced: None) -> None:
    @on_event_loop
    async def run() -> None:
        config = GatewayConfig(max_deadline_seconds=1.0 if outcome == "timed out" else 60.0)
        limits = ImageLimits(max_bytes=MEBIBYTE if outcome == "too large" else config.max_photo_bytes)
        decoder = DecoderPool(CONTRACT, limits, num_workers=1)
        inference = Inference(hangs=outcome in ("timed out", "cancelled"))
        unused: Any = None
        pipeline = Pipeline(
            contract=CONTRACT,
            tokenizer=unused,
            photos=decoder,
            small_photos=unused,
            tritons=TritonPool([Replica(inference)]),  # type: ignore[list-item]
            providers=Providers(),  # type: ignore[arg-type]
            thumbnails=unused,
            thumbnail_timeout_seconds=1.0,
        )
        admission = Admission(config.max_in_flight, config.max_deadline_seconds)
        server = grpc.aio.server(
            interceptors=[ErrorInterceptor(config)], options=[("grpc.max_receive_message_length", 64 * MEBIBYTE)]
        )
        search_pb2_grpc.add_SearchServiceServicer_to_server(  # type: ignore[no-untyped-call]
            SearchService(pipeline, admission, config), server
        )
        kserve = InferenceService(pipeline, admission, config, is_ready=unused)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(kserve, server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        caller = await RawConnection.open(address)
        stream = await caller.begin(path)
        is_kserve_stream = path == PATHS["kserve stream"]
        await caller.send(stream, BODIES[path, outcome == "refused"], ends=not is_kserve_stream)
        try:
            async with asyncio.timeout(60):
                if outcome == "cancelled":
                    await inference.is_called.wait()
                    await caller.close()
                elif is_kserve_stream:  # it stays open
                    while not caller.answer_bytes[stream]:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                else:
                    await caller.ended[stream].wait()
            await until_no_photo_is_left()
        finally:
            await caller.close()
            await server.stop(None)
            await decoder.close()

    run()


BODIES = {(path, is_bad): body(path, NO_PHOTO if is_bad else PHOTO) for path in PATHS.values() for is_bad in (0, 1)}
