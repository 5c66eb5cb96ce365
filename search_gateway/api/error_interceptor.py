# SPDX-License-Identifier: Apache-2.0
"""Turns exceptions into gRPC statuses, and gives each request an id and a line in the log. No other module does either.

The project's own errors have a status and a message for the caller. Any other exception is logged with its traceback
and becomes INTERNAL, with a message that reveals nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from captioner.image_error import ImageError
from search_gateway.errors import BadRequestError, DeadlineError, OverloadedError, SearchError

_log = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"
# What gRPC's retry policy obeys (proposal A6). It does not read RetryInfo, which other clients do.
_PUSHBACK = "grpc-retry-pushback-ms"
_MAX_PUSHBACK_SECONDS = 5.0
_HEALTH = "/grpc.health.v1."
_WELL_FORMED_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class ErrorInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
    """Wraps every method of every service."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Return the method's handler, wrapped."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method
        parse = _tolerant(handler.request_deserializer)
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                _guard_unary(handler.unary_unary, method), parse, handler.response_serializer
            )
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(
                _guard_stream(handler.unary_stream, method), parse, handler.response_serializer
            )
        if handler.stream_stream is not None:
            return grpc.stream_stream_rpc_method_handler(
                _guard_stream(handler.stream_stream, method, _Requests), parse, handler.response_serializer
            )
        return handler


def public_message(error: Exception, request_id: str) -> tuple[grpc.StatusCode, str]:
    """Return the status and the message that the caller gets for an error.

    The message of an unexpected error only names the request's id, under which the log has the rest.
    """
    if isinstance(error, SearchError):
        return error.code, str(error)
    if isinstance(error, ImageError):
        return grpc.StatusCode.INVALID_ARGUMENT, str(error)
    text = f"the server failed on this request; its operator finds why under {request_id}"
    return grpc.StatusCode.INTERNAL, text


def logged_cause(error: Exception) -> BaseException | None:
    """Return the exception whose traceback is logged; None for the caller's mistakes and for short deadlines."""
    if isinstance(error, BadRequestError | DeadlineError | ImageError):
        return None
    return error.__cause__ if isinstance(error, SearchError) else error


def request_id(context: Context) -> str:
    """Return the id of a call, for services that report errors themselves."""
    return next((str(value) for key, value in context.trailing_metadata() if key == REQUEST_ID), "")


class _Malformed:
    """Stands for a request that cannot be parsed."""


def _tolerant(deserializer: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    """Wrap a deserializer so that it does not raise; `_check` refuses the request later.

    gRPC's own answer to bytes that it cannot parse is UNKNOWN with the name of a class.
    """

    def parse(data: bytes) -> Any:
        try:
            return data if deserializer is None else deserializer(data)
        except Exception:
            return _Malformed()

    return parse


def _check(request: Any) -> None:
    if isinstance(request, _Malformed):
        raise BadRequestError("the request is not a message of this method: see its .proto, or reflection")


class _Requests:
    """The messages of a caller's stream. `anext` raises BadRequestError for a malformed one and then continues."""

    def __init__(self, messages: AsyncIterator[Any]):
        self._messages = messages  # not aiter(messages), for which gRPC warns where a refused stream is never read

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        request = await anext(self._messages)
        _check(request)
        return request


def _guard_unary(behaviour: Any, method: str) -> Callable[[Any, Context], Awaitable[Any]]:
    async def guarded(request: Any, context: Context) -> Any:
        call = _Call(method, await _identify(context))
        try:
            _check(request)
            response = await behaviour(request, context)
        except Exception as error:
            await _abort(context, error, call)
        except asyncio.CancelledError:
            call.log("CANCELLED")  # the caller went away, or its deadline passed
            raise
        else:
            call.log("OK")
            return response

    return guarded


def _guard_stream(behaviour: Any, method: str, wrap: Callable[[Any], Any] = lambda request: request) -> Any:
    """Wrap a method that answers with a stream.

    Args:
        behaviour: the method.
        method: its name, for the log.
        wrap: turns what gRPC passes (a message or a stream of messages) into the method's argument.
    """

    async def guarded(request: Any, context: Context) -> AsyncIterator[Any]:
        call = _Call(method, await _identify(context))
        try:
            _check(request)
            responses = behaviour(wrap(request), context)
            if asyncio.iscoroutine(responses):
                # grpc.aio's other style: the handler writes to the context itself (health's Watch, KServe's stream).
                await responses
            else:
                async with contextlib.aclosing(responses):
                    async for response in responses:
                        yield response
        except Exception as error:
            await _abort(context, error, call)
        except (asyncio.CancelledError, GeneratorExit):
            call.log("CANCELLED")
            raise
        else:
            call.log("OK")

    return guarded


class _Call:
    """Writes the log line of a request: its id, outcome and duration."""

    def __init__(self, method: str, request_id: str):
        self.request_id = request_id
        self._method = method
        self._started = time.perf_counter()

    def log(self, outcome: str, cause: BaseException | None = None, level: int = logging.INFO) -> None:
        if self._method.startswith(_HEALTH):
            level = min(level, logging.DEBUG)  # probes ask every second
        milliseconds = 1000 * (time.perf_counter() - self._started)
        _log.log(level, "%s %s %.0f ms %s", self.request_id, self._method, milliseconds, outcome, exc_info=cause)


async def _identify(context: Context) -> str:
    """Return the caller's request id if it is well-formed, else a new one. Both are sent back."""
    given = [value for key, value in context.invocation_metadata() or () if key == REQUEST_ID]
    if len(given) == 1 and isinstance(given[0], str) and _WELL_FORMED_ID.fullmatch(given[0]):
        request_id = given[0]
    else:
        request_id = uuid.uuid4().hex
    context.set_trailing_metadata(((REQUEST_ID, request_id),))
    return request_id


async def _abort(context: Context, error: Exception, call: _Call) -> None:
    if isinstance(error, grpc.aio.AbortError):
        raise error  # one of gRPC's own services (health) has already set the status
    if isinstance(error, OverloadedError):
        call.log(f"{error.code.name}: {error}")
        status = rpc_status.to_status(_overloaded(error))
        # abort_with_status replaces the trailer, and with it the id.
        more = ((REQUEST_ID, call.request_id), (_PUSHBACK, _pushback(error.retry_after_seconds)))
        status = status._replace(  # type: ignore[attr-defined]  # a named tuple underneath
            trailing_metadata=(*status.trailing_metadata, *more)
        )
        await context.abort_with_status(status)  # type: ignore[attr-defined]  # its stubs do not know it
    else:
        code, message = public_message(error, call.request_id)
        if code is grpc.StatusCode.INTERNAL:
            call.log("INTERNAL", logged_cause(error), logging.ERROR)
        else:
            call.log(f"{code.name}: {message}", logged_cause(error))
        await context.abort(code, message)


def _pushback(retry_after_seconds: float) -> str:
    """Return the pause in milliseconds for gRPC's own retries; -1, none, if it is so long that a person should know."""
    is_long = retry_after_seconds > _MAX_PUSHBACK_SECONDS
    return "-1" if is_long else str(math.ceil(1000 * retry_after_seconds))


def _overloaded(error: OverloadedError) -> status_pb2.Status:
    """RESOURCE_EXHAUSTED with google.rpc.RetryInfo."""
    delay = duration_pb2.Duration()
    delay.FromMilliseconds(int(1000 * error.retry_after_seconds))
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message=str(error), details=[detail])
