# SPDX-License-Identifier: Apache-2.0
"""Each call is counted once, with the code that its caller received, however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.rpc import code_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from search_gateway.api.error_interceptor import ErrorInterceptor
from search_gateway.errors import BadRequestError, OverloadedError
from search_gateway.observability import call_interceptor
from search_gateway.observability.call_interceptor import CallInterceptor
from search_gateway.observability.metrics import GatewayMetrics
from search_gateway.observability.observer import Observer
from search_gateway.security.api_keys import ApiKeys
from search_gateway.security.audit_log import AuditInterceptor, AuditLog
from search_gateway.security.auth_interceptor import AuthInterceptor
from search_gateway.security.quotas import Quotas

SECRET = "/etc/secret of class Foo"


def declare(*methods: str) -> None:
    """Make the methods of the service test.Endings known to protobuf, as generated code would."""
    declared = descriptor_pb2.FileDescriptorProto(name="test_endings.proto", package="test")
    declared.message_type.add(name="Nothing")
    service = declared.service.add(name="Endings")
    for method in methods:
        service.method.add(name=method, input_type=".test.Nothing", output_type=".test.Nothing")
    descriptor_pool.Default().AddSerializedFile(declared.SerializeToString())


declare("unary", "server_stream", "writing", "bidi_stream", "client_stream")


class Recorder(Observer):
    def __init__(self) -> None:
        self.started: list[str] = []
        self.ended: list[tuple[str, str]] = []
        self.seconds: list[float] = []
        self.refusals: list[str] = []

    def call_started(self, method: str) -> None:
        self.started.append(method)

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        self.ended.append((method, code))
        self.seconds.append(seconds)

    def refused(self, reason: str) -> None:
        self.refusals.append(reason)


async def end(how: str, context: Any, waiting: asyncio.Event) -> None:
    """End a call in one of the ways of the table."""
    if how == "abort":
        await context.abort(grpc.StatusCode.NOT_FOUND, "not here")
    if how == "abort with status":
        status = status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message="full")
        await context.abort_with_status(rpc_status.to_status(status))
    if how == "exception":
        raise KeyError(SECRET)
    if how == "set code":
        context.set_code(grpc.StatusCode.DATA_LOSS)
    if how in ("deadline", "cancel"):
        waiting.set()
        await asyncio.sleep(10)


def handlers(waiting: asyncio.Event) -> list[Any]:
    async def unary(request: bytes, context: Any) -> bytes:
        await end(request.decode(), context, waiting)
        return b"answer"

    async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"first"
        await end(request.decode(), context, waiting)
        yield b"second"

    async def writing(request: bytes, context: Any) -> None:
        await context.write(b"first")
        await end(request.decode(), context, waiting)

    async def chat(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield b"first"
            await end(request.decode(), context, waiting)

    async def collect(requests: AsyncIterator[bytes], context: Any) -> bytes:
        async for request in requests:
            await end(request.decode(), context, waiting)
        return b"answer"

    methods = {
        "unary": grpc.unary_unary_rpc_method_handler(unary),  # type: ignore[arg-type]
        "server_stream": grpc.unary_stream_rpc_method_handler(stream),  # type: ignore[arg-type]
        "writing": grpc.unary_stream_rpc_method_handler(writing),  # type: ignore[arg-type]
        "bidi_stream": grpc.stream_stream_rpc_method_handler(chat),  # type: ignore[arg-type]
        "client_stream": grpc.stream_unary_rpc_method_handler(collect),  # type: ignore[arg-type]
    }
    return [grpc.method_handlers_generic_handler("test.Endings", methods)]


async def read(call: Any) -> None:
    """Read the answers, without which a stream does not end."""
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call


async def call_once(method: str, how: str, interceptors: list[Any], seconds: float | None = None) -> grpc.StatusCode:
    """Make one call of a real server; returns the code that the caller receives."""
    waiting = asyncio.Event()
    server = grpc.aio.server(interceptors=interceptors, options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers(tuple(handlers(waiting)))
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)  # type: ignore[attr-defined]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            path, request = f"/test.Endings/{method}", how.encode()
            await channel.channel_ready()
            timeout = 0.5 if how == "deadline" else seconds
            call: Any
            if method in ("unary", "missing"):
                call = channel.unary_unary(path)(request, timeout=timeout)
            elif method == "client_stream":
                call = channel.stream_unary(path)(iter([request]), timeout=timeout)
            elif method == "bidi_stream":
                call = channel.stream_stream(path)(iter([request]), timeout=timeout)
            else:
                call = channel.unary_stream(path)(request, timeout=timeout)
            reading = asyncio.ensure_future(read(call))
            if how == "cancel":
                await asyncio.wait_for(waiting.wait(), 60)
                call.cancel()
            await asyncio.wait((reading,))
            code = await call.code()
            await server.stop(60)  # it learns a little later that the caller is gone
            return grpc.StatusCode(code)
    finally:
        await server.stop(None)


def observed(recorder: Observer) -> list[Any]:
    """The interceptors of a gateway without keys."""
    return [CallInterceptor(recorder), ErrorInterceptor(observer=recorder)]


METHODS = ["unary", "server_stream", "writing", "client_stream", "bidi_stream"]
ENDINGS = {
    "ok": "OK",
    "abort": "NOT_FOUND",
    "abort with status": "RESOURCE_EXHAUSTED",
    "exception": "INTERNAL",
    "deadline": "DEADLINE_EXCEEDED",
    "cancel": "CANCELLED",
    "set code": "DATA_LOSS",
}


@pytest.mark.parametrize("how", ENDINGS)
@pytest.mark.parametrize("method", METHODS)
def test_each_call_is_counted_once_with_the_code_of_its_caller(method: str, how: str) -> None:
    recorder = Recorder()
    code = asyncio.run(call_once(method, how, observed(recorder)))
    assert code.name == ENDINGS[how]
    assert recorder.started == [f"/test.Endings/{method}"]
    assert recorder.ended == [(f"/test.Endings/{method}", ENDINGS[how])]


def test_an_exception_that_no_interceptor_catches_is_counted_as_unknown() -> None:
    class Defect(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
        async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
            async def fail(messages: Any, context: Any) -> None:
                raise KeyError(SECRET)

            return grpc.stream_stream_rpc_method_handler(fail)

    recorder = Recorder()
    code = asyncio.run(call_once("unary", "ok", [CallInterceptor(recorder), Defect()]))
    assert code is grpc.StatusCode.UNKNOWN
    assert [code for _, code in recorder.ended] == ["UNKNOWN"]


def test_a_cancelled_call_with_a_deadline_far_away_is_not_late() -> None:
    recorder = Recorder()
    assert asyncio.run(call_once("unary", "cancel", observed(recorder), seconds=30)).name == "CANCELLED"
    assert [code for _, code in recorder.ended] == ["CANCELLED"]


def test_a_method_that_does_not_exist_makes_no_label() -> None:
    recorder = Recorder()
    assert asyncio.run(call_once("missing", "ok", observed(recorder))) is grpc.StatusCode.UNIMPLEMENTED
    assert recorder.ended == [("/unknown/unknown", "UNIMPLEMENTED")]
    assert len(recorder.started) == 1


def test_stranger_without_a_key_cannot_invent_labels(tmp_path: Path) -> None:
    recorder = Recorder()
    (tmp_path / "keys.json").write_text('{"keys": []}')
    auth = AuthInterceptor([ApiKeys(tmp_path / "keys.json").caller_of], Quotas(8, 20))
    audit = AuditLog(tmp_path / "audit.jsonl")
    interceptors = [CallInterceptor(recorder), AuditInterceptor(audit), ErrorInterceptor(), auth]
    for method in ("missing", "unary"):
        assert asyncio.run(call_once(method, "ok", interceptors)) is grpc.StatusCode.UNAUTHENTICATED
    audit.close()
    assert recorder.ended == [("/unknown/unknown", "UNAUTHENTICATED"), ("/test.Endings/unary", "UNAUTHENTICATED")]


def test_metrics_have_started_handled_and_duration() -> None:
    metrics = GatewayMetrics("1", "model")
    asyncio.run(call_once("unary", "abort", observed(metrics)))
    labels = 'grpc_method="unary",grpc_service="test.Endings"'
    lines = metrics.text().decode().splitlines()
    assert f"grpc_server_started_total{{{labels}}} 1.0" in lines
    assert f'grpc_server_handled_total{{grpc_code="NOT_FOUND",{labels}}} 1.0' in lines
    assert f'grpc_server_handling_seconds_count{{grpc_code="NOT_FOUND",{labels}}} 1.0' in lines


def test_access_lines_quote_a_caller_at_debug_only(caplog: pytest.LogCaptureFixture) -> None:
    error = BadRequestError("the server's word_override.colour is 'dark \\'red\\'': give a word, or leave it \"unset\"")
    for level in (logging.INFO, logging.DEBUG):
        with caplog.at_level(level, "search_gateway.access"):
            asyncio.run(raising(error)(Recorder()))
    quiet, loud = (record.getMessage().split("ms ")[1] for record in access_lines(caplog))
    assert quiet == "INVALID_ARGUMENT: the server's word_override.colour is '…': give a word, or leave it '…'"
    assert loud == f"INVALID_ARGUMENT: {error}"


def raising(error: Exception, times: int = 1) -> Callable[[], Any]:
    async def run(recorder: Recorder) -> None:
        async def unary(request: bytes, context: Any) -> bytes:
            raise error

        server = grpc.aio.server(interceptors=observed(recorder))
        methods = {"unary": grpc.unary_unary_rpc_method_handler(unary)}  # type: ignore[arg-type]
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Endings", methods),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            for _ in range(times):
                await channel.unary_unary("/test.Endings/unary")(b"").code()
        await server.stop(None)

    return run


def test_flood_of_refusals_has_few_access_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seconds = iter([*[1.0] * 6, *[2.0] * 2])
    monkeypatch.setattr(call_interceptor, "time", SimpleNamespace(monotonic=lambda: next(seconds), perf_counter=float))
    monkeypatch.setattr(call_interceptor, "_REFUSAL_LINES", 2)
    with caplog.at_level(logging.INFO):
        asyncio.run(raising(OverloadedError("full", 1.0), times=7)(Recorder()))
    assert [record.getMessage() for record in access_lines(caplog)] == [
        *["/test.Endings/unary 0 ms RESOURCE_EXHAUSTED: full"] * 2,
        "4 more calls were refused within a second",
        "/test.Endings/unary 0 ms RESOURCE_EXHAUSTED: full",
    ]


def test_refusals_are_counted_by_the_limit_that_was_reached() -> None:
    recorder = Recorder()
    asyncio.run(raising(OverloadedError("full", 1.0, reason="queue"))(recorder))
    assert recorder.refusals == ["queue"]
    assert [code for _, code in recorder.ended] == ["RESOURCE_EXHAUSTED"]


def access_lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "search_gateway.access"]


def test_each_call_has_one_access_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        for how in ("ok", "abort", "exception", "cancel"):
            asyncio.run(call_once("unary", how, observed(Recorder())))
    lines = [record.getMessage().split(" ms ") for record in access_lines(caplog)]
    assert [start.rpartition(" ")[0] for start, _ in lines] == 4 * ["/test.Endings/unary"]
    assert [end.split(" under")[0] for _, end in lines] == [
        "OK",
        "NOT_FOUND: not here",
        "INTERNAL: the server failed on this request; its operator finds why",
        "CANCELLED",
    ]
    assert [getattr(record, "code", "") for record in access_lines(caplog)] == [
        "OK", "NOT_FOUND", "INTERNAL", "CANCELLED",
    ]  # fmt: skip
    assert caplog.text.count(SECRET) == 1, "the operator finds out, once"


def test_health_checks_have_no_line_at_info_and_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()

    async def check() -> None:
        server = grpc.aio.server(interceptors=observed(recorder))
        servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            with pytest.raises(grpc.aio.AioRpcError):
                await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="nobody"))
        await server.stop(None)

    with caplog.at_level(logging.INFO):
        asyncio.run(check())
    assert not access_lines(caplog)
    assert [code for _, code in recorder.ended] == ["OK", "NOT_FOUND"]


@pytest.mark.parametrize("given", ["two words", "x" * 65, "semi;colon"])
def test_an_id_that_is_not_well_formed_is_replaced(given: str) -> None:
    async def ask() -> str:
        server = grpc.aio.server(interceptors=observed(Recorder()))
        server.add_generic_rpc_handlers(tuple(handlers(asyncio.Event())))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/test.Endings/unary")(b"ok", metadata=(("x-request-id", given),))
            await call
            trailer = dict(await call.trailing_metadata())
        await server.stop(None)
        return str(trailer["x-request-id"])

    assert len(asyncio.run(ask())) == 32
