# SPDX-License-Identifier: Apache-2.0
"""Calls within the process pass the interceptors as calls over gRPC do, whatever kind of handler these make."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest

from search_api import search_pb2, search_pb2_grpc
from search_gateway.api.error_interceptor import ErrorInterceptor
from search_gateway.errors import BadRequestError, OverloadedError, SearchError
from search_gateway.web.local_calls import LocalCalls, LocalContext
from tests.fakes.event_loop import on_event_loop
from tests.fakes.scripted_search import ScriptedSearch


class AsStreams(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Makes a handler of two streams of each method, and writes the answers as bytes."""

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)

        async def behaviour(requests: AsyncIterator[Any], context: Any) -> None:
            request = await anext(requests)
            if handler.unary_unary:
                await context.write(handler.response_serializer(await handler.unary_unary(request, context)))
                return
            async for answer in handler.unary_stream(request, context):
                await context.write(handler.response_serializer(answer))

        return grpc.stream_stream_rpc_method_handler(behaviour, handler.request_deserializer)


class Noting(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    def __init__(self, name: str, notes: list[str], problem: SearchError | None = None):
        self._name = name
        self._notes = notes
        self._problem = problem

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        metadata = dict(handler_call_details.invocation_metadata)
        self._notes.append(f"{self._name} {handler_call_details.method} {metadata.get('authorization')}")
        if self._problem is not None:
            raise self._problem
        return await continuation(handler_call_details)


async def called(
    method: str,
    service: Any,
    interceptors: list[Any],
    receive: Callable[[], Awaitable[Any]] | None = None,
    timeout_seconds: float | None = None,
) -> tuple[LocalContext, list[Any]]:
    answers: list[Any] = []

    async def write(answer: Any) -> None:
        answers.append(answer)

    async def photo() -> Any:
        return search_pb2.CaptionRequest(photo=b"p") if method == "Caption" else search_pb2.SearchRequest(photo=b"p")

    calls = LocalCalls(interceptors)
    search_pb2_grpc.add_SearchServiceServicer_to_server(service, calls)  # type: ignore[no-untyped-call]
    context = LocalContext([("authorization", "Bearer key")], "ipv4:127.0.0.1:1", timeout_seconds, write)
    await calls.call(method, receive or photo, context)
    return context, answers


@pytest.mark.parametrize("method", ["Search", "StreamSearch", "Caption"])
@on_event_loop
async def test_handlers_of_every_kind_give_the_same_answers(method: str) -> None:
    plain = await called(method, ScriptedSearch(), [])
    streams = await called(method, ScriptedSearch(), [ErrorInterceptor(), AsStreams()])
    for context, answers in (plain, streams):
        assert context.status.code is grpc.StatusCode.OK
        assert answers == plain[1]
    assert len(plain[1]) == (5 if method == "StreamSearch" else 1)


@on_event_loop
async def test_interceptors_are_asked_from_the_outermost_and_before_the_body() -> None:
    notes: list[str] = []

    async def receive() -> Any:
        notes.append("body")
        return search_pb2.SearchRequest()

    await called("Search", ScriptedSearch(), [Noting("outer", notes), Noting("inner", notes)], receive)
    path = "/captrieve.v1.SearchService/Search Bearer key"
    assert notes == [f"outer {path}", f"inner {path}", "body"]


@on_event_loop
async def test_caller_who_is_not_let_in_is_not_read() -> None:
    async def receive() -> Any:
        raise AssertionError("the body was read")

    service = ScriptedSearch()
    context, answers = await called("Search", service, [Noting("", [], BadRequestError("not you"))], receive)
    assert (context.status.code, context.status.message) == (grpc.StatusCode.INVALID_ARGUMENT, "not you")
    assert not answers
    assert not service.requests


@pytest.mark.parametrize("interceptors", [[], [ErrorInterceptor()]])
@on_event_loop
async def test_error_keeps_its_time_to_come_back(interceptors: list[Any]) -> None:
    context, _ = await called("Search", ScriptedSearch(problem=OverloadedError("full", 1.5)), interceptors)
    assert context.status.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert context.status.retry_after_seconds == 1.5
    assert context.request_id


@on_event_loop
async def test_error_of_the_body_has_its_status() -> None:
    async def receive() -> Any:
        raise BadRequestError("the form is broken")

    context, _ = await called("Search", ScriptedSearch(), [ErrorInterceptor()], receive)
    assert (context.status.code, context.status.message) == (grpc.StatusCode.INVALID_ARGUMENT, "the form is broken")


@on_event_loop
async def test_call_ends_at_its_deadline() -> None:
    service = ScriptedSearch(before_query=lambda: asyncio.sleep(60))
    context, _ = await called("Search", service, [ErrorInterceptor()], timeout_seconds=0.05)
    assert context.status.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert context.time_remaining() == 0


@on_event_loop
async def test_time_limit_inside_the_service_is_not_the_deadline(caplog: pytest.LogCaptureFixture) -> None:
    context, _ = await called("Search", ScriptedSearch(problem=TimeoutError()), [], timeout_seconds=60)
    assert context.status.code is grpc.StatusCode.INTERNAL
    assert "TimeoutError" in caplog.text
