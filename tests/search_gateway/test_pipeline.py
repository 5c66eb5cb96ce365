# SPDX-License-Identifier: Apache-2.0
"""What the pipeline does in which order; its parts have tests of their own, and `test_gateway.py` has all of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from captioner.decoding import DecodingOptions
from captioner.query import Query, QueryRule
from search_gateway.deadline import Deadline
from search_gateway.errors import OverloadedError
from search_gateway.pipeline import Pipeline, SearchOptions
from search_gateway.ranking.rerank import RefinementLimits


class Photos:
    def __init__(self) -> None:
        self.decoded = 0

    async def decode(self, data: bytes, deadline: Deadline) -> Any:
        self.decoded += 1
        raise RuntimeError("far enough")


class FullTritons:
    def check_capacity(self, options: DecodingOptions) -> None:
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
