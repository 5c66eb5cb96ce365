# SPDX-License-Identifier: Apache-2.0
"""`providers check` against the stand-ins of all APIs, TLS included."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from search_gateway import providers_command
from search_gateway.__main__ import main
from search_gateway.providers.recorded_answers import append_line, line_of
from search_gateway.thumbnails.fetcher import ThumbnailError
from tests.conftest import MODELS
from tests.fakes.fake_image_apis import KEY, FakeImageApis, Reply

HEADERS = {
    "X-RateLimit-Limit": "1, 2000",
    "X-RateLimit-Policy": "1;w=1, 2000;w=2592000",
    "X-RateLimit-Remaining": "0, 1999",
    "X-RateLimit-Reset": "1, 1000000",
}


class Thumbnails:
    """A fetcher that needs no web."""

    problem = ""

    def __init__(self) -> None:
        self.hosts: list[str] = []

    def allow_hosts(self, hosts: Any) -> None:
        self.hosts += hosts

    async def fetch(self, url: str, timeout_seconds: float) -> bytes:
        if self.problem:
            raise ThumbnailError(self.problem)
        return b"picture"

    async def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def running() -> Iterator[FakeImageApis]:
    with FakeImageApis() as fake:
        yield fake


@pytest.fixture
def web(running: FakeImageApis, monkeypatch: pytest.MonkeyPatch) -> FakeImageApis:
    running.reset()
    monkeypatch.setattr(providers_command, "ThumbnailFetcher", Thumbnails)
    monkeypatch.setattr("search_gateway.__main__.set_up_logging", lambda *_: None)  # it would outlive the test
    return running


def environment(web: FakeImageApis, providers: str, **more: str) -> dict[str, str]:
    settings = {name: str(value) for name, value in web.settings().items() if name != "providers"}
    settings |= {"providers": providers, "model_repository": str(MODELS), **more}
    return {f"CAPTRIEVE_{name.upper()}": text for name, text in settings.items()}


def test_every_provider_is_asked_once_and_shown(web: FakeImageApis, tmp_path: Path, capsys: Any) -> None:
    web.replies["brave"] = Reply(headers=HEADERS)
    budget = {"provider_monthly_budget": "brave=5", "provider_budget_file": str(tmp_path / "budget.json")}
    assert main(["providers", "check"], environment(web, "brave+searxng,openverse", **budget)) == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert [row[:5] for row in rows[1:]] == [
        [name, "yes", "found", "3", "fetched"] for name in ("brave", "searxng", "openverse")
    ]
    assert "0 of 1 per second, 1999 of 2000 per 30 days, budget 4 of 5" in printed
    assert sorted(name for name, _, _ in web.requests) == ["brave", "openverse", "searxng"]
    assert KEY not in printed


def test_what_is_wrong_is_told_and_the_exit_code(web: FakeImageApis, capsys: Any) -> None:
    web.replies["searxng"] = Reply(b"Forbidden", status=403, kind="text/html")
    web.replies["openverse"] = Reply({"results": [{"title": "x"}]})
    environ = environment(web, "brave,searxng,openverse,catalog")
    del environ["CAPTRIEVE_BRAVE_API_KEY"]
    assert main(["providers", "check", "--json"], environ) == 1
    record = json.loads(capsys.readouterr().out)
    assert record["words"] == "blue shirt"
    brave, searxng, openverse, catalog = record["providers"]
    assert (brave["outcome"], brave["official"]) == ("wrong_settings", None)
    assert "CAPTRIEVE_BRAVE_API_KEY" in brave["message"]
    assert (searxng["outcome"], searxng["results"]) == ("failed", 0)
    assert "add json to search.formats" in searxng["message"]
    assert "answer lacks results[].foreign_landing_url" in openverse["message"]
    assert catalog["message"] == "CAPTRIEVE_CATALOG is not set"


def test_thumbnails_that_cannot_be_fetched_are_told(
    web: FakeImageApis, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Thumbnails, "problem", "host not allowed: cdn.example")
    assert main(["providers", "check"], environment(web, "searxng")) == 1
    assert "thumbnails cannot be fetched: host not allowed: cdn.example" in capsys.readouterr().out


def test_local_provider_needs_no_web(web: FakeImageApis, tmp_path: Path, capsys: Any) -> None:
    recording = tmp_path / "answers.jsonl"
    append_line(recording, line_of(("red", "bag"), []))
    environ = environment(web, "replay", replay=str(recording))
    assert main(["providers", "check", "--words", "red bag"], environ) == 0
    assert "empty" in capsys.readouterr().out
    assert main(["providers", "check"], environ) == 1
    assert not web.requests


def test_slow_provider_is_a_timeout(web: FakeImageApis, capsys: Any) -> None:
    web.reply.wait_seconds = 5.0
    assert main(["providers", "check"], environment(web, "openverse", provider_timeout_seconds="0.3")) == 1
    assert "timeout" in capsys.readouterr().out


def test_words_without_a_word_are_refused(web: FakeImageApis, capsys: Any) -> None:
    assert main(["providers", "check", "--words", " "], environment(web, "searxng")) == 2
    assert "--words has no word" in capsys.readouterr().err
