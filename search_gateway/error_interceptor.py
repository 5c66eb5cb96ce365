# SPDX-License-Identifier: Apache-2.0
"""The one place where an exception becomes a gRPC status, and where a request gets its id.

The project's own errors carry their code and a message for the caller; anything else is logged with its traceback and
leaves as INTERNAL without a word from inside.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from search_gateway.errors import OverloadedError, SearchError

_log = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"
_WELL_FORMED_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class ErrorInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                _guard_unary(handler.unary_unary, method), handler.request_deserializer, handler.response_serializer
            )
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(
                _guard_stream(handler.unary_stream, method), handler.request_deserializer, handler.response_serializer
            )
        return handler  # reflection's stream_stream


def _guard_unary(behaviour: Any, method: str) -> Callable[[Any, Context], Awaitable[Any]]:
    async def guarded(request: Any, context: Context) -> Any:
        request_id = await _identify(context)
        try:
            return await behaviour(request, context)
        except Exception as error:
            await _abort(context, error, method, request_id)

    return guarded


def _guard_stream(behaviour: Any, method: str) -> Any:
    async def guarded(request: Any, context: Context) -> AsyncIterator[Any]:
        request_id = await _identify(context)
        try:
            responses = behaviour(request, context)
            if asyncio.iscoroutine(responses):
                # The other style of grpc.aio: the handler writes to the context itself (health's Watch).
                await responses
                return
            async for response in responses:
                yield response
        except Exception as error:
            await _abort(context, error, method, request_id)

    return guarded


async def _identify(context: Context) -> str:
    """The caller's request id where it is well-formed, else a new one; sent back either way."""
    given = [value for key, value in context.invocation_metadata() or () if key == REQUEST_ID]
    if len(given) == 1 and isinstance(given[0], str) and _WELL_FORMED_ID.fullmatch(given[0]):
        request_id = given[0]
    else:
        request_id = uuid.uuid4().hex
    context.set_trailing_metadata(((REQUEST_ID, request_id),))
    return request_id


async def _abort(context: Context, error: Exception, method: str, request_id: str) -> None:
    if isinstance(error, grpc.aio.AbortError):
        raise error  # a service of gRPC's own (health) has already said why
    if isinstance(error, OverloadedError):
        _log.info("%s %s: %s", request_id, method, error)
        await context.abort_with_status(rpc_status.to_status(_overloaded(error)))  # type: ignore[attr-defined]
    elif isinstance(error, SearchError):
        _log.info("%s %s: %s: %s", request_id, method, error.code.name, error, exc_info=error.__cause__)
        await context.abort(error.code, str(error))
    else:
        _log.error("%s %s broke", request_id, method, exc_info=error)
        await context.abort(
            grpc.StatusCode.INTERNAL, f"the server failed on this request; its operator finds why under {request_id}"
        )


def _overloaded(error: OverloadedError) -> status_pb2.Status:
    """RESOURCE_EXHAUSTED with google.rpc.RetryInfo."""
    delay = duration_pb2.Duration()
    delay.FromMilliseconds(int(1000 * error.retry_after_seconds))
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message=str(error), details=[detail])
