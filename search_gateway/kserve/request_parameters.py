# SPDX-License-Identifier: Apache-2.0
"""Parameters of a ModelInferRequest -> the request of search.proto that says the same. Pure.

The limits of the values are not known here: `request_validation` checks all requests. A value may
come as any of protobuf's kinds that says it without loss: 4, 4.0 and "4" are the same number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from search_api import search_pb2
from search_gateway.errors import BadRequestError

TIMEOUT = "timeout"  # Triton's own, in microseconds; 0 is none

CAPTION_PARAMETERS = ("num_beams", "length_penalty", "max_tokens", "query_rule")
SEARCH_PARAMETERS = (
    *CAPTION_PARAMETERS,
    "max_results", "min_visual_score", "min_semantic_score", "provider", "query_override",
)  # fmt: skip

_QUERY_RULES = {
    "last_two_words": search_pb2.QUERY_RULE_LAST_TWO_WORDS,
    "full_caption": search_pb2.QUERY_RULE_FULL_CAPTION,
    "likeliest_words": search_pb2.QUERY_RULE_LIKELIEST_WORDS,
}

# For Triton's schedulers and its HTTP endpoint; its clients send some of them unasked.
_IGNORED = {"priority", "sequence_id", "sequence_start", "sequence_end"}
_IGNORED_PREFIXES = ("triton_", "binary_data")

Value = int | float | str  # bool is an int


def caption_request(parameters: Mapping[str, Any]) -> search_pb2.CaptionRequest:
    """A request without its photo.

    Raises:
        BadRequestError: a parameter is unknown, or its value is of another kind.
    """
    request = search_pb2.CaptionRequest()
    for name, value in _known(parameters, CAPTION_PARAMETERS):
        _set_decoding(request, name, value)
    return request


def search_request(parameters: Mapping[str, Any]) -> search_pb2.SearchRequest:
    """A request without its photo.

    Raises:
        BadRequestError: a parameter is unknown, or its value is of another kind.
    """
    request = search_pb2.SearchRequest()
    for name, value in _known(parameters, SEARCH_PARAMETERS):
        match name:
            case "max_results":
                request.max_results = _uint32(name, value)
            case "min_visual_score" | "min_semantic_score":
                setattr(request.refinement, name, _number(name, value))
            case "provider" | "query_override":
                setattr(request, name, _text(name, value))
            case _:
                _set_decoding(request, name, value)
    return request


def timeout_seconds(parameters: Mapping[str, Any]) -> float | None:
    """How long the caller of Triton would wait; None where it does not say.

    Raises:
        BadRequestError: it is not a whole number of microseconds.
    """
    if TIMEOUT not in parameters:
        return None
    microseconds = _whole(TIMEOUT, _value(TIMEOUT, parameters[TIMEOUT]))
    if microseconds < 0:
        raise BadRequestError(f"timeout is {_shown(microseconds)}: it is a number of microseconds, 0 for none")
    return min(microseconds, 2**63) / 1e6 or None


def _known(parameters: Mapping[str, Any], known: tuple[str, ...]) -> Iterator[tuple[str, Value]]:
    for name, parameter in parameters.items():
        if name in known:
            yield name, _value(name, parameter)
        elif name != TIMEOUT and name not in _IGNORED and not name.startswith(_IGNORED_PREFIXES):
            raise BadRequestError(f"there is no parameter {name!r:.80}; this model has: {', '.join(known)}, {TIMEOUT}")


def _set_decoding(request: search_pb2.CaptionRequest | search_pb2.SearchRequest, name: str, value: Value) -> None:
    match name:
        case "num_beams" | "max_tokens":
            setattr(request.decoding, name, _uint32(name, value))
        case "length_penalty":
            request.decoding.length_penalty = _number(name, value)
        case "query_rule":
            rule = _QUERY_RULES.get(str(value))
            if rule is None:
                *others, last = _QUERY_RULES
                raise BadRequestError(f"query_rule is {_shown(value)}: write {', '.join(others)} or {last}")
            request.query_rule = rule


def _value(name: str, parameter: Any) -> Value:
    kind = parameter.WhichOneof("parameter_choice")
    if kind is None:
        raise BadRequestError(f"parameter {name} has no value: set one, or leave the parameter out")
    value: Value = getattr(parameter, kind)
    return value


def _whole(name: str, value: Value) -> int:
    try:
        number = int(value)  # of a text too long to be a number: ValueError; of an infinity: OverflowError
    except (ValueError, OverflowError):
        number = None
    if number is None or (isinstance(value, float) and number != value):
        raise BadRequestError(f"{name} is {_shown(value)}: it must be a whole number")
    return number


def _uint32(name: str, value: Value) -> int:
    number = _whole(name, value)
    if not 0 <= number < 2**32:
        raise BadRequestError(f"{name} is {_shown(value)}: it must be a whole number of 32 bits, 0 or more")
    return number


def _number(name: str, value: Value) -> float:
    try:
        return float(value)
    except ValueError:
        raise BadRequestError(f"{name} is {_shown(value)}: it must be a number") from None


def _text(name: str, value: Value) -> str:
    if isinstance(value, float | bool):
        raise BadRequestError(f"{name} is {_shown(value)}: it must be a text")
    return str(value)  # "501" is a query, even where it came as a number


def _shown(value: Value) -> str:
    return f"{value!r:.80}"
