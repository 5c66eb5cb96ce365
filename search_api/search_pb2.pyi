from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class QueryRule(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    QUERY_RULE_UNSPECIFIED: _ClassVar[QueryRule]
    QUERY_RULE_LAST_TWO_WORDS: _ClassVar[QueryRule]
    QUERY_RULE_FULL_CAPTION: _ClassVar[QueryRule]
    QUERY_RULE_LIKELIEST_WORDS: _ClassVar[QueryRule]
    QUERY_RULE_SALIENT: _ClassVar[QueryRule]

class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERDICT_UNSPECIFIED: _ClassVar[Verdict]
    VERDICT_KEPT: _ClassVar[Verdict]
    VERDICT_DROPPED_VISUAL: _ClassVar[Verdict]
    VERDICT_DROPPED_SEMANTIC: _ClassVar[Verdict]
    VERDICT_DROPPED_UNFETCHABLE: _ClassVar[Verdict]
    VERDICT_DROPPED_UNDECODABLE: _ClassVar[Verdict]
    VERDICT_DROPPED_OVER_LIMIT: _ClassVar[Verdict]
    VERDICT_DROPPED_DUPLICATE: _ClassVar[Verdict]
QUERY_RULE_UNSPECIFIED: QueryRule
QUERY_RULE_LAST_TWO_WORDS: QueryRule
QUERY_RULE_FULL_CAPTION: QueryRule
QUERY_RULE_LIKELIEST_WORDS: QueryRule
QUERY_RULE_SALIENT: QueryRule
VERDICT_UNSPECIFIED: Verdict
VERDICT_KEPT: Verdict
VERDICT_DROPPED_VISUAL: Verdict
VERDICT_DROPPED_SEMANTIC: Verdict
VERDICT_DROPPED_UNFETCHABLE: Verdict
VERDICT_DROPPED_UNDECODABLE: Verdict
VERDICT_DROPPED_OVER_LIMIT: Verdict
VERDICT_DROPPED_DUPLICATE: Verdict

class DecodingOptions(_message.Message):
    __slots__ = ("num_beams", "length_penalty", "max_tokens")
    NUM_BEAMS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_PENALTY_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    num_beams: int
    length_penalty: float
    max_tokens: int
    def __init__(self, num_beams: _Optional[int] = ..., length_penalty: _Optional[float] = ..., max_tokens: _Optional[int] = ...) -> None: ...

class RefinementOptions(_message.Message):
    __slots__ = ("min_visual_score", "min_semantic_score")
    MIN_VISUAL_SCORE_FIELD_NUMBER: _ClassVar[int]
    MIN_SEMANTIC_SCORE_FIELD_NUMBER: _ClassVar[int]
    min_visual_score: float
    min_semantic_score: float
    def __init__(self, min_visual_score: _Optional[float] = ..., min_semantic_score: _Optional[float] = ...) -> None: ...

class WordOverride(_message.Message):
    __slots__ = ("colour", "thing")
    COLOUR_FIELD_NUMBER: _ClassVar[int]
    THING_FIELD_NUMBER: _ClassVar[int]
    colour: str
    thing: str
    def __init__(self, colour: _Optional[str] = ..., thing: _Optional[str] = ...) -> None: ...

class Region(_message.Message):
    __slots__ = ("x", "y", "width", "height")
    X_FIELD_NUMBER: _ClassVar[int]
    Y_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    x: float
    y: float
    width: float
    height: float
    def __init__(self, x: _Optional[float] = ..., y: _Optional[float] = ..., width: _Optional[float] = ..., height: _Optional[float] = ...) -> None: ...

class Filters(_message.Message):
    __slots__ = ("min_price", "max_price", "available", "categories")
    MIN_PRICE_FIELD_NUMBER: _ClassVar[int]
    MAX_PRICE_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    min_price: float
    max_price: float
    available: bool
    categories: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, min_price: _Optional[float] = ..., max_price: _Optional[float] = ..., available: _Optional[bool] = ..., categories: _Optional[_Iterable[str]] = ...) -> None: ...

class SearchRequest(_message.Message):
    __slots__ = ("photo", "decoding", "query_rule", "query_override", "provider", "max_results", "refinement", "explain", "word_override", "region", "exclude", "filters")
    PHOTO_FIELD_NUMBER: _ClassVar[int]
    DECODING_FIELD_NUMBER: _ClassVar[int]
    QUERY_RULE_FIELD_NUMBER: _ClassVar[int]
    QUERY_OVERRIDE_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    MAX_RESULTS_FIELD_NUMBER: _ClassVar[int]
    REFINEMENT_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    WORD_OVERRIDE_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    photo: bytes
    decoding: DecodingOptions
    query_rule: QueryRule
    query_override: str
    provider: str
    max_results: int
    refinement: RefinementOptions
    explain: bool
    word_override: WordOverride
    region: Region
    exclude: _containers.RepeatedScalarFieldContainer[str]
    filters: Filters
    def __init__(self, photo: _Optional[bytes] = ..., decoding: _Optional[_Union[DecodingOptions, _Mapping]] = ..., query_rule: _Optional[_Union[QueryRule, str]] = ..., query_override: _Optional[str] = ..., provider: _Optional[str] = ..., max_results: _Optional[int] = ..., refinement: _Optional[_Union[RefinementOptions, _Mapping]] = ..., explain: _Optional[bool] = ..., word_override: _Optional[_Union[WordOverride, _Mapping]] = ..., region: _Optional[_Union[Region, _Mapping]] = ..., exclude: _Optional[_Iterable[str]] = ..., filters: _Optional[_Union[Filters, _Mapping]] = ...) -> None: ...

class CaptionRequest(_message.Message):
    __slots__ = ("photo", "decoding", "query_rule", "region")
    PHOTO_FIELD_NUMBER: _ClassVar[int]
    DECODING_FIELD_NUMBER: _ClassVar[int]
    QUERY_RULE_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    photo: bytes
    decoding: DecodingOptions
    query_rule: QueryRule
    region: Region
    def __init__(self, photo: _Optional[bytes] = ..., decoding: _Optional[_Union[DecodingOptions, _Mapping]] = ..., query_rule: _Optional[_Union[QueryRule, str]] = ..., region: _Optional[_Union[Region, _Mapping]] = ...) -> None: ...

class WordAlternative(_message.Message):
    __slots__ = ("text", "probability")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    text: str
    probability: float
    def __init__(self, text: _Optional[str] = ..., probability: _Optional[float] = ...) -> None: ...

class Word(_message.Message):
    __slots__ = ("text", "probability", "alternatives")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVES_FIELD_NUMBER: _ClassVar[int]
    text: str
    probability: float
    alternatives: _containers.RepeatedCompositeFieldContainer[WordAlternative]
    def __init__(self, text: _Optional[str] = ..., probability: _Optional[float] = ..., alternatives: _Optional[_Iterable[_Union[WordAlternative, _Mapping]]] = ...) -> None: ...

class AlternativeCaption(_message.Message):
    __slots__ = ("text", "log_probability")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOG_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    text: str
    log_probability: float
    def __init__(self, text: _Optional[str] = ..., log_probability: _Optional[float] = ...) -> None: ...

class Caption(_message.Message):
    __slots__ = ("text", "words", "log_probability", "complete", "alternatives")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    LOG_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVES_FIELD_NUMBER: _ClassVar[int]
    text: str
    words: _containers.RepeatedCompositeFieldContainer[Word]
    log_probability: float
    complete: bool
    alternatives: _containers.RepeatedCompositeFieldContainer[AlternativeCaption]
    def __init__(self, text: _Optional[str] = ..., words: _Optional[_Iterable[_Union[Word, _Mapping]]] = ..., log_probability: _Optional[float] = ..., complete: _Optional[bool] = ..., alternatives: _Optional[_Iterable[_Union[AlternativeCaption, _Mapping]]] = ...) -> None: ...

class CaptionResponse(_message.Message):
    __slots__ = ("caption", "query", "timings", "model", "query_rule", "no_product_probability", "confidence", "unsure_reason", "paper_query")
    CAPTION_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    QUERY_RULE_FIELD_NUMBER: _ClassVar[int]
    NO_PRODUCT_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    UNSURE_REASON_FIELD_NUMBER: _ClassVar[int]
    PAPER_QUERY_FIELD_NUMBER: _ClassVar[int]
    caption: Caption
    query: str
    timings: _containers.RepeatedCompositeFieldContainer[StageTime]
    model: str
    query_rule: QueryRule
    no_product_probability: float
    confidence: float
    unsure_reason: str
    paper_query: str
    def __init__(self, caption: _Optional[_Union[Caption, _Mapping]] = ..., query: _Optional[str] = ..., timings: _Optional[_Iterable[_Union[StageTime, _Mapping]]] = ..., model: _Optional[str] = ..., query_rule: _Optional[_Union[QueryRule, str]] = ..., no_product_probability: _Optional[float] = ..., confidence: _Optional[float] = ..., unsure_reason: _Optional[str] = ..., paper_query: _Optional[str] = ...) -> None: ...

class StageTime(_message.Message):
    __slots__ = ("stage", "milliseconds")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    stage: str
    milliseconds: float
    def __init__(self, stage: _Optional[str] = ..., milliseconds: _Optional[float] = ...) -> None: ...

class Duplicate(_message.Message):
    __slots__ = ("source", "url", "title", "licence", "licence_url", "attribution")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    LICENCE_FIELD_NUMBER: _ClassVar[int]
    LICENCE_URL_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    source: str
    url: str
    title: str
    licence: str
    licence_url: str
    attribution: str
    def __init__(self, source: _Optional[str] = ..., url: _Optional[str] = ..., title: _Optional[str] = ..., licence: _Optional[str] = ..., licence_url: _Optional[str] = ..., attribution: _Optional[str] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("title", "url", "image_url", "thumbnail_url", "source", "width", "height", "visual_score", "semantic_score", "score", "verdict", "reason", "thumbnail", "duplicates", "picture_words", "licence", "licence_url", "attribution", "provider", "contributions", "findings")
    TITLE_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    IMAGE_URL_FIELD_NUMBER: _ClassVar[int]
    THUMBNAIL_URL_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    VISUAL_SCORE_FIELD_NUMBER: _ClassVar[int]
    SEMANTIC_SCORE_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    THUMBNAIL_FIELD_NUMBER: _ClassVar[int]
    DUPLICATES_FIELD_NUMBER: _ClassVar[int]
    PICTURE_WORDS_FIELD_NUMBER: _ClassVar[int]
    LICENCE_FIELD_NUMBER: _ClassVar[int]
    LICENCE_URL_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    title: str
    url: str
    image_url: str
    thumbnail_url: str
    source: str
    width: int
    height: int
    visual_score: float
    semantic_score: float
    score: float
    verdict: Verdict
    reason: str
    thumbnail: bytes
    duplicates: _containers.RepeatedCompositeFieldContainer[Duplicate]
    picture_words: str
    licence: str
    licence_url: str
    attribution: str
    provider: str
    contributions: _containers.RepeatedCompositeFieldContainer[Contribution]
    findings: _containers.RepeatedCompositeFieldContainer[Finding]
    def __init__(self, title: _Optional[str] = ..., url: _Optional[str] = ..., image_url: _Optional[str] = ..., thumbnail_url: _Optional[str] = ..., source: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., visual_score: _Optional[float] = ..., semantic_score: _Optional[float] = ..., score: _Optional[float] = ..., verdict: _Optional[_Union[Verdict, str]] = ..., reason: _Optional[str] = ..., thumbnail: _Optional[bytes] = ..., duplicates: _Optional[_Iterable[_Union[Duplicate, _Mapping]]] = ..., picture_words: _Optional[str] = ..., licence: _Optional[str] = ..., licence_url: _Optional[str] = ..., attribution: _Optional[str] = ..., provider: _Optional[str] = ..., contributions: _Optional[_Iterable[_Union[Contribution, _Mapping]]] = ..., findings: _Optional[_Iterable[_Union[Finding, _Mapping]]] = ...) -> None: ...

class Finding(_message.Message):
    __slots__ = ("kind", "words", "probability")
    KIND_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    kind: str
    words: _containers.RepeatedScalarFieldContainer[str]
    probability: float
    def __init__(self, kind: _Optional[str] = ..., words: _Optional[_Iterable[str]] = ..., probability: _Optional[float] = ...) -> None: ...

class Contribution(_message.Message):
    __slots__ = ("part", "value")
    PART_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    part: str
    value: float
    def __init__(self, part: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...

class Counts(_message.Message):
    __slots__ = ("found", "fetched", "unfetchable", "undecodable", "dropped_visual", "dropped_semantic", "over_limit", "kept", "duplicates")
    FOUND_FIELD_NUMBER: _ClassVar[int]
    FETCHED_FIELD_NUMBER: _ClassVar[int]
    UNFETCHABLE_FIELD_NUMBER: _ClassVar[int]
    UNDECODABLE_FIELD_NUMBER: _ClassVar[int]
    DROPPED_VISUAL_FIELD_NUMBER: _ClassVar[int]
    DROPPED_SEMANTIC_FIELD_NUMBER: _ClassVar[int]
    OVER_LIMIT_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    DUPLICATES_FIELD_NUMBER: _ClassVar[int]
    found: int
    fetched: int
    unfetchable: int
    undecodable: int
    dropped_visual: int
    dropped_semantic: int
    over_limit: int
    kept: int
    duplicates: int
    def __init__(self, found: _Optional[int] = ..., fetched: _Optional[int] = ..., unfetchable: _Optional[int] = ..., undecodable: _Optional[int] = ..., dropped_visual: _Optional[int] = ..., dropped_semantic: _Optional[int] = ..., over_limit: _Optional[int] = ..., kept: _Optional[int] = ..., duplicates: _Optional[int] = ...) -> None: ...

class Degradation(_message.Message):
    __slots__ = ("part", "reason")
    PART_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    part: str
    reason: str
    def __init__(self, part: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Reading(_message.Message):
    __slots__ = ("query", "probability")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    query: str
    probability: float
    def __init__(self, query: _Optional[str] = ..., probability: _Optional[float] = ...) -> None: ...

class SearchResponse(_message.Message):
    __slots__ = ("caption", "query", "provider", "results", "counts", "nearest_miss", "empty_reason", "timings", "degraded", "dropped", "model", "readings", "query_rule", "no_product_probability", "confidence", "unsure_reason", "word_override", "paper_query", "excluded")
    CAPTION_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    NEAREST_MISS_FIELD_NUMBER: _ClassVar[int]
    EMPTY_REASON_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    READINGS_FIELD_NUMBER: _ClassVar[int]
    QUERY_RULE_FIELD_NUMBER: _ClassVar[int]
    NO_PRODUCT_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    UNSURE_REASON_FIELD_NUMBER: _ClassVar[int]
    WORD_OVERRIDE_FIELD_NUMBER: _ClassVar[int]
    PAPER_QUERY_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_FIELD_NUMBER: _ClassVar[int]
    caption: Caption
    query: str
    provider: str
    results: _containers.RepeatedCompositeFieldContainer[Result]
    counts: Counts
    nearest_miss: Result
    empty_reason: str
    timings: _containers.RepeatedCompositeFieldContainer[StageTime]
    degraded: _containers.RepeatedCompositeFieldContainer[Degradation]
    dropped: _containers.RepeatedCompositeFieldContainer[Result]
    model: str
    readings: _containers.RepeatedCompositeFieldContainer[Reading]
    query_rule: QueryRule
    no_product_probability: float
    confidence: float
    unsure_reason: str
    word_override: WordOverride
    paper_query: str
    excluded: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, caption: _Optional[_Union[Caption, _Mapping]] = ..., query: _Optional[str] = ..., provider: _Optional[str] = ..., results: _Optional[_Iterable[_Union[Result, _Mapping]]] = ..., counts: _Optional[_Union[Counts, _Mapping]] = ..., nearest_miss: _Optional[_Union[Result, _Mapping]] = ..., empty_reason: _Optional[str] = ..., timings: _Optional[_Iterable[_Union[StageTime, _Mapping]]] = ..., degraded: _Optional[_Iterable[_Union[Degradation, _Mapping]]] = ..., dropped: _Optional[_Iterable[_Union[Result, _Mapping]]] = ..., model: _Optional[str] = ..., readings: _Optional[_Iterable[_Union[Reading, _Mapping]]] = ..., query_rule: _Optional[_Union[QueryRule, str]] = ..., no_product_probability: _Optional[float] = ..., confidence: _Optional[float] = ..., unsure_reason: _Optional[str] = ..., word_override: _Optional[_Union[WordOverride, _Mapping]] = ..., paper_query: _Optional[str] = ..., excluded: _Optional[_Iterable[str]] = ...) -> None: ...

class SearchEvent(_message.Message):
    __slots__ = ("caption", "query", "result", "summary", "readings", "query_rule", "confidence", "unsure_reason", "paper_query")
    CAPTION_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    READINGS_FIELD_NUMBER: _ClassVar[int]
    QUERY_RULE_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    UNSURE_REASON_FIELD_NUMBER: _ClassVar[int]
    PAPER_QUERY_FIELD_NUMBER: _ClassVar[int]
    caption: Caption
    query: str
    result: Result
    summary: SearchResponse
    readings: _containers.RepeatedCompositeFieldContainer[Reading]
    query_rule: QueryRule
    confidence: float
    unsure_reason: str
    paper_query: str
    def __init__(self, caption: _Optional[_Union[Caption, _Mapping]] = ..., query: _Optional[str] = ..., result: _Optional[_Union[Result, _Mapping]] = ..., summary: _Optional[_Union[SearchResponse, _Mapping]] = ..., readings: _Optional[_Iterable[_Union[Reading, _Mapping]]] = ..., query_rule: _Optional[_Union[QueryRule, str]] = ..., confidence: _Optional[float] = ..., unsure_reason: _Optional[str] = ..., paper_query: _Optional[str] = ...) -> None: ...
