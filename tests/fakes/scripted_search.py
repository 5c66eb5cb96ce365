# SPDX-License-Identifier: Apache-2.0
"""A search service whose answers a test writes, and the HTTP side of a gateway in front of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from captioner.model_contract import ModelContract
from scripted_service import full_answer  # type: ignore[import-not-found]  # pytest finds it
from search_api import search_pb2, search_pb2_grpc
from search_gateway.api.error_interceptor import ErrorInterceptor
from search_gateway.config import GatewayConfig
from search_gateway.web.gateway_web import GatewayWeb
from tests.conftest import MODELS


def whole_answer() -> search_pb2.SearchResponse:
    return search_pb2.SearchResponse.FromString(full_answer().SerializeToString())


@dataclass
class ScriptedSearch(search_pb2_grpc.SearchServiceServicer):
    """Answers what it was told to, and remembers what it was asked.

    Attributes:
        before_query: awaited between the caption and the query, and before any other answer.
        before_summary: awaited after the results.
    """

    answer: search_pb2.SearchResponse = field(default_factory=whole_answer)
    problem: Exception | None = None
    late_problem: Exception | None = None
    before_query: Any = None
    before_summary: Any = None
    requests: list[Any] = field(default_factory=list)
    contexts: list[Any] = field(default_factory=list)
    is_asked: asyncio.Event = field(default_factory=asyncio.Event)
    is_cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    async def Search(self, request: search_pb2.SearchRequest, context: Any) -> search_pb2.SearchResponse:
        await self._begin(request, context)
        return self.answer

    async def Caption(self, request: search_pb2.CaptionRequest, context: Any) -> search_pb2.CaptionResponse:
        await self._begin(request, context)
        return search_pb2.CaptionResponse(
            caption=self.answer.caption,
            query=self.answer.query,
            timings=self.answer.timings,
            model=self.answer.model,
            query_rule=self.answer.query_rule,
            confidence=self.answer.confidence,
        )

    async def StreamSearch(
        self, request: search_pb2.SearchRequest, context: Any
    ) -> AsyncIterator[search_pb2.SearchEvent]:
        await self._begin(request, context)
        try:
            if not request.HasField("query_override"):
                yield search_pb2.SearchEvent(caption=self.answer.caption)
            yield search_pb2.SearchEvent(
                query=self.answer.query,
                readings=self.answer.readings[:1],
                query_rule=self.answer.query_rule,
                confidence=0.75,
                unsure_reason="",
            )
            for result in self.answer.results:
                yield search_pb2.SearchEvent(result=result)
            if self.before_summary is not None:
                await self.before_summary()
            if self.late_problem is not None:
                raise self.late_problem
        except (asyncio.CancelledError, GeneratorExit):
            self.is_cancelled.set()
            raise
        summary = search_pb2.SearchResponse()
        summary.CopyFrom(self.answer)
        del summary.results[:]
        yield search_pb2.SearchEvent(summary=summary)

    async def asked(self) -> None:
        """Returns when a request has arrived."""
        await asyncio.wait_for(self.is_asked.wait(), 30)

    async def _begin(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        self.is_asked.set()
        self.contexts.append(context)
        try:
            if self.before_query is not None:
                await self.before_query()
        except asyncio.CancelledError:
            self.is_cancelled.set()
            raise
        if self.problem is not None:
            raise self.problem


@dataclass
class HttpCaller:
    """Calls the HTTP side.

    Attributes:
        url: of the server, without a path.
        session: has no default headers.
        web: the server, so that a test can end it.
    """

    url: str
    session: aiohttp.ClientSession
    web: GatewayWeb

    @property
    def host_and_port(self) -> tuple[str, int]:
        host, _, port = self.web.address.rpartition(":")
        return host, int(port)

    async def post(
        self, path: str, body: Any = b"photo", headers: dict[str, str] | None = None
    ) -> tuple[int, Mapping[str, str], Any]:
        """Returns status, headers and the JSON of the answer; bytes are sent as a JPEG."""
        kind = {"Content-Type": "image/jpeg"} if isinstance(body, bytes) or hasattr(body, "__anext__") else {}
        async with self.session.post(self.url + path, data=body, headers={**kind, **(headers or {})}) as response:
            return response.status, response.headers, await response.json(content_type=None)

    async def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, Mapping[str, str], bytes]:
        async with self.session.get(self.url + path, headers=headers) as response:
            return response.status, response.headers, await response.read()

    async def raw(self, data: bytes, seconds: float = 60) -> bytes:
        """Sends bytes as they are, and returns all that comes until the server closes the connection."""
        reader, writer = await asyncio.open_connection(*self.host_and_port)
        try:
            writer.write(data)
            async with asyncio.timeout(seconds):
                return await reader.read()
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def web_server(
    service: ScriptedSearch, interceptors: Sequence[Any] | None = None, **settings: Any
) -> AsyncIterator[HttpCaller]:
    config = GatewayConfig(**{"web_address": "127.0.0.1:0", **settings})
    web = GatewayWeb(config)
    around = [ErrorInterceptor(config)] if interceptors is None else interceptors
    await web.start(service, around, ModelContract.load(MODELS), ["catalog"])
    try:
        async with aiohttp.ClientSession() as session:
            yield HttpCaller(f"http://{web.address}", session, web)
    finally:
        await web.close(0)


def events_of(body: str) -> list[tuple[str, str]]:
    """The events of a stream as (name, data); a comment has the name ""."""
    found = []
    for block in body.split("\n\n"):
        lines = dict(line.partition(": ")[::2] for line in block.splitlines())
        if lines:
            found.append((lines.get("event", ""), lines.get("data", lines.get("", ""))))
    return found
