# SPDX-License-Identifier: Apache-2.0
"""The two models: they turn photos and parameters into columns of values, through the pipeline."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from captioner.decoding import DecodingOptions
from captioner.image_error import ImageError
from captioner.preprocessing import Region
from captioner.query import QueryRule
from search_gateway.api.request_validation import decoding_options, query_rule, region, search_options
from search_gateway.config import GatewayConfig
from search_gateway.deadline import Deadline
from search_gateway.errors import BadRequestError
from search_gateway.kserve.model_declarations import CAPTION, SEARCH, ModelDeclaration
from search_gateway.kserve.request_parameters import CAPTION_PARAMETERS, SEARCH_PARAMETERS, parameter_values
from search_gateway.kserve.tensors import Columns
from search_gateway.pipeline import CaptionAnswer, Pipeline, SearchAnswer
from search_gateway.tasks import all_of


@dataclass(frozen=True)
class Inference:
    """The result of a model.

    Attributes:
        columns: every output of the model.
        stages_ms: duration of the stages of the slowest photo.
    """

    columns: Columns
    stages_ms: Mapping[str, float]


class ServedModel(Protocol):
    """A model of the KServe service."""

    @property
    def declaration(self) -> ModelDeclaration:
        """Its name, inputs and outputs."""

    async def infer(self, photos: Sequence[bytes], parameters: Mapping[str, Any], deadline: Deadline) -> Inference:
        """Run the model.

        Args:
            photos: image files.
            parameters: InferParameter by name.
            deadline: of the whole call.

        Raises:
            SearchError, ImageError: a parameter or a photo is wrong, or the pipeline failed.
        """


class CaptionModel:
    """The model `caption`."""

    declaration = CAPTION

    def __init__(self, pipeline: Pipeline):
        self._pipeline = pipeline

    async def infer(self, photos: Sequence[bytes], parameters: Mapping[str, Any], deadline: Deadline) -> Inference:
        """Caption all photos concurrently. If one fails, the others are cancelled, since nothing of them is sent."""
        asked = parameter_values(parameters, CAPTION_PARAMETERS)
        decoding = decoding_options(asked, self._pipeline.contract)
        rule = query_rule(asked, self._pipeline.contract)
        place = region(asked)
        answers = await all_of(
            self._caption(index, photos, decoding, rule, deadline, place) for index in range(len(photos))
        )
        return Inference(
            columns={
                "CAPTION": [answer.caption.text for answer in answers],
                "QUERY": [answer.query.text for answer in answers],
                "LOG_PROBABILITY": [answer.caption.log_probability for answer in answers],
                "CONFIDENCE": [_confidence(answer) for answer in answers],
                "UNSURE_REASON": [_unsure_reason(answer) for answer in answers],
            },
            stages_ms=max((answer.timings_ms for answer in answers), key=lambda stages: stages["total"]),
        )

    async def _caption(
        self,
        index: int,
        photos: Sequence[bytes],
        decoding: DecodingOptions,
        rule: QueryRule,
        deadline: Deadline,
        place: Region | None,
    ) -> CaptionAnswer:
        try:
            return await self._pipeline.caption(photos[index], decoding, rule, deadline, place)
        except (BadRequestError, ImageError) as error:
            if len(photos) == 1:
                raise
            raise BadRequestError(f"photo {index} of 0 to {len(photos) - 1}: {error}") from error


class SearchModel:
    """The model `search`."""

    declaration = SEARCH

    def __init__(self, pipeline: Pipeline, config: GatewayConfig):
        self._pipeline = pipeline
        self._config = config

    async def infer(self, photos: Sequence[bytes], parameters: Mapping[str, Any], deadline: Deadline) -> Inference:
        """Search for the one photo of a request."""
        (photo,) = photos
        asked = parameter_values(parameters, SEARCH_PARAMETERS)
        options = search_options(asked, self._pipeline.contract, self._config)
        answer: SearchAnswer | None = None
        async with contextlib.aclosing(self._pipeline.search(photo, options, deadline)) as events:
            async for event in events:
                if isinstance(event, SearchAnswer):
                    answer = event
        assert answer is not None, "the pipeline ends with the whole answer"
        return Inference(_search_columns(answer), answer.timings_ms)


def _confidence(answer: CaptionAnswer | SearchAnswer) -> float:
    return math.nan if answer.confidence is None else answer.confidence.value


def _unsure_reason(answer: CaptionAnswer | SearchAnswer) -> str:
    return "" if answer.confidence is None else answer.confidence.unsure_reason


def _search_columns(answer: SearchAnswer) -> Columns:
    kept = answer.reranked.kept
    return {
        "CAPTION": ["" if answer.caption is None else answer.caption.text],
        "QUERY": [answer.query.text],
        "PROVIDER": [answer.found.provider],
        "EMPTY_REASON": [answer.empty_reason],
        "CONFIDENCE": [_confidence(answer)],
        "UNSURE_REASON": [_unsure_reason(answer)],
        "TITLE": [result.candidate.title for result in kept],
        "URL": [result.candidate.url for result in kept],
        "IMAGE_URL": [result.candidate.image_url for result in kept],
        "THUMBNAIL_URL": [result.candidate.thumbnail_url for result in kept],
        "SOURCE": [result.candidate.source for result in kept],
        "LICENCE": [result.candidate.licence for result in kept],
        "ATTRIBUTION": [result.candidate.attribution for result in kept],
        "SCORE": [result.score for result in kept],
        "VISUAL_SCORE": [result.visual_score for result in kept],
        "SEMANTIC_SCORE": [result.semantic_score for result in kept],
        "DEGRADED": [f"{one.part}: {one.reason}" for one in answer.degraded],
    }
