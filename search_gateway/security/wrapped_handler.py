# SPDX-License-Identifier: Apache-2.0
"""Puts a context manager around each call of a gRPC method, and shows it the messages of both directions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

import grpc

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Seen: TypeAlias = Callable[[Any], Awaitable[None]]  # is called with each message
Around: TypeAlias = Callable[[Any, Context], AbstractAsyncContextManager[Seen]]


def wrapped_handler(handler: Handler, around: Around) -> Handler:
    """Return the handler of a method with `around` around each call.

    Args:
        handler: of a method with one answer or a stream of answers to one request, or with two streams.
        around: gets the request, or None for a stream of requests, and the call's context.
    """
    parse, serialize = handler.request_deserializer, handler.response_serializer
    unary: Any = handler.unary_unary
    if unary is not None:

        async def answer(request: Any, context: Context) -> Any:
            async with around(request, context) as seen:
                await seen(request)
                response = await unary(request, context)
                await seen(response)
                return response

        return grpc.unary_unary_rpc_method_handler(answer, parse, serialize)
    behaviour: Any = handler.stream_stream or handler.unary_stream
    has_many_requests = handler.stream_stream is not None

    async def answers(request: Any, context: Context) -> AsyncIterator[Any]:
        async with around(None if has_many_requests else request, context) as seen:
            if has_many_requests:
                request = _Requests(request, seen)
            else:
                await seen(request)
            responses = behaviour(request, _WatchedContext(context, seen))
            if asyncio.iscoroutine(responses):  # grpc.aio's other style: it writes to the context itself
                await responses
            else:
                async for response in responses:
                    await seen(response)
                    yield response

    make: Any = grpc.stream_stream_rpc_method_handler if has_many_requests else grpc.unary_stream_rpc_method_handler
    wrapped: Handler = make(answers, parse, serialize)
    return wrapped


class _Requests:
    """The messages of a caller's stream; errors of one message pass, and the next one can still be read."""

    def __init__(self, messages: AsyncIterator[Any], seen: Seen):
        self._messages = messages
        self._seen = seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._messages, name)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        message = await anext(self._messages)
        await self._seen(message)
        return message


class _WatchedContext:
    """A call's context that shows the messages that a method writes to it."""

    def __init__(self, context: Context, seen: Seen):
        self._context = context
        self._seen = seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def write(self, message: Any) -> None:
        await self._seen(message)
        await self._context.write(message)
