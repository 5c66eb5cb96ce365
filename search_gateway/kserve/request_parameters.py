# SPDX-License-Identifier: Apache-2.0
"""Reads the parameters of a ModelInferRequest; `request_validation` checks their values. Pure.

A parameter may have any type that expresses its value without loss: 4, 4.0 and "4" are the same number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from captioner.preprocessing import Region
from captioner.query import QueryRule
from search_gateway.api.request_validation import RequestValues
from search_gateway.errors import BadRequestError

TIMEOUT = "timeout"  # Triton's own, in microseconds; 0 is none

# For Triton's schedulers and its HTTP endpoint; Triton's clients send some of them by default.
_IGNORED = {"priority", "sequence_id", "sequence_start", "sequence_end"}
_IGNORED_PREFIXES = ("triton_", "binary_data")

Value = int | float | str  # bool is an int


def parameter_values(parameters: Mapping[str, Any], known: tuple[str, ...]) -> RequestValues:
    """Read the parameters of a request.

    Args:
        parameters: InferParameter by name.
        known: the parameters of the model.

    Raises:
        BadRequestError: a parameter is unknown, or its value has a wrong type.
    """
    values: dict[str, Any] = {}
    for name, parameter in parameters.items():
        if name in known:
            values[name] = _READERS[name](name, _value(name, parameter))
        elif name != TIMEOUT and name not in _IGNORED and not name.startswith(_IGNORED_PREFIXES):
            raise BadRequestError(f"there is no parameter {name!r:.80}; this model has: {', '.join(known)}, {TIMEOUT}")
    return RequestValues(**values)


def timeout_seconds(parameters: Mapping[str, Any]) -> float | None:
    """Return the parameter `timeout` in seconds; None where it is not set or 0.

    Raises:
        BadRequestError: it is not a whole number of microseconds.
    """
    if TIMEOUT not in parameters:
        return None
    microseconds = _whole(TIMEOUT, _value(TIMEOUT, parameters[TIMEOUT]))
    if microseconds < 0:
        raise BadRequestError(f"timeout is {_shown(microseconds)}: it is a number of microseconds, 0 for none")
    return min(microseconds, 2**63) / 1e6 or None


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


def _number(name: str, value: Value) -> float:
    try:
        return float(value)
    except ValueError:
        raise BadRequestError(f"{name} is {_shown(value)}: it must be a number") from None


def _text(name: str, value: Value) -> str:
    if isinstance(value, float | bool):
        raise BadRequestError(f"{name} is {_shown(value)}: it must be a text")
    return str(value)  # "501" is a query, even where it came as a number


def _words(name: str, value: Value) -> tuple[str, ...]:
    return tuple(_text(name, value).split(","))


def _shown(value: Value) -> str:
    return f"{value!r:.80}"


def _rule(name: str, value: Value) -> QueryRule:
    try:
        return QueryRule(value)
    except ValueError:
        *others, last = (rule.value for rule in QueryRule)
        raise BadRequestError(f"{name} is {_shown(value)}: write {', '.join(others)} or {last}") from None


def _region(name: str, value: Value) -> Region:
    parts = str(value).split(",")
    if len(parts) != 4:
        raise BadRequestError(f"{name} is {_shown(value)}: it must be x,y,width,height in fractions of the photo")
    x, y, width, height = (_number(name, part) for part in parts)
    return Region(x, y, width, height)


def _one_text(name: str, value: Value) -> tuple[str, ...]:
    return (_text(name, value),)


def _switch(name: str, value: Value) -> bool:
    text = str(value).lower()
    if text not in ("true", "false"):
        raise BadRequestError(f"{name} is {_shown(value)}: it must be true or false")
    return text == "true"


_READERS = {
    "num_beams": _whole,
    "length_penalty": _number,
    "max_tokens": _whole,
    "query_rule": _rule,
    "region": _region,
    "max_results": _whole,
    "min_visual_score": _number,
    "min_semantic_score": _number,
    "provider": _text,
    "query_override": _text,
    "colour": _text,
    "thing": _text,
    "exclude": _words,
    "min_price": _number,
    "max_price": _number,
    "available": _switch,
    "categories": _one_text,
}
CAPTION_PARAMETERS = ("num_beams", "length_penalty", "max_tokens", "query_rule", "region")
SEARCH_PARAMETERS = tuple(_READERS)
