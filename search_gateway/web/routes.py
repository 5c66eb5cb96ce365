# SPDX-License-Identifier: Apache-2.0
"""The methods of the HTTP API. Each makes a message of search.proto, calls the gRPC service, and writes its answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from aiohttp import web

from search_api import search_pb2
from search_gateway.web import records, request_options
from search_gateway.web.local_calls import LocalCalls, LocalContext
from search_gateway.web.problems import HttpRequestError, problem, problem_headers
from search_gateway.web.responses import REQUEST_ID_KEY, json_response, problem_response
from search_gateway.web.thumbnail_store import ThumbnailStore
from search_gateway.web.uploads import Upload, check_headers, read_upload

TIMEOUT_HEADER = "X-Timeout-Seconds"
_METADATA = ("authorization", "traceparent", "tracestate", "user-agent")
_HEARTBEAT_SECONDS = 10.0
_EVENT_STREAM = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store"}

MakeRequest = Callable[[Any], Any]


class SearchRoutes:
    """The routes below /v1/.

    Args:
        calls: has the search service.
        max_photo_bytes: limit of a photo.
    """

    def __init__(self, calls: LocalCalls, max_photo_bytes: int):
        self._calls = calls
        self._max_photo_bytes = max_photo_bytes
        self._thumbnails = ThumbnailStore()

    def routes(self) -> list[web.RouteDef]:
        """Return the routes for an application."""
        return [
            web.post("/v1/search", self._search, expect_handler=self._expect),
            web.post("/v1/search:stream", self._stream, expect_handler=self._expect),
            web.post("/v1/caption", self._caption, expect_handler=self._expect),
            web.get("/v1/thumbnails/{id}", self._thumbnail),
        ]

    async def _search(self, request: web.Request) -> web.StreamResponse:
        exchange = _Exchange(self, self._calls, request, request_options.search_request)
        answers: list[search_pb2.SearchResponse] = []
        await exchange.call("Search", _appended(answers))
        if not answers:
            return exchange.failure()
        record = records.search_answer(
            answers[0], exchange.upload.name, self.link_of, has_dropped=exchange.sent_request.explain
        )
        return json_response(record)

    async def _caption(self, request: web.Request) -> web.StreamResponse:
        exchange = _Exchange(self, self._calls, request, request_options.caption_request)
        answers: list[search_pb2.CaptionResponse] = []
        await exchange.call("Caption", _appended(answers))
        if not answers:
            return exchange.failure()
        return json_response(records.caption_answer(answers[0], exchange.upload.name))

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        exchange = _Exchange(self, self._calls, request, request_options.search_request)
        response = web.StreamResponse(headers=_EVENT_STREAM)
        caption: search_pb2.Caption | None = None

        async def send(data: bytes) -> None:
            try:
                if not response.prepared:
                    response.headers["X-Request-Id"] = exchange.request_id
                    await response.prepare(request)
                await response.write(data)
            except ConnectionError as error:
                raise asyncio.CancelledError("the caller is gone") from error

        async def write(event: search_pb2.SearchEvent) -> None:
            nonlocal caption
            match event.WhichOneof("event"):
                case "caption":
                    caption = event.caption  # sent with the query, which follows at once
                case "query":
                    await send(_event("caption", records.caption_event(caption, event)))
                case "result":
                    await send(_event("result", records.result(event.result, self.link_of)))
                case "summary":
                    has_dropped = exchange.sent_request.explain
                    summary = records.search_answer(
                        event.summary, exchange.upload.name, self.link_of, has_dropped=has_dropped, has_results=False
                    )
                    await send(_event("summary", summary))

        call = asyncio.ensure_future(exchange.call("StreamSearch", write))
        try:
            while not (await asyncio.wait((call,), timeout=_HEARTBEAT_SECONDS))[0]:
                if exchange.is_received:
                    await send(b": still searching\n\n")
            await call
        finally:
            call.cancel()
        if not response.prepared:
            return exchange.failure()
        if not exchange.is_ok:
            await send(_event("error", exchange.problem()))
        await response.write_eof()
        return response

    async def _thumbnail(self, request: web.Request) -> web.Response:
        picture = self._thumbnails.get(request.match_info["id"])
        if picture is None:
            raise HttpRequestError("there is no such thumbnail, or it is too old: search again", 404)
        headers = {"Cache-Control": "no-store", "Content-Disposition": "inline"}
        return web.Response(body=picture.data, content_type=picture.media_type, headers=headers)

    async def _expect(self, request: web.Request) -> None:
        """Answer "Expect: 100-continue" where the headers are fit; else the method refuses without the body."""
        if request.headers["Expect"].lower() == "100-continue":
            with contextlib.suppress(HttpRequestError):
                self.check_headers(request)
                await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                request.writer.output_size = 0

    def check_headers(self, request: web.Request) -> None:
        """Check what can be known before the body is read."""
        check_headers(request, self._max_photo_bytes)

    async def read_upload(self, request: web.Request) -> Upload:
        """Read the body."""
        return await read_upload(request, self._max_photo_bytes)

    def link_of(self, thumbnail: bytes) -> str:
        """Keep a thumbnail; returns where it can be fetched, "" where it is not kept."""
        picture_id = self._thumbnails.add(thumbnail)
        return f"/v1/thumbnails/{picture_id}" if picture_id else ""


class _Exchange:
    """A request and the call of the service that it causes.

    Args:
        routes: read the body.
        calls: has the service.
        request: from the caller.
        make_request: makes the message of the options.

    Raises:
        HttpRequestError: the request is refused before its body is read.
    """

    def __init__(self, routes: SearchRoutes, calls: LocalCalls, request: web.Request, make_request: MakeRequest):
        self._routes = routes
        self._calls = calls
        self._request = request
        self._make_request = make_request
        self._options = tuple(request.query.items())
        self._timeout_seconds = _timeout_seconds(request)
        self._refusal: int | None = None
        self._context: LocalContext | None = None
        routes.check_headers(request)
        make_request(self._options)  # what is wrong in the address is said before the body is read
        self.upload = Upload(b"")
        self.sent_request: Any = None
        self.is_received = False

    async def call(self, method: str, write: Callable[[Any], Awaitable[None]]) -> None:
        """Call a method of the service with the photo and the options."""
        metadata: list[tuple[str, str | bytes]] = [
            (name, value) for name in _METADATA for value in self._request.headers.getall(name, ())
        ]
        metadata.append(("x-request-id", self._request[REQUEST_ID_KEY]))
        self._context = LocalContext(
            metadata, _peer(self._request), self._timeout_seconds, write, _certificate_name(self._request)
        )
        await self._calls.call(method, self._receive, self._context)

    async def _receive(self) -> Any:
        """Return the message, made of what the caller sends."""
        try:
            self.upload = await self._routes.read_upload(self._request)
            message = self._make_request((*self._options, *self.upload.options))
        except HttpRequestError as error:
            self._refusal = error.http_status
            raise
        message.photo = self.upload.photo
        self.upload = Upload(b"", name=self.upload.name)  # one copy less while the service works
        self.sent_request = type(message)(explain=message.explain) if hasattr(message, "explain") else None
        self.is_received = True
        return message

    @property
    def request_id(self) -> str:
        """Under which the log has the call."""
        known = self._context.request_id if self._context is not None else ""
        return known or str(self._request[REQUEST_ID_KEY])

    @property
    def is_ok(self) -> bool:
        """Whether the call ended well."""
        assert self._context is not None
        return self._context.status.code is grpc.StatusCode.OK

    def problem(self) -> dict[str, Any]:
        """Return the problem details of a call that failed."""
        assert self._context is not None
        is_late = self._context.status.code is grpc.StatusCode.DEADLINE_EXCEEDED and not self.is_received
        return problem(self._context.status, self.request_id, 408 if is_late else self._refusal)

    def failure(self) -> web.Response:
        """Return the answer of a call that failed."""
        assert self._context is not None
        return problem_response(self.problem(), problem_headers(self._context.status))


def _appended(answers: list[Any]) -> Callable[[Any], Awaitable[None]]:
    async def append(answer: Any) -> None:
        answers.append(answer)

    return append


def _event(name: str, record: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(record, allow_nan=False)}\n\n".encode()


def _timeout_seconds(request: web.Request) -> float | None:
    """Return the caller's deadline.

    Raises:
        HttpRequestError: it is no number of seconds.
    """
    text = request.headers.get(TIMEOUT_HEADER)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise HttpRequestError(f"{TIMEOUT_HEADER} is {text[:40]!r}: give a number of seconds above 0")
    return seconds


def _certificate_name(request: web.Request) -> str:
    """Return the common name in the caller's certificate; "" without one."""
    found = (request.transport.get_extra_info("peercert") if request.transport is not None else None) or {}
    return next((value for part in found.get("subject", ()) for name, value in part if name == "commonName"), "")


def _peer(request: web.Request) -> str:
    """Return the caller's address as gRPC writes it."""
    found = request.transport.get_extra_info("peername") if request.transport is not None else None
    if not found:
        return "unknown"
    host, port = found[:2]
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
