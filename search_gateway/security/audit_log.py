# SPDX-License-Identifier: Apache-2.0
"""The audit log: one JSON line for each call, in a file of its own. It never has a token or a photo.

Lines are written by a thread. If the disk is so slow that 10,000 lines wait, further ones are dropped, and the
gateway's log says how many. Calls without a valid key, which anybody can make, get at most ten lines a second and one
that counts the others, so that they fill neither the queue nor the files.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import logging.handlers
import os
import queue
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

import grpc

from search_api import search_pb2
from search_gateway.call_ending import WatchedContext
from search_gateway.errors import ConfigError, SearchError
from search_gateway.fair_share import current_caller
from search_gateway.kserve.model_declarations import MODELS
from search_gateway.kserve.protocol import service_pb2
from search_gateway.kserve.tensors import read_photos
from search_gateway.security.wrapped_handler import Context, Handler, Seen, wrapped_handler

_log = logging.getLogger(__name__)

_MAX_BYTES = 64 * 2**20  # of one file
_NUM_OLD_FILES = 9
_MAX_WAITING = 10_000  # lines
_MAX_REFUSED_LINES, _REFUSED_SECONDS = 10, 1.0  # of calls without a valid key
_MAX_PHOTOS = 64  # whose digests one line has
_SMALL_PHOTO_BYTES = 64 * 2**10  # hashed sooner than handed to a thread
_WARNING_SECONDS = 60.0
_HEALTH = "/grpc.health.v1."


class AuditLog:
    """The file and the thread that writes it.

    Args:
        file: the newest lines; older ones are in `file.1` to `file.9`, each of at most 64 MiB.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, file: Path):
        try:
            handler = _RotatingFile(file, maxBytes=_MAX_BYTES, backupCount=_NUM_OLD_FILES, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"CAPTRIEVE_AUDIT_LOG: {file} cannot be written ({error.strerror})") from error
        lines: queue.Queue[Any] = queue.Queue(_MAX_WAITING)
        self._handler = handler
        self._entries = _Entries(lines)
        self._listener = _Writer(lines, handler)
        self._listener.start()
        self._refused_since, self._num_refused = 0.0, 0
        self._omitted_timer: asyncio.TimerHandle | None = None

    def write(self, entry: dict[str, Any]) -> None:
        """Write a line soon; does not block."""
        line = json.dumps(entry, separators=(",", ":"), ensure_ascii=False)
        self._entries.handle(logging.makeLogRecord({"msg": line, "name": __name__, "levelno": logging.INFO}))

    def write_refused(self, entry: dict[str, Any]) -> None:
        """Write a line about a call without a valid key, or count it in one line for many. Runs on the event loop."""
        if time.monotonic() >= self._refused_since + _REFUSED_SECONDS:
            self._write_omitted()
        self._num_refused += 1
        if self._num_refused <= _MAX_REFUSED_LINES:
            self.write(entry)
        elif self._num_refused == _MAX_REFUSED_LINES + 1:
            self._omitted_timer = asyncio.get_running_loop().call_later(_REFUSED_SECONDS, self._write_omitted)

    def _write_omitted(self) -> None:
        """Begin to count anew, after a line about the calls that got none."""
        if self._omitted_timer is not None:
            self._omitted_timer.cancel()
        self._omitted_timer, self._refused_since = None, time.monotonic()
        omitted, self._num_refused = self._num_refused - _MAX_REFUSED_LINES, 0
        if omitted > 0:
            self.write({"time": _now(), "key": None, "code": grpc.StatusCode.UNAUTHENTICATED.name, "omitted": omitted})

    def close(self) -> None:
        """Write the lines that wait, and close the file."""
        self._write_omitted()
        self._listener.stop()
        self._handler.close()


_noted: ContextVar[_Seen] = ContextVar("noted")  # of the call in progress, which is one task


class AuditInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
    """Writes a line at the end of each call but health checks. Stands outside the error interceptor.

    Messages are bytes there, so an `AuditedMessages` inside it notes what they say.

    Args:
        log: the lines go there.
        needs_keys: whether each call needs a key; those without a valid one do not get a line each.
    """

    def __init__(self, log: AuditLog, *, needs_keys: bool = False):
        self._log = log
        self._needs_keys = needs_keys

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Return the method's handler, wrapped."""
        method = handler_call_details.method
        handler = await continuation(handler_call_details)
        if method.startswith(_HEALTH):
            return handler
        behaviour: Any = _unknown if handler is None else handler.stream_stream
        assert behaviour is not None, "ErrorInterceptor, inside this one, makes each method one of two streams"

        async def audited(messages: AsyncIterator[Any], context: Context) -> None:
            seen = _Seen()
            _noted.set(seen)
            started = time.perf_counter()
            ending = WatchedContext(context)
            code = grpc.StatusCode.OK
            try:
                await behaviour(messages, ending)
                code = ending.code_after(None)
            except BaseException as error:
                code = ending.code_after(error)
                raise
            finally:
                key = current_caller.get() or None
                write = self._log.write_refused if self._needs_keys and key is None else self._log.write
                write(
                    {
                        "time": _now(),
                        "key": key,
                        "peer": context.peer(),
                        "method": method,
                        "code": code.name,
                        "photos": seen.num_photos,
                        "photo_sha256": seen.digests,
                        "provider": seen.provider,
                        "milliseconds": round(1000 * (time.perf_counter() - started), 1),
                    }
                )

        if handler is None:
            return grpc.stream_stream_rpc_method_handler(audited)
        return grpc.stream_stream_rpc_method_handler(audited, handler.request_deserializer, handler.response_serializer)


class AuditedMessages(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
    """Notes for the audit log what the messages of a call say. Stands inside the error interceptor."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Return the method's handler, wrapped."""
        handler = await continuation(handler_call_details)
        is_noted = handler is not None and not handler_call_details.method.startswith(_HEALTH)
        return wrapped_handler(handler, _noting) if is_noted else handler


@asynccontextmanager
async def _noting(request: Any, context: Context) -> AsyncIterator[Seen]:
    yield _noted.get().note


async def _unknown(requests: Any, context: Context) -> NoReturn:
    """Answer a call of a method that is not there, as gRPC would."""
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
    raise AssertionError("abort raises")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class _Seen:
    """What the messages of a call say."""

    def __init__(self) -> None:
        self.num_photos = 0
        self.digests: list[str] = []
        self.provider: str | None = None

    async def note(self, message: Any) -> None:
        if isinstance(message, search_pb2.SearchRequest | search_pb2.CaptionRequest):
            await self._note_photos([message.photo])
        elif isinstance(message, service_pb2.ModelInferRequest):
            await self._note_photos(_photos(message))
        elif isinstance(message, search_pb2.SearchResponse):
            self.provider = message.provider or None
        elif isinstance(message, search_pb2.SearchEvent) and message.HasField("summary"):
            self.provider = message.summary.provider or None
        elif isinstance(message, service_pb2.ModelInferResponse):
            for output, raw in zip(message.outputs, message.raw_output_contents, strict=False):
                if output.name == "PROVIDER":
                    self.provider = raw[4:].decode("utf-8", "replace") or None  # after its length

    async def _note_photos(self, photos: list[bytes]) -> None:
        self.num_photos += len(photos)
        for photo in photos[: _MAX_PHOTOS - len(self.digests)]:
            if len(photo) <= _SMALL_PHOTO_BYTES:
                self.digests.append(_sha256(photo))
            else:
                self.digests.append(await asyncio.to_thread(_sha256, photo))


class _Entries(logging.handlers.QueueHandler):
    """Puts lines into the queue; drops those for which there is no room."""

    def __init__(self, lines: queue.Queue[Any]):
        super().__init__(lines)
        self._num_dropped = 0
        self._warned_at = -_WARNING_SECONDS

    def handleError(self, record: logging.LogRecord) -> None:
        self._num_dropped += 1
        if time.monotonic() >= self._warned_at + _WARNING_SECONDS:
            self._warned_at = time.monotonic()
            _log.error("the audit log cannot be written fast enough: %d lines are lost so far", self._num_dropped)


class _Writer(logging.handlers.QueueListener):
    """The thread that writes; it can be stopped while the queue is full."""

    def enqueue_sentinel(self) -> None:
        self.queue.put(self._sentinel)  # type: ignore[attr-defined]  # its stubs lack it


class _RotatingFile(logging.handlers.RotatingFileHandler):
    """A file that only its owner can read; an error of the disk is logged once a minute, and lines are lost."""

    _warned_at = -_WARNING_SECONDS

    def _open(self) -> TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.fchmod(descriptor, 0o600)  # also a file that was there before
        return os.fdopen(descriptor, "a", encoding=self.encoding)

    def handleError(self, record: logging.LogRecord) -> None:
        if time.monotonic() >= self._warned_at + _WARNING_SECONDS:
            self._warned_at = time.monotonic()
            _log.exception("a line of the audit log cannot be written")


def _photos(request: service_pb2.ModelInferRequest) -> list[bytes]:
    model = MODELS.get(request.model_name)
    try:
        return [] if model is None else read_photos(request, model)
    except SearchError:  # with which the request is refused
        return []


def _sha256(photo: bytes) -> str:
    return hashlib.sha256(photo).hexdigest()
