# SPDX-License-Identifier: Apache-2.0
"""One contract for Brave, SearXNG and Openverse: real TLS and HTTP, answers as their documentation shows them."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from captioner.query import Query
from search_gateway.config import GatewayConfig
from search_gateway.errors import ConfigError, ProviderError, ProviderLimitedError, ProviderTimeoutError
from search_gateway.providers.answer_schema import Answer, candidates_of
from search_gateway.providers.base import Candidate, QuotaWindow
from search_gateway.providers.brave import brave
from search_gateway.providers.json_api import JsonApi, JsonApiProvider
from search_gateway.providers.openverse import licence_name, openverse
from search_gateway.providers.searxng import searxng
from tests.fakes.fake_image_apis import KEY, FakeImageApis, Reply, answer_of

NAMES = ("brave", "searxng", "openverse")
# A required field of a row, as a path, and how messages name it.
FIELDS = {
    "brave": [("title",), ("url",), ("thumbnail",), ("thumbnail", "src")],
    "searxng": [("title",), ("url",), ("img_src",)],
    "openverse": [("title",), ("url",), ("foreign_landing_url",), ("thumbnail",), ("license",)],
}
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
DOCUMENTED = json.dumps(answer_of("brave")).encode()
EACH_FIELD = [(name, path) for name, paths in FIELDS.items() for path in paths]


@pytest.fixture(scope="module")
def running() -> Iterator[FakeImageApis]:
    with FakeImageApis() as fake:
        yield fake


@pytest.fixture
def web(running: FakeImageApis) -> FakeImageApis:
    running.reset()
    return running


def api_of(name: str, url: str, safe_search: str = "moderate") -> JsonApi:
    if name == "brave":
        return brave(url, KEY, safe_search=safe_search, max_cache_seconds=0.0, min_interval_seconds=0.0)
    return (searxng if name == "searxng" else openverse)(url, safe_search=safe_search)


async def asked(
    web: FakeImageApis,
    name: str,
    *,
    count: int = 40,
    timeout_seconds: float = 5.0,
    safe_search: str = "moderate",
    words: str = "blue shirt",
) -> tuple[list[Candidate], JsonApiProvider]:
    provider = JsonApiProvider(api_of(name, web.url, safe_search), web.ca_file)
    try:
        return await provider.find(Query.of(words), count, timeout_seconds), provider
    finally:
        await provider.close()


def find(web: FakeImageApis, name: str, **options: Any) -> list[Candidate]:
    return asyncio.run(asked(web, name, **options))[0]


def refusal(web: FakeImageApis, name: str, **options: Any) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        find(web, name, **options)
    assert KEY not in repr(caught.value)
    return caught.value


@pytest.mark.parametrize("name", NAMES)
def test_documented_answer_is_candidates_in_order(web: FakeImageApis, name: str) -> None:
    found = find(web, name)
    assert [one.title for one in found] == ["Blue shirt 0", "Blue shirt 1", "Blue shirt 2"]
    first = found[0]
    assert (first.width, first.height) == (1500, 1200)
    assert first.url.startswith("https://")
    assert first.image_url.endswith(".jpg")
    assert first.source == ("flickr" if name == "openverse" else "shop.example")
    hosts = api_of(name, "https://api.openverse.org").terms.thumbnail_hosts
    assert any(re.fullmatch(host, first.thumbnail_url.split("/")[2]) for host in hosts)


def test_licence_and_credit_line_come_with_pictures_of_openverse(web: FakeImageApis) -> None:
    first = find(web, "openverse")[0]
    assert first.licence == "CC BY-SA 2.0"
    assert first.licence_url == "https://creativecommons.org/licenses/by-sa/2.0/"
    assert first.attribution == '"Blue shirt 0" by Someone is licensed under CC BY-SA 2.0.'


def test_credit_line_is_made_where_openverse_has_none(web: FakeImageApis) -> None:
    answer = answer_of("openverse")
    for row in answer["results"]:
        row["attribution"] = None
    web.reply.body = answer
    assert find(web, "openverse")[0].attribution == '"Blue shirt 0" by Someone (CC BY-SA 2.0)'


@pytest.mark.parametrize(
    ("code", "version", "name"),
    [
        ("by-nc-nd", "4.0", "CC BY-NC-ND 4.0"),
        ("cc0", "1.0", "CC0 1.0"),
        ("pdm", "1.0", "Public Domain Mark 1.0"),
        ("by", None, "CC BY"),
        ("other", "", "other"),
    ],
)
def test_licences_have_their_usual_names(code: str, version: str | None, name: str) -> None:
    assert licence_name(code, version) == name


@pytest.mark.parametrize("name", NAMES)
def test_empty_answer_is_empty(web: FakeImageApis, name: str) -> None:
    web.reply.body = answer_of(name) | {"results": []}
    assert find(web, name) == []


def test_empty_answer_of_silent_engines_is_a_failure(web: FakeImageApis) -> None:
    web.reply.body = answer_of("searxng") | {"results": [], "unresponsive_engines": [["bing images", "timeout"]]}
    assert "1 of its engines gave no answer" in str(refusal(web, "searxng"))


@pytest.mark.parametrize("name", NAMES)
def test_answer_without_results_names_the_field(web: FakeImageApis, name: str) -> None:
    web.reply.body = {key: value for key, value in answer_of(name).items() if key != "results"}
    assert "answer lacks results:" in str(refusal(web, name))


@pytest.mark.parametrize(("name", "path"), EACH_FIELD)
@pytest.mark.parametrize("wrong", ["missing", 7])
def test_rows_without_a_field_name_it(web: FakeImageApis, name: str, path: tuple[str, ...], wrong: Any) -> None:
    answer = answer_of(name)
    for row in answer["results"]:
        for part in path[:-1]:
            row = row[part]
        if wrong == "missing":
            del row[path[-1]]
        else:
            row[path[-1]] = wrong
    web.reply.body = answer
    where = f"results[].{'.'.join(path)}"
    said = f"answer lacks {where}:" if wrong == "missing" else f"answer has {where} of type int, which must be "
    assert said in str(refusal(web, name))


@pytest.mark.parametrize(
    ("name", "odd"),
    [
        ("brave", {"properties": None, "source": 7}),
        ("brave", {"properties": {"width": 1.5, "height": "x", "url": []}}),
        ("searxng", {"resolution": 7, "source": None, "engine": []}),
        ("searxng", {"resolution": "٣٠ x 9999999999"}),
        ("openverse", {"width": -1, "height": 10**300, "license_version": 2, "license_url": {}, "source": None}),
    ],
)
def test_fields_that_can_be_done_without_cost_no_row(web: FakeImageApis, name: str, odd: dict[str, Any]) -> None:
    answer = answer_of(name)
    answer["results"][0] |= odd
    web.reply.body = answer
    first = find(web, name)[0]
    assert first.title == "Blue shirt 0"
    assert (first.width, first.height) == (0, 0)


@pytest.mark.parametrize("name", NAMES)
def test_one_odd_row_costs_no_other(web: FakeImageApis, name: str, caplog: pytest.LogCaptureFixture) -> None:
    answer = answer_of(name)
    del answer["results"][1]["title"]
    web.reply.body = answer
    with caplog.at_level(logging.INFO):
        assert [one.title for one in find(web, name)] == ["Blue shirt 0", "Blue shirt 2"]
    assert "lacks results[].title in 1 of 3 rows" in caplog.text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("body", [[], "text", None, {"results": {}}])
def test_wrong_type_is_told(web: FakeImageApis, name: str, body: Any) -> None:
    web.reply.body = json.dumps(body).encode()
    assert "answer has " in str(refusal(web, name))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "address", ["javascript:alert(1)", "http://169.254.169.254/x", "https://a@b.example/", "x" * 5000]
)
def test_addresses_that_cannot_be_shown_or_fetched_are_no_candidates(
    web: FakeImageApis, name: str, address: str
) -> None:
    answer = answer_of(name)
    for row in answer["results"]:
        if name == "brave":
            row["thumbnail"]["src"] = address
        else:
            row["thumbnail" if name == "openverse" else "thumbnail_src"] = address
    web.reply.body = answer
    assert "without a usable title, address or thumbnail" in str(refusal(web, name))


@pytest.mark.parametrize("name", NAMES)
def test_titles_are_one_clean_line(web: FakeImageApis, name: str) -> None:
    answer = answer_of(name)
    answer["results"][0]["title"] = "Blue\u202e \x1b[31m\n" + "shirt" * 1000
    web.reply.body = answer
    title = find(web, name)[0].title
    assert title.isprintable()
    assert len(title) <= 300


@pytest.mark.parametrize("name", NAMES)
def test_page_instead_of_json_is_told(web: FakeImageApis, name: str) -> None:
    web.reply = Reply(b"<!doctype html><title>sign in</title>", kind="text/html")
    assert "is text/html, not JSON: check its address" in str(refusal(web, name))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"[" * 100_000])
def test_text_that_is_not_json_is_told(web: FakeImageApis, name: str, body: bytes) -> None:
    web.reply = Reply(body)
    assert "is not JSON" in str(refusal(web, name))


@pytest.mark.parametrize(
    ("name", "status", "remedy"),
    [
        ("brave", 401, "CAPTRIEVE_BRAVE_API_KEY"),
        ("brave", 403, "CAPTRIEVE_BRAVE_API_KEY"),
        ("searxng", 401, "use another provider"),
        ("searxng", 403, "add json to search.formats in its settings.yml"),
        ("openverse", 401, "without an account"),
        ("openverse", 403, "use another provider"),
    ],
)
def test_refusal_says_what_to_do(web: FakeImageApis, name: str, status: int, remedy: str) -> None:
    web.reply = Reply(b"Forbidden", status=status, kind="text/html")
    said = str(refusal(web, name))
    assert f"refused the search (status {status})" in said
    assert remedy in said


@pytest.mark.parametrize("is_gzip", [False, True])
def test_key_that_brave_calls_invalid_is_told(web: FakeImageApis, is_gzip: bool) -> None:
    error = {"id": "1", "status": 422, "code": "SUBSCRIPTION_TOKEN_INVALID", "detail": "…", "meta": {}}
    web.reply = Reply({"type": "ErrorResponse", "error": error, "time": 1}, status=422, is_gzip=is_gzip)
    assert "check CAPTRIEVE_BRAVE_API_KEY" in str(refusal(web, "brave"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("headers", "seconds"), [({"Retry-After": "37"}, 37.0), ({}, None), ({"Retry-After": "soon"}, None)]
)
def test_too_many_requests_says_when_to_come_back(
    web: FakeImageApis, name: str, headers: dict[str, str], seconds: float | None
) -> None:
    web.reply = Reply({}, status=429, headers=headers)
    error = refusal(web, name)
    assert isinstance(error, ProviderLimitedError)
    assert error.retry_after_seconds == seconds


def test_limits_of_the_answer_are_the_quota(web: FakeImageApis) -> None:
    web.reply.headers = {
        "X-RateLimit-Limit": "1, 15000",
        "X-RateLimit-Policy": "1;w=1, 15000;w=2592000",
        "X-RateLimit-Remaining": "0, 1000",
        "X-RateLimit-Reset": "1, 1419704",
    }
    _, provider = asyncio.run(asked(web, "brave"))
    assert provider.quota == (
        QuotaWindow(limit=1, remaining=0, window_seconds=1.0, reset_seconds=1.0),
        QuotaWindow(limit=15000, remaining=1000, window_seconds=2592000.0, reset_seconds=1419704.0),
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("status", [500, 503])
def test_failure_of_the_server_is_told(web: FakeImageApis, name: str, status: int) -> None:
    web.reply = Reply(b"oops", status=status, kind="text/plain")
    assert f"failed (status {status})" in str(refusal(web, name))


@pytest.mark.parametrize("name", NAMES)
def test_slow_answer_is_a_timeout(web: FakeImageApis, name: str) -> None:
    web.reply.wait_seconds = 5.0
    error = refusal(web, name, timeout_seconds=0.2)
    assert isinstance(error, ProviderTimeoutError)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        pytest.param((HEAD + b"Content-Length: 9000\r\n\r\n", itertools.repeat(b" ")), "no answer within", id="body"),
        pytest.param((HEAD, itertools.repeat(b"X")), "no answer within", id="head"),
        pytest.param((b"HTTP/1.1 429 No\r\n", itertools.repeat(b"X")), "no answer within", id="refusal"),
        pytest.param((b"HTTP/1.1 403 No\r\nContent-Length: 9000\r\n\r\n", itertools.repeat(b" ")), "", id="refused"),
        pytest.param((itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n"),), "no answer within", id="continue"),
    ],
)
def test_bytes_that_drip_end_at_the_deadline(web: FakeImageApis, raw: tuple[Any, ...], said: str) -> None:
    parts = itertools.chain.from_iterable([one] if isinstance(one, bytes) else one for one in raw)
    web.reply = Reply(raw=parts, drip_seconds=0.01)
    began = time.monotonic()
    assert said in str(refusal(web, "brave", timeout_seconds=0.5))
    assert time.monotonic() - began < 20.0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("raw", "said"),
    [
        pytest.param([HEAD, b"Content-Length: 20\r\n\r\n", DOCUMENTED], "", id="short length"),
        pytest.param([HEAD, b"Content-Length: 99999\r\n\r\n", DOCUMENTED], "was cut off", id="long length"),
        pytest.param([HEAD, b"Content-Length: -5\r\n\r\n", DOCUMENTED], "cannot be reached", id="negative length"),
        pytest.param([HEAD, b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", b"{}"], "", id="two lengths"),
        pytest.param([HEAD, b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n{}"], "", id="bad chunk"),
        pytest.param([HEAD, b"Content-Encoding: br\r\n\r\n", DOCUMENTED], "not asked for", id="other coding"),
        pytest.param([HEAD, b"Content-Encoding: gzip\r\n\r\n", DOCUMENTED], "cannot be unpacked", id="no gzip"),
        pytest.param([HEAD, *[b"X: " + b"x" * 60_000 + b"\r\n"] * 50], "cannot be reached", id="long headers"),
        pytest.param([b"<html>sign in</html>"], "cannot be reached", id="no HTTP"),
        pytest.param([b"HTTP/1.1 302 Found\r\nLocation: https://[\r\n\r\n"], "not followed", id="odd redirect"),
    ],
)
def test_broken_http_is_told(web: FakeImageApis, name: str, raw: list[bytes], said: str) -> None:
    web.reply = Reply(raw=raw)
    assert said in str(refusal(web, name))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("row", [b"{}", b"[" * 500 + b"]" * 500])
def test_a_million_odd_rows_are_told(web: FakeImageApis, name: str, row: bytes) -> None:
    body = b'{"results": [' + b",".join([row] * (4_000_000 // (len(row) + 1))) + b'], "unresponsive_engines": []}'
    web.reply = Reply(body)
    assert "results[]" in str(refusal(web, name, timeout_seconds=60.0))


def test_rows_without_end_are_not_all_looked_at() -> None:
    """All rows of four mebibytes would take half a minute, in which the gateway does nothing else."""

    class Row(Answer):
        title: str

    with pytest.raises(ProviderError, match=r"lacks results\[\].title"):
        candidates_of(itertools.repeat({}), Row, "X", lambda row: None, 10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("is_gzip", [False, True])
def test_huge_answer_is_refused(web: FakeImageApis, name: str, is_gzip: bool) -> None:
    web.reply = Reply(b" " * (5 * 2**20), is_gzip=is_gzip)
    assert "more than 4 MiB" in str(refusal(web, name))


@pytest.mark.parametrize("name", NAMES)
def test_packed_answer_is_read(web: FakeImageApis, name: str) -> None:
    web.reply.is_gzip = True
    assert len(find(web, name)) == 3
    assert web.requests[0][2]["Accept-Encoding"] == "gzip"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cut_at", [0, 100])
def test_answer_that_is_cut_off_is_told(web: FakeImageApis, name: str, cut_at: int) -> None:
    web.reply.cut_at = cut_at
    said = str(refusal(web, name))
    assert "cut off" in said or "cannot be reached" in said


@pytest.mark.parametrize("name", NAMES)
def test_redirects_are_not_followed(web: FakeImageApis, name: str) -> None:
    web.reply = Reply(b"", status=302, headers={"Location": "https://elsewhere.example/steal"})
    assert "redirects to elsewhere.example, which is not followed" in str(refusal(web, name))
    assert len(web.requests) == 1


@pytest.mark.parametrize(
    ("name", "parameter", "values"),
    [
        ("brave", "safesearch", {"off": "off", "moderate": "strict", "on": "strict"}),
        ("searxng", "safesearch", {"off": "0", "moderate": "1", "on": "2"}),
        ("openverse", "mature", {"off": "true", "moderate": "false", "on": "false"}),
    ],
)
def test_safe_search_is_asked_for(web: FakeImageApis, name: str, parameter: str, values: dict[str, str]) -> None:
    for safe_search, value in values.items():
        find(web, name, safe_search=safe_search)
        assert web.requests[-1][1][parameter] == value


@pytest.mark.parametrize(("name", "parameter", "most"), [("brave", "count", 200), ("openverse", "page_size", 20)])
def test_no_more_is_asked_for_than_permitted(web: FakeImageApis, name: str, parameter: str, most: int) -> None:
    for count in (1, 7, 1000):
        assert len(find(web, name, count=count)) == min(count, 3)
        assert web.requests[-1][1][parameter] == str(min(count, most))


def test_searxng_is_cut_to_the_number_of_candidates(web: FakeImageApis) -> None:
    assert len(find(web, "searxng", count=2)) == 2


@pytest.mark.parametrize("name", NAMES)
def test_words_and_key_are_sent_once_and_only_there(web: FakeImageApis, name: str) -> None:
    find(web, name, words="blue & red/shirt?q=x")
    ((asked_api, parameters, headers),) = web.requests
    assert asked_api == name
    assert parameters["q"] == Query.of("blue & red/shirt?q=x").text
    assert (headers.get("X-Subscription-Token") == KEY) == (name == "brave")
    assert KEY not in str(parameters)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_asked_without_words_or_time(web: FakeImageApis, name: str) -> None:
    assert find(web, name, words="") == []
    assert find(web, name, count=0) == []
    assert isinstance(refusal(web, name, timeout_seconds=0.0), ProviderTimeoutError)
    assert not web.requests


def test_unknown_certificate_is_refused(web: FakeImageApis) -> None:
    async def ask() -> None:
        provider = JsonApiProvider(api_of("brave", web.url))
        try:
            await provider.find(Query.of("blue shirt"), 40, 5.0)
        finally:
            await provider.close()

    with pytest.raises(ProviderError, match="certificate cannot be verified"):
        asyncio.run(ask())
    assert not web.requests


def test_nobody_there_is_told() -> None:
    async def ask() -> None:
        provider = JsonApiProvider(api_of("searxng", "http://127.0.0.1:9"))
        try:
            await provider.find(Query.of("blue shirt"), 40, 5.0)
        finally:
            await provider.close()

    with pytest.raises(ProviderError, match="SearXNG cannot be reached"):
        asyncio.run(ask())


def test_file_without_certificates_is_named(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="CAPTRIEVE_PROVIDER_CA_FILE is '.*missing.pem'"):
        JsonApiProvider(api_of("brave", "https://127.0.0.1"), str(tmp_path / "missing.pem"))


def test_key_is_in_no_text(web: FakeImageApis) -> None:
    config = GatewayConfig(**web.settings("brave"))
    assert KEY not in repr(config)
    assert KEY not in str(config.model_dump())
    assert KEY not in repr(api_of("brave", web.url))
