# SPDX-License-Identifier: Apache-2.0
"""Calls the gateway's gRPC services within this process, through the interceptors of the gRPC server.

So a request over HTTP passes the same keys, quotas, limits, validation, error mapping and log as one over gRPC.
"""

from __future__ import annotations

import asyncio
import functools
import math
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from search_api import search_pb2
from search_gateway.api.error_interceptor import log_cause, public_message
from search_gateway.errors import OverloadedError
from search_gateway.observability.call_interceptor import REQUEST_ID

SERVICE = search_pb2.DESCRIPTOR.services_by_name["SearchService"].full_name
_ANSWERS: Mapping[str, type[Message]] = {
    f"/{SERVICE}/Search": search_pb2.SearchResponse,
    f"/{SERVICE}/StreamSearch": search_pb2.SearchEvent,
    f"/{SERVICE}/Caption": search_pb2.CaptionResponse,
}
_DETAILS = "grpc-status-details-bin"

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


@dataclass(frozen=True)
class Status:
    """How a call ended.

    Attributes:
        retry_after_seconds: of google.rpc.RetryInfo; None without one.
    """

    code: grpc.StatusCode = grpc.StatusCode.OK
    message: str = ""
    retry_after_seconds: float | None = None


@dataclass(frozen=True)
class _CallDetails:
    """What interceptors look at."""

    method: str
    invocation_metadata: Metadata


class LocalContext:
    """The part of `grpc.aio.ServicerContext` that services and interceptors use.

    Args:
        metadata: the caller's, with names in lower case.
        peer: the caller's address as gRPC writes it.
        timeout_seconds: the caller's deadline, from now; None if it set none.
        write: gets each message of the answer.
        certificate_name: of the caller's certificate; "" without one.
    """

    def __init__(
        self,
        metadata: Metadata,
        peer: str,
        timeout_seconds: float | None,
        write: Callable[[Any], Awaitable[None]],
        certificate_name: str = "",
    ):
        self._metadata = metadata
        self._peer = peer
        self._end = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        self._write = write
        self._certificate_name = certificate_name
        self._trailer: Metadata = ()
        self.answer_type: type[Message] | None = None
        self.status = Status()

    @property
    def request_id(self) -> str:
        """The call's id; empty before an interceptor has given it one."""
        return next((str(value) for key, value in self._trailer if key == REQUEST_ID), "")

    def invocation_metadata(self) -> Metadata:
        """Return what the caller sent beside its message."""
        return self._metadata

    def time_remaining(self) -> float | None:
        """Return the seconds until the caller's deadline."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def peer(self) -> str:
        """Return the caller's address."""
        return self._peer

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        """Return what the caller's certificate says."""
        return {"x509_common_name": (self._certificate_name.encode(),)} if self._certificate_name else {}

    def set_trailing_metadata(self, trailing_metadata: Metadata) -> None:
        """Keep what is to be sent after the answer."""
        self._trailer = tuple(trailing_metadata)

    def trailing_metadata(self) -> Metadata:
        """Return what `set_trailing_metadata` got."""
        return self._trailer

    def code(self) -> int:
        """Return the number of the status."""
        return int(self.status.code.value[0])

    def details(self) -> str:
        """Return the message of the status."""
        return self.status.message

    async def write(self, message: Any) -> None:
        """Send a message, or the bytes of one."""
        if isinstance(message, bytes):
            assert self.answer_type is not None
            message = self.answer_type.FromString(message)
        await self._write(message)

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn:
        """End the call with this status."""
        self.status = Status(code, details)
        if trailing_metadata:
            self._trailer = tuple(trailing_metadata)
        raise grpc.aio.AbortError()

    async def abort_with_status(self, status: Any) -> NoReturn:
        """End the call with this status, which may have details."""
        self._trailer = tuple(status.trailing_metadata)
        self.status = Status(status.code, status.details, _retry_after_seconds(self._trailer))
        raise grpc.aio.AbortError()


class LocalCalls:
    """Takes services as a `grpc.aio.Server` does, and calls their methods.

    Args:
        interceptors: those of the gRPC server, the outermost first.
    """

    def __init__(self, interceptors: Sequence[Any]):
        self._handlers: dict[str, Handler] = {}
        find: Any = self._handler_of
        for interceptor in reversed(interceptors):
            find = functools.partial(interceptor.intercept_service, find)
        self._find: Callable[[Any], Awaitable[Handler | None]] = find

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[Any]) -> None:
        """Do nothing: the next method gets the same handlers."""

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Handler]) -> None:
        """Keep the handlers of a service."""
        self._handlers |= {f"/{service_name}/{name}": handler for name, handler in method_handlers.items()}

    async def call(self, method: str, receive: Callable[[], Awaitable[Message]], context: LocalContext) -> None:
        """Call a method; afterwards `context.status` says how it ended.

        Args:
            method: its name in `SearchService`.
            receive: returns the caller's message. It is not awaited before the caller was let in.
            context: takes the answer.
        """
        path = f"/{SERVICE}/{method}"
        context.answer_type = _ANSWERS[path]
        timer = asyncio.timeout(context.time_remaining())
        try:
            async with timer:
                handler = await self._find(_CallDetails(path, context.invocation_metadata()))
                assert handler is not None
                await _run(handler, receive, context)
        except grpc.aio.AbortError:
            pass  # the status is known
        except TimeoutError as error:
            if not timer.expired():
                _fail(context, error)
            elif context.status.code is grpc.StatusCode.OK:
                message = "the deadline passed before the answer was there: allow more time"
                context.status = Status(grpc.StatusCode.DEADLINE_EXCEEDED, message)
        except Exception as error:
            _fail(context, error)

    async def _handler_of(self, details: _CallDetails) -> Handler | None:
        return self._handlers.get(details.method)


async def _run(handler: Handler, receive: Callable[[], Awaitable[Message]], context: LocalContext) -> None:
    """Call a handler as gRPC does, whatever kind it is of."""
    parse: Any = handler.request_deserializer

    async def messages() -> AsyncGenerator[Any]:
        yield parse((await receive()).SerializeToString())

    behaviour: Any = handler.stream_stream
    if behaviour is None:
        behaviour = handler.unary_unary or handler.unary_stream
        answers = behaviour(await anext(messages()), context)
    else:
        answers = behaviour(messages(), context)
    if isinstance(answers, AsyncIterator):
        async with aclosing(answers):  # type: ignore[type-var]  # gRPC's methods are generators
            async for answer in answers:
                await context.write(answer)
    elif (answer := await answers) is not None:
        await context.write(answer)


def _fail(context: LocalContext, error: Exception) -> None:
    """Note an error that no interceptor has turned into a status."""
    request_id = context.request_id or uuid.uuid4().hex
    context.set_trailing_metadata(((REQUEST_ID, request_id),))
    code, message = public_message(error, request_id)
    retry = error.retry_after_seconds if isinstance(error, OverloadedError) else None
    log_cause(error, code, request_id)
    context.status = Status(code, message, retry)


def _retry_after_seconds(trailer: Metadata) -> float | None:
    """Return what google.rpc.RetryInfo says, if there is one."""
    data = next((value for key, value in trailer if key == _DETAILS), b"")
    assert isinstance(data, bytes)
    for detail in status_pb2.Status.FromString(data).details:
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(retry):
            return math.fsum((retry.retry_delay.seconds, retry.retry_delay.nanos / 1e9))
    return None
