# SPDX-License-Identifier: Apache-2.0
"""The outermost interceptor: counts each gRPC call once with its code, and gives it an id, a span and an access line.

What the caller receives decides, see `call_ending`.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
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
_REFUSAL_LINES = 20  # access lines of refused calls in a second; under a flood they would delay the answers

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
        self._second = 0
        self._num_refused = 0  # within this second

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
        behaviour: Any = handler.stream_stream
        assert behaviour is not None, "ErrorInterceptor, inside this one, makes each method one of two streams"

        async def observed(messages: AsyncIterator[Any], context: Context) -> None:
            await self._observed(method, behaviour, messages, context)

        return grpc.stream_stream_rpc_method_handler(
            observed, handler.request_deserializer, handler.response_serializer
        )

    async def _observed(self, method: str, behaviour: Any, messages: AsyncIterator[Any], context: Context) -> None:
        watched = WatchedContext(context)
        is_health = method.startswith(_HEALTH)
        label = method if _exists(method) else _UNKNOWN  # interceptors inside have a handler that refuses any method
        started = time.perf_counter()
        self._observer.call_started(label)
        metadata = () if is_health else context.invocation_metadata() or ()
        with (
            contextlib.nullcontext() if is_health else tracing.call_span(label, metadata) as span,
            logs.bound(request_id=identify(context), trace_id=tracing.trace_id()),
        ):
            code = grpc.StatusCode.OK
            try:
                await behaviour(messages, watched)
                code = watched.code_after(None)
            except BaseException as error:
                code = watched.code_after(error)
                raise
            finally:
                seconds = time.perf_counter() - started
                self._observer.call_ended(label, code.name, seconds)
                if span is not None:
                    tracing.end_call(span, code.name, code.value[0])
                level = logging.DEBUG if is_health else logging.INFO
                if _log.isEnabledFor(level) and self._has_line(code):
                    _log_call(method, code, seconds, watched, level)

    def _has_line(self, code: grpc.StatusCode) -> bool:
        """Whether a call gets an access line: all do but most refusals of a flood, whose number is told afterwards."""
        if (second := int(time.monotonic())) != self._second:
            if (num_unwritten := self._num_refused - _REFUSAL_LINES) > 0:
                # In a context of its own: the line is not about this call.
                contextvars.Context().run(_log.info, "%d more calls were refused within a second", num_unwritten)
            self._second, self._num_refused = second, 0
        if code is not grpc.StatusCode.RESOURCE_EXHAUSTED:
            return True
        self._num_refused += 1
        return self._num_refused <= _REFUSAL_LINES


@functools.lru_cache(maxsize=256)
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
