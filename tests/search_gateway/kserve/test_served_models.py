# SPDX-License-Identifier: Apache-2.0
"""The photos of one request are worked on side by side, and one that fails ends the others."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from captioner.captions import Caption
from captioner.decoding import DecodingOptions
from captioner.image_error import ImageError, ImageReason
from captioner.model_contract import ModelContract
from captioner.photo_confidence import photo_confidence
from captioner.preprocessing import Region
from captioner.query import Query, QueryRule
from search_gateway.deadline import Deadline
from search_gateway.errors import BadRequestError, InferenceError
from search_gateway.kserve.protocol import service_pb2
from search_gateway.kserve.served_models import CaptionModel
from search_gateway.pipeline import CaptionAnswer
from tests.conftest import MODELS

Parameter = service_pb2.InferParameter


class ScriptedPipeline:
    """Captions a photo with its own bytes, once all photos of the request have come."""

    contract = ModelContract.load(MODELS)

    def __init__(self, company: int = 1):
        self._company = asyncio.Barrier(company)
        self.ended = 0
        self.asked: list[tuple[DecodingOptions, QueryRule]] = []
        self.regions: list[Region | None] = []

    async def caption(
        self,
        data: bytes,
        decoding: DecodingOptions,
        rule: QueryRule,
        deadline: Deadline,
        region: Region | None = None,
    ) -> CaptionAnswer:
        self.asked.append((decoding, rule))
        self.regions.append(region)
        try:
            await self._company.wait()
            if data == b"bad":
                raise ImageError(ImageReason.UNREADABLE, "is not a JPEG", 0, None, "convert it")
            if data == b"down":
                raise InferenceError("Triton is away")
            if data == b"slow":
                await asyncio.Event().wait()
            caption = Caption(data.decode(), (), -1.5, True, ())
            timings = {"encode": float(len(data)), "total": float(len(data))}
            confidence = photo_confidence(0.9) if data == b"two" else None
            return CaptionAnswer(caption, Query.of("query"), timings, confidence=confidence)
        finally:
            self.ended += 1


def infer(pipeline: ScriptedPipeline, *photos: bytes, **parameters: Any) -> Any:
    model = CaptionModel(pipeline)  # type: ignore[arg-type]
    return model.infer(photos, parameters, Deadline(10))


def test_photos_are_captioned_side_by_side_and_keep_their_order() -> None:
    async def run() -> Any:
        return await infer(ScriptedPipeline(3), b"one", b"three", b"two")

    inference = asyncio.run(run())
    assert inference.columns["CAPTION"] == ["one", "three", "two"]
    assert inference.columns["LOG_PROBABILITY"] == [-1.5] * 3
    assert inference.columns["CONFIDENCE"] == pytest.approx([math.nan, math.nan, 0.1], nan_ok=True)
    assert inference.columns["UNSURE_REASON"] == ["", "", "the photo may show no product"]
    assert inference.stages_ms == {"encode": 5.0, "total": 5.0}, "of the photo that took longest"


def test_region_goes_for_every_photo_of_the_batch() -> None:
    pipeline = ScriptedPipeline(2)
    place = Parameter(string_param="0.5,0,0.5,1")

    async def run() -> None:
        await infer(pipeline, b"one", b"two", region=place)

    asyncio.run(run())
    assert pipeline.regions == [Region(0.5, 0.0, 0.5, 1.0)] * 2


def test_bad_photo_is_named_by_its_index_and_the_others_are_ended() -> None:
    async def run() -> int:
        pipeline = ScriptedPipeline(3)
        with pytest.raises(BadRequestError) as refusal:
            await infer(pipeline, b"slow", b"slow", b"bad")
        assert str(refusal.value) == "photo 2 of 0 to 2: the photo is not a JPEG: convert it"
        assert isinstance(refusal.value.__cause__, ImageError)
        return pipeline.ended

    assert asyncio.run(run()) == 3


def test_only_photo_needs_no_index() -> None:
    async def run() -> None:
        with pytest.raises(ImageError, match="^the photo is not a JPEG: convert it$"):
            await infer(ScriptedPipeline(), b"bad")

    asyncio.run(run())


def test_failure_that_is_no_photos_fault_names_none() -> None:
    async def run() -> None:
        with pytest.raises(InferenceError, match="^Triton is away$"):
            await infer(ScriptedPipeline(2), b"slow", b"down")

    asyncio.run(run())


def test_cancelling_the_request_ends_all_its_photos() -> None:
    async def run() -> int:
        pipeline = ScriptedPipeline(2)
        task = asyncio.create_task(infer(pipeline, b"slow", b"slow"))
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return pipeline.ended

    assert asyncio.run(run()) == 2


def test_parameters_have_the_limits_of_search_proto_under_their_own_names() -> None:
    async def run() -> None:
        pipeline = ScriptedPipeline()
        await infer(
            pipeline, b"x", num_beams=Parameter(int64_param=3), query_rule=Parameter(string_param="full_caption")
        )
        ((decoding, rule),) = pipeline.asked
        assert (decoding.num_beams, rule) == (3, QueryRule.FULL_CAPTION)
        with pytest.raises(BadRequestError, match="^num_beams is 9: it goes from 1 to 8"):
            await infer(pipeline, b"x", num_beams=Parameter(int64_param=9))

    asyncio.run(run())
