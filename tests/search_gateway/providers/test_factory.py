# SPDX-License-Identifier: Apache-2.0
"""The providers that settings make, asked through the chain; ddgs and TLS are real, DuckDuckGo is on loopback."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from captioner.query import Query
from search_gateway.config import PROVIDER_NAMES, GatewayConfig
from search_gateway.deadline import Deadline
from search_gateway.errors import ConfigError
from search_gateway.providers.base import Provider
from search_gateway.providers.catalog import CatalogProvider
from search_gateway.providers.chain import ProviderChain, ProviderResult
from search_gateway.providers.factory import cache_for, host_pattern, make_providers
from search_gateway.providers.recorded_answers import append_line, line_of
from search_gateway.thumbnails.fetcher import ThumbnailFetcher
from tests.conftest import ROOT
from tests.fakes.fake_duckduckgo import FakeDuckDuckGo, rows_for
from tests.fakes.fake_image_apis import KEY, FakeImageApis

QUERY = "blue shirt"


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDuckDuckGo]:
    monkeypatch.delenv("DDGS_PROXY", raising=False)
    with FakeDuckDuckGo() as fake:
        yield fake


def no_address(host: str, port: int) -> list[str]:
    """Thumbnails are Bing's by name; no test may ask for them."""
    raise OSError("no address")


def made(**settings: Any) -> list[list[Provider]]:
    config = GatewayConfig(**settings)
    return make_providers(config, "a model", cache_for(config), ThumbnailFetcher(resolve=no_address))


def found(web: FakeDuckDuckGo, behaviours: list[Any], **settings: Any) -> list[ProviderResult]:
    """The answers of one chain, asked once for each behaviour of the web."""

    async def search() -> list[ProviderResult]:
        given = {"duckduckgo_proxy": web.proxy_url, "duckduckgo_ca_file": web.ca_path}
        given |= {"duckduckgo_min_interval_seconds": 0.0, "providers": ("duckduckgo",)}
        chain = ProviderChain(made(**(given | settings)), 6.0)
        answers = []
        for web.behaviour in behaviours:
            answers.append(await chain.find(Query.of(QUERY), None, 40, Deadline(10.0)))
        await chain.close()
        return answers

    return asyncio.run(search())


def test_second_search_makes_no_call(web: FakeDuckDuckGo) -> None:
    first, again = found(web, ["results", "forbidden"])
    assert [one.title for one in first.candidates] == [row["title"] for row in rows_for(QUERY)]
    assert again == first
    assert web.queries == [QUERY]


def test_old_answer_says_so(web: FakeDuckDuckGo) -> None:
    first, old = found(web, ["results", "forbidden"], cache_ttl_seconds=0.0)
    assert (old.provider, old.candidates) == ("duckduckgo", first.candidates)
    assert re.match(r"answer of \d+ seconds ago: DuckDuckGo gave no results", old.degraded[0].reason)


def test_without_a_cache_nothing_is_remembered(web: FakeDuckDuckGo) -> None:
    _, failed = found(web, ["results", "forbidden"], cache_bytes=0)
    assert (failed.provider, failed.candidates) == ("", [])


def test_next_provider_answers_at_once_after_failures(web: FakeDuckDuckGo, tmp_path: Path) -> None:
    recording = tmp_path / "answers.jsonl"
    append_line(recording, line_of(("blue", "shirt"), []))
    answers = found(web, ["forbidden"] * 10, providers=("duckduckgo", "replay"), replay=recording)
    assert {answer.provider for answer in answers} == {"replay"}
    assert web.num_searches == 3
    assert "failed too often" in answers[-1].degraded[0].reason


def test_turn_that_comes_too_late_is_told(web: FakeDuckDuckGo) -> None:
    _, late = found(web, ["results", "results"], cache_bytes=0, duckduckgo_min_interval_seconds=60.0)
    assert "at most once every 60 s" in late.degraded[0].reason
    assert web.num_searches == 1


def test_colour_filter_and_recording_are_set(web: FakeDuckDuckGo, tmp_path: Path) -> None:
    recording = tmp_path / "answers.jsonl"
    (live,) = found(web, ["results"], duckduckgo_colour_filter=True, record=recording, provider_timeout_seconds=1.0)
    assert web.parameters[0]["f"] == ",,color:Blue,,,"
    (replayed,) = found(web, ["forbidden"], providers=("replay",), replay=recording)
    assert [one.title for one in replayed.candidates] == [one.title for one in live.candidates]
    assert web.num_searches == 1


def test_wrong_files_are_named(tmp_path: Path) -> None:
    async def make(**settings: Any) -> None:
        made(**settings)

    with pytest.raises(ConfigError, match=r"CAPTRIEVE_REPLAY is .*: it cannot be read"):
        asyncio.run(make(providers=("replay",), replay=tmp_path / "missing.jsonl"))
    with pytest.raises(ConfigError, match="no provider is left"):
        asyncio.run(make(providers=("catalog",)))


# Those with an API


@pytest.fixture(scope="module")
def apis() -> Iterator[FakeImageApis]:
    with FakeImageApis() as fake:
        yield fake


def asked(apis: FakeImageApis, *providers: str, times: int = 1, **settings: Any) -> list[ProviderResult]:
    apis.reset()

    async def search() -> list[ProviderResult]:
        chain = ProviderChain(made(**(apis.settings(*providers) | settings)), 6.0)
        answers = [await chain.find(Query.of(QUERY), None, 40, Deadline(10.0)) for _ in range(times)]
        await chain.close()
        return answers

    return asyncio.run(search())


def test_several_are_asked_together_as_set(apis: FakeImageApis) -> None:
    (answer,) = asked(apis, "brave+openverse", "searxng")
    assert answer.provider == "brave+openverse"
    assert [one.provider for one in answer.candidates[:4]] == ["brave", "openverse"] * 2
    assert [one.attribution for one in answer.candidates[:1]] == ["Brave Search"]


@pytest.mark.parametrize(("seconds", "num_calls"), [(0.0, 3), (60.0, 1)])
def test_answers_of_brave_are_kept_as_the_plan_allows(apis: FakeImageApis, seconds: float, num_calls: int) -> None:
    asked(apis, "brave", times=3, brave_cache_seconds=seconds)
    assert len(apis.requests) == num_calls


def test_budget_is_a_hard_stop_that_gives_way_to_the_next_provider(apis: FakeImageApis, tmp_path: Path) -> None:
    budget = {"provider_monthly_budget": ("brave=2",), "provider_budget_file": tmp_path / "budget.json"}
    names = [one.provider for one in asked(apis, "brave", "searxng", times=3, **budget)]
    assert names == ["brave", "brave", "searxng"]
    assert [one.provider for one in asked(apis, "brave", "searxng", **budget)] == ["searxng"]  # after a restart
    assert [name for name, _, _ in apis.requests] == ["searxng"]


def test_key_may_be_in_a_file(apis: FakeImageApis, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    asked(apis, "brave", brave_api_key=None, brave_api_key_file=file)
    assert apis.requests[0][2]["X-Subscription-Token"] == KEY


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"brave_api_key": None}, "set one of CAPTRIEVE_BRAVE_API_KEY and"),
        ({"brave_api_key_file": "x"}, "set one of CAPTRIEVE_BRAVE_API_KEY and"),
        ({"brave_api_key": None, "brave_api_key_file": "missing"}, "CAPTRIEVE_BRAVE_API_KEY_FILE is 'missing'"),
        ({"brave_api_key": "two words"}, "must be one word of printable ASCII"),
        ({"brave_api_key": "line\nX-Evil: 1"}, "must be one word of printable ASCII"),
        (
            {"provider_monthly_budget": ("acme=1",), "provider_budget_file": "x"},
            "names acme, which CAPTRIEVE_PROVIDERS does",
        ),
        ({"providers": ("searxng",), "searxng_url": None}, "set CAPTRIEVE_SEARXNG_URL"),
    ],
)
def test_wrong_settings_of_apis_are_named(apis: FakeImageApis, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        made(**(apis.settings("brave") | settings))
    assert "two words" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "name", "matches"),
    [
        ("cdn.example.com", "cdn.example.com", True),
        ("cdn.example.com", "cdnxexample.com", False),
        ("*.example.com", "a.b.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "evil-example.com", False),
    ],
)
def test_hosts_of_thumbnails_match_whole_names(host: str, name: str, matches: bool) -> None:
    assert bool(re.fullmatch(host_pattern(host), name)) == matches


def test_page_of_the_providers_says_what_they_declare(apis: FakeImageApis, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "providers.md").read_text()
    rows = {row.split("`")[1]: row.split("|")[2].strip(" *") for row in page.splitlines() if row.startswith("| `")}
    table = {name: official for name, official in rows.items() if name in PROVIDER_NAMES}
    recording = tmp_path / "answers.jsonl"
    append_line(recording, line_of(("blue", "shirt"), []))
    names = [name for name in PROVIDER_NAMES if name != "catalog"]

    async def declared() -> dict[str, Any]:
        return {one[0].name: one[0].terms for one in made(**(apis.settings(*names) | {"replay": recording}))}

    terms = asyncio.run(declared()) | {"catalog": CatalogProvider.terms}
    assert {name: one.is_official for name, one in terms.items()} == {
        name: official == "yes" for name, official in table.items()
    }
    assert f"{terms['brave'].cost_per_call} US dollars declared" in page
    assert not terms["duckduckgo"].is_official
