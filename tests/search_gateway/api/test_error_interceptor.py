# SPDX-License-Identifier: Apache-2.0
"""Every leaf of the error tree arrives at the caller with its code, and nothing else does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from captioner.image_error import ImageError, ImageReason
from search_api import search_pb2, search_pb2_grpc
from search_gateway import errors
from search_gateway.api.error_interceptor import ErrorInterceptor
from search_gateway.api.request_memory import Message
from search_gateway.observability.call_interceptor import CallInterceptor
from search_gateway.observability.observer import Observer

SECRET = "/etc/secret of class Foo"


def leaves() -> list[type[errors.SearchError]]:
    found: list[type[errors.SearchError]] = []
    pending: list[type[errors.SearchError]] = list(errors.SearchError.__subclasses__())
    while pending:
        kind = pending.pop()
        if kind.__module__ == errors.__name__:
            found.append(kind)
        pending += kind.__subclasses__()
    return found


def made(kind: type[errors.SearchError]) -> errors.SearchError:
    return kind("said to the caller", 0.25) if kind is errors.OverloadedError else kind("said to the caller")


class RaisingService(search_pb2_grpc.SearchServiceServicer):
    problem: BaseException | None = None

    def __init__(self) -> None:
        self.is_raising = asyncio.Event()

    async def Caption(self, request: search_pb2.CaptionRequest, context: object) -> search_pb2.CaptionResponse:
        self.is_raising.set()
        if self.problem is not None:
            raise self.problem from ValueError(SECRET)
        return search_pb2.CaptionResponse(query="fine")

    async def StreamSearch(
        self, request: search_pb2.SearchRequest, context: object
    ) -> AsyncIterator[search_pb2.SearchEvent]:
        yield search_pb2.SearchEvent(query="first")
        if self.problem is not None:
            raise self.problem from ValueError(SECRET)


Ask = Callable[..., tuple[grpc.aio.AioRpcError | None, int]]


@pytest.fixture
def ask() -> Iterator[Ask]:
    """Calls a method of a real server that raises; returns the error and how many messages came before it."""

    async def run(problem: BaseException | None, method: str) -> tuple[grpc.aio.AioRpcError | None, int]:
        service = RaisingService()
        service.problem = problem
        interceptors = [CallInterceptor(Observer()), ErrorInterceptor()]
        server = grpc.aio.server(interceptors=interceptors, options=[("grpc.so_reuseport", 0)])
        search_pb2_grpc.add_SearchServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        messages = 0
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                stub = search_pb2_grpc.SearchServiceStub(channel)  # type: ignore[no-untyped-call]
                try:
                    if method == "Caption":
                        call = stub.Caption(search_pb2.CaptionRequest(), timeout=10)
                        if isinstance(problem, asyncio.CancelledError):  # gRPC answers nothing then
                            await service.is_raising.wait()
                            return None, 0
                        await call
                        messages = 1
                    else:
                        async for _ in stub.StreamSearch(search_pb2.SearchRequest(), timeout=10):
                            messages += 1
                except grpc.aio.AioRpcError as error:
                    return error, messages
        finally:
            await server.stop(None)
        return None, messages

    return lambda problem, method="Caption": asyncio.run(run(problem, method))


RawAsk = Callable[[str, bytes], grpc.aio.AioRpcError]


@pytest.fixture
def raw_ask() -> RawAsk:
    """Sends bytes that are no message; returns the error."""

    async def run(method: str, data: bytes) -> grpc.aio.AioRpcError:
        interceptors = [CallInterceptor(Observer()), ErrorInterceptor()]
        server = grpc.aio.server(interceptors=interceptors, options=[("grpc.so_reuseport", 0)])
        search_pb2_grpc.add_SearchServiceServicer_to_server(RaisingService(), server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                path = f"/captrieve.v1.SearchService/{method}"
                try:
                    if method == "Caption":
                        await channel.unary_unary(path)(data, timeout=10)
                    else:
                        await channel.unary_stream(path)(data, timeout=10).read()
                except grpc.aio.AioRpcError as error:
                    return error
                raise AssertionError("bytes that are no message were taken for one")
        finally:
            await server.stop(None)

    return lambda method, data: asyncio.run(run(method, data))


def test_stream_that_is_left_is_closed_at_once() -> None:
    """Not by the garbage collector, which comes later, or never where a traceback holds the stream."""
    events: list[str] = []
    held = []

    async def stream() -> AsyncIterator[bytes]:
        try:
            yield b"first"
        finally:
            await asyncio.sleep(0)
            events.append("closed")

    def behaviour(*_: object) -> AsyncIterator[bytes]:
        held.append(stream())
        return held[0]

    class Context:
        def __init__(self) -> None:
            self.writes = asyncio.Event()

        def invocation_metadata(self) -> tuple[()]:
            return ()

        def set_trailing_metadata(self, _: object) -> None:
            pass

        def trailing_metadata(self) -> tuple[()]:
            return ()

        def time_remaining(self) -> None:
            return None

        def peer(self) -> str:
            return "ipv4:127.0.0.1:1"

        async def write(self, _: bytes) -> None:
            self.writes.set()
            await asyncio.Event().wait()  # the caller does not read

    async def messages() -> AsyncIterator[Message]:
        yield Message("request", 7)

    async def run() -> None:
        handler: Any = grpc.unary_stream_rpc_method_handler(behaviour)  # type: ignore[arg-type]
        details: Any = SimpleNamespace(method="/test/Stream")
        guarded: Any = await ErrorInterceptor().intercept_service(lambda _: asyncio.sleep(0, handler), details)
        context = Context()
        call = asyncio.create_task(guarded.stream_stream(messages(), context))
        await context.writes.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert events == ["closed"]

    asyncio.run(run())


def test_there_are_leaves() -> None:
    assert len(leaves()) >= 8


@pytest.mark.parametrize("kind", leaves(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("method", ["Caption", "StreamSearch"])
def test_every_error_arrives_with_its_code_and_sentence(ask: Ask, kind: type[errors.SearchError], method: str) -> None:
    error, messages = ask(made(kind), method)
    assert error is not None
    assert error.code() is kind.code
    assert error.details() == "said to the caller"
    assert messages == (1 if method == "StreamSearch" else 0)


def test_unknown_exception_is_internal_without_a_word_from_inside(ask: Ask, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        error, _ = ask(KeyError(SECRET))
    assert error is not None
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in (error.details() or "")
    trailer = dict(error.trailing_metadata() or ())
    assert trailer["x-request-id"] in (error.details() or ""), "the caller can tell the operator which request it was"
    assert SECRET in caplog.text, "the operator finds out"
    assert trailer["x-request-id"] in caplog.text


def test_overload_says_when_to_come_back(ask: Ask) -> None:
    error, _ = ask(errors.OverloadedError("full", retry_after_seconds=0.25))
    assert error is not None
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    detail = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(detail)
    assert detail.retry_delay.ToMilliseconds() == 250


def test_request_id_comes_back_on_overload_too(ask: Ask) -> None:
    error, _ = ask(errors.OverloadedError("full", retry_after_seconds=0.25))
    assert error is not None
    assert "x-request-id" in dict(error.trailing_metadata() or ())


def test_malformed_message_is_an_invalid_argument_without_a_word_from_inside(raw_ask: RawAsk) -> None:
    for method in ("Caption", "StreamSearch"):
        error = raw_ask(method, b"\x0a\xff\xff\xff\xff")
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.details() == "the request is not a message of this method: see its .proto, or reflection"


Chat = Callable[[list[bytes]], tuple[list[bytes], grpc.aio.AioRpcError | None]]


@pytest.fixture
def chat() -> Chat:
    """Sends messages to a method of two streams that answers each; returns the answers and the error."""

    def parse(data: bytes) -> bytes:
        if data == b"malformed":
            raise ValueError(SECRET)
        return data

    async def echo(requests: AsyncIterator[bytes], context: object) -> AsyncIterator[bytes]:
        async for request in requests:
            if request == b"bug":
                raise KeyError(SECRET)
            yield request

    async def run(messages: list[bytes]) -> tuple[list[bytes], grpc.aio.AioRpcError | None]:
        interceptors = [CallInterceptor(Observer()), ErrorInterceptor()]
        server = grpc.aio.server(interceptors=interceptors, options=[("grpc.so_reuseport", 0)])
        handler = grpc.stream_stream_rpc_method_handler(echo, parse, bytes)  # type: ignore[arg-type]
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", {"Talk": handler}),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        answers: list[bytes] = []
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                try:
                    async for answer in channel.stream_stream("/test.Echo/Talk")(iter(messages), timeout=10):
                        answers.append(answer)
                except grpc.aio.AioRpcError as error:
                    return answers, error
        finally:
            await server.stop(None)
        return answers, None

    return lambda messages: asyncio.run(run(messages))


def test_stream_of_requests_has_one_line_and_an_id(chat: Chat, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert chat([b"one", b"two"]) == ([b"one", b"two"], None)
    (line,) = [record.getMessage() for record in caplog.records if "/test.Echo/Talk" in record.getMessage()]
    assert line.endswith(" ms OK")


def test_stream_that_does_not_care_for_malformed_messages_ends_with_them(chat: Chat) -> None:
    answers, error = chat([b"one", b"malformed", b"two"])
    assert answers == [b"one"]
    assert error is not None
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "secret" not in (error.details() or "")


def test_exception_in_a_stream_of_requests_is_internal_without_a_word_from_inside(chat: Chat) -> None:
    answers, error = chat([b"one", b"bug"])
    assert answers == [b"one"]
    assert error is not None
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in (error.details() or "")


def test_cancelled_request_has_a_line_in_the_log(ask: Ask, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        ask(asyncio.CancelledError())
    assert any(record.getMessage().endswith("ms CANCELLED") for record in caplog.records)


def test_every_request_has_a_line_in_the_log(ask: Ask, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        ask(None)
        ask(ImageError(ImageReason.TOO_LARGE, "has {} pixels", 9_000, 5_000, "send a smaller one"))
    lines = [record.getMessage() for record in caplog.records if "/Caption" in record.getMessage()]
    assert [line.split(" ms ")[1] for line in lines] == [
        "OK",
        "INVALID_ARGUMENT: the photo has 9,000 pixels; the limit is 5,000: send a smaller one",
    ]
    assert SECRET not in caplog.text, "a bad photo is worth no traceback"
