# SPDX-License-Identifier: Apache-2.0
"""Checks what a caller asks for and makes the gateway's options of it. Messages name field, value and limit."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from captioner.decoding import DecodingOptions
from captioner.model_contract import ModelContract
from captioner.preprocessing import Region
from captioner.query import Query, QueryRule, split_colour, words_of
from search_api import search_pb2
from search_gateway.catalog.base import Filters
from search_gateway.catalog.text_analysis import one_line
from search_gateway.config import GatewayConfig
from search_gateway.errors import BadRequestError
from search_gateway.pipeline import SearchOptions
from search_gateway.ranking.rerank import RefinementLimits

MAX_RESULTS = 100
_MIN_REGION_SHARE = 1e-6
_REGION_ROUNDING = 1e-4  # callers add decimals
MAX_QUERY_CHARACTERS = 200
MAX_WORD_CHARACTERS = 50
MAX_EXCLUDED = 8  # words
# "-striped" and -"navy blue", but not the hyphen of "t-shirt".
_EXCLUSION = re.compile(r'(?<!\S)-(?:"([^"]*\w[^"]*)"|(?=\w)(\S+))')
_MAX_PRICE = 1e12
_MAX_CATEGORIES = 20
_DOUBLES = ("min_price", "max_price")  # of search.proto; other numbers with a fraction are floats
MIN_LENGTH_PENALTY, MAX_LENGTH_PENALTY = -2.0, 4.0

_QUERY_RULES: dict[int, QueryRule] = {
    search_pb2.QUERY_RULE_LAST_TWO_WORDS: QueryRule.LAST_TWO_WORDS,
    search_pb2.QUERY_RULE_FULL_CAPTION: QueryRule.FULL_CAPTION,
    search_pb2.QUERY_RULE_LIKELIEST_WORDS: QueryRule.LIKELIEST_WORDS,
    search_pb2.QUERY_RULE_SALIENT: QueryRule.SALIENT,
}

# Message of search.proto -> its fields that are checked here.
_NESTED = {
    "decoding": ("num_beams", "length_penalty", "max_tokens"),
    "refinement": ("min_visual_score", "min_semantic_score"),
    "word_override": ("colour", "thing"),
    "filters": ("min_price", "max_price", "available"),
}
# Name here -> name in search.proto, where they differ.
PROTO_NAMES = {name: f"{message}.{name}" for message, names in _NESTED.items() for name in names}
PROTO_NAMES["categories"] = "filters.categories"


@dataclass(frozen=True, kw_only=True)
class RequestValues:
    """What a caller asks for, not checked yet, whatever interface it came through.

    Attributes:
        names: the caller's name of a field, where it differs from the name here; messages use it.
        others: None where the caller leaves the choice to the gateway.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    num_beams: int | None = None
    length_penalty: float | None = None
    max_tokens: int | None = None
    query_rule: QueryRule | None = None
    max_results: int | None = None
    min_visual_score: float | None = None
    min_semantic_score: float | None = None
    provider: str | None = None
    query_override: str | None = None
    colour: str | None = None
    thing: str | None = None
    exclude: tuple[str, ...] = ()
    explain: bool = False
    region: Region | None = None
    min_price: float | None = None
    max_price: float | None = None
    available: bool | None = None
    categories: tuple[str, ...] = ()

    def name(self, field_name: str) -> str:
        """Return the caller's name of a field."""
        return self.names.get(field_name, field_name)


def request_values(request: search_pb2.SearchRequest | search_pb2.CaptionRequest) -> RequestValues:
    """Read a request of search.proto.

    Raises:
        BadRequestError: `query_rule` is not a rule of search.proto.
    """
    values: dict[str, Any] = _set_fields(request, ("max_results", "provider", "query_override"))
    if isinstance(request, search_pb2.SearchRequest):
        values |= {"exclude": tuple(request.exclude), "explain": request.explain}
    for message, names in _NESTED.items():
        if message in request.DESCRIPTOR.fields_by_name:
            values |= _set_fields(getattr(request, message), names)
    if isinstance(request, search_pb2.SearchRequest):
        values["categories"] = tuple(request.filters.categories)
    if request.HasField("region"):
        place = request.region
        values["region"] = Region(place.x, place.y, place.width, place.height)
    if request.query_rule != search_pb2.QUERY_RULE_UNSPECIFIED:
        values["query_rule"] = _QUERY_RULES.get(request.query_rule)
        if values["query_rule"] is None:
            raise BadRequestError(f"query_rule is {request.query_rule}: it goes from 0 to {max(_QUERY_RULES)}")
    return RequestValues(names=PROTO_NAMES, **values)


def _set_fields(message: Any, names: tuple[str, ...]) -> dict[str, Any]:
    values = {
        name: getattr(message, name)
        for name in names
        if name in message.DESCRIPTOR.fields_by_name and message.HasField(name)
    }
    # A caller's 0.4 arrives in 32 bits as 0.4000000059604645: a score of 0.4 would be below it.
    return {
        name: float(str(np.float32(value))) if isinstance(value, float) and name not in _DOUBLES else value
        for name, value in values.items()
    }


def decoding_options(asked: RequestValues, contract: ModelContract) -> DecodingOptions:
    """Return how to decode the caption.

    Raises:
        BadRequestError: a value is outside its limits.
    """
    return DecodingOptions(
        num_beams=int(_checked(asked, "num_beams", 1, 1, contract.max_beams)),
        length_penalty=_checked(asked, "length_penalty", 0.0, MIN_LENGTH_PENALTY, MAX_LENGTH_PENALTY),
        max_tokens=int(_checked(asked, "max_tokens", contract.max_tokens, 1, contract.max_tokens)),
    )


def query_rule(asked: RequestValues, contract: ModelContract, config: GatewayConfig) -> QueryRule:
    """Return how to make the query; if the caller does not say, by the setting or the best rule of the model.

    Raises:
        BadRequestError: the model cannot follow the rule.
    """
    has_head = contract.num_queries > 0
    rule = asked.query_rule or (QueryRule(config.query_rule) if config.query_rule else None)
    if rule is None:
        return QueryRule.LIKELIEST_WORDS if has_head else QueryRule.LAST_TWO_WORDS
    if rule is QueryRule.LIKELIEST_WORDS and not has_head:
        raise BadRequestError(
            f"{asked.name('query_rule')} is {rule.value}: the model {contract.model} has no query head, use "
            "last_two_words or leave it unset"
        )
    return rule


def search_options(asked: RequestValues, contract: ModelContract, config: GatewayConfig) -> SearchOptions:
    """Return how to search.

    Raises:
        BadRequestError: a value is outside its limits, or two of them exclude each other.
    """
    max_results = int(_checked(asked, "max_results", config.default_max_results, 1, MAX_RESULTS))
    limits = RefinementLimits(
        min_visual_score=_checked(asked, "min_visual_score", config.min_visual_score, -1, 1),
        min_semantic_score=_checked(asked, "min_semantic_score", config.min_semantic_score, 0, 1),
        max_results=max_results,
        visual_weight=config.visual_weight,
        neighbour_weight=config.neighbour_weight,
        provider_max_share=config.provider_max_share,
    )
    override, excluded = _query_override(asked)
    colour, thing = _colour_and_thing(asked)
    return SearchOptions(
        decoding=decoding_options(asked, contract),
        query_rule=query_rule(asked, contract, config),
        query_override=override,
        override_colour=colour,
        override_product_type=thing,
        provider=asked.provider,
        max_candidates=max(config.max_candidates, max_results),
        limits=limits,
        region=region(asked),
        excluded=_excluded(asked, excluded),
        explain=asked.explain,
        filters=_filters(asked),
    )


def _filters(asked: RequestValues) -> Filters:
    """Return which products may be found.

    Raises:
        BadRequestError: a price or a category is outside its limits.
    """
    prices = {
        name: None if getattr(asked, name) is None else _checked(asked, name, 0.0, 0, _MAX_PRICE)
        for name in ("min_price", "max_price")
    }
    low, high = prices.values()
    if low is not None and high is not None and low > high:
        names = asked.name("min_price"), asked.name("max_price")
        raise BadRequestError(f"{names[0]} is {low:g}, above {names[1]}, {high:g}: exchange them")
    name = asked.name("categories")
    if len(asked.categories) > _MAX_CATEGORIES:
        raise BadRequestError(f"{name} has {len(asked.categories)} values; the limit is {_MAX_CATEGORIES}")
    for category in asked.categories:
        if category and not one_line(category):
            raise BadRequestError(f"{name} has a value without letters: give 1 to {MAX_QUERY_CHARACTERS} characters")
        if not 1 <= len(category) <= MAX_QUERY_CHARACTERS:
            raise BadRequestError(f"{name} has a value of {len(category)} characters: give 1 to {MAX_QUERY_CHARACTERS}")
    # As the catalogue stores them.
    return Filters(low, high, asked.available, tuple(map(one_line, asked.categories)))


def region(asked: RequestValues) -> Region | None:
    """Return the part of the photo that is used; None: all of it.

    Raises:
        BadRequestError: it is not within the photo.
    """
    found = asked.region
    if found is None:
        return None
    name = asked.name("region")
    shares = {"x": found.x, "y": found.y, "width": found.width, "height": found.height}
    for part, value in shares.items():
        least = 0 if part in ("x", "y") else _MIN_REGION_SHARE
        if not least <= value <= 1:  # also where it is no number
            limits = "from 0 to 1" if least == 0 else "above 0 and at most 1"
            raise BadRequestError(f"{name} has the {part} {value:g}: it is a fraction of the photo, {limits}")
    for part, start, length in (("width", found.x, found.width), ("height", found.y, found.height)):
        if start + length > 1 + _REGION_ROUNDING:
            what = f"{start:g} + {length:g} = {start + length:g} of the photo's {part}"
            raise BadRequestError(f"{name} ends at {what}: it must end within the photo, at 1")
    return found


def _query_override(asked: RequestValues) -> tuple[Query | None, list[str]]:
    """Return the caller's query, and the words that it excludes: "striped" in "shirt -striped"."""
    if asked.query_override is None:
        return None, []
    name = asked.name("query_override")
    text = " ".join("".join(" " if unicodedata.category(c) == "Cc" else c for c in asked.query_override).split())
    if not text:
        raise BadRequestError(f"{name} is empty: give words, or leave it unset to use the caption's")
    if len(text) > MAX_QUERY_CHARACTERS:
        raise BadRequestError(f"{name} has {len(text)} characters; the limit is {MAX_QUERY_CHARACTERS}")
    excluded = [phrase or word for phrase, word in _EXCLUSION.findall(text)]
    wanted = " ".join(_EXCLUSION.sub(" ", text).split())
    if not words_of(wanted) and excluded:
        raise BadRequestError(f"{name} is {text[:40]!r}, which only excludes words: give a word to search for, too")
    if not any(character.isalnum() for character in wanted):
        raise BadRequestError(f"{name} is {text[:20]!r}: give words with letters or digits")
    return Query.typed(wanted), excluded


def _excluded(asked: RequestValues, more: list[str]) -> tuple[str, ...]:
    """Return the words that no result may have, each once."""
    name = asked.name("exclude")
    found: dict[str, None] = {}
    for text in (part for one in (*asked.exclude, *more) for part in one.split(",")):
        word = " ".join(words_of(text)).lower()
        if not word:
            raise BadRequestError(f"{name} has {text[:20]!r}: give a word")
        if len(word) > MAX_WORD_CHARACTERS:
            raise BadRequestError(f"{name} has a word of {len(word)} characters; the limit is {MAX_WORD_CHARACTERS}")
        found[word] = None
    if len(found) > MAX_EXCLUDED:
        raise BadRequestError(f"{name} has {len(found)} words; the limit is {MAX_EXCLUDED}")
    return tuple(found)


def _colour_and_thing(asked: RequestValues) -> tuple[str | None, str | None]:
    """Return the words instead of the caption's. The thing "red shirt" is a shirt with the colour red."""
    colour, thing = (_word_override(asked, name, getattr(asked, name)) for name in ("colour", "thing"))
    if colour is None and thing is not None:
        colour, thing = split_colour(thing)
    return colour, thing


def _word_override(asked: RequestValues, field_name: str, value: str | None) -> str | None:
    if value is None:
        return None
    name = asked.name(field_name)
    if asked.query_override is not None:
        raise BadRequestError(f"{name} and {asked.name('query_override')} are both set: give one of them")
    # Like the words of a caption: without the punctuation around them.
    word = " ".join(words_of(value))
    if not word:
        raise BadRequestError(f"{name} is {value[:20]!r}: give a word, or leave it unset")
    if len(word) > MAX_WORD_CHARACTERS:
        raise BadRequestError(f"{name} has {len(word)} characters; the limit is {MAX_WORD_CHARACTERS}")
    return word


def _checked(asked: RequestValues, field_name: str, default: float, low: float, high: float) -> float:
    """Return the value asked for, or the default, if it is within the limits.

    Raises:
        BadRequestError: it is not.
    """
    value = getattr(asked, field_name)
    value = default if value is None else value
    if not (low <= value <= high):  # also where it is no number
        shown = f"{value:g}" if isinstance(value, float) else f"{value!s:.40}"
        raise BadRequestError(f"{asked.name(field_name)} is {shown}: it goes from {low:g} to {high:g}")
    return float(value)
