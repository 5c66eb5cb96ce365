# SPDX-License-Identifier: Apache-2.0
"""The HTTP server's limits: requests that two servers may read differently, slow callers, many callers, and the end."""

from __future__ import annotations

import asyncio
import json

import pytest

from search_gateway.web import http_server
from tests.fakes.event_loop import on_event_loop
from tests.fakes.scripted_search import ScriptedSearch, web_server

BASE = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nConnection: close\r\n"
SMUGGLED = b"GET /v1/info HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        BASE + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        BASE + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nphoto" + SMUGGLED,
        BASE + b"Content-Length: +5\r\n\r\nphoto" + SMUGGLED,
        BASE + b"Content-Length: 5 \t5\r\n\r\nphoto" + SMUGGLED,
        BASE + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
        BASE + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        BASE + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        BASE + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        BASE + b"Transfer-Encoding: chunked\r\n\r\n5;\nphoto\r\n0\r\n\r\n" + SMUGGLED,
        BASE + b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nphoto\r\n0\r\n\r\n" + SMUGGLED,
        BASE + b"Content-Length: 5\r\n X: folded\r\n\r\nphoto" + SMUGGLED,
        BASE + b"X: a\x00b\r\nContent-Length: 5\r\n\r\nphoto" + SMUGGLED,
        BASE.replace(b"\r\n", b"\n") + b"Content-Length: 5\n\nphoto" + SMUGGLED,
    ],
)
@on_event_loop
async def test_requests_that_servers_read_differently_are_refused(request_bytes: bytes) -> None:
    service = ScriptedSearch()
    async with web_server(service) as caller:
        answer = await caller.raw(request_bytes)
    assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), answer[:80]
    assert b"Content-Type: application/problem+json\r\n" in answer
    assert b"X-Content-Type-Options: nosniff\r\n" in answer
    assert b"b'" not in answer, "the parser is quoted"
    assert b"fashion-small" not in answer, "the request in the body was answered"
    assert b"\r\nHTTP/1." not in answer, "two answers"
    assert not service.requests


@pytest.mark.parametrize(
    "request_bytes",
    [b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"BREW / HTTP/1.1\r\n\r\n"],
)
@on_event_loop
async def test_what_is_no_http_gets_problem_details(request_bytes: bytes) -> None:
    async with web_server(ScriptedSearch()) as caller:
        answer = await caller.raw(request_bytes)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Content-Type: application/problem+json" in head
    details = json.loads(body)
    assert (details["status"], details["code"]) == (400, "INVALID_ARGUMENT")
    assert details["detail"].startswith("this is no request of HTTP/1.1 with at most 64 headers of 8190 bytes each")


@pytest.mark.parametrize(
    "headers", [b"X: " + b"y" * 10_000, b"\r\n".join(b"X-%d: 1" % number for number in range(200)), b"X: y\r\n" * 3000]
)
@on_event_loop
async def test_headers_have_limits(headers: bytes) -> None:
    async with web_server(ScriptedSearch()) as caller:
        answer = await caller.raw(b"GET /v1/info HTTP/1.1\r\nHost: localhost\r\n" + headers + b"\r\n\r\n")
    assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))
    assert b"fashion-small" not in answer


@pytest.mark.parametrize("start", [b"", b"GET /v1/info HTT", b"GET /v1/info HTTP/1.1\r\nHost: localhost\r\nX: "])
@on_event_loop
async def test_connection_that_sends_no_whole_request_is_closed(start: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_IDLE_SECONDS", 0.5)
    async with web_server(ScriptedSearch()) as caller:
        reader, writer = await asyncio.open_connection(*caller.host_and_port)
        writer.write(start)

        async def drip() -> None:
            while True:
                await asyncio.sleep(0.1)
                writer.write(b"a" if start else b"")

        dripping = asyncio.ensure_future(drip())
        await asyncio.wait_for(reader.read(), 60)
        dripping.cancel()
        writer.close()


@on_event_loop
async def test_idle_connection_is_closed_after_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_IDLE_SECONDS", 1.0)
    async with web_server(ScriptedSearch()) as caller:
        answer = await caller.raw(b"GET /v1/info HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b"fashion-small" in answer


@on_event_loop
async def test_connections_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_MAX_CONNECTIONS", 3)
    async with web_server(ScriptedSearch()) as caller:
        held = [await asyncio.open_connection(*caller.host_and_port) for _ in range(3)]
        await asyncio.sleep(0.1)
        assert await caller.raw(b"GET /v1/info HTTP/1.1\r\nHost: localhost\r\n\r\n") == b""
        for _, writer in held:
            writer.close()
        await asyncio.sleep(0.1)
        assert (await caller.get("/v1/info"))[0] == 200


@on_event_loop
async def test_caller_that_does_not_read_its_answer_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_SEND_SECONDS", 0.3)
    service = ScriptedSearch()
    service.answer.results[0].title = "x" * 30_000_000
    async with web_server(service) as caller:
        _, writer = await asyncio.open_connection(*caller.host_and_port, limit=1024)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(BASE + b"Content-Length: 5\r\n\r\nphoto")
        await service.asked()
        await asyncio.wait_for(caller.web._server._idle.wait(), 60)
        writer.close()


@on_event_loop
async def test_stop_lets_requests_finish_and_takes_no_new_ones() -> None:
    go_on = asyncio.Event()
    service = ScriptedSearch(before_query=go_on.wait)
    async with web_server(service) as caller:
        assert (await caller.get("/v1/info"))[0] == 200
        reader, writer = await asyncio.open_connection(*caller.host_and_port)
        first = asyncio.ensure_future(caller.post("/v1/search"))
        await service.asked()
        closing = asyncio.ensure_future(caller.web.close(60))
        await asyncio.sleep(0.2)
        with pytest.raises(ConnectionError):
            await asyncio.open_connection(*caller.host_and_port)
        assert await asyncio.wait_for(reader.read(), 60) == b"", "an idle connection is closed"
        writer.close()
        assert not closing.done()
        go_on.set()
        assert (await first)[0] == 200
        await asyncio.wait_for(closing, 60)


@on_event_loop
async def test_stop_ends_what_takes_longer_than_the_drain() -> None:
    async def forever() -> None:
        await asyncio.sleep(3600)

    service = ScriptedSearch(before_query=forever)
    async with web_server(service) as caller:
        work = asyncio.ensure_future(caller.post("/v1/search"))
        await service.asked()
        await asyncio.wait_for(caller.web.close(0.2), 60)
        assert service.is_cancelled.is_set()
        assert isinstance((await asyncio.gather(work, return_exceptions=True))[0], Exception)


@on_event_loop
async def test_address_in_use_is_an_error_at_once() -> None:
    async with web_server(ScriptedSearch()) as caller:
        with pytest.raises(OSError, match="in use"):
            http_server.HttpServer(caller.web.address)
