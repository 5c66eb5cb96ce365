# SPDX-License-Identifier: Apache-2.0
"""What the pipeline does in which order; its parts have tests of their own, and `test_gateway.py` has all of it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from yarl import URL

from captioner.decoding import DecodingOptions
from captioner.image_error import ImageError, ImageReason
from captioner.preprocessing import Region
from captioner.query import Query, QueryRule
from search_gateway.deadline import Deadline
from search_gateway.engine.scheduler import DecodedPhoto
from search_gateway.errors import DeadlineError, InferenceError, OverloadedError
from search_gateway.pipeline import Pipeline, SearchAnswer, SearchOptions
from search_gateway.providers.base import Candidate
from search_gateway.providers.chain import ProviderResult
from search_gateway.ranking.rerank import RefinementLimits, Verdict
from search_gateway.thumbnails.fetcher import (
    DEFAULT_PARALLEL_FETCHES,
    ThumbnailError,
    ThumbnailFetcher,
    ThumbnailPolicy,
)
from tests.fakes.virtual_time import run_virtually


class Photos:
    def __init__(self) -> None:
        self.decoded = 0

    async def decode(self, data: bytes, deadline: Deadline, region: Region | None = None) -> Any:
        self.decoded += 1
        raise RuntimeError("far enough")


class FullTritons:
    def place(self, options: DecodingOptions, deadline: Deadline) -> None:
        raise OverloadedError("full", retry_after_seconds=1.0)


class Providers:
    def check(self, name: str | None) -> None:
        pass


def pipeline(photos: Photos) -> Pipeline:
    unused: Any = None
    return Pipeline(
        contract=unused,
        tokenizer=unused,
        photos=photos,  # type: ignore[arg-type]
        small_photos=unused,
        tritons=FullTritons(),  # type: ignore[arg-type]
        providers=Providers(),  # type: ignore[arg-type]
        thumbnails=unused,
        thumbnail_timeout_seconds=1.0,
    )


def search_options(query_override: Query | None) -> SearchOptions:
    return SearchOptions(
        decoding=DecodingOptions(),
        query_rule=QueryRule.LAST_TWO_WORDS,
        query_override=query_override,
        provider=None,
        max_candidates=1,
        limits=RefinementLimits(min_visual_score=0.4, min_semantic_score=0.5, max_results=1, visual_weight=0.5),
    )


async def searched(options: SearchOptions, photos: Photos) -> None:
    async for _ in pipeline(photos).search(b"photo", options, Deadline(30.0)):
        pass


def test_who_is_refused_costs_no_decoding_of_a_photo() -> None:
    photos = Photos()
    with pytest.raises(OverloadedError):
        asyncio.run(pipeline(photos).caption(b"photo", DecodingOptions(), QueryRule.LAST_TWO_WORDS, Deadline(30.0)))
    with pytest.raises(OverloadedError):
        asyncio.run(searched(search_options(None), photos))
    assert photos.decoded == 0


def test_search_for_given_words_needs_no_room_among_captions() -> None:
    photos = Photos()
    with pytest.raises(RuntimeError, match="far enough"):
        asyncio.run(searched(search_options(Query.of("red handbag")), photos))
    assert photos.decoded == 1


# Thumbnails

PIXELS = np.zeros((32, 32, 3), np.uint8)
EMBEDDING = np.array([1.0, 0.0], np.float32)


class SlowWeb(ThumbnailFetcher):
    """The fetcher with its turns and limits; a web that answers after 0.1 s, or as the URL says."""

    num_in_progress = 0

    def __init__(self, parallel_fetches: int = DEFAULT_PARALLEL_FETCHES):
        super().__init__(ThumbnailPolicy(allowed_hosts=(r"th\.bing\.com",)), parallel_fetches=parallel_fetches)

    async def _follow(self, target: URL) -> bytes:
        self.num_in_progress += 1
        try:
            await asyncio.sleep(float(target.query.get("seconds", 0.1)))
            if "gone" in target.path:
                raise ThumbnailError("status 404")
            if "broken" in target.path:
                raise KeyError("a defect of ours")
            return target.path.encode()
        finally:
            self.num_in_progress -= 1


class Decoder:
    async def decode(self, data: bytes, deadline: Deadline, region: Region | None = None) -> Any:
        if data == b"/unreadable":
            raise ImageError(ImageReason.CRASHED, "is damaged", "", None, "")
        return PIXELS


class Tritons:
    async def embed(self, pixels: Any, deadline: Deadline) -> Any:
        return EMBEDDING


@dataclass
class Found:
    """A provider chain that has found these thumbnails."""

    paths: Sequence[str]

    def check(self, name: str | None) -> None:
        pass

    async def find(self, *_: Any, after: str | None = None, **__: Any) -> ProviderResult:
        urls = () if after else (f"https://th.bing.com/{path}" for path in self.paths)
        return ProviderResult(
            "" if after else "web",
            [Candidate(title="Red handbag", url=url, thumbnail_url=url, source="s") for url in urls],
        )


async def searched_with(web: ThumbnailFetcher, paths: Sequence[str], deadline_seconds: float = 30.0) -> SearchAnswer:
    decoder: Any = Decoder()
    unused: Any = None
    thumbnails = Pipeline(
        contract=unused,
        tokenizer=unused,
        photos=decoder,
        small_photos=decoder,
        tritons=Tritons(),  # type: ignore[arg-type]
        providers=Found(paths),  # type: ignore[arg-type]
        thumbnails=web,
        thumbnail_timeout_seconds=3.0,
    )
    deadline = Deadline(deadline_seconds, asyncio.get_running_loop().time)
    events = thumbnails.search(b"photo", search_options(Query.of("red handbag")), deadline)
    *_, answer = [event async for event in events]
    assert isinstance(answer, SearchAnswer)
    return answer


def degraded(answer: SearchAnswer) -> list[str]:
    return [f"{one.part}: {one.reason}" for one in answer.degraded]


def num_seen(answer: SearchAnswer) -> int:
    return len(answer.found.candidates) - answer.reranked.counts[Verdict.DROPPED_UNFETCHABLE]


@pytest.mark.parametrize("num_searches", [5, 10])
def test_all_thumbnails_of_many_searches_arrive(num_searches: int) -> None:
    async def run() -> None:
        web, paths = SlowWeb(), [str(number) for number in range(40)]
        answers = await asyncio.gather(*(searched_with(web, paths) for _ in range(num_searches)))
        assert [(num_seen(answer), degraded(answer)) for answer in answers] == [(40, [])] * num_searches

    run_virtually(run())


def test_search_beside_one_of_slow_thumbnails_gets_its_share() -> None:
    async def run() -> None:
        web, loop = SlowWeb(), asyncio.get_running_loop()
        slow = asyncio.create_task(searched_with(web, ["x?seconds=2.9"] * 40))
        await asyncio.sleep(1)
        answer = await searched_with(web, ["x"] * 40)
        assert num_seen(answer) == 40
        assert loop.time() < 1 + 1.9 + 1.1  # the first slow ones end, then half of the places
        await slow

    run_virtually(run())


def test_answer_counts_the_thumbnails_that_were_not_looked_at_and_says_why() -> None:
    async def run() -> None:
        web = SlowWeb(parallel_fetches=2)
        paths = ["gone", "broken", "unreadable", *["x"] * 3, *["x?seconds=9"] * 4]
        answer = await searched_with(web, paths, deadline_seconds=3.5)
        assert degraded(answer) == [
            "thumbnails: 7 of 10 thumbnails could not be used: 3 could not be fetched, 2 had no turn before the "
            "deadline, 1 failed unexpectedly, 1 could not be read"
        ]

    run_virtually(run())


def test_failures_of_triton_are_told_by_their_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [InferenceError("down"), DeadlineError("late"), InferenceError("still down")]

    async def run() -> None:
        web = SlowWeb(parallel_fetches=1)
        embedding = iter([EMBEDDING])

        async def embed(self: Tritons, pixels: Any, deadline: Deadline) -> Any:
            for first in embedding:
                return first  # of the photo
            raise errors.pop(0)

        monkeypatch.setattr(Tritons, "embed", embed)
        assert degraded(await searched_with(web, ["x"] * 3)) == [
            "inference: 2 of 3 thumbnails could not be compared: down",
            "inference: 1 of 3 thumbnails could not be compared: late",
        ]

    run_virtually(run())


@pytest.mark.parametrize("values", [(np.nan, 0.0), (np.inf, 0.0), (0.0, 0.0)])
def test_embedding_that_is_no_direction_is_an_error_and_never_searched_with(
    values: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    embedding = np.array(values, np.float32)
    photo = DecodedPhoto(embedding, [], {})

    async def embed(self: Tritons, pixels: Any, deadline: Deadline) -> Any:
        return embedding

    async def caption(self: Tritons, pixels: Any, options: DecodingOptions, deadline: Deadline) -> DecodedPhoto:
        return photo

    monkeypatch.setattr(Tritons, "embed", embed)
    monkeypatch.setattr(Tritons, "caption", caption, raising=False)
    monkeypatch.setattr(Tritons, "place", lambda *_: contextlib.nullcontext(), raising=False)
    monkeypatch.setattr(Found, "find", None)
    with pytest.raises(InferenceError, match="no numbers"):
        run_virtually(searched_with(SlowWeb(), ["x"]))
    decoder = Decoder()
    captioning = dataclasses.replace(
        pipeline(decoder),  # type: ignore[arg-type]
        tritons=Tritons(),  # type: ignore[arg-type]
    )
    with pytest.raises(InferenceError, match="no numbers"):
        asyncio.run(captioning.caption(b"photo", DecodingOptions(), QueryRule.LAST_TWO_WORDS, Deadline(30.0)))


def test_thumbnails_without_an_embedding_of_numbers_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = iter([EMBEDDING, *[np.array([np.nan, 1.0], np.float32)] * 3])

    async def embed(self: Tritons, pixels: Any, deadline: Deadline) -> Any:
        return next(embeddings)

    monkeypatch.setattr(Tritons, "embed", embed)
    [reason] = degraded(run_virtually(searched_with(SlowWeb(), ["x"] * 3)))
    assert reason.startswith("inference: 3 of 3 thumbnails could not be compared: the model computed no numbers")


def test_nothing_goes_on_after_the_answer_or_the_end_of_a_search() -> None:
    async def run() -> None:
        web = SlowWeb()
        answer = await searched_with(web, ["broken?seconds=0", *["x"] * 39])
        assert num_seen(answer) == 39
        assert asyncio.all_tasks() == {asyncio.current_task()}
        search = asyncio.create_task(searched_with(web, ["x"] * 40))
        await asyncio.sleep(0.05)
        assert web.num_in_progress == 8
        search.cancel()
        await asyncio.wait([search])
        assert web.num_in_progress == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtually(run())
