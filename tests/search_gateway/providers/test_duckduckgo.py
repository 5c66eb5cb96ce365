# SPDX-License-Identifier: Apache-2.0
"""The DuckDuckGo provider against a fake DuckDuckGo on loopback; ddgs itself is the real one."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ddgs.cli
import pytest

from captioner.query import Query
from search_gateway.errors import ConfigError, ProviderError, ProviderNotAskedError, ProviderTimeoutError
from search_gateway.providers.base import Candidate, Provider
from search_gateway.providers.duckduckgo import (
    COLOUR_FILTERS,
    MAX_THREADS,
    DuckDuckGoProvider,
    candidates_from,
    colour_filter_for,
)
from tests.fakes.fake_duckduckgo import BEHAVIOURS, NUM_ROWS, Behaviour, FakeDuckDuckGo, rows_for

QUERY = "blue shirt"

NO_RESULTS = "gave no results; it answers the same way when it blocks or limits"
UNREADABLE = "answer cannot be read"
UNREACHABLE = "cannot be reached"
TIMEOUT = "no answer within"

# What a caller must never see: paths, classes and modules, addresses, Python's own words.
INTERNAL_TEXT = re.compile(r"/|\\|Error\b|Exception|primp|ddgs|127\.0|https?:|\bobject\b|NoneType|Traceback|\[Errno")


@pytest.fixture(autouse=True)
def no_proxy_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DDGS_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def fake() -> Iterator[FakeDuckDuckGo]:
    with FakeDuckDuckGo() as server:
        yield server


def provider_for(fake: FakeDuckDuckGo, **settings: Any) -> DuckDuckGoProvider:
    given: dict[str, Any] = {
        "proxy": fake.proxy_url,
        "verify": fake.ca_path,
    }
    return DuckDuckGoProvider(**(given | settings))


def find(
    provider: DuckDuckGoProvider,
    query: str = QUERY,
    max_candidates: int = 50,
    timeout_seconds: float = 5.0,
) -> list[Candidate]:
    async def search() -> list[Candidate]:
        try:
            return await provider.find(Query.of(query), max_candidates, timeout_seconds)
        finally:
            await provider.close()

    return asyncio.run(search())


def error_of(provider: DuckDuckGoProvider, timeout_seconds: float = 5.0) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        find(provider, timeout_seconds=timeout_seconds)
    assert not INTERNAL_TEXT.search(str(caught.value)), str(caught.value)
    return caught.value


def test_results_become_candidates_in_order(fake: FakeDuckDuckGo) -> None:
    provider: Provider = provider_for(fake)
    assert provider.name == "duckduckgo"
    candidates = find(provider_for(fake))
    assert [
        {
            "title": candidate.title,
            "image": candidate.image_url,
            "thumbnail": candidate.thumbnail_url,
            "url": candidate.url,
            "height": candidate.height,
            "width": candidate.width,
            "source": candidate.source,
        }
        for candidate in candidates
    ] == rows_for(QUERY)
    assert (fake.num_pages, fake.num_searches, fake.queries) == (1, 1, [QUERY])


def test_settings_reach_duckduckgo_and_nothing_else_is_asked(fake: FakeDuckDuckGo) -> None:
    find(provider_for(fake, region="de-de", safesearch="off"))
    asked = fake.parameters[0]
    assert (asked["q"], asked["l"], asked["p"]) == (QUERY, "de-de", "-1")
    assert "f" not in asked  # no filter of colour, size or kind
    assert fake.refused == []  # no other engine


def test_colour_filter_is_the_querys_colour_and_only_where_it_is_switched_on(fake: FakeDuckDuckGo) -> None:
    find(provider_for(fake, colour_filter=True), "Grey Shirt")
    assert (fake.parameters[0]["q"], fake.parameters[0]["f"]) == ("Grey Shirt", ",,color:Gray,,,")
    find(provider_for(fake, colour_filter=True), "check shirt")
    find(provider_for(fake), "grey shirt")
    assert ["f" in asked for asked in fake.parameters] == [True, False, False]


@pytest.mark.parametrize(
    ("query", "colour"),
    [
        ("blue shirt", "Blue"),
        ("BLUE navy shirt", "Blue"),
        ("grey gray shirt", "Gray"),
        ("black white shirt", None),  # there is one filter, and it would drop one of the two
        ("blueish shirt", None),
        ("navy shirt", None),
        ("", None),
    ],
)
def test_colour_filter_needs_exactly_one_colour(query: str, colour: str | None) -> None:
    assert colour_filter_for(Query.of(query)) == colour


def test_colour_filters_are_those_that_ddgs_takes() -> None:
    """Its library hands on whatever it gets; its command line has the list."""
    (option,) = [one for one in ddgs.cli.images.params if one.name == "color"]
    assert {*COLOUR_FILTERS.values(), "color", "Monochrome"} == set(option.type.choices)


def test_no_more_candidates_than_asked_for(fake: FakeDuckDuckGo) -> None:
    assert [c.title for c in find(provider_for(fake), max_candidates=2)] == [row["title"] for row in rows_for(QUERY, 2)]


@pytest.mark.parametrize(("query", "max_candidates"), [("", 5), ("  ", 5), (QUERY, 0)])
def test_nothing_asked_is_nothing_found(fake: FakeDuckDuckGo, query: str, max_candidates: int) -> None:
    assert find(provider_for(fake), query, max_candidates) == []
    assert fake.num_connections == 0


EXPECTED: dict[Behaviour, tuple[type[ProviderError], str]] = {
    "empty": (ProviderError, NO_RESULTS),
    "forbidden": (ProviderError, NO_RESULTS),
    "forbidden_page": (ProviderError, NO_RESULTS),
    "limited": (ProviderError, NO_RESULTS),
    "garbage": (ProviderError, UNREADABLE),
    "no_list": (ProviderError, UNREADABLE),
    "null_titles": (ProviderError, UNREADABLE),
    "number_titles": (ProviderError, UNREADABLE),
    "huge": (ProviderError, "more than 1 MiB, the limit"),
    "bomb": (ProviderError, "more than 1 MiB, the limit"),
    "nested": (ProviderError, UNREADABLE),
    "no_redirect_end": (ProviderError, UNREACHABLE),
    "cut": (ProviderError, UNREACHABLE),
    "reset": (ProviderError, UNREACHABLE),
    "refuse_connect": (ProviderError, UNREACHABLE),
    "stall": (ProviderTimeoutError, TIMEOUT),
    "stall_page": (ProviderTimeoutError, TIMEOUT),
    "drip": (ProviderTimeoutError, TIMEOUT),
}


def test_every_behaviour_is_expected_somewhere() -> None:
    assert {*EXPECTED, "results", "hostile"} == set(BEHAVIOURS)


@pytest.mark.parametrize("behaviour", [b for b in EXPECTED if EXPECTED[b][1] != TIMEOUT])
def test_each_failure_has_its_error(fake: FakeDuckDuckGo, behaviour: Behaviour) -> None:
    fake.behaviour = behaviour
    error = error_of(provider_for(fake))
    kind, words = EXPECTED[behaviour]
    assert type(error) is kind
    assert words in str(error)
    assert error.__cause__ is not None  # for our logs
    assert set(fake.refused) == ({"duckduckgo.com:443"} if behaviour == "refuse_connect" else set())


@pytest.mark.parametrize("behaviour", [b for b in EXPECTED if EXPECTED[b][1] == TIMEOUT])
def test_silence_ends_at_the_deadline(fake: FakeDuckDuckGo, behaviour: Behaviour) -> None:
    fake.behaviour = behaviour
    error = error_of(provider_for(fake, request_timeout_seconds=10), timeout_seconds=0.6)
    assert type(error) is ProviderTimeoutError
    assert "0.6 s" in str(error)
    assert fake.is_stalled.wait(30), "it was asked, perhaps when the deadline had passed"


@pytest.mark.parametrize("behaviour", ["stall", "drip"])
def test_silence_ends_at_the_request_timeout(fake: FakeDuckDuckGo, behaviour: Behaviour) -> None:
    fake.behaviour = behaviour
    error = error_of(provider_for(fake, request_timeout_seconds=1), timeout_seconds=30)
    assert type(error) is ProviderTimeoutError
    assert "1 s" in str(error)


def test_two_slow_requests_may_take_longer_than_the_limit_for_one(fake: FakeDuckDuckGo) -> None:
    fake.delay_seconds = 1.6
    assert find(provider_for(fake, request_timeout_seconds=3), timeout_seconds=30)


def test_nobody_listens(fake: FakeDuckDuckGo) -> None:
    error = error_of(provider_for(fake, proxy="http://127.0.0.1:9"))
    assert UNREACHABLE in str(error)


def test_name_without_address(fake: FakeDuckDuckGo) -> None:
    error = error_of(provider_for(fake, proxy="http://proxy.invalid:3128"))
    assert UNREACHABLE in str(error) or TIMEOUT in str(error)


def test_unknown_certificate_is_refused(fake: FakeDuckDuckGo) -> None:
    error = error_of(provider_for(fake, verify=True))
    assert UNREACHABLE in str(error)
    assert fake.num_pages == 0


def test_certificates_gone_after_the_start(fake: FakeDuckDuckGo, tmp_path: Path) -> None:
    path = tmp_path / "authorities.pem"
    path.write_bytes(Path(fake.ca_path).read_bytes())
    provider = provider_for(fake, verify=str(path))
    path.unlink()
    assert UNREACHABLE in str(error_of(provider))


def test_hostile_rows_are_left_out(fake: FakeDuckDuckGo) -> None:
    fake.behaviour = "hostile"
    assert [c.title for c in find(provider_for(fake))] == [row["title"] for row in rows_for(QUERY)]


def test_proxy_variable_of_ddgs_counts_where_no_proxy_is_given(
    fake: FakeDuckDuckGo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Documented, not wanted: the day ddgs stops reading it, the module's notes are wrong."""
    monkeypatch.setenv("DDGS_PROXY", fake.proxy_url)
    assert len(find(provider_for(fake, proxy=None))) == NUM_ROWS
    with FakeDuckDuckGo() as given:
        find(provider_for(given))
        assert given.num_searches == 1
    assert fake.num_searches == 1


def test_searches_side_by_side_get_their_own_answers(fake: FakeDuckDuckGo) -> None:
    async def search() -> None:
        provider = provider_for(fake)
        queries = [f"{colour} shirt" for colour in ("red", "blue", "green", "black", "white")][:MAX_THREADS]
        answers = await asyncio.gather(*(provider.find(Query.of(query), 3, 10.0) for query in queries))
        for query, answer in zip(queries, answers, strict=True):
            assert [c.title for c in answer] == [row["title"] for row in rows_for(query, 3)]
        await provider.close()

    asyncio.run(search())


async def found_again(provider: DuckDuckGoProvider) -> None:
    """Until stuck threads have ended by themselves; nothing tells when."""
    async with asyncio.timeout(60):
        while True:
            try:
                assert len(await provider.find(Query.of(QUERY), 1, 5.0)) == 1
            except ProviderError:
                await asyncio.sleep(0.05)
            else:
                return


def test_stuck_searches_fail_the_next_at_once_and_pass(fake: FakeDuckDuckGo) -> None:
    async def search() -> None:
        provider = provider_for(fake, request_timeout_seconds=2.0)
        fake.behaviour = "stall"
        stuck = (provider.find(Query.of(QUERY), 1, 0.3) for _ in range(MAX_THREADS))
        for error in await asyncio.gather(*stuck, return_exceptions=True):
            assert type(error) is ProviderTimeoutError
        with pytest.raises(ProviderNotAskedError, match="searches already wait for DuckDuckGo's answer") as caught:
            await provider.find(Query.of(QUERY), 1, 30.0)
        assert not INTERNAL_TEXT.search(str(caught.value))
        fake.behaviour = "results"
        await found_again(provider)
        await provider.close()

    asyncio.run(search())


def test_stuck_searches_take_four_threads_of_their_own_and_none_of_the_loops(fake: FakeDuckDuckGo) -> None:
    async def search() -> None:
        before = set(threading.enumerate())  # those of other tests, which end by themselves
        provider = provider_for(fake, request_timeout_seconds=1.0)
        fake.behaviour = "stall"
        stuck = [asyncio.create_task(provider.find(Query.of(QUERY), 1, 0.5)) for _ in range(3 * MAX_THREADS)]
        assert await asyncio.to_thread(fake.is_stalled.wait, 30)
        names = [thread.name.rpartition("_")[0] for thread in threading.enumerate() if thread not in before]
        assert names.count("duckduckgo") == MAX_THREADS
        loops_own = asyncio.get_running_loop()._default_executor._threads  # type: ignore[attr-defined]
        assert len(loops_own) == 1, "the one that waited"
        await asyncio.gather(*stuck, return_exceptions=True)
        await provider.close()

    asyncio.run(search())


def test_search_without_a_thread_is_refused_and_asks_nobody(fake: FakeDuckDuckGo) -> None:
    """Were it to wait, it would begin when a thread is free, not when it is its turn."""

    async def search() -> None:
        provider = provider_for(fake)
        fake.delay_seconds = 0.2
        busy = [asyncio.create_task(provider.find(Query.of(QUERY), 1, 10.0)) for _ in range(MAX_THREADS)]
        await asyncio.sleep(0)
        with pytest.raises(ProviderNotAskedError):
            await provider.find(Query.of(QUERY), 1, 10.0)
        assert not any(task.done() for task in busy), "it waited"
        assert all(len(answer) == 1 for answer in await asyncio.gather(*busy))
        assert fake.num_searches == MAX_THREADS
        assert len(await provider.find(Query.of(QUERY), 1, 10.0)) == 1
        await provider.close()

    asyncio.run(search())


def test_cancelled_search_leaves_the_provider_usable(fake: FakeDuckDuckGo) -> None:
    async def search() -> None:
        provider = provider_for(fake, request_timeout_seconds=1.0)
        fake.behaviour = "stall"
        task = asyncio.create_task(provider.find(Query.of(QUERY), 1, 30.0))
        assert await asyncio.to_thread(fake.is_stalled.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        fake.behaviour = "results"
        assert len(await provider.find(Query.of(QUERY), 1, 5.0)) == 1
        await provider.close()

    asyncio.run(search())


def test_deadline_already_over(fake: FakeDuckDuckGo) -> None:
    for timeout_seconds in (0.0, -1.0):
        error = error_of(provider_for(fake), timeout_seconds=timeout_seconds)
        assert type(error) is ProviderTimeoutError
        assert "no time is left" in str(error)
    assert fake.num_connections == 0


def test_closed_provider_refuses(fake: FakeDuckDuckGo) -> None:
    provider = provider_for(fake)
    find(provider)
    assert "stopping" in str(error_of(provider))
    asyncio.run(provider.close())  # twice is fine


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"safesearch": "strict"}, "on, moderate or off"),
        ({"safesearch": "Moderate"}, "on, moderate or off"),
        ({"region": "English"}, "us-en"),
        ({"region": "us-en&p=-1"}, "us-en"),
        ({"proxy": "tb"}, "proxy must be a URL"),
        ({"proxy": ""}, "proxy must be a URL"),
        ({"proxy": "http://"}, "proxy must be a URL"),
        ({"proxy": "file:///x"}, "proxy must be a URL"),
        ({"proxy": "http://host:99999"}, "proxy must be a URL"),
        ({"verify": "/no/such/file.pem"}, "PEM file"),
        ({"request_timeout_seconds": 0.0}, "more than 0"),
        ({"request_timeout_seconds": float("inf")}, "more than 0"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        DuckDuckGoProvider(**settings)


def test_all_wrong_settings_are_named_at_once_and_no_password() -> None:
    with pytest.raises(ConfigError) as caught:
        DuckDuckGoProvider(proxy="gopher://me:secret@host", region="x", safesearch="y")
    assert len(str(caught.value).splitlines()) == 3
    assert "secret" not in str(caught.value)


def row(**changes: Any) -> dict[str, Any]:
    return {**rows_for(QUERY, 1)[0], **changes}


WRONG_TYPES = [None, 7, 1.5, True, [], ["a"], {}, {"a": "b"}, b"bytes", float("nan"), object]


@pytest.mark.parametrize("value", WRONG_TYPES, ids=ascii)
@pytest.mark.parametrize("field", ["title", "thumbnail"])
def test_needed_field_of_a_wrong_type_drops_the_row(field: str, value: Any) -> None:
    good = row(thumbnail="https://tse2.mm.bing.net/th?id=good")
    assert len(candidates_from([row(**{field: value}), good], 5)) == 1


@pytest.mark.parametrize("value", WRONG_TYPES, ids=ascii)
def test_other_fields_of_a_wrong_type_become_empty(value: Any) -> None:
    candidate = candidates_from([row(source=value, image=value, width=value, height=value)], 5)[0]
    assert (candidate.source, candidate.image_url) == ("", "")
    expected = 7 if value == 7 else 0
    assert (candidate.width, candidate.height) == (expected, expected)


@pytest.mark.parametrize("rows", [None, 7, "text", {}, {"a": 1}, object], ids=ascii)
def test_answer_that_is_no_list_is_an_error(rows: object) -> None:
    with pytest.raises(ProviderError, match=UNREADABLE):
        candidates_from(rows, 5)


@pytest.mark.parametrize("rows", [[], [None], [7, "x", []], [{}], [{"title": "x"}]], ids=ascii)
def test_answer_without_a_usable_row_is_an_error(rows: list[object]) -> None:
    with pytest.raises(ProviderError, match=f"none of the {len(rows)} entries of DuckDuckGo.s answer can be used"):
        candidates_from(rows, 5)


@pytest.mark.parametrize(
    ("sent", "title"),
    [
        ("Blue\tShirt\r\n", "Blue Shirt"),
        ("  Blue \u2003 Shirt ", "Blue Shirt"),
        ("Blue\x1b[31m Shirt\x00\x9b", "Blue[31m Shirt"),
        ("Blue \u202eShirt\u2066\u200b", "Blue Shirt"),
        ("Blue \ud800Shirt", "Blue Shirt"),
        ("Chemise bleue d'été", "Chemise bleue d'été"),
        ("青いシャツ", "青いシャツ"),
        ("x" * 10_000_000, "x" * 300),
        ("ab " * 5_000, ("ab " * 100).strip()),
    ],
    ids=range(9),
)
def test_titles_are_one_short_line(sent: str, title: str) -> None:
    assert candidates_from([row(title=sent)], 1)[0].title == title


@pytest.mark.parametrize(
    "url",
    [
        "",
        "shop.example/x",
        "//shop.example/x",
        "/x",
        "javascript:alert(1)",
        "JaVaScRiPt:alert(1)",
        "java\nscript:alert(1)",
        "data:text/html,x",
        "vbscript:x",
        "file:///etc/passwd",
        "ftp://shop.example/x",
        "blob:https://shop.example/x",
        "https://",
        "https:///x",
        "https:shop.example",
        "https://:443/x",
        "https://shop.example:99999/x",
        "https://shop.example:port/x",
        "https://[::1/x",
        "https://good.example@evil.example/",
        "https://user:password@evil.example/",
        "https://shop.example/a b",
        "https://shop.example/\u00a0",
        "https://shop.example/\n",
        "\thttps://shop.example/",
        "https://shop.example/\x00",
        "https://shop.example/\u202egpj",
        "https://shop.example/\ud800",
        'https://shop.example/">',
        "https://shop.example/<script>",
        "https://shop.example\\@evil.example/",
        "https://shop.example/" + "x" * 2048,
    ],
    ids=ascii,
)
def test_urls_that_must_not_be_linked_to(url: str) -> None:
    good = row(thumbnail="https://tse2.mm.bing.net/th?id=good")
    assert len(candidates_from([row(thumbnail=url), good], 5)) == 1
    assert len(candidates_from([row(url=url, image=url), good], 5)) == 1
    assert candidates_from([row(image=url)], 1)[0].image_url == ""
    # A row whose page cannot be linked to still has its picture.
    assert candidates_from([row(url=url)], 1)[0].url == row()["image"]


@pytest.mark.parametrize(
    "url",
    [
        "http://shop.example",
        "HTTPS://Shop.Example:8443/a?b=c&d=e#f",
        "https://xn--bcher-kva.example/",
        "https://bücher.example/größe",
        "https://[2606:4700::1]/x",
        "https://shop.example/" + "x" * (2048 - 21),
    ],
    ids=range(6),
)
def test_good_urls_stay_as_they_are(url: str) -> None:
    candidate = candidates_from([row(url=url, image=url)], 1)[0]
    assert (candidate.url, candidate.image_url) == (url, url)


@pytest.mark.parametrize(
    ("sent", "pixels"),
    [
        (640, 640),
        ("640", 640),
        ("0640", 640),
        (0, 0),
        (-5, 0),
        ("-5", 0),
        ("6e2", 0),
        ("٣", 0),
        ("", 0),
        (10**6, 0),
        (10**30, 0),
        ("9" * 5000, 0),
        (True, 0),
        (640.0, 0),
    ],
    ids=range(14),
)
def test_sizes_are_small_numbers_or_unknown(sent: object, pixels: int) -> None:
    candidate = candidates_from([row(width=sent, height=sent)], 1)[0]
    assert (candidate.width, candidate.height) == (pixels, pixels)


def test_each_thumbnail_comes_once_and_http_thumbnails_never() -> None:
    rows = [
        row(title="first"),
        row(title="again"),
        row(thumbnail="http://tse1.mm.bing.net/th?id=x"),
        row(title="second", thumbnail="https://tse1.mm.bing.net/th?id=y"),
    ]
    assert [c.title for c in candidates_from(rows, 5)] == ["first", "second"]
