# SPDX-License-Identifier: Apache-2.0
"""The health service, through a real channel and with callers that do not read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from search_gateway.api.error_interceptor import ErrorInterceptor
from search_gateway.api.health import HealthService
from tests.fakes.unread_call import UnreadCall

NAMED = "captrieve.v1.SearchService"
STATUS = health_pb2.HealthCheckResponse
WATCH = "/grpc.health.v1.Health/Watch"


def run(use: Callable[[HealthService, grpc.aio.Channel, str], Awaitable[None]]) -> None:
    """Calls `use` with a service that is ready, a channel to its server, and HOST:PORT."""

    async def serve() -> None:
        service = HealthService((NAMED,))
        service.set_ready(True)
        server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=[("grpc.so_reuseport", 0)])
        health_pb2_grpc.add_HealthServicer_to_server(service, server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        try:
            async with asyncio.timeout(60), grpc.aio.insecure_channel(address) as channel:
                await use(service, channel, address)
        finally:
            await server.stop(None)

    asyncio.run(serve())


async def check(channel: grpc.aio.Channel, name: str) -> int:
    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name))
    return int(answer.status)


def test_empty_name_means_alive_and_the_named_services_ready() -> None:
    async def use(service: HealthService, channel: grpc.aio.Channel, _: str) -> None:
        for is_ready, status in ((True, STATUS.SERVING), (False, STATUS.NOT_SERVING)):
            service.set_ready(is_ready)
            assert service.is_ready is is_ready
            assert await check(channel, NAMED) == status
            assert await check(channel, "") == STATUS.SERVING

    run(use)


def test_draining_is_alive_and_never_ready_again() -> None:
    async def use(service: HealthService, channel: grpc.aio.Channel, _: str) -> None:
        service.finish()
        service.set_ready(True)  # a Triton that is looked at once more
        assert not service.is_ready
        assert await check(channel, NAMED) == STATUS.NOT_SERVING
        assert await check(channel, "") == STATUS.SERVING

    run(use)


def test_unknown_name_is_not_found() -> None:
    async def use(_: HealthService, channel: grpc.aio.Channel, __: str) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check(channel, "nobody")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="nobody"))
        assert (await watch.read()).status == STATUS.SERVICE_UNKNOWN

    run(use)


def test_watch_tells_each_change_and_ends_with_draining() -> None:
    async def use(service: HealthService, channel: grpc.aio.Channel, _: str) -> None:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=NAMED))
        assert (await watch.read()).status == STATUS.SERVING
        service.set_ready(False)
        assert (await watch.read()).status == STATUS.NOT_SERVING
        service.set_ready(False)  # no change
        service.set_ready(True)
        assert (await watch.read()).status == STATUS.SERVING
        service.finish()
        assert (await watch.read()).status == STATUS.NOT_SERVING
        assert await watch.read() is grpc.aio.EOF

    run(use)


@pytest.mark.parametrize("name", ["", NAMED])
def test_watcher_that_does_not_read_delays_nobody(name: str) -> None:
    async def use(service: HealthService, channel: grpc.aio.Channel, address: str) -> None:
        request = health_pb2.HealthCheckRequest(service=name)
        with UnreadCall(address, WATCH, request.SerializeToString()) as unread:
            await asyncio.to_thread(unread.wait_until_answered)
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=NAMED))
            assert (await watch.read()).status == STATUS.SERVING
            for is_ready, status in ((False, STATUS.NOT_SERVING), (True, STATUS.SERVING)):
                service.set_ready(is_ready)
                assert (await watch.read()).status == status
                assert await check(channel, NAMED) == status
            service.finish()
            assert (await watch.read()).status == STATUS.NOT_SERVING

    run(use)
