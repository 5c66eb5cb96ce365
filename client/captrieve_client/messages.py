# SPDX-License-Identifier: Apache-2.0
"""The values a caller sees, and their conversion from and to the messages of `search.proto`.

Requests are built and answers are read here for the sync and the async client alike. Knows
nothing about channels.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, TypedDict

import grpc

from captrieve_client._generated import search_pb2
from captrieve_client.client_errors import PhotoFileError, RequestRejectedError

MAX_MESSAGE_BYTES = 16 * 2**20
# What a message can carry besides its options, which are far below 64 KiB.
MAX_PHOTO_BYTES = MAX_MESSAGE_BYTES - 2**16

Photo = bytes | str | os.PathLike[str]
QueryRuleName = Literal["likeliest_words", "last_two_words", "full_caption"]

_QUERY_RULES: dict[str | None, search_pb2.QueryRule] = {
    None: search_pb2.QUERY_RULE_UNSPECIFIED,
    "likeliest_words": search_pb2.QUERY_RULE_LIKELIEST_WORDS,
    "last_two_words": search_pb2.QUERY_RULE_LAST_TWO_WORDS,
    "full_caption": search_pb2.QUERY_RULE_FULL_CAPTION,
}


class CaptionOptions(TypedDict, total=False):
    """Keyword arguments of every captioning call; what is left out takes the server's default."""

    num_beams: int  # 1 is greedy decoding
    length_penalty: float | None  # beam search: -2 to 4
    max_tokens: int | None  # end of caption included
    query_rule: QueryRuleName | None  # "likeliest_words" only where the server's model has a query head


class SearchOptions(CaptionOptions, total=False):
    """Keyword arguments of every searching call; what is left out takes the server's default."""

    query_override: str | None  # search for these words; the photo is not captioned then
    override_colour: str | None  # search for this colour instead of the caption's
    override_thing: str | None  # search for this thing instead of the caption's
    provider: str | None  # "duckduckgo" or "catalog"
    max_results: int | None  # 1 to 100
    min_visual_score: float | None  # -1 to 1
    min_semantic_score: float | None  # 0 to 1
    explain: bool  # also return the dropped candidates, each with its reason


@dataclass(frozen=True, slots=True)
class WordAlternative:
    """What the model would have begun a word with instead; of the query's words, what else they may be."""

    text: str
    probability: float


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a caption, 0 to 1 sure, and its alternatives, most probable first."""

    text: str
    probability: float
    alternatives: tuple[WordAlternative, ...] = ()


@dataclass(frozen=True, slots=True)
class AlternativeCaption:
    """Another finished hypothesis of beam search."""

    text: str
    log_probability: float


@dataclass(frozen=True, slots=True)
class Caption:
    """What the photo shows, in words."""

    text: str
    words: tuple[Word, ...] = ()
    log_probability: float = 0.0
    complete: bool = True  # False where it was cut at max_tokens
    alternatives: tuple[AlternativeCaption, ...] = ()


@dataclass(frozen=True, slots=True)
class Query:
    """The words that are searched for."""

    text: str


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Where else the picture of a result was found."""

    source: str
    url: str
    title: str


@dataclass(frozen=True, slots=True)
class Result:
    """A picture found: kept, or dropped where `verdict` says so."""

    title: str
    url: str
    image_url: str
    thumbnail_url: str
    source: str
    width: int  # pixels of the full picture, 0 where unknown
    height: int
    visual_score: float  # -1 to 1
    semantic_score: float  # 0 to 1
    score: float
    verdict: str  # "kept", "dropped_visual", "dropped_semantic", ...
    reason: str
    thumbnail: bytes = b""  # an image file, empty where the server has none
    duplicates: tuple[Duplicate, ...] = ()  # the same picture, found elsewhere
    picture_words: str = ""  # with `explain`: what the thumbnail reads as, where the server asked for it


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the candidates; `found` is the sum of all but `fetched`."""

    found: int = 0
    fetched: int = 0
    unfetchable: int = 0
    undecodable: int = 0
    dropped_visual: int = 0
    dropped_semantic: int = 0
    over_limit: int = 0
    kept: int = 0
    duplicates: int = 0


@dataclass(frozen=True, slots=True)
class Degradation:
    """A part of the answer that is missing or second best, and why."""

    part: str
    reason: str


@dataclass(frozen=True, slots=True)
class Reading:
    """What a photo may be called."""

    query: str
    probability: float


@dataclass(frozen=True, slots=True)
class SearchAnswer:
    """All of a search. An empty one explains itself in `empty_reason` and `nearest_miss`."""

    caption: Caption | None  # None with `query_override`: the photo was not captioned
    query: str
    provider: str  # empty where none answered
    results: tuple[Result, ...]
    counts: Counts
    nearest_miss: Result | None
    empty_reason: str
    timings_ms: dict[str, float]  # stage -> milliseconds, in the order of the stages
    degraded: tuple[Degradation, ...]
    dropped: tuple[Result, ...]  # with `explain`
    model: str
    readings: tuple[Reading, ...] = ()  # what the photo may be called, most likely first
    query_rule: str = ""  # what made the query: "likeliest_words", ...; empty with `query_override`
    no_product_probability: float = 0.0  # that the photo shows no product; 0 where the model cannot tell


@dataclass(frozen=True, slots=True)
class CaptionAnswer:
    """A caption and what a search for the photo would look for."""

    caption: Caption
    query: str
    timings_ms: dict[str, float]
    model: str
    query_rule: str = ""  # what made the query: "likeliest_words", ...
    no_product_probability: float = 0.0  # that the photo shows no product; 0 where the model cannot tell


# What a streamed search sends, in this order: one Caption (none with `query_override`), one Query,
# the Results, one SearchAnswer that holds all of it.
SearchEvent = Caption | Query | Result | SearchAnswer


def read_photo(photo: Photo) -> bytes:
    """The photo's bytes, read from its file where a path is given.

    Raises:
        PhotoFileError: the file cannot be read.
        RequestRejectedError: the photo is larger than a message can carry.
    """
    if isinstance(photo, (str, os.PathLike)):
        try:
            with open(photo, "rb") as file:
                # One byte more shows that there is more; a device or pipe may never end.
                data = file.read(MAX_PHOTO_BYTES + 1)
        except OSError as error:
            reason = (error.strerror or "it cannot be read").lower()
            raise PhotoFileError(f"cannot read {os.fspath(photo)}: {reason}") from error
        except ValueError as error:  # a null character in the path
            raise PhotoFileError(f"cannot read {os.fspath(photo)!r}: not a path") from error
        name = os.fspath(photo)
    else:
        data, name = bytes(photo), "the photo"
    if len(data) > MAX_PHOTO_BYTES:
        raise RequestRejectedError(
            f"{name} is larger than the {MAX_PHOTO_BYTES / 1e6:.1f} MB a request can carry: send a smaller picture",
            code=grpc.StatusCode.INVALID_ARGUMENT,
        )
    return data


def caption_request(
    photo: bytes,
    *,
    num_beams: int = 1,
    length_penalty: float | None = None,
    max_tokens: int | None = None,
    query_rule: QueryRuleName | None = None,
) -> search_pb2.CaptionRequest:
    """The message that asks for a caption.

    Raises:
        ValueError: an unknown query rule, or a number that does not fit its field.
    """
    return search_pb2.CaptionRequest(
        photo=photo,
        decoding=search_pb2.DecodingOptions(num_beams=num_beams, length_penalty=length_penalty, max_tokens=max_tokens),
        query_rule=_query_rule(query_rule),
    )


def search_request(
    photo: bytes,
    *,
    num_beams: int = 1,
    length_penalty: float | None = None,
    max_tokens: int | None = None,
    query_rule: QueryRuleName | None = None,
    query_override: str | None = None,
    override_colour: str | None = None,
    override_thing: str | None = None,
    provider: str | None = None,
    max_results: int | None = None,
    min_visual_score: float | None = None,
    min_semantic_score: float | None = None,
    explain: bool = False,
) -> search_pb2.SearchRequest:
    """The message that asks for a search.

    Raises:
        ValueError: an unknown query rule, or a number that does not fit its field.
    """
    return search_pb2.SearchRequest(
        photo=photo,
        decoding=search_pb2.DecodingOptions(num_beams=num_beams, length_penalty=length_penalty, max_tokens=max_tokens),
        query_rule=_query_rule(query_rule),
        query_override=query_override,
        word_override=_word_override(override_colour, override_thing),
        provider=provider,
        max_results=max_results,
        refinement=search_pb2.RefinementOptions(
            min_visual_score=min_visual_score, min_semantic_score=min_semantic_score
        ),
        explain=explain,
    )


def _query_rule(name: str | None) -> search_pb2.QueryRule:
    if name not in _QUERY_RULES:
        known = ", ".join(repr(rule) for rule in _QUERY_RULES if rule)
        raise ValueError(f"query_rule is {name!r}; choose one of {known}")
    return _QUERY_RULES[name]


def _word_override(colour: str | None, thing: str | None) -> search_pb2.WordOverride | None:
    return None if colour is None and thing is None else search_pb2.WordOverride(colour=colour, thing=thing)


def caption_answer(message: search_pb2.CaptionResponse) -> CaptionAnswer:
    """The answer to a caption request."""
    return CaptionAnswer(
        caption=_caption(message.caption),
        query=message.query,
        timings_ms=_timings_ms(message.timings),
        model=message.model,
        query_rule=_rule_name(message.query_rule),
        no_product_probability=_decimal(message.no_product_probability),
    )


def search_answer(message: search_pb2.SearchResponse) -> SearchAnswer:
    """The answer to a search request."""
    counts = message.counts
    return SearchAnswer(
        caption=_caption(message.caption) if message.HasField("caption") else None,
        query=message.query,
        provider=message.provider,
        results=tuple(map(_result, message.results)),
        counts=Counts(
            found=counts.found,
            fetched=counts.fetched,
            unfetchable=counts.unfetchable,
            undecodable=counts.undecodable,
            dropped_visual=counts.dropped_visual,
            dropped_semantic=counts.dropped_semantic,
            over_limit=counts.over_limit,
            kept=counts.kept,
            duplicates=counts.duplicates,
        ),
        nearest_miss=_result(message.nearest_miss) if message.HasField("nearest_miss") else None,
        empty_reason=message.empty_reason,
        timings_ms=_timings_ms(message.timings),
        degraded=tuple(Degradation(part.part, part.reason) for part in message.degraded),
        dropped=tuple(map(_result, message.dropped)),
        model=message.model,
        readings=tuple(Reading(one.query, one.probability) for one in message.readings),
        query_rule=_rule_name(message.query_rule),
        no_product_probability=_decimal(message.no_product_probability),
    )


def search_event(message: search_pb2.SearchEvent, results: list[Result]) -> SearchEvent | None:
    """One event of a streamed search; None for a kind that this client does not know yet.

    Args:
        results: the results of this stream so far. Grows, and completes the summary, which the
            server sends without them.
    """
    kind = message.WhichOneof("event")
    if kind == "caption":
        return _caption(message.caption)
    if kind == "query":
        return Query(message.query)
    if kind == "result":
        results.append(_result(message.result))
        return results[-1]
    if kind == "summary":
        answer = search_answer(message.summary)
        return answer if answer.results else replace(answer, results=tuple(results))
    return None


def _caption(message: search_pb2.Caption) -> Caption:
    return Caption(
        text=message.text,
        words=tuple(map(_word, message.words)),
        log_probability=_decimal(message.log_probability),
        complete=message.complete,
        alternatives=tuple(
            AlternativeCaption(other.text, _decimal(other.log_probability)) for other in message.alternatives
        ),
    )


def _word(message: search_pb2.Word) -> Word:
    return Word(
        text=message.text,
        probability=_decimal(message.probability),
        alternatives=tuple(WordAlternative(other.text, _decimal(other.probability)) for other in message.alternatives),
    )


def _result(message: search_pb2.Result) -> Result:
    return Result(
        title=message.title,
        url=message.url,
        image_url=message.image_url,
        thumbnail_url=message.thumbnail_url,
        source=message.source,
        width=message.width,
        height=message.height,
        visual_score=_decimal(message.visual_score),
        semantic_score=_decimal(message.semantic_score),
        score=_decimal(message.score),
        verdict=_verdict_name(message.verdict),
        reason=message.reason,
        thumbnail=message.thumbnail,
        duplicates=tuple(Duplicate(one.source, one.url, one.title) for one in message.duplicates),
        picture_words=message.picture_words,
    )


def _verdict_name(verdict: search_pb2.Verdict) -> str:
    try:
        return search_pb2.Verdict.Name(verdict).removeprefix("VERDICT_").lower()
    except ValueError:  # a verdict of a newer server
        return "unspecified"


def _rule_name(rule: search_pb2.QueryRule) -> str:
    """Empty for a query that was given, and for a rule of a newer server."""
    return next((name for name, number in _QUERY_RULES.items() if name and number == rule), "")


def _timings_ms(timings: Iterable[search_pb2.StageTime]) -> dict[str, float]:
    return {timing.stage: timing.milliseconds for timing in timings}


def _decimal(number: float) -> float:
    """0.9, not the 0.8999999761581421 that a 32-bit float becomes in 64 bits."""
    return float(f"{number:.7g}")
