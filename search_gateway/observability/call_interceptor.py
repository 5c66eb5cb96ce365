# SPDX-License-Identifier: Apache-2.0
"""The outermost interceptor: counts each gRPC call once with its code, and gives it an id, a span and an access line.

What the caller receives decides, see `call_ending`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf import descriptor_pool

from search_gateway.call_ending import WatchedContext
from search_gateway.observability import logs, tracing
from search_gateway.observability.observer import Observer

REQUEST_ID = "x-request-id"
_WELL_FORMED_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_QUOTATION = re.compile(r"'(?:[^'\\]|\\.)*'(?!\w)|\"(?:[^\"\\]|\\.)*\"")
_HEALTH = "/grpc.health.v1."
_UNKNOWN = "/unknown/unknown"

_log = logging.getLogger("search_gateway.access")

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
    """Observes every method of every service.

    A method that does not exist counts as `unknown/unknown`, so that callers cannot invent labels. gRPC itself ends
    calls whose message is too large, or whose caller leaves before the message is there; they are not counted.

    Args:
        observer: told of each call.
    """

    def __init__(self, observer: Observer):
        self._observer = observer

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Return the method's handler, wrapped."""
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None:
            self._observer.call_started(_UNKNOWN)
            self._observer.call_ended(_UNKNOWN, grpc.StatusCode.UNIMPLEMENTED.name, 0.0)
            return handler
        serialisers = handler.request_deserializer, handler.response_serializer
        if handler.unary_unary is not None:
            once = self._answering_once(method, handler.unary_unary)
            return grpc.unary_unary_rpc_method_handler(once, *serialisers)
        if handler.stream_unary is not None:
            once = self._answering_once(method, handler.stream_unary)
            return grpc.stream_unary_rpc_method_handler(once, *serialisers)
        if handler.unary_stream is not None:
            streaming = self._streaming(method, handler.unary_stream)
            return grpc.unary_stream_rpc_method_handler(streaming, *serialisers)
        streaming = self._streaming(method, handler.stream_stream)
        return grpc.stream_stream_rpc_method_handler(streaming, *serialisers)

    def _answering_once(self, method: str, behaviour: Any) -> Any:
        async def observed(request: Any, context: Context) -> Any:
            async with self._observed(method, context) as watched:
                return await behaviour(request, watched)

        return observed

    def _streaming(self, method: str, behaviour: Any) -> Any:
        async def observed(request: Any, context: Context) -> None:
            async with self._observed(method, context) as watched:
                answers = behaviour(request, watched)
                if asyncio.iscoroutine(answers):  # it writes to the context itself
                    await answers
                    return
                # Written here, so that a call that is cancelled meanwhile ends here and now.
                async with contextlib.aclosing(answers):
                    async for answer in answers:
                        await context.write(answer)

        return observed

    @contextlib.asynccontextmanager
    async def _observed(self, method: str, context: Context) -> AsyncIterator[WatchedContext]:
        watched = WatchedContext(context)
        metadata = list(context.invocation_metadata() or ())
        request_id = identify(context)
        is_health = method.startswith(_HEALTH)
        label = method if _exists(method) else _UNKNOWN  # interceptors inside have a handler that refuses any method
        started = time.perf_counter()
        self._observer.call_started(label)
        with contextlib.ExitStack() as stack:
            span = None if is_health else stack.enter_context(tracing.call_span(label, metadata))
            stack.enter_context(logs.bound(request_id=request_id, trace_id=tracing.trace_id()))
            code = grpc.StatusCode.OK
            try:
                yield watched
            except BaseException as error:
                code = watched.code_after(error)
                raise
            else:
                code = watched.code_after(None)
            finally:
                seconds = time.perf_counter() - started
                self._observer.call_ended(label, code.name, seconds)
                if span is not None:
                    tracing.end_call(span, code.name, code.value[0])
                level = logging.DEBUG if is_health else logging.INFO
                if _log.isEnabledFor(level):
                    _log_call(method, code, seconds, watched, level)


def _exists(method: str) -> bool:
    """Whether a service of this process has a method; its path is /package.Service/Method."""
    service, _, name = method.removeprefix("/").rpartition("/")
    try:
        return name in descriptor_pool.Default().FindServiceByName(service).methods_by_name
    except KeyError:
        return False


def identify(context: Context) -> str:
    """Return the call's id, which is sent back: the caller's if it is well-formed, else a new one."""
    known = next((str(value) for key, value in context.trailing_metadata() or () if key == REQUEST_ID), "")
    if known:
        return known
    given = [value for key, value in context.invocation_metadata() or () if key == REQUEST_ID]
    if len(given) == 1 and isinstance(given[0], str) and _WELL_FORMED_ID.fullmatch(given[0]):
        request_id = given[0]
    else:
        request_id = uuid.uuid4().hex
    context.set_trailing_metadata(((REQUEST_ID, request_id),))
    return request_id


def without_quotations(message: str) -> str:
    """Return a message for a caller without the values in quotation marks, which may be the words of a query."""
    return _QUOTATION.sub("'…'", message)


def _log_call(method: str, code: grpc.StatusCode, seconds: float, context: WatchedContext, level: int) -> None:
    milliseconds = round(1000 * seconds, 1)
    fields = {"method": method, "code": code.name, "milliseconds": milliseconds, "peer": context.peer()}
    details = context.details if _log.isEnabledFor(logging.DEBUG) else without_quotations(context.details)
    outcome = f"{code.name}: {details}" if details else code.name
    _log.log(level, "%s %.0f ms %s", method, milliseconds, outcome, extra=fields)
