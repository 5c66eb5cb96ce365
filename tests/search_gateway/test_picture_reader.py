# SPDX-License-Identifier: Apache-2.0
"""Which candidates' pictures are read, and what becomes of those that cannot be."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from captioner.decoding import DecodedToken, DecodingOptions, Hypothesis
from captioner.model_contract import ModelContract
from search_gateway.deadline import Deadline
from search_gateway.engine.scheduler import DecodedPhoto
from search_gateway.errors import InferenceError, InvalidPhotoError, OverloadedError, SearchError
from search_gateway.picture_reader import PictureReader
from search_gateway.providers.base import Candidate
from search_gateway.providers.chain import Degradation
from search_gateway.ranking.colours import Colours
from search_gateway.ranking.query_hypotheses import QueryHypotheses
from search_gateway.ranking.rerank import InspectedCandidate, RefinementLimits, RerankResult, Verdict, rerank
from search_gateway.ranking.word_agreement import Synonyms
from tests.conftest import MODELS

PHOTO = np.array([1.0, 0.0], np.float32)
SYNONYMS = Synonyms([], Colours(["blue", "red"]))
LIMITS = RefinementLimits(min_visual_score=0.2, min_semantic_score=0.5, max_results=10, visual_weight=0.5)


class Words:
    """A tokenizer each of whose tokens is a word."""

    words = ("turtle", "men", "blue", "shirt")

    def text(self, tokens: list[int]) -> str:
        return " ".join(self.words[token] for token in tokens)

    def starts_word(self, token: int) -> bool:
        return True

    def word_spans(self, tokens: list[int]) -> list[tuple[int, int]]:
        return [(place, place + 1) for place in range(len(tokens))]


class Photos:
    """Decodes a thumbnail to a picture of its first byte."""

    async def decode(self, data: bytes, deadline: Deadline) -> npt.NDArray[np.uint8]:
        if data == b"broken":
            raise InvalidPhotoError("it is no picture")
        return np.full((1, 1, 3), data[0], np.uint8)


class Tritons:
    """Says "Turtle Men Blue Shirt" of every picture, or fails with what a test wants."""

    def __init__(self, problem: SearchError | None = None, query_logprobs: list[float] | None = None):
        self.problem = problem
        self.query_logprobs = None if query_logprobs is None else np.array(query_logprobs, np.float32)
        self.asked: list[str] = []

    async def caption(
        self, pixels: npt.NDArray[np.uint8], options: DecodingOptions, deadline: Deadline
    ) -> DecodedPhoto:
        self.asked.append(chr(pixels[0, 0, 0]))
        if self.problem is not None:
            raise self.problem
        none = np.zeros(0)
        tokens = tuple(DecodedToken(token, -0.1, none.astype(np.int32), none.astype(np.float32)) for token in range(4))
        return DecodedPhoto(PHOTO, [Hypothesis(tokens, -0.4, True)], {}, self.query_logprobs)


def seen(title: str, cosine: float, thumbnail: bytes | None) -> InspectedCandidate:
    embedding = np.array([cosine, np.sqrt(1 - cosine**2)], np.float32)
    return InspectedCandidate(Candidate(title=title, url="", thumbnail_url="", source="shop"), embedding, thumbnail)


def reranked(candidates: list[InspectedCandidate]) -> RerankResult:
    return rerank(PHOTO, "blue shirt", QueryHypotheses.certain("blue shirt"), candidates, LIMITS, SYNONYMS)


def read(
    tritons: Tritons, candidates: list[InspectedCandidate], max_pictures: int = 10, seconds: float = 10
) -> tuple[list[InspectedCandidate], list[Degradation]]:
    reader = PictureReader(
        cast("Any", Photos()), cast("Any", tritons), cast("Any", Words()), ModelContract.load(MODELS), max_pictures
    )
    return asyncio.run(reader.read(reranked(candidates), candidates, Deadline(seconds)))


def test_only_the_best_whose_titles_leave_a_word_open_are_read() -> None:
    candidates = [
        seen("Blue Shirt", 0.9, b"a"),  # says everything
        seen("Checked Shirt", 0.7, b"b"),
        seen("Red Shirt", 0.9, b"c"),  # contradicts
        seen("Checked Shirt", 0.9, b"d"),
        seen("Blue 8903", 0.95, b"e"),  # dropped for its words, which the picture may put right
        seen("Checked Shirt", 0.1, b"f"),  # looks different whatever it reads as
        seen("Checked Shirt", 0.99, None),
        InspectedCandidate(
            Candidate(title="Shirt", url="", thumbnail_url="", source="shop"), None, None, Verdict.DROPPED_UNFETCHABLE
        ),
    ]
    tritons = Tritons()
    after, degraded = read(tritons, candidates)
    assert sorted(tritons.asked) == ["b", "d", "e"]
    assert [one.picture_words for one in after] == ["", "blue shirt", "", "blue shirt", "blue shirt", "", "", ""]
    assert [one.candidate for one in after] == [one.candidate for one in candidates]
    assert degraded == []
    best = Tritons()
    read(best, candidates, max_pictures=1)
    assert best.asked == ["d"]


def test_what_was_read_changes_the_verdict() -> None:
    candidates = [seen("Blue 8903", 0.95, b"e")]
    assert reranked(candidates).counts == {Verdict.DROPPED_SEMANTIC: 1}
    after, _ = read(Tritons(), candidates)
    assert reranked(after).counts == {Verdict.KEPT: 1}


@pytest.mark.parametrize("problem", [InferenceError("Triton is gone"), OverloadedError("the room is full", 0.5)])
def test_failure_costs_words_and_is_told(problem: SearchError) -> None:
    after, degraded = read(Tritons(problem), [seen("Shirt", 0.7, b"b"), seen("Shirt", 0.9, b"d")])
    assert [one.picture_words for one in after] == ["", ""]
    (told,) = degraded
    assert told.part == "picture words"
    assert told.reason == f"2 of 2 thumbnails could not be captioned: {problem}"


def test_no_time_left_asks_nobody_and_is_told() -> None:
    tritons = Tritons()
    _, degraded = read(tritons, [seen("Shirt", 0.7, b"b")], seconds=0)
    assert tritons.asked == []
    assert degraded[0].reason.startswith("1 of 1 thumbnails could not be captioned: the deadline passed")


def test_model_with_a_query_head_reads_the_likeliest_words() -> None:
    tritons, candidates = Tritons(query_logprobs=[-3.0, -2.0, -0.2]), [seen("Shirt", 0.7, b"b")]
    contract, classes = ModelContract.load(MODELS), ("", "blue shirt", "red shirt")
    reader = PictureReader(
        cast("Any", Photos()), cast("Any", tritons), cast("Any", Words()), contract, 1, query_classes=classes
    )
    after, _ = asyncio.run(reader.read(reranked(candidates), candidates, Deadline(10)))
    assert after[0].picture_words == "red shirt"


def test_broken_thumbnail_has_no_words() -> None:
    after, degraded = read(Tritons(), [seen("Shirt", 0.7, b"broken")])
    assert (after[0].picture_words, degraded) == ("", [])
