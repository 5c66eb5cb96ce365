# SPDX-License-Identifier: Apache-2.0
"""`captrieve.v1.SearchService`: protobuf messages in and out of the pipeline. The interceptor handles its errors."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import grpc

from captioner import captions
from captioner.model_contract import ModelContract
from captioner.photo_confidence import PhotoConfidence
from captioner.query import QueryRule
from search_api import search_pb2, search_pb2_grpc
from search_gateway.api.admission import Admission
from search_gateway.api.request_validation import decoding_options, query_rule, region, request_values, search_options
from search_gateway.config import GatewayConfig
from search_gateway.pipeline import CaptionAnswer, PhotoQuery, Pipeline, SearchAnswer, SearchEvent
from search_gateway.providers.base import Candidate
from search_gateway.ranking.rerank import ScoredResult, Verdict

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

# Larger thumbnails are left out, so that other people's servers do not decide the size of an answer.
_MAX_THUMBNAIL_BYTES = 256 * 1024

_QUERY_RULES = {
    None: search_pb2.QUERY_RULE_UNSPECIFIED,
    QueryRule.LAST_TWO_WORDS: search_pb2.QUERY_RULE_LAST_TWO_WORDS,
    QueryRule.FULL_CAPTION: search_pb2.QUERY_RULE_FULL_CAPTION,
    QueryRule.LIKELIEST_WORDS: search_pb2.QUERY_RULE_LIKELIEST_WORDS,
    QueryRule.SALIENT: search_pb2.QUERY_RULE_SALIENT,
}
_VERDICTS = {verdict: f"VERDICT_{verdict.name}" for verdict in Verdict}


class SearchService(search_pb2_grpc.SearchServiceServicer):
    """The service as search.proto documents it."""

    def __init__(self, pipeline: Pipeline, admission: Admission, config: GatewayConfig):
        self._pipeline = pipeline
        self._admission = admission
        self._config = config

    async def Search(self, request: search_pb2.SearchRequest, context: Context) -> search_pb2.SearchResponse:
        """Search, and answer once."""
        answer: SearchAnswer | None = None
        async with contextlib.aclosing(self._events(request, context)) as events:
            async for event in events:
                if isinstance(event, SearchAnswer):
                    answer = event
        assert answer is not None, "the pipeline ends with the whole answer"
        return _search_response(answer, self._model, request, with_results=True)

    async def StreamSearch(self, request: search_pb2.SearchRequest, context: Context) -> None:
        """Search, and send caption, query, results and a summary as they become known."""
        # Written here, not yielded: gRPC leaves the generator of a stream that it cancels to the garbage collector, and
        # with it the place among the requests in progress.
        async with contextlib.aclosing(self._events(request, context)) as events:
            async for event in events:
                await context.write(self._event_message(event, request))

    async def Caption(self, request: search_pb2.CaptionRequest, context: Context) -> search_pb2.CaptionResponse:
        """Caption a photo without searching."""
        with self._admission.admitted():
            asked = request_values(request)
            decoding = decoding_options(asked, self._contract)
            rule = query_rule(asked, self._contract, self._config)
            deadline = self._admission.deadline(context)
            answer = await self._pipeline.caption(request.photo, decoding, rule, deadline, region(asked))
        return _caption_response(answer, self._model)

    async def _events(self, request: search_pb2.SearchRequest, context: Context) -> AsyncGenerator[SearchEvent, None]:
        with self._admission.admitted():
            options = search_options(request_values(request), self._contract, self._config)
            found = self._pipeline.search(request.photo, options, self._admission.deadline(context))
            async with contextlib.aclosing(found) as events:
                async for event in events:
                    yield event

    def _event_message(self, event: SearchEvent, request: search_pb2.SearchRequest) -> search_pb2.SearchEvent:
        match event:
            case captions.Caption():
                return search_pb2.SearchEvent(caption=_caption_message(event))
            case PhotoQuery():
                return search_pb2.SearchEvent(
                    query=event.query.text,
                    readings=_readings(event),
                    query_rule=_QUERY_RULES[event.query_rule],
                    paper_query=event.paper_query,
                    **_confidence(event.confidence),
                )
            case ScoredResult():
                return search_pb2.SearchEvent(result=_result_message(event))
            case SearchAnswer():
                summary = _search_response(event, self._model, request, with_results=False)
                return search_pb2.SearchEvent(summary=summary)

    @property
    def _contract(self) -> ModelContract:
        return self._pipeline.contract

    @property
    def _model(self) -> str:
        return self._pipeline.contract.model


def _caption_response(answer: CaptionAnswer, model: str) -> search_pb2.CaptionResponse:
    return search_pb2.CaptionResponse(
        caption=_caption_message(answer.caption),
        query=answer.query.text,
        timings=_timings(answer.timings_ms),
        model=model,
        query_rule=_QUERY_RULES[answer.query_rule],
        paper_query=answer.paper_query,
        no_product_probability=answer.no_product_probability,
        **_confidence(answer.confidence),
    )


def _search_response(
    answer: SearchAnswer, model: str, request: search_pb2.SearchRequest, *, with_results: bool
) -> search_pb2.SearchResponse:
    reranked = answer.reranked
    response = search_pb2.SearchResponse(
        query=answer.query.text,
        provider=answer.found.provider,
        results=_results(reranked.kept if with_results else ()),
        counts=_counts(answer),
        empty_reason=answer.empty_reason,
        timings=_timings(answer.timings_ms),
        degraded=[search_pb2.Degradation(part=one.part, reason=one.reason) for one in answer.degraded],
        dropped=_results(reranked.dropped if request.explain else ()),
        model=model,
        readings=_readings(answer),
        excluded=answer.excluded,
        query_rule=_QUERY_RULES[answer.query_rule],
        paper_query=answer.paper_query,
        no_product_probability=answer.no_product_probability,
        **_confidence(answer.confidence),
    )
    if answer.caption is not None:
        response.caption.CopyFrom(_caption_message(answer.caption))
    if request.HasField("word_override"):
        response.word_override.CopyFrom(request.word_override)
    if not reranked.kept and reranked.dropped:
        response.nearest_miss.CopyFrom(_result_message(reranked.dropped[0]))
    return response


def _readings(found: PhotoQuery | SearchAnswer) -> Iterable[search_pb2.Reading]:
    readings = found.hypotheses.readings(found.query)
    return [search_pb2.Reading(query=query, probability=probability) for query, probability in readings]


def _confidence(confidence: PhotoConfidence | None) -> dict[str, Any]:
    """Return the fields of a response."""
    return {} if confidence is None else {"confidence": confidence.value, "unsure_reason": confidence.unsure_reason}


def _counts(answer: SearchAnswer) -> search_pb2.Counts:
    counts = answer.reranked.counts
    found = len(answer.found.candidates)
    return search_pb2.Counts(
        found=found,
        fetched=found - counts[Verdict.DROPPED_UNFETCHABLE],
        unfetchable=counts[Verdict.DROPPED_UNFETCHABLE],
        undecodable=counts[Verdict.DROPPED_UNDECODABLE],
        dropped_visual=counts[Verdict.DROPPED_VISUAL],
        dropped_semantic=counts[Verdict.DROPPED_SEMANTIC],
        over_limit=counts[Verdict.DROPPED_OVER_LIMIT],
        kept=counts[Verdict.KEPT],
        duplicates=counts[Verdict.DROPPED_DUPLICATE],
    )


def _caption_message(caption: captions.Caption) -> search_pb2.Caption:
    return search_pb2.Caption(
        text=caption.text,
        words=[
            search_pb2.Word(
                text=word.text,
                probability=word.probability,
                alternatives=[
                    search_pb2.WordAlternative(text=other.text, probability=other.probability)
                    for other in word.alternatives
                ],
            )
            for word in caption.words
        ],
        log_probability=caption.log_probability,
        complete=caption.complete,
        alternatives=[
            search_pb2.AlternativeCaption(text=other.text, log_probability=other.log_probability)
            for other in caption.alternatives
        ],
    )


def _results(judged: Sequence[ScoredResult]) -> Iterable[search_pb2.Result]:
    return [_result_message(one) for one in judged]


def _result_message(judged: ScoredResult) -> search_pb2.Result:
    candidate = judged.candidate
    thumbnail = judged.thumbnail or b""
    return search_pb2.Result(
        title=candidate.title,
        url=candidate.url,
        image_url=candidate.image_url,
        thumbnail_url=candidate.thumbnail_url,
        source=candidate.source,
        width=candidate.width,
        height=candidate.height,
        visual_score=judged.visual_score,
        semantic_score=judged.semantic_score,
        score=judged.score,
        verdict=_VERDICTS[judged.verdict],
        reason=judged.reason,
        thumbnail=thumbnail if len(thumbnail) <= _MAX_THUMBNAIL_BYTES else b"",
        duplicates=[
            search_pb2.Duplicate(source=other.source, url=other.url, title=other.title, **_credit(other))
            for other in judged.duplicates
        ],
        provider=candidate.provider,
        **_credit(candidate),
        contributions=[search_pb2.Contribution(part=part, value=value) for part, value in judged.contributions],
        findings=[
            search_pb2.Finding(kind=one.kind, words=one.words, probability=one.probability) for one in judged.findings
        ],
    )


def _credit(candidate: Candidate) -> dict[str, str]:
    """Return what must be shown with a picture."""
    return {
        "licence": candidate.licence,
        "licence_url": candidate.licence_url,
        "attribution": candidate.attribution,
    }


def _timings(milliseconds: Mapping[str, float]) -> Iterable[search_pb2.StageTime]:
    return [search_pb2.StageTime(stage=stage, milliseconds=value) for stage, value in milliseconds.items()]
