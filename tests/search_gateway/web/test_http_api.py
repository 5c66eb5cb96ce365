# SPDX-License-Identifier: Apache-2.0
"""The HTTP API as its callers meet it: a real client and a real port, with a scripted search service behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from search_api import search_pb2
from search_gateway.errors import BadRequestError, DeadlineError, InferenceError, OverloadedError
from search_gateway.web import routes, uploads
from tests.fakes.event_loop import on_event_loop
from tests.fakes.scripted_search import HttpCaller, ScriptedSearch, events_of, web_server

SMALL = {"max_photo_bytes": 1000}


def form(photo: bytes = b"photo", **options: str) -> aiohttp.FormData:
    data = aiohttp.FormData()
    data.add_field("photo", photo, filename="shirt.jpg", content_type="image/jpeg")
    for name, value in options.items():
        data.add_field(name, value)
    return data


async def pieces(*parts: bytes, seconds: float = 0.0) -> AsyncIterator[bytes]:
    """A body of unknown length."""
    for part in parts:
        yield part
        await asyncio.sleep(seconds)


# What is sent, and what comes back


@pytest.mark.parametrize("as_form", [True, False])
@on_event_loop
async def test_search_takes_photo_and_options(as_form: bool) -> None:
    service = ScriptedSearch()
    async with web_server(service) as caller:
        body = form(max_results="7", query_override="leather bag") if as_form else b"photo"
        query = "" if as_form else "?max_results=7&query_override=leather+bag"
        status, headers, record = await caller.post(f"/v1/search{query}", body)
    (request,) = service.requests
    assert request == search_pb2.SearchRequest(photo=b"photo", max_results=7, query_override="leather bag")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert record["photo"] == ("shirt.jpg" if as_form else "")
    assert record["caption"] == "Turtle Check Men Blue Shirt"
    assert [one["title"] for one in record["results"]] == ["Men's Blue Shirt", "Blue Oxford Shirt"]
    assert "dropped" not in record


@on_event_loop
async def test_options_of_address_and_form_are_joined_but_none_may_be_in_both() -> None:
    service = ScriptedSearch()
    async with web_server(service) as caller:
        status, _, _ = await caller.post("/v1/search?max_results=7", form(provider="catalog"))
        assert status == 200
        assert service.requests[0] == search_pb2.SearchRequest(photo=b"photo", max_results=7, provider="catalog")
        status, _, problem = await caller.post("/v1/search?max_results=7", form(max_results="7"))
    assert (status, problem["detail"]) == (400, "max_results is given twice: give it once")


@on_event_loop
async def test_caption_answers_with_the_words() -> None:
    service = ScriptedSearch()
    async with web_server(service) as caller:
        status, _, record = await caller.post("/v1/caption?region=0,0.5,1,0.5")
    assert status == 200
    assert (record["caption"], record["query"]) == ("Turtle Check Men Blue Shirt", "blue shirt")
    assert service.requests[0] == search_pb2.CaptionRequest(
        photo=b"photo", region=search_pb2.Region(x=0, y=0.5, width=1, height=0.5)
    )


@on_event_loop
async def test_thumbnails_are_fetched_by_their_links() -> None:
    async with web_server(ScriptedSearch()) as caller:
        _, _, record = await caller.post("/v1/search")
        link = record["results"][0]["thumbnail_url"]
        status, headers, data = await caller.get(link)
        assert status == 200
        assert data[:3] == b"\xff\xd8\xff"
        assert headers["Content-Type"] == "image/jpeg"
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        status, headers, _ = await caller.get("/v1/thumbnails/abc")
        assert (status, headers["Content-Type"]) == (404, "application/problem+json")


@on_event_loop
async def test_dropped_candidates_come_where_they_are_asked_for() -> None:
    service = ScriptedSearch()
    dropped = service.answer.dropped.add(title="Red Shirt", verdict=search_pb2.VERDICT_DROPPED_SEMANTIC)
    dropped.reason = "it is red"
    async with web_server(service) as caller:
        _, _, record = await caller.post("/v1/search?include_dropped=true")
    assert service.requests[0].explain
    assert [(one["verdict"], one["reason"]) for one in record["dropped"]] == [("dropped_semantic", "it is red")]


@on_event_loop
async def test_info_names_model_limits_and_defaults() -> None:
    async with web_server(ScriptedSearch(), max_photo_bytes=12345, min_visual_score=0.3) as caller:
        status, _, data = await caller.get("/v1/info")
    info = json.loads(data)
    assert status == 200
    assert (info["model"], info["providers"], info["max_photo_bytes"]) == ("fashion-small", ["catalog"], 12345)
    assert info["defaults"] == {"min_visual_score": 0.3, "min_semantic_score": 0.5, "max_results": 10}


# Streams


async def stream(caller: HttpCaller, path: str = "/v1/search:stream", **options: Any) -> tuple[int, str, str]:
    headers = {"Content-Type": "image/jpeg"}
    async with caller.session.post(caller.url + path, data=b"photo", headers=headers, **options) as response:
        return response.status, response.headers["Content-Type"], await response.text()


@on_event_loop
async def test_stream_sends_caption_results_and_summary() -> None:
    async with web_server(ScriptedSearch()) as caller:
        status, kind, body = await stream(caller)
    events = events_of(body)
    assert (status, kind) == (200, "text/event-stream; charset=utf-8")
    assert [name for name, _ in events] == ["caption", "result", "result", "summary"]
    records = [json.loads(data) for _, data in events]
    assert (records[0]["query"], records[0]["confidence"]) == ("blue shirt", 0.75)
    assert records[0]["readings"] == [{"query": "blue shirt", "probability": 0.625}]
    assert [one["title"] for one in records[1:3]] == ["Men's Blue Shirt", "Blue Oxford Shirt"]
    assert "results" not in records[3]
    assert records[3]["counts"]["kept"] == 2


@on_event_loop
async def test_stream_of_given_words_has_a_query_and_no_caption() -> None:
    async with web_server(ScriptedSearch()) as caller:
        _, _, body = await stream(caller, "/v1/search:stream?query_override=red+bag")
    name, data = events_of(body)[0]
    assert name == "caption"
    assert json.loads(data)["caption"] is None


@on_event_loop
async def test_first_event_arrives_before_the_last_is_made() -> None:
    go_on = asyncio.Event()
    service = ScriptedSearch(before_summary=go_on.wait)
    async with (
        web_server(service) as caller,
        caller.session.post(
            caller.url + "/v1/search:stream", data=b"p", headers={"Content-Type": "image/png"}
        ) as answer,
    ):
        first = await asyncio.wait_for(answer.content.readline(), 60)
        assert first == b"event: caption\n"
        go_on.set()
        assert b"event: summary" in await answer.content.read()


@on_event_loop
async def test_error_before_the_first_event_is_a_status_and_after_it_an_event() -> None:
    async with web_server(ScriptedSearch(problem=BadRequestError("no"))) as caller:
        status, kind, _ = await stream(caller)
        assert (status, kind) == (400, "application/problem+json")
    async with web_server(ScriptedSearch(late_problem=InferenceError("the models stopped"))) as caller:
        status, _, body = await stream(caller)
    name, data = events_of(body)[-1]
    assert (status, name) == (200, "error")
    problem = json.loads(data)
    assert (problem["status"], problem["code"], problem["detail"]) == (503, "UNAVAILABLE", "the models stopped")


@on_event_loop
async def test_heartbeats_come_while_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "_HEARTBEAT_SECONDS", 0.05)
    service = ScriptedSearch(before_query=lambda: asyncio.sleep(0.3), before_summary=lambda: asyncio.sleep(0.3))
    async with web_server(service) as caller:
        _, _, body = await stream(caller)
    names = [name for name, _ in events_of(body)]
    assert names[0] == ""
    assert [name for name in names if name] == ["caption", "result", "result", "summary"]
    assert names[names.index("summary") - 1] == ""


# Errors


@pytest.mark.parametrize(
    ("problem", "status", "code"),
    [
        (BadRequestError("say something else"), 400, "INVALID_ARGUMENT"),
        (DeadlineError("the deadline passed"), 504, "DEADLINE_EXCEEDED"),
        (InferenceError("the models do not run"), 503, "UNAVAILABLE"),
        (OverloadedError("too much at once", 1.2), 429, "RESOURCE_EXHAUSTED"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/search", "/v1/caption", "/v1/search:stream"])
@on_event_loop
async def test_errors_of_the_service_are_problem_details(problem: Exception, status: int, code: str, path: str) -> None:
    async with web_server(ScriptedSearch(problem=problem)) as caller:
        got, headers, details = await caller.post(path, headers={"X-Request-Id": "abc-123"})
    assert got == details["status"] == status
    assert headers["Content-Type"] == "application/problem+json"
    assert details["code"] == code
    assert details["detail"] == str(problem)
    assert details["request_id"] == headers["X-Request-Id"] == "abc-123"
    assert headers.get("Retry-After") == ("2" if status == 429 else None), "whole seconds, not too early"


@on_event_loop
async def test_unknown_exception_says_nothing_from_inside(caplog: pytest.LogCaptureFixture) -> None:
    async with web_server(ScriptedSearch(problem=ValueError("secret"))) as caller:
        status, _, details = await caller.post("/v1/search")
    assert (status, details["code"]) == (500, "INTERNAL")
    assert "secret" not in json.dumps(details)
    assert details["request_id"] in details["detail"]
    assert "secret" in caplog.text


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("max_results=0", "max_results is 0: it goes from 1 to 100"),
        ("colour=red", "'colour' is no option of this method: did you mean override_colour?"),
        ("max_results=1&max_results=2", "max_results is given twice: give it once"),
    ],
)
@on_event_loop
async def test_wrong_option_is_refused_by_its_name_here(query: str, says: str) -> None:
    error = BadRequestError("max_results is 0: it goes from 1 to 100") if "=0" in query else None
    async with web_server(ScriptedSearch(problem=error)) as caller:
        status, _, problem = await caller.post(f"/v1/search?{query}")
    assert (status, problem["detail"]) == (400, says)


@on_event_loop
async def test_fields_of_search_proto_are_called_as_the_options() -> None:
    error = BadRequestError("refinement.min_visual_score is 3: it goes from -1 to 1; word_override.colour is '!'")
    async with web_server(ScriptedSearch(problem=error)) as caller:
        _, _, problem = await caller.post("/v1/search")
    assert problem["detail"] == "min_visual_score is 3: it goes from -1 to 1; override_colour is '!'"


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        ("GET", "/nothing", 404, "there is nothing at /nothing: /openapi.json lists what there is"),
        ("GET", "/v1/search", 405, "GET is not possible here: use POST"),
        ("DELETE", "/v1/info", 405, "DELETE is not possible here: use GET,HEAD"),
    ],
)
@on_event_loop
async def test_what_does_not_exist_is_a_problem_too(method: str, path: str, status: int, says: str) -> None:
    async with web_server(ScriptedSearch()) as caller, caller.session.request(method, caller.url + path) as answer:
        details = await answer.json(content_type="application/problem+json")
        assert (answer.status, details["detail"]) == (status, says)
        assert answer.headers["X-Request-Id"] == details["request_id"]


# Deadlines, and callers that leave


@on_event_loop
async def test_deadline_of_the_header_reaches_the_service() -> None:
    service = ScriptedSearch()
    async with web_server(service) as caller:
        await caller.post("/v1/search", headers={"X-Timeout-Seconds": "12.5"})
        await caller.post("/v1/search")
    first, second = (context.time_remaining() for context in service.contexts)
    assert 10 < first <= 12.5
    assert second is None


@on_event_loop
async def test_service_that_takes_longer_is_ended_at_the_deadline() -> None:
    service = ScriptedSearch(before_query=lambda: asyncio.sleep(60))
    async with web_server(service) as caller:
        status, _, problem = await caller.post("/v1/search", headers={"X-Timeout-Seconds": "0.2"})
        assert (status, problem["code"]) == (504, "DEADLINE_EXCEEDED")
        assert service.is_cancelled.is_set()


@pytest.mark.parametrize("text", ["0", "-1", "soon", "inf", "nan", ""])
@on_event_loop
async def test_deadline_that_is_none_is_refused(text: str) -> None:
    async with web_server(ScriptedSearch()) as caller:
        status, _, problem = await caller.post("/v1/search", headers={"X-Timeout-Seconds": text})
    assert (status, problem["detail"]) == (400, f"X-Timeout-Seconds is {text!r}: give a number of seconds above 0")


@pytest.mark.parametrize("path", ["/v1/search", "/v1/search:stream"])
@on_event_loop
async def test_search_ends_when_its_caller_leaves(path: str) -> None:
    async def forever() -> None:
        await asyncio.sleep(3600)

    service = ScriptedSearch(before_query=None if "stream" in path else forever, before_summary=forever)
    async with web_server(service) as caller:
        reader, writer = await asyncio.open_connection(*caller.host_and_port)
        writer.write(raw_request(path))
        if "stream" in path:
            await asyncio.wait_for(reader.readuntil(b"event: caption"), 60)
        else:
            await service.asked()
        writer.close()
        await asyncio.wait_for(service.is_cancelled.wait(), 60)


def raw_request(path: str, *headers: str, body: bytes = b"photo") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: image/jpeg", *headers]
    if not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


# Bodies


@on_event_loop
async def test_photo_of_declared_size_above_the_limit_is_refused_before_it_is_read() -> None:
    service = ScriptedSearch()
    async with web_server(service, **SMALL) as caller:
        answer = await caller.raw(raw_request("/v1/search", "Content-Length: 1001", "Connection: close", body=b""))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"the photo has 1,001 bytes; the limit is 1,000: send a smaller file" in answer
    assert not service.requests


@on_event_loop
async def test_photo_of_unknown_size_is_refused_as_soon_as_it_is_too_large() -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1000
            yield bytes(1000)

    async with web_server(ScriptedSearch(), **SMALL) as caller:
        headers = {"Content-Type": "image/jpeg"}
        with contextlib.suppress(aiohttp.ClientError):  # the server closes the connection; the answer may be lost
            async with caller.session.post(caller.url + "/v1/search", data=endless(), headers=headers) as answer:
                assert answer.status == 413
        status, _, problem = await caller.post("/v1/search", pieces(bytes(600), bytes(600)))
        assert (status, problem["code"]) == (413, "INVALID_ARGUMENT")


@on_event_loop
async def test_form_with_a_photo_above_the_limit_is_refused() -> None:
    async with web_server(ScriptedSearch(), **SMALL) as caller:
        assert (await caller.post("/v1/search", form(bytes(1000))))[0] == 200
        assert (await caller.post("/v1/search", form(bytes(1001))))[0] == 413
        assert (await caller.post("/v1/search", form(bytes(100_000))))[0] == 413


@on_event_loop
async def test_continue_is_said_to_fit_headers_only() -> None:
    async with web_server(ScriptedSearch(), **SMALL) as caller:
        expecting = ("Expect: 100-continue", "Connection: close")
        answer = await caller.raw(raw_request("/v1/search", *expecting))
        assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")
        answer = await caller.raw(raw_request("/v1/search", *expecting, "Content-Length: 2000", body=b""))
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"application/problem+json" in answer


@pytest.mark.parametrize("body", ["raw", "form"])
@on_event_loop
async def test_body_that_comes_too_slowly_is_refused(body: str) -> None:
    async with web_server(ScriptedSearch(), receive_timeout_seconds=0.3) as caller:
        if body == "raw":
            request = raw_request("/v1/search", "Content-Length: 900", "Connection: close", body=b"x")
        else:
            kind = "Content-Type: multipart/form-data; boundary=b"
            request = raw_request("/v1/search", "Content-Length: 900", "Connection: close", body=b"--b\r\nContent-")
            request = request.replace(b"Content-Type: image/jpeg", kind.encode())
        answer = await caller.raw(request)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"the request did not arrive within 0.3 s" in answer


@on_event_loop
async def test_photos_share_the_memory_budget_of_grpc() -> None:
    """Room for one message: a caller that sends slowly makes room for another one after a fair time."""
    async with web_server(ScriptedSearch(), max_bytes_in_flight=1, max_photo_bytes=1000) as caller:
        slow = raw_request("/v1/search", "Content-Length: 900", "Connection: close", body=b"x")
        first = asyncio.ensure_future(caller.raw(slow))
        await asyncio.sleep(0.3)
        assert (await caller.post("/v1/search"))[0] == 200
        answer = await first
    assert answer.startswith(b"HTTP/1.1 429 ")
    assert re.search(rb"\r\nRetry-After: [12]\r\n", answer)
    assert b'"code": "RESOURCE_EXHAUSTED"' in answer


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "application/json"}, 415),
        ({"Content-Encoding": "gzip"}, 415),
        ({"Content-Type": "multipart/mixed; boundary=b"}, 415),
        ({"Content-Type": "image/heic"}, 200),
        ({"Content-Type": "application/octet-stream"}, 200),
    ],
)
@on_event_loop
async def test_type_of_the_body_is_checked(headers: dict[str, str], status: int) -> None:
    async with web_server(ScriptedSearch()) as caller:
        got, _, answer = await caller.post("/v1/search", headers=headers)
    assert got == status
    if status == 415:
        assert re.search(r"send the photo('s bytes)? ", answer["detail"])


@on_event_loop
async def test_body_without_a_type_is_refused() -> None:
    async with web_server(ScriptedSearch()) as caller:
        request = raw_request("/v1/search", "Connection: close").replace(b"Content-Type: image/jpeg\r\n", b"")
        assert (await caller.raw(request)).startswith(b"HTTP/1.1 415 ")


def part(headers: str, body: bytes) -> bytes:
    return b"--b\r\n" + headers.encode() + b"\r\n\r\n" + body + b"\r\n"


PHOTO = 'Content-Disposition: form-data; name="photo"; filename="a.jpg"'


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "the form is broken"),
        (b"no boundary at all", "the form is broken"),
        (b"--b--\r\n", "the form has no part named photo"),
        (part('Content-Disposition: form-data; name="max_results"', b"1") + b"--b--\r\n", "no part named photo"),
        (part(PHOTO, b"1") + part(PHOTO, b"2") + b"--b--\r\n", "two parts named photo"),
        (part(PHOTO, b"1"), "the form is broken"),
        (part(PHOTO + "\r\nContent-Transfer-Encoding: base64", b"AAAA") + b"--b--\r\n", "the form is encoded"),
        (part(PHOTO + "\r\nContent-Encoding: gzip", b"AAAA") + b"--b--\r\n", "the form is encoded"),
        (part("Content-Type: multipart/form-data; boundary=c", b"--c--") + b"--b--\r\n", "a form inside"),
        (part("X: " + "y" * 3000, b"1") + b"--b--\r\n", "the form is broken"),
        (part("\r\n".join(f"X-{number}: 1" for number in range(40)), b"1") + b"--b--\r\n", "the form is broken"),
        (part("Content-Disposition: form-data", b"1") + b"--b--\r\n", "'' is no option"),
        (b"".join(part(f'Content-Disposition: form-data; name="o{n}"', b"1") for n in range(50)), "more than 32 parts"),
        (part('Content-Disposition: form-data; name="provider"', b"x" * 5000) + b"--b--\r\n", "provider is longer"),
        (part('Content-Disposition: form-data; name="provider"', b"\xff\xfe") + b"--b--\r\n", "no text in UTF-8"),
    ],
)  # fmt: skip
@on_event_loop
async def test_broken_and_hostile_forms_are_refused(body: bytes, says: str) -> None:
    service = ScriptedSearch()
    async with web_server(service) as caller:
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        if says.startswith("'' is"):
            body = part(PHOTO, b"1") + body
        status, _, problem = await caller.post("/v1/search", body, headers)
        assert says in problem["detail"], problem
        assert status in (400, 415)
        assert not service.requests
        assert (await caller.post("/v1/search", form()))[0] == 200, "the server goes on"


@on_event_loop
async def test_form_without_a_boundary_is_refused() -> None:
    async with web_server(ScriptedSearch()) as caller:
        status, _, problem = await caller.post("/v1/search", b"--b", {"Content-Type": "multipart/form-data"})
    assert (status, problem["detail"][:18]) == (400, "the form is broken")


@on_event_loop
async def test_photos_are_not_written_to_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("a temporary file")

    monkeypatch.setattr("tempfile.TemporaryFile", fail)
    monkeypatch.setattr("tempfile.NamedTemporaryFile", fail)
    monkeypatch.setattr("tempfile.SpooledTemporaryFile", fail)
    service = ScriptedSearch()
    async with web_server(service) as caller:
        photo = bytes(range(256)) * 8000
        assert (await caller.post("/v1/search", form(photo)))[0] == 200
    assert service.requests[0].photo == photo


@on_event_loop
async def test_form_in_small_pieces_is_the_same_form() -> None:
    body = part(PHOTO, b"--b\r\nnot a boundary --b" + bytes(300)) + part(
        'Content-Disposition: form-data; name="max_results"', b"3"
    ) + b"--b--\r\n"  # fmt: skip
    service = ScriptedSearch()
    async with web_server(service) as caller:
        headers = {"Content-Type": "multipart/form-data; boundary=bb"}
        body = body.replace(b"--b\r\nContent", b"--bb\r\nContent").replace(b"--b--\r\n", b"--bb--\r\n")
        status, _, _ = await caller.post("/v1/search", pieces(*(bytes([one]) for one in body)), headers)
    assert status == 200
    assert service.requests[0] == search_pb2.SearchRequest(
        photo=b"--b\r\nnot a boundary --b" + bytes(300), max_results=3
    )


def test_limits_of_forms_leave_room_for_all_options() -> None:
    assert len(routes.request_options.SEARCH_OPTIONS) + 1 <= uploads._MAX_PARTS


# Pages of other servers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Host": "captrieve.example:8080"}, 200),
        ({"Host": "localhost:8080", "Origin": "http://localhost:8080"}, 200),
        ({"Host": "[::1]:8080"}, 200),
        ({"Host": "10.0.0.5"}, 200),
    ],
)
@on_event_loop
async def test_pages_of_other_servers_are_refused(headers: dict[str, str], status: int) -> None:
    service = ScriptedSearch()
    async with web_server(service, web_hosts=("captrieve.example",)) as caller:
        got, answer, _ = await caller.post("/v1/search", headers=headers)
        assert got == status
        assert not any(name.lower().startswith("access-control") for name in answer), "no CORS"
    assert len(service.requests) == (status == 200)


@on_event_loop
async def test_every_answer_has_the_headers_that_protect_browsers() -> None:
    async with web_server(ScriptedSearch()) as caller:
        for path in ("/v1/info", "/nothing", "/openapi.json", "/"):
            _, headers, _ = await caller.get(path)
            assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self';")
            assert (headers["X-Content-Type-Options"], headers["Referrer-Policy"]) == ("nosniff", "no-referrer")
            assert headers["Server"] == "captrieve"
