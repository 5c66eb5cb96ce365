# SPDX-License-Identifier: Apache-2.0
"""Turns exceptions into gRPC statuses. No other module does.

The project's own errors have a status and a message for the caller. Any other exception is logged with its traceback
and becomes INTERNAL, with a message that reveals nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from captioner.image_error import ImageError
from search_gateway.api.request_memory import MemoryBudget, Message, RequestMemory, Share
from search_gateway.config import GatewayConfig
from search_gateway.deadline import Deadline
from search_gateway.errors import BadRequestError, DeadlineError, OverloadedError, SearchError
from search_gateway.fair_share import current_caller
from search_gateway.observability.call_interceptor import REQUEST_ID, identify
from search_gateway.observability.observer import Observer

_log = logging.getLogger(__name__)

# What gRPC's retry policy obeys (proposal A6). It does not read RetryInfo, which other clients do.
_PUSHBACK = "grpc-retry-pushback-ms"
_MAX_PUSHBACK_SECONDS = 5.0
_HEALTH = "/grpc.health.v1."
_SEND_SECONDS = 0.05  # for an answer that is ready just before the deadline

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class ErrorInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
    """Wraps every method of every service.

    gRPC gets all methods as streams, which is the same on the wire: so we decide when a message is read, and no write
    can last for ever.

    Args:
        config: limits of bytes and time.
        observer: told of each refusal.
    """

    def __init__(self, config: GatewayConfig | None = None, observer: Observer | None = None):
        self._observer = observer or Observer()
        config = GatewayConfig() if config is None else config
        self._memory = RequestMemory(config)
        self._max_seconds = config.max_deadline_seconds

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Return the method's handler, wrapped."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        behaviour: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        is_stream = handler.request_streaming
        budget = self._memory.budget_of(handler_call_details.method)

        async def guarded(messages: AsyncIterator[Message], context: Context) -> None:
            request_id = identify(context)
            # A search has one deadline; in a stream of requests, and while a caller watches, each answer has its own.
            is_bounded = budget is self._memory.photos and not is_stream
            serialize = handler.response_serializer or (lambda message: message)
            caller = current_caller.get() or context.peer().rpartition(":")[0]  # without a key, a host's calls
            answers = _Answers(context, serialize, budget, caller, self._max_seconds, is_bounded=is_bounded)
            release: Callable[[], None] | None = None
            try:
                if is_stream:
                    requests = RequestStream(messages, self._memory, budget, caller)
                    release = requests.release_all
                    answer = behaviour(requests, answers)
                else:
                    request, share = await budget.receive(messages, caller)
                    release = share.release
                    _check(request)
                    answer = behaviour(request, answers)
                    del request  # its memory is free as soon as the method has no use for it
                await answers.send(answer)
            except grpc.aio.AbortError as abort:
                forget_frames(abort)  # one of gRPC's own services (health) has already sent the status
            except Exception as error:
                if isinstance(error, OverloadedError):
                    self._observer.refused(error.reason)
                code, message = public_message(error, request_id)
                log_cause(error, code, request_id)
                _log.debug(
                    "request %s ends, %s: %s", request_id, code.name, message
                )  # perhaps long before its access line
                forget_frames(error)
                if release is not None:
                    release()
                await answers.sent()  # gRPC takes no status before
                await _abort(context, error, code, message, request_id)
            except asyncio.CancelledError as cancelled:
                forget_frames(cancelled)  # TaskGroup keeps them
                raise
            finally:
                if release is not None:
                    release()
                answers.release()

        return grpc.stream_stream_rpc_method_handler(guarded, _tolerant(handler.request_deserializer))


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


def log_cause(error: Exception, code: grpc.StatusCode, request_id: str) -> None:
    """Log what is behind an error, with its traceback; nothing for the caller's mistakes and for short deadlines."""
    if isinstance(error, BadRequestError | DeadlineError | ImageError):
        return
    cause = error.__cause__ if isinstance(error, SearchError) else error
    if cause is not None:
        level = logging.ERROR if code is grpc.StatusCode.INTERNAL else logging.INFO
        _log.log(level, "request %s failed, %s", request_id, code.name, exc_info=cause)


class _Malformed:
    """Stands for a request that cannot be parsed."""


def _tolerant(deserializer: Callable[[bytes], Any] | None) -> Callable[[bytes], Message]:
    """Wrap a deserializer so that it does not raise; `_check` refuses the request later.

    gRPC's own answer to bytes that it cannot parse is UNKNOWN with the name of a class.
    """

    def parse(data: bytes) -> Message:
        try:
            return Message(data if deserializer is None else deserializer(data), len(data))
        except Exception:
            return Message(_Malformed(), len(data))

    return parse


def _check(request: Any) -> None:
    if isinstance(request, _Malformed):
        raise BadRequestError("the request is not a message of this method: see its .proto, or reflection")


class RequestStream:
    """The messages of a caller's stream. `anext` raises BadRequestError for a malformed one and then continues."""

    def __init__(self, messages: AsyncIterator[Message], memory: RequestMemory, budget: MemoryBudget, caller: str):
        self._messages = messages  # not aiter(messages), for which gRPC warns where a refused stream is never read
        self._memory = memory
        self._budget = budget
        self._caller = caller
        self._shares: dict[int, Share] = {}  # by the id of their message

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if self._budget is not self._memory.photos:
            self.release_all()  # gRPC's own services (reflection) take one after the other
        request, share = await self._memory.streams.receive_next(self._messages, self._budget, self._caller)
        try:
            _check(request)
        except BadRequestError:
            share.release()
            raise
        self._shares[id(request)] = share
        return request

    def release(self, request: Any) -> None:
        """No longer count the memory of a request."""
        self._shares.pop(id(request)).release()

    def release_all(self) -> None:
        """No longer count the memory of any request: the stream has ended."""
        while self._shares:
            self._shares.popitem()[1].release()


class _Answers:
    """A call's context, with writes that end.

    Args:
        context: gRPC's.
        serialize: makes the bytes of a message.
        budget: what the bytes of an answer count in until it is sent.
        caller: whose share of it they take.
        max_seconds: time limit of a call.
        is_bounded: whether it is the time of all answers, or of each one.
    """

    def __init__(
        self,
        context: Context,
        serialize: Callable[[Any], bytes],
        budget: MemoryBudget,
        caller: str,
        max_seconds: float,
        *,
        is_bounded: bool,
    ):
        self._context = context
        self._serialize = serialize
        self._budget = budget
        self._caller = caller
        self._seconds = max_seconds
        remaining = context.time_remaining()
        self._deadline = Deadline(max_seconds if remaining is None else min(max_seconds, remaining))
        self._is_bounded = is_bounded
        self._unsent: Share | None = None
        self._writing: asyncio.Future[None] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def send(self, answer: Any) -> None:
        """Send what a method returned: an awaitable of one message, or a stream of them.

        Raises:
            DeadlineError: the caller does not read them.
        """
        if isinstance(answer, AsyncGenerator):
            # A place in `Admission` is inside: closed at once, it is free though the caller does not read.
            async with contextlib.aclosing(answer) as messages:
                async for message in messages:
                    await self.write(message)
        elif (message := await answer) is not None:  # grpc.aio's other style has written everything itself
            await self.write(message)

    async def write(self, message: Any) -> None:
        """Send one message.

        Raises:
            DeadlineError: the caller does not read it.
        """
        data = self._serialize(message)
        self._unsent = self._budget.count(len(data), self._caller)
        self._writing = asyncio.ensure_future(self._context.write(data))
        seconds = max(self._deadline.remaining_seconds(), _SEND_SECONDS) if self._is_bounded else self._seconds
        try:
            done, _ = await asyncio.wait((self._writing,), timeout=seconds)
        except asyncio.CancelledError:
            self._writing.cancel()
            raise
        if not done:
            raise DeadlineError("the answer was not read before the deadline: read it, or allow more time")
        await self.sent()
        self.release()

    async def sent(self) -> None:
        """Wait until the last message has been sent, however long its caller takes to read it or to leave."""
        if self._writing is not None:
            try:
                await self._writing
            except grpc.aio.InternalError as error:
                raise asyncio.CancelledError("the caller is gone") from error

    def release(self) -> None:
        """No longer count the bytes that could not be sent."""
        if self._unsent is not None:
            self._unsent.release()


async def _abort(context: Context, error: Exception, code: grpc.StatusCode, message: str, request_id: str) -> None:
    """Send the status of a failed call."""
    try:
        if isinstance(error, OverloadedError):
            status = rpc_status.to_status(_overloaded(error))
            # abort_with_status replaces the trailer, and with it the id.
            more = ((REQUEST_ID, request_id), (_PUSHBACK, _pushback(error.retry_after_seconds)))
            status = status._replace(  # type: ignore[attr-defined]  # a named tuple underneath
                trailing_metadata=(*status.trailing_metadata, *more)
            )
            await context.abort_with_status(status)  # type: ignore[attr-defined]  # its stubs do not know it
        else:
            await context.abort(code, message)
    except grpc.aio.AbortError as abort:
        # gRPC keeps it and raises it again when we return; it must not keep our frames.
        forget_frames(abort)


def forget_frames(error: BaseException) -> None:
    """Cut an error that is handled from the frames it came through.

    They hold the photo and the futures that hold the error: a cycle, which only the garbage collector would free.
    """
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop()
        if one is not None:
            one.__traceback__ = None
            pending += [one.__cause__, one.__context__]
            one.__context__ = None
            if isinstance(one, BaseExceptionGroup):
                pending += one.exceptions


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
