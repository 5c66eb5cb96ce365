# SPDX-License-Identifier: Apache-2.0
"""The values of the library, and their conversion from and to the messages of `search.proto`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypedDict

from grpc_health.v1 import health_pb2

from captrieve_client._generated import search_pb2

QueryRuleName = Literal["likeliest_words", "last_two_words", "full_caption", "salient"]

_QUERY_RULES: dict[str | None, search_pb2.QueryRule] = {
    None: search_pb2.QUERY_RULE_UNSPECIFIED,
    "likeliest_words": search_pb2.QUERY_RULE_LIKELIEST_WORDS,
    "last_two_words": search_pb2.QUERY_RULE_LAST_TWO_WORDS,
    "full_caption": search_pb2.QUERY_RULE_FULL_CAPTION,
    "salient": search_pb2.QUERY_RULE_SALIENT,
}


class CaptionOptions(TypedDict, total=False):
    """Keyword arguments of the captioning methods. The gateway has a default for each.

    Attributes:
        num_beams: beams of beam search; 1 is greedy decoding.
        length_penalty: of beam search, -2 to 4; the gateway's default is 0: the most probable caption wins.
        max_tokens: limit of the caption's length, including its end token.
        query_rule: how the query is derived; "likeliest_words" needs a model with a query head.
        region: the part of the photo that is used: left edge, top edge, width and height, in fractions of the
            photo's width and height, once it is turned upright as its EXIF says.
    """

    num_beams: int
    length_penalty: float | None
    max_tokens: int | None
    query_rule: QueryRuleName | None
    region: tuple[float, float, float, float] | None


class SearchOptions(CaptionOptions, total=False):
    """Keyword arguments of the searching methods. The gateway has a default for each.

    Attributes:
        query_override: the query; the photo is not captioned.
        override_colour: the colour in the query, instead of the caption's.
        override_thing: the product type in the query, instead of the caption's.
        provider: the only one of the gateway's providers to ask, such as "catalog" or "brave".
        max_results: 1 to 100.
        min_visual_score: lowest visual score of a result, -1 to 1.
        min_semantic_score: lowest agreement of a title with the query, 0 to 1.
        exclude: words that no result's title may have, at most 8.
        min_price: lowest price of a product; with this or one of the next three only a catalogue is searched.
        max_price: highest price of a product.
        available: only products that are in stock, or only those that are not.
        categories: a product has one of them, exactly as the catalogue has it; at most 20.
        explain: whether to return dropped candidates too, each with its reason, and what adds up to each score.
    """

    query_override: str | None
    override_colour: str | None
    override_thing: str | None
    provider: str | None
    max_results: int | None
    min_visual_score: float | None
    min_semantic_score: float | None
    exclude: Sequence[str]
    min_price: float | None
    max_price: float | None
    available: bool | None
    categories: Sequence[str]
    explain: bool


@dataclass(frozen=True, slots=True)
class WordAlternative:
    """Another value of a word: of a query word another name, otherwise another first token."""

    text: str
    probability: float


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a caption with its probability, 0 to 1, and its alternatives, most probable first."""

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
    """The description of a photo."""

    text: str
    words: tuple[Word, ...] = ()
    log_probability: float = 0.0
    complete: bool = True  # False if it was cut at max_tokens
    alternatives: tuple[AlternativeCaption, ...] = ()


@dataclass(frozen=True, slots=True)
class Query:
    """The words of the search, and what the photo alone says; a gateway before this version sends the words alone."""

    text: str
    readings: tuple[Reading, ...] = ()  # names the photo may have: `query` first, then most likely first
    query_rule: str = ""  # "likeliest_words", ...; empty with `query_override`
    confidence: float | None = None  # that the photo shows a product, 0 to 1; None if the gateway cannot tell
    unsure_reason: str = ""  # set if the confidence is below one half
    paper_query: str = ""  # by the rule "last_two_words", set if its words differ from `text`


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Another source of a result's picture."""

    source: str
    url: str
    title: str
    licence: str = ""  # these three as in `Result`
    licence_url: str = ""
    attribution: str = ""


@dataclass(frozen=True, slots=True)
class Contribution:
    """A part of a result's score, such as "looks" or "colour_photo"."""

    part: str
    value: float


@dataclass(frozen=True, slots=True)
class Finding:
    """What a result's reason says, for programs; search.proto lists the kinds."""

    kind: str
    words: tuple[str, ...] = ()
    probability: float = 0.0


@dataclass(frozen=True, slots=True)
class Result:
    """A picture that was found; `verdict` says whether it was kept or why it was dropped."""

    title: str
    url: str
    image_url: str
    thumbnail_url: str
    source: str
    width: int  # pixels of the full picture, 0 if unknown
    height: int
    visual_score: float  # -1 to 1
    semantic_score: float  # 0 to 1
    score: float
    verdict: str  # "kept", "dropped_visual", "dropped_semantic", ...
    reason: str
    thumbnail: bytes = b""  # an image file, empty if the gateway has none
    duplicates: tuple[Duplicate, ...] = ()  # other sources of the same picture
    picture_words: str = ""  # deprecated: gateways no longer caption thumbnails and leave this empty
    licence: str = ""  # of the picture, as "CC BY-SA 4.0"; empty if unknown
    licence_url: str = ""
    attribution: str = ""  # the credit line that must be shown with the result; empty if none is asked for
    provider: str = ""  # which one found it, if several were asked together; otherwise empty
    contributions: tuple[Contribution, ...] = ()  # with `explain`: what adds up to `score`
    findings: tuple[Finding, ...] = ()  # what `reason` says, for programs


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of candidates by outcome; `found` is the sum of all others except `fetched`."""

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
    """A part of the answer that is missing or of lower quality, and the reason."""

    part: str
    reason: str


@dataclass(frozen=True, slots=True)
class Reading:
    """A possible query for the photo, with its probability."""

    query: str
    probability: float


@dataclass(frozen=True, slots=True)
class WordOverride:
    """The words that a request gave instead of the photo's own; None where it gave none."""

    colour: str | None = None
    thing: str | None = None


@dataclass(frozen=True, slots=True)
class SearchAnswer:
    """The answer of a search. Without results, `empty_reason` and `nearest_miss` explain why."""

    caption: Caption | None  # None with `query_override`: the photo was not captioned
    query: str
    provider: str  # empty if none answered
    results: tuple[Result, ...]
    counts: Counts
    nearest_miss: Result | None
    empty_reason: str
    timings_ms: dict[str, float]  # stage -> milliseconds, in the order of the stages
    degraded: tuple[Degradation, ...]
    dropped: tuple[Result, ...]  # with `explain`
    model: str
    readings: tuple[Reading, ...] = ()  # names the photo may have: `query` first, then most likely first
    query_rule: str = ""  # "likeliest_words", ...; empty with `query_override`
    word_override: WordOverride = WordOverride()  # the request's words in the query and in `readings`
    no_product_probability: float = 0.0  # by the query head alone; 0 if the model has none
    confidence: float | None = None  # that the photo shows a product, 0 to 1; None if the gateway cannot tell
    unsure_reason: str = ""  # set if the confidence is below one half: the answer is a guess
    paper_query: str = ""  # by the rule "last_two_words", set if its words differ from `query`
    excluded: tuple[str, ...] = ()  # the words that no result's title may have


@dataclass(frozen=True, slots=True)
class CaptionAnswer:
    """The caption of a photo and the query that a search would use."""

    caption: Caption
    query: str
    timings_ms: dict[str, float]
    model: str
    query_rule: str = ""  # "likeliest_words", ...
    no_product_probability: float = 0.0  # by the query head alone; 0 if the model has none
    confidence: float | None = None  # that the photo shows a product, 0 to 1; None if the gateway cannot tell
    unsure_reason: str = ""  # set if the confidence is below one half: the answer is a guess
    paper_query: str = ""  # by the rule "last_two_words", set if its words differ from `query`


# A streamed search yields, in this order: one Caption (none with `query_override`), one Query, the
# Results, one SearchAnswer with all of them.
SearchEvent = Caption | Query | Result | SearchAnswer


def caption_request(
    photo: bytes,
    *,
    num_beams: int = 1,
    length_penalty: float | None = None,
    max_tokens: int | None = None,
    query_rule: QueryRuleName | None = None,
    region: tuple[float, float, float, float] | None = None,
) -> search_pb2.CaptionRequest:
    """Builds the request of a caption from the bytes of an image file and the keyword arguments of `CaptionOptions`.

    Returns:
        The message to send.

    Raises:
        ValueError: an unknown query rule, a region without four numbers, or a number that does not fit its field.
    """
    return search_pb2.CaptionRequest(
        photo=photo,
        decoding=search_pb2.DecodingOptions(num_beams=num_beams, length_penalty=length_penalty, max_tokens=max_tokens),
        query_rule=_query_rule(query_rule),
        region=_region(region),
    )


def search_request(
    photo: bytes,
    *,
    num_beams: int = 1,
    length_penalty: float | None = None,
    max_tokens: int | None = None,
    query_rule: QueryRuleName | None = None,
    region: tuple[float, float, float, float] | None = None,
    query_override: str | None = None,
    override_colour: str | None = None,
    override_thing: str | None = None,
    provider: str | None = None,
    max_results: int | None = None,
    min_visual_score: float | None = None,
    min_semantic_score: float | None = None,
    exclude: Sequence[str] = (),
    min_price: float | None = None,
    max_price: float | None = None,
    available: bool | None = None,
    categories: Sequence[str] = (),
    explain: bool = False,
) -> search_pb2.SearchRequest:
    """Builds the request of a search from the bytes of an image file and the keyword arguments of `SearchOptions`.

    Returns:
        The message to send.

    Raises:
        ValueError: an unknown query rule, a region without four numbers, or a number that does not fit its field.
    """
    filters = search_pb2.Filters(min_price=min_price, max_price=max_price, available=available, categories=categories)
    return search_pb2.SearchRequest(
        photo=photo,
        decoding=search_pb2.DecodingOptions(num_beams=num_beams, length_penalty=length_penalty, max_tokens=max_tokens),
        query_rule=_query_rule(query_rule),
        region=_region(region),
        query_override=query_override,
        word_override=_word_override(override_colour, override_thing),
        provider=provider,
        max_results=max_results,
        refinement=search_pb2.RefinementOptions(
            min_visual_score=min_visual_score, min_semantic_score=min_semantic_score
        ),
        exclude=exclude,
        filters=filters if filters.ListFields() else None,
        explain=explain,
    )


def _query_rule(name: str | None) -> search_pb2.QueryRule:
    if name not in _QUERY_RULES:
        known = ", ".join(repr(rule) for rule in _QUERY_RULES if rule)
        raise ValueError(f"query_rule is {name!r}; choose one of {known}")
    return _QUERY_RULES[name]


def _region(region: tuple[float, float, float, float] | None) -> search_pb2.Region | None:
    if region is None:
        return None
    if len(region) != 4:
        raise ValueError(f"region is {region!r}; give left edge, top edge, width and height as fractions")
    x, y, width, height = region
    return search_pb2.Region(x=x, y=y, width=width, height=height)


def _word_override(colour: str | None, thing: str | None) -> search_pb2.WordOverride | None:
    return None if colour is None and thing is None else search_pb2.WordOverride(colour=colour, thing=thing)


def caption_answer(message: search_pb2.CaptionResponse) -> CaptionAnswer:
    """Reads the answer of a caption request.

    Args:
        message: the gateway's answer.

    Returns:
        The same as values of this library.
    """
    return CaptionAnswer(
        caption=_caption(message.caption),
        query=message.query,
        timings_ms=_timings_ms(message.timings),
        model=message.model,
        query_rule=_rule_name(message.query_rule),
        no_product_probability=_decimal(message.no_product_probability),
        confidence=_decimal(message.confidence) if message.HasField("confidence") else None,
        unsure_reason=message.unsure_reason,
        paper_query=message.paper_query,
    )


def search_answer(message: search_pb2.SearchResponse) -> SearchAnswer:
    """Reads the answer of a search request.

    Args:
        message: the gateway's answer.

    Returns:
        The same as values of this library.
    """
    counts, override = message.counts, message.word_override
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
        readings=_readings(message.readings),
        query_rule=_rule_name(message.query_rule),
        word_override=WordOverride(
            override.colour if override.HasField("colour") else None,
            override.thing if override.HasField("thing") else None,
        ),
        no_product_probability=_decimal(message.no_product_probability),
        confidence=_decimal(message.confidence) if message.HasField("confidence") else None,
        unsure_reason=message.unsure_reason,
        paper_query=message.paper_query,
        excluded=tuple(message.excluded),
    )


def search_event(message: search_pb2.SearchEvent, results: list[Result]) -> SearchEvent | None:
    """Reads one event of a streamed search.

    Args:
        message: the event.
        results: the stream's results so far. A result is appended to it; the summary, which the
            gateway sends without results, is completed from it.

    Returns:
        The event, or None for a kind that this version of the client does not know.
    """
    kind = message.WhichOneof("event")
    if kind == "caption":
        return _caption(message.caption)
    if kind == "query":
        return Query(
            text=message.query,
            readings=_readings(message.readings),
            query_rule=_rule_name(message.query_rule),
            confidence=_decimal(message.confidence) if message.HasField("confidence") else None,
            unsure_reason=message.unsure_reason,
            paper_query=message.paper_query,
        )
    if kind == "result":
        results.append(_result(message.result))
        return results[-1]
    if kind == "summary":
        answer = search_answer(message.summary)
        return answer if answer.results else replace(answer, results=tuple(results))
    return None


def health_name(message: health_pb2.HealthCheckResponse) -> str:
    """Reads the answer of a health check.

    Args:
        message: the server's answer.

    Returns:
        "serving", "not_serving", "service_unknown" or "unknown".
    """
    try:
        name: str = health_pb2.HealthCheckResponse.ServingStatus.Name(message.status)
    except ValueError:  # a status of a newer server
        return "unknown"
    return name.lower()


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


def _readings(messages: Iterable[search_pb2.Reading]) -> tuple[Reading, ...]:
    return tuple(Reading(one.query, one.probability) for one in messages)


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
        duplicates=tuple(
            Duplicate(one.source, one.url, one.title, one.licence, one.licence_url, one.attribution)
            for one in message.duplicates
        ),
        picture_words=message.picture_words,
        licence=message.licence,
        licence_url=message.licence_url,
        attribution=message.attribution,
        provider=message.provider,
        contributions=tuple(Contribution(one.part, _decimal(one.value)) for one in message.contributions),
        findings=tuple(Finding(one.kind, tuple(one.words), _decimal(one.probability)) for one in message.findings),
    )


def _verdict_name(verdict: search_pb2.Verdict) -> str:
    try:
        return search_pb2.Verdict.Name(verdict).removeprefix("VERDICT_").lower()
    except ValueError:  # a verdict of a newer server
        return "unspecified"


def _rule_name(rule: search_pb2.QueryRule) -> str:
    """The rule's name; empty with `query_override` and for a rule of a newer server."""
    return next((name for name, number in _QUERY_RULES.items() if name and number == rule), "")


def _timings_ms(timings: Iterable[search_pb2.StageTime]) -> dict[str, float]:
    return {timing.stage: timing.milliseconds for timing in timings}


def _decimal(number: float) -> float:
    """0.9, not the 0.8999999761581421 that a 32-bit float becomes in 64 bits."""
    return float(f"{number:.7g}")
