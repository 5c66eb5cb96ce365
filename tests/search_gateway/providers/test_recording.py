# SPDX-License-Identifier: Apache-2.0
"""What a provider answers is written down with its pictures, and costs nobody an answer."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from captioner.query import Query
from search_gateway.errors import ProviderError
from search_gateway.providers.base import Candidate, ProviderTerms
from search_gateway.providers.recorded_answers import load_answers
from search_gateway.providers.recording import RecordingProvider
from search_gateway.providers.replay import ReplayProvider
from search_gateway.thumbnails.fetcher import ThumbnailError, ThumbnailFetcher


def shirt(number: int) -> Candidate:
    return Candidate(
        title="Shirt", url=f"https://shop.example/{number}", thumbnail_url=f"https://t/{number}", source="s"
    )


@dataclass
class Web:
    name: str = "web"
    terms: ProviderTerms = ProviderTerms()
    answer: list[Candidate] | ProviderError = field(default_factory=lambda: [shirt(1), shirt(2), shirt(3)])
    is_closed: bool = False

    async def find(self, *_: Any) -> list[Candidate]:
        if isinstance(self.answer, ProviderError):
            raise self.answer
        return self.answer

    async def close(self) -> None:
        self.is_closed = True


async def fetch(url: str, timeout_seconds: float, *, deadline: Any = None, search: Any = None) -> bytes:
    """The second has no picture, the third none because of a defect."""
    if url.endswith("2"):
        raise ThumbnailError("gone")
    if url.endswith("3"):
        raise KeyError("a defect")
    return b"picture of " + url.encode()


def find(provider: RecordingProvider, query: str = "Zebra shirt", timeout_seconds: float = 0.3) -> list[Candidate]:
    return asyncio.run(provider.find(Query.of(query), 40, timeout_seconds))


def test_answer_is_written_with_its_pictures_and_replayed_without_the_web(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    answer = find(RecordingProvider(Web(), path, fetch))
    assert [one.thumbnail for one in answer] == [b"picture of https://t/1", None, None]
    assert [one.url for one in answer] == [shirt(number).url for number in (1, 2, 3)]
    assert load_answers(path) == {("zebra", "shirt"): tuple(answer)}
    replayed = asyncio.run(ReplayProvider(path).find(Query.of("zebra SHIRT"), 40, 1.0))
    assert replayed[0] == answer[0]
    assert [one.thumbnail_url for one in replayed[1:]] == ["", ""]


@pytest.mark.parametrize("parallel_fetches", [1, 8])
def test_pictures_that_are_late_cost_no_answer_and_are_not_fetched_any_more(
    tmp_path: Path, parallel_fetches: int
) -> None:
    class SilentWeb(ThumbnailFetcher):
        async def _follow(self, target: URL) -> bytes:
            await asyncio.sleep(60)
            return b""

    async def run() -> list[Candidate]:
        web = Web(answer=[replace(shirt(number), thumbnail_url=f"https://th.bing.com/{number}") for number in range(8)])
        recording = RecordingProvider(
            web, tmp_path / "answers.jsonl", SilentWeb(parallel_fetches=parallel_fetches).fetch
        )
        answer = await recording.find(Query.of("zebra shirt"), 40, 0.2)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return answer

    assert [one.thumbnail for one in asyncio.run(run())] == [None] * 8


def test_failures_and_empty_answers_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with pytest.raises(ProviderError, match="it refused"):
        find(RecordingProvider(Web(answer=ProviderError("it refused")), path, fetch))
    assert find(RecordingProvider(Web(answer=[]), path, fetch)) == []
    assert not path.exists()


def test_file_that_cannot_be_written_costs_no_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    answer = find(RecordingProvider(Web(), tmp_path / "missing" / "answers.jsonl", fetch))
    assert len(answer) == 3
    assert "was not recorded: No such file" in caplog.text
    assert "zebra" not in caplog.text.lower()


def test_full_file_ends_the_recording_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "answers.jsonl"
    provider = RecordingProvider(Web(), path, fetch, max_file_bytes=100)
    with caplog.at_level(logging.WARNING):
        assert len(find(provider)) == len(find(provider)) == 3
    assert caplog.text.count("recording of provider web stops") == 1
    assert path.stat().st_size == 0


def test_closing_closes_the_provider(tmp_path: Path) -> None:
    web = Web()
    provider = RecordingProvider(web, tmp_path / "answers.jsonl", fetch)
    assert provider.name == "web"
    asyncio.run(provider.close())
    assert web.is_closed
