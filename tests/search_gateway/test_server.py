# SPDX-License-Identifier: Apache-2.0
"""Signals that a running gateway understands, and its connections; the rest is tested from outside, in tests/e2e."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from captioner.model_contract import ModelContract
from captrieve_client.connection import make_connection
from search_gateway import server
from search_gateway.api.health import HealthService
from search_gateway.config import GatewayConfig
from search_gateway.security.gateway_security import GatewaySecurity
from tests.conftest import MODELS

PING_SECONDS = 0.6


class ScriptedGateway:
    """Has itself reloaded and then stopped, by signals to this process."""

    def __init__(self, _: GatewayConfig) -> None:
        self.events: list[str] = []
        self._stopped = asyncio.Event()
        GATEWAYS.append(self)

    async def __aenter__(self) -> ScriptedGateway:
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGHUP)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.events.append("closed")

    async def wait(self) -> None:
        await self._stopped.wait()

    def reload(self) -> None:
        self.events.append("reloaded")
        os.kill(os.getpid(), signal.SIGTERM)

    def stop(self) -> None:
        self.events.append("stopped")
        self._stopped.set()


GATEWAYS: list[ScriptedGateway] = []


def test_sighup_reloads_and_sigterm_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "Gateway", ScriptedGateway)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        asyncio.run(server.serve(GatewayConfig.from_env({})))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert GATEWAYS.pop().events == ["reloaded", "stopped", "closed"]


def test_number_of_parallel_fetches_is_the_set_one() -> None:
    gateway = server.Gateway(GatewayConfig(thumbnail_fetches=3))
    assert gateway._make_thumbnails()._parallel_fetches == 3


def test_second_gateway_on_a_host_starts_without_the_default_admin_port(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert (
            server.Gateway(GatewayConfig.model_construct(admin_address=address, _fields_set=set()))._bind_admin()
            is None
        )
        assert f"no admin port: {address} is in use" in caplog.text
        with pytest.raises(server.StartError, match=address):
            server.Gateway(GatewayConfig(admin_address=address))._bind_admin()


def test_start_that_is_cancelled_fails_nowhere_else() -> None:
    async def start_and_cancel() -> list[dict[str, Any]]:
        problems: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        grpc_server = grpc.aio.server()
        grpc_server.add_insecure_port("127.0.0.1:0")
        starting = asyncio.create_task(server._start(grpc_server))
        await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        del starting, grpc_server
        gc.collect()
        await asyncio.sleep(0)
        return problems

    assert asyncio.run(start_and_cancel()) == []


# Connections, on the gateway's own gRPC server with nothing but the health service.


class NotedPeers(HealthService):
    def __init__(self) -> None:
        super().__init__(())
        self.peers: set[str] = set()

    async def Check(self, request: Any, context: Any) -> Any:
        self.peers.add(context.peer())
        return await super().Check(request, context)


@contextlib.asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[tuple[NotedPeers, int]]:
    """Yields the service and its port."""
    config = GatewayConfig(listen_address="127.0.0.1:0", **settings)
    gateway, security = server.Gateway(config), GatewaySecurity(config, ModelContract.load(MODELS))
    service, grpc_server = NotedPeers(), gateway._make_server(security)
    health_pb2_grpc.add_HealthServicer_to_server(service, grpc_server)
    port = gateway._bind(grpc_server, security)
    await grpc_server.start()
    try:
        async with asyncio.timeout(60):
            yield service, port
    finally:
        await grpc_server.stop(None)


def test_idle_stream_may_send_pings() -> None:
    """By its defaults gRPC, and so Triton, ends the stream at the third."""
    assert dict(make_connection("127.0.0.1:1").options)["grpc.keepalive_time_ms"] >= 1000 * PING_SECONDS

    async def use() -> None:
        options = [("grpc.keepalive_time_ms", int(1000 * PING_SECONDS)), ("grpc.http2.max_pings_without_data", 0)]
        async with (
            serving() as (_, port),
            grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel,
        ):
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=4 * PING_SECONDS)
            await watch.read()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await watch.read()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED, caught.value.details()

    asyncio.run(use())


@pytest.mark.parametrize(
    "greeting", [b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"], ids=["silent", "idle"]
)
def test_connection_without_calls_is_closed(greeting: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_IDLE_MS", 500)
    monkeypatch.setattr(server, "_HANDSHAKE_MS", 500)

    async def use() -> None:
        async with serving() as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(greeting)
            with contextlib.suppress(ConnectionResetError):
                await reader.read()  # until the server closes it
            writer.close()

    asyncio.run(use())


def test_clients_connect_again_after_the_age_without_a_failed_call() -> None:
    async def use() -> None:
        async with (
            serving(max_connection_age_seconds=0.5) as (service, port),
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        ):
            while len(service.peers) < 3:
                await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())

    asyncio.run(use())


def test_calls_may_outlive_the_age_of_their_connection_by_the_longest_deadline() -> None:
    options = dict(server._server_options(GatewayConfig(max_connection_age_seconds=300, max_deadline_seconds=45)))
    assert options["grpc.max_connection_age_ms"] == 300_000
    assert options["grpc.max_connection_age_grace_ms"] == 45_000


def test_connections_have_no_age_by_default() -> None:
    assert not [name for name, _ in server._server_options(GatewayConfig()) if "connection_age" in name]


@pytest.mark.parametrize(("limit", "most"), [(128, 64), (1_048_576, 524_288), (resource.RLIM_INFINITY, 2**31 - 1)])
def test_connections_leave_half_of_the_files(limit: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.resource, "getrlimit", lambda _: (limit, limit))
    assert dict(server._server_options(GatewayConfig()))["grpc.max_allowed_incoming_connections"] == most
