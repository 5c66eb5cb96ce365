# SPDX-License-Identifier: Apache-2.0
"""A gateway's memory under attack: what callers send counts, is bounded, and goes back to the system."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from search_api import search_pb2, search_pb2_grpc
from search_gateway.kserve.protocol import service_pb2, service_pb2_grpc
from tests.e2e.test_observability import running
from tests.fakes.event_loop import on_event_loop
from tests.fakes.raw_http2 import RawConnection, message

pytestmark = pytest.mark.triton

MEGABYTE = 10**6
MEBIBYTE = 2**20
CAPTION = "/captrieve.v1.SearchService/Caption"
STREAM_SEARCH = "/captrieve.v1.SearchService/StreamSearch"
OK = grpc.StatusCode.OK
SETTLED = 100 * MEGABYTE  # what may be left of an attack


@dataclass
class RunningGateway:
    address: str
    process: psutil.Process

    @property
    def memory(self) -> int:
        """Resident bytes."""
        return int(self.process.memory_info().rss)


StartGateway = Callable[..., RunningGateway]


@pytest.fixture
def start_process(triton_address: str, tmp_path: Path) -> Iterator[StartGateway]:
    """Starts gateways as processes of their own; keyword arguments are settings."""
    with contextlib.ExitStack() as started:

        def start(**settings: object) -> RunningGateway:
            environ = {f"CAPTRIEVE_{name.upper()}": str(value) for name, value in settings.items()}
            gateway = started.enter_context(running(tmp_path, CAPTRIEVE_TRITON_ADDRESS=triton_address, **environ))
            started.callback(gateway.process.kill)
            return RunningGateway(gateway.address, psutil.Process(gateway.process.pid))

        yield start


async def until(happened: Callable[[], bool], seconds: float = 100) -> None:
    """For what has no event: the memory of another process."""
    async with asyncio.timeout(seconds):
        while not happened():  # noqa: ASYNC110
            await asyncio.sleep(0.1)


class Peak:
    """The most memory that a gateway had inside the block."""

    def __init__(self, gateway: RunningGateway):
        self._gateway = gateway
        self.num_bytes = 0

    async def __aenter__(self) -> Peak:
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watching.cancel()

    async def _watch(self) -> None:
        while True:
            self.num_bytes = max(self.num_bytes, self._gateway.memory)
            await asyncio.sleep(0.02)


async def bad_photos(gateway: RunningGateway, count: int) -> int:
    """Sends photos of 30 MiB in one stream; returns how many were refused."""
    request = service_pb2.ModelInferRequest(model_name="caption")
    content = request.inputs.add(name="IMAGE", datatype="BYTES", shape=[1, 1]).contents
    content.bytes_contents.append(bytes(30 * MEBIBYTE))

    async def requests() -> AsyncIterator[Any]:
        for _ in range(count):
            yield request

    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(gateway.address, options=options) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answers = [answer async for answer in stub.ModelStreamInfer(requests())]
    return sum("INVALID_ARGUMENT" in answer.error_message for answer in answers)


@pytest.mark.parametrize("count", [10, pytest.param(40, marks=pytest.mark.campaign)])
def test_refused_photos_leave_no_memory_behind(start_process: StartGateway, count: int) -> None:
    @on_event_loop
    async def run() -> None:
        gateway = start_process(max_bytes_in_flight=128 * MEBIBYTE)
        start = gateway.memory
        async with Peak(gateway) as peak:
            for _ in range(2):
                assert await bad_photos(gateway, count) == count
        assert peak.num_bytes < start + 600 * MEGABYTE
        await until(lambda: gateway.memory < start + SETTLED)

    run()


@pytest.mark.parametrize("count", [12, pytest.param(24, marks=pytest.mark.campaign)])
def test_uploads_that_lack_one_byte_hold_memory_for_a_limited_time(start_process: StartGateway, count: int) -> None:
    @on_event_loop
    async def run() -> None:
        gateway = start_process(receive_timeout_seconds=5)
        start = gateway.memory
        caller = await RawConnection.open(gateway.address)
        unfinished = message(bytes(32 * MEBIBYTE))[:-1]
        streams = [await caller.begin(CAPTION) for _ in range(count)]
        await asyncio.gather(*(caller.send(stream, unfinished) for stream in streams))
        async with asyncio.timeout(100):
            for stream in streams:
                await caller.ended[stream].wait()
        await until(lambda: gateway.memory < start + SETTLED)
        await caller.close()

    run()


@pytest.mark.parametrize("num_streams", [50, pytest.param(500, marks=pytest.mark.campaign)])
def test_many_uploads_on_many_connections_are_bounded(start_process: StartGateway, num_streams: int) -> None:
    """25 GB are offered at most; what is read has the budget's size, and what is not read a mebibyte each."""

    @on_event_loop
    async def run() -> None:
        gateway = start_process(max_bytes_in_flight=128 * MEBIBYTE, receive_timeout_seconds=5)
        start = gateway.memory
        unfinished = message(bytes(32 * MEBIBYTE))[:-1]
        callers = [await RawConnection.open(gateway.address) for _ in range(2)]

        async def upload(caller: RawConnection) -> None:
            stream = await caller.begin(CAPTION)
            await caller.send(stream, unfinished)
            await caller.ended[stream].wait()

        async with Peak(gateway) as peak, asyncio.timeout(200):
            await asyncio.gather(*(upload(caller) for caller in callers for _ in range(num_streams // 2)))
        assert peak.num_bytes < start + 128 * MEBIBYTE + min(num_streams, 256) * MEBIBYTE + 300 * MEGABYTE
        await until(lambda: gateway.memory < start + SETTLED)
        for caller in callers:
            await caller.close()

    run()


async def outcome(call: Any) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return OK


@pytest.mark.parametrize("num_streams", [270, pytest.param(800, marks=pytest.mark.campaign)])
def test_slow_readers_lock_nobody_out(start_process: StartGateway, photo: bytes, num_streams: int) -> None:
    @on_event_loop
    async def run() -> None:
        gateway = start_process(max_deadline_seconds=3)
        start = gateway.memory
        caller = await RawConnection.open(gateway.address, answer_window=0)
        body = message(search_pb2.SearchRequest(photo=photo, query_override="red bag").SerializeToString())
        for _ in range(num_streams):
            await caller.send(await caller.begin(STREAM_SEARCH), body, ends=True)
        async with grpc.aio.insecure_channel(gateway.address) as channel:
            stub = search_pb2_grpc.SearchServiceStub(channel)  # type: ignore[no-untyped-call]
            async with asyncio.timeout(100):
                while (code := await outcome(stub.Caption(search_pb2.CaptionRequest(photo=photo)))) is not OK:
                    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
                    await asyncio.sleep(0.1)
        await until(lambda: gateway.memory < start + SETTLED)
        await caller.close()

    run()
