# SPDX-License-Identifier: Apache-2.0
"""Protobuf requests -> the gateway's own options, every field checked. Messages name field, value and limit."""

from __future__ import annotations

import math
from typing import Literal

from captioner.decoding import DecodingOptions
from captioner.model_contract import ModelContract
from captioner.query import Query, QueryRule, words_of
from search_api import search_pb2
from search_gateway.config import GatewayConfig
from search_gateway.errors import BadRequestError
from search_gateway.pipeline import SearchOptions
from search_gateway.ranking.rerank import RefinementLimits

MAX_RESULTS = 100
MAX_QUERY_CHARACTERS = 200
MAX_WORD_CHARACTERS = 50
MIN_LENGTH_PENALTY, MAX_LENGTH_PENALTY = -2.0, 4.0

_QUERY_RULES: dict[int, QueryRule] = {
    search_pb2.QUERY_RULE_LAST_TWO_WORDS: QueryRule.LAST_TWO_WORDS,
    search_pb2.QUERY_RULE_FULL_CAPTION: QueryRule.FULL_CAPTION,
    search_pb2.QUERY_RULE_LIKELIEST_WORDS: QueryRule.LIKELIEST_WORDS,
}


def decoding_options(message: search_pb2.DecodingOptions, contract: ModelContract) -> DecodingOptions:
    """Raises:
    BadRequestError: a value is outside the limits of search.proto.
    """
    options = DecodingOptions(
        num_beams=message.num_beams if message.HasField("num_beams") else 1,
        length_penalty=message.length_penalty if message.HasField("length_penalty") else 0.0,
        max_tokens=message.max_tokens if message.HasField("max_tokens") else contract.max_tokens,
    )
    _check("decoding.num_beams", options.num_beams, 1, contract.max_beams)
    _check("decoding.length_penalty", options.length_penalty, MIN_LENGTH_PENALTY, MAX_LENGTH_PENALTY)
    _check("decoding.max_tokens", options.max_tokens, 1, contract.max_tokens)
    return options


def query_rule(value: int, contract: ModelContract) -> QueryRule:
    """The rule that a request asks for; unset, the best one that the model has.

    Args:
        value: QueryRule of search.proto.

    Raises:
        BadRequestError: the value is no rule of search.proto, or the model cannot follow it.
    """
    has_head = contract.num_queries > 0
    if value == search_pb2.QUERY_RULE_UNSPECIFIED:
        return QueryRule.LIKELIEST_WORDS if has_head else QueryRule.LAST_TWO_WORDS
    rule = _QUERY_RULES.get(value)
    if rule is None:
        raise BadRequestError(f"query_rule is {value}: it goes from 0 to {max(_QUERY_RULES)}")
    if rule is QueryRule.LIKELIEST_WORDS and not has_head:
        raise BadRequestError(
            f"query_rule is {rule.value}: the model {contract.model} has no query head, use last_two_words or leave it "
            "unset"
        )
    return rule


def search_options(request: search_pb2.SearchRequest, contract: ModelContract, config: GatewayConfig) -> SearchOptions:
    """Raises:
    BadRequestError: a value is outside the limits of search.proto.
    """
    max_results = request.max_results if request.HasField("max_results") else config.default_max_results
    _check("max_results", max_results, 1, MAX_RESULTS)
    refinement = request.refinement
    limits = RefinementLimits(
        min_visual_score=refinement.min_visual_score
        if refinement.HasField("min_visual_score")
        else config.min_visual_score,
        min_semantic_score=refinement.min_semantic_score
        if refinement.HasField("min_semantic_score")
        else config.min_semantic_score,
        max_results=max_results,
        visual_weight=config.visual_weight,
        neighbour_weight=config.neighbour_weight,
    )
    _check("refinement.min_visual_score", limits.min_visual_score, -1, 1)
    _check("refinement.min_semantic_score", limits.min_semantic_score, 0, 1)
    return SearchOptions(
        decoding=decoding_options(request.decoding, contract),
        query_rule=query_rule(request.query_rule, contract),
        query_override=_query_override(request),
        override_colour=_word_override(request, "colour"),
        override_product_type=_word_override(request, "thing"),
        provider=request.provider if request.HasField("provider") else None,
        max_candidates=max(config.max_candidates, max_results),
        limits=limits,
    )


def _query_override(request: search_pb2.SearchRequest) -> Query | None:
    if not request.HasField("query_override"):
        return None
    words = " ".join(request.query_override.split())
    if not words:
        raise BadRequestError("query_override is empty: give words, or leave it unset to use the caption's")
    if len(words) > MAX_QUERY_CHARACTERS:
        raise BadRequestError(f"query_override has {len(words)} characters; the limit is {MAX_QUERY_CHARACTERS}")
    return Query.of(words)


def _word_override(request: search_pb2.SearchRequest, name: Literal["colour", "thing"]) -> str | None:
    if not request.word_override.HasField(name):
        return None
    if request.HasField("query_override"):
        raise BadRequestError(f"word_override.{name} and query_override are both set: give one of them")
    value: str = getattr(request.word_override, name)
    # As the words of a caption: without what is around them.
    word = " ".join(words_of(value))
    if not word:
        raise BadRequestError(f"word_override.{name} is {value[:20]!r}: give a word, or leave it unset")
    if len(word) > MAX_WORD_CHARACTERS:
        raise BadRequestError(f"word_override.{name} has {len(word)} characters; the limit is {MAX_WORD_CHARACTERS}")
    return word


def _check(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        shown = value if isinstance(value, int) else f"{value:g}"
        raise BadRequestError(f"{name} is {shown}: it goes from {low:g} to {high:g}")
