# SPDX-License-Identifier: Apache-2.0
"""Recorded answers come back by their words, with the time and the failures that were ordered."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from captioner.query import Query
from search_gateway.errors import ProviderError, ProviderTimeoutError
from search_gateway.providers.base import Candidate, Provider
from search_gateway.providers.recorded_answers import RecordingError, append_line, line_of
from search_gateway.providers.replay import ReplayProvider
from tests.fakes.virtual_time import run_virtually


def shirt(number: int, thumbnail: bytes | None = b"picture") -> Candidate:
    url = f"https://shop.example/{number}"
    return Candidate(title="Shirt", url=url, thumbnail_url=url, source="shop", thumbnail=thumbnail)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "answers.jsonl"
    append_line(path, line_of(("blue", "shirt"), [shirt(1), shirt(2, None)]))
    append_line(path, line_of(("red", "shirt"), [shirt(3)]))
    append_line(path, line_of(("no", "shirt"), []))
    return path


def find(provider: Provider, query: str, max_candidates: int = 40, timeout_seconds: float = 6.0) -> list[Candidate]:
    return run_virtually(provider.find(Query.of(query), max_candidates, timeout_seconds))


def test_answers_come_back_by_their_words(recording: Path) -> None:
    provider = ReplayProvider(recording)
    assert provider.name == "replay"
    assert [one.url for one in find(provider, " Blue SHIRT")] == [shirt(1).url, shirt(2).url]
    assert find(provider, "red shirt") == [shirt(3)]
    assert len(find(provider, "blue shirt", 1)) == 1
    assert find(provider, "no shirt") == [], "an empty answer that was recorded is one"


def test_nothing_is_left_to_fetch_from_the_web(recording: Path) -> None:
    answer = find(ReplayProvider(recording), "blue shirt")
    assert [(one.thumbnail, one.thumbnail_url) for one in answer] == [(b"picture", shirt(1).url), (None, "")]


@pytest.mark.parametrize("query", ["shirt blue", "blue", "green shirt", "", "\x00"])
def test_query_that_was_not_recorded_is_a_failure(recording: Path, query: str) -> None:
    with pytest.raises(ProviderError, match="no answer was recorded for this query"):
        find(ReplayProvider(recording), query)


def test_time_is_imitated(recording: Path) -> None:
    async def run() -> None:
        provider = ReplayProvider(recording, latency_seconds=2.0)
        clock = asyncio.get_running_loop().time
        await provider.find(Query.of("red shirt"), 40, 6.0)
        assert clock() == pytest.approx(2.0)
        with pytest.raises(ProviderTimeoutError, match=r"within 0\.5 s"):
            await provider.find(Query.of("red shirt"), 40, 0.5)
        assert clock() == pytest.approx(2.5)
        await provider.close()

    run_virtually(run())


def failures(recording: Path, ratio: float) -> list[bool]:
    async def run() -> list[bool]:
        provider = ReplayProvider(recording, failure_ratio=ratio)
        answers = await asyncio.gather(
            *(provider.find(Query.of("red shirt"), 1, 6.0) for _ in range(400)), return_exceptions=True
        )
        assert all(isinstance(answer, list) or "imitate" in str(answer) for answer in answers)
        return [isinstance(answer, ProviderError) for answer in answers]

    return run_virtually(run())


def test_failures_are_imitated_and_the_same_in_every_run(recording: Path) -> None:
    assert sum(failures(recording, 0.0)) == 0
    assert sum(failures(recording, 1.0)) == 400
    assert 60 < sum(failures(recording, 0.25)) < 140
    assert failures(recording, 0.25) == failures(recording, 0.25)


def test_file_that_is_no_recording(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text("titles\n")
    with pytest.raises(RecordingError, match="line 1: it is not JSON"):
        ReplayProvider(path)
