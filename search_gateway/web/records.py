# SPDX-License-Identifier: Apache-2.0
"""Answers as JSON, with the fields that the client's command prints with `--json`; a test compares the two."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from search_api import search_pb2

Record: TypeAlias = dict[str, Any]
LinkOf: TypeAlias = Callable[[bytes], str]

_COUNTS = [field.name for field in search_pb2.Counts.DESCRIPTOR.fields]


def caption_answer(message: search_pb2.CaptionResponse, photo_name: str) -> Record:
    """Return the answer of a caption.

    Args:
        message: the service's answer.
        photo_name: what the caller calls the photo.
    """
    return {
        "photo": photo_name,
        **_caption(message.caption),
        "query": message.query,
        "query_rule": _rule_name(message.query_rule),
        "paper_query": message.paper_query,
        "no_product_probability": _decimal(message.no_product_probability),
        **_confidence(message),
        "timings_ms": _timings(message.timings),
        "model": message.model,
    }


def caption_event(caption: search_pb2.Caption | None, event: search_pb2.SearchEvent) -> Record:
    """Return what is known before the search; `caption` is None where the query was given."""
    return {
        **(_no_caption() if caption is None else _caption(caption)),
        "query": event.query,
        "query_rule": _rule_name(event.query_rule),
        "paper_query": event.paper_query,
        "readings": _readings(event.readings),
        **_confidence(event),
    }


def search_answer(
    message: search_pb2.SearchResponse, photo_name: str, link_of: LinkOf, *, has_dropped: bool, has_results: bool = True
) -> Record:
    """Return the answer of a search.

    Args:
        message: the service's answer.
        photo_name: what the caller calls the photo.
        link_of: returns where a thumbnail can be fetched.
        has_dropped: whether the caller asked for the dropped candidates.
        has_results: False for the summary of a stream, whose results were sent before.
    """
    caption = message.caption if message.HasField("caption") else None
    override = message.word_override
    record = {
        "photo": photo_name,
        "caption": None if caption is None else caption.text,
        "words": [] if caption is None else _words(caption),
        "query": message.query,
        "query_rule": _rule_name(message.query_rule),
        "paper_query": message.paper_query,
        "word_override": {
            name: getattr(override, name) if override.HasField(name) else None for name in ("colour", "thing")
        },
        "excluded": list(message.excluded),
        "no_product_probability": _decimal(message.no_product_probability),
        **_confidence(message),
        "readings": _readings(message.readings),
        "provider": message.provider,
        "results": [result(one, link_of) for one in message.results],
        "counts": {name: getattr(message.counts, name) for name in _COUNTS},
        "nearest_miss": result(message.nearest_miss, link_of) if message.HasField("nearest_miss") else None,
        "empty_reason": message.empty_reason,
        "timings_ms": _timings(message.timings),
        "degraded": [{"part": one.part, "reason": one.reason} for one in message.degraded],
        "model": message.model,
    }
    if not has_results:
        del record["results"]
    if has_dropped:
        record["dropped"] = [{**result(one, link_of), "verdict": _verdict(one)} for one in message.dropped]
    return record


def result(message: search_pb2.Result, link_of: LinkOf) -> Record:
    """Return a result; its thumbnail as a link, "" where the gateway has none."""
    contributions = [{"part": one.part, "value": _decimal(one.value)} for one in message.contributions]
    return {
        "title": message.title,
        "url": message.url,
        "image_url": message.image_url,
        "thumbnail_url": link_of(message.thumbnail) if message.thumbnail else "",
        "source": message.source,
        "width": message.width,
        "height": message.height,
        "visual_score": _decimal(message.visual_score),
        "semantic_score": _decimal(message.semantic_score),
        "score": _decimal(message.score),
        "reason": message.reason,
        "duplicates": [
            {"source": one.source, "url": one.url, "title": one.title, **_credit(one)} for one in message.duplicates
        ],
        "picture_words": message.picture_words,
        "provider": message.provider,
        **_credit(message),
        **({"contributions": contributions} if contributions else {}),
        "findings": [
            {"kind": one.kind, "words": list(one.words), "probability": _decimal(one.probability)}
            for one in message.findings
        ],
    }


def _credit(message: search_pb2.Result | search_pb2.Duplicate) -> Record:
    return {name: getattr(message, name) for name in ("licence", "licence_url", "attribution")}


def _caption(caption: search_pb2.Caption) -> Record:
    return {
        "caption": caption.text,
        "words": _words(caption),
        "log_probability": _decimal(caption.log_probability),
        "complete": caption.complete,
    }


def _no_caption() -> Record:
    return {"caption": None, "words": [], "log_probability": 0.0, "complete": True}


def _words(caption: search_pb2.Caption) -> list[Record]:
    return [
        {
            "text": word.text,
            "probability": _decimal(word.probability),
            "alternatives": [
                {"text": other.text, "probability": _decimal(other.probability)} for other in word.alternatives
            ],
        }
        for word in caption.words
    ]


def _confidence(message: Any) -> Record:
    confidence = _decimal(message.confidence) if message.HasField("confidence") else None
    return {"confidence": confidence, "unsure_reason": message.unsure_reason}


def _readings(readings: Iterable[search_pb2.Reading]) -> list[Record]:
    return [{"query": one.query, "probability": one.probability} for one in readings]


def _rule_name(rule: int) -> str:
    return search_pb2.QueryRule.Name(rule).removeprefix("QUERY_RULE_").lower() if rule else ""


def _verdict(message: search_pb2.Result) -> str:
    return search_pb2.Verdict.Name(message.verdict).removeprefix("VERDICT_").lower()


def _timings(timings: Iterable[search_pb2.StageTime]) -> dict[str, float]:
    return {one.stage: one.milliseconds for one in timings}


def _decimal(number: float) -> float:
    """Return the shortest decimal of a single-precision number: 0.4, not 0.4000000059604645."""
    return float(f"{number:.7g}")
