# SPDX-License-Identifier: Apache-2.0
"""The options of a request over HTTP, and the message of search.proto that they make."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from search_api import search_pb2
from search_gateway.web.problems import HttpRequestError

MAX_OPTION_CHARACTERS = 1000
_MAX_UINT32 = 2**32 - 1
RULES = {
    name.removeprefix("QUERY_RULE_").lower(): number
    for name, number in search_pb2.QueryRule.items()
    if number != search_pb2.QUERY_RULE_UNSPECIFIED
}


def _whole(name: str, text: str) -> int:
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()):
        raise HttpRequestError(f"{name} is {text[:40]!r}: give a whole number")
    number = int(text) if len(text) <= 10 else -1
    if not 0 <= number <= _MAX_UINT32:
        raise HttpRequestError(f"{name} is {text[:40]}, outside of its limits: /openapi.json has them")
    return number


def _number(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise HttpRequestError(f"{name} is {text[:40]!r}: give a number")
    return number


def _text(name: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        is_text = False
    else:
        is_text = "\ufffd" not in text  # what stands for wrong bytes of an address
    if not is_text:
        raise HttpRequestError(f"{name} is no text in UTF-8: encode it as UTF-8")
    return text


def _words(name: str, text: str) -> list[str]:
    return _text(name, text).split(",")


def _switch(name: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise HttpRequestError(f"{name} is {text[:40]!r}: give true or false")
    return text == "true"


def _rule(name: str, text: str) -> int:
    if text not in RULES:
        raise HttpRequestError(f"{name} is {text[:40]!r}: give one of {', '.join(RULES)}")
    return RULES[text]


def _region(name: str, text: str) -> search_pb2.Region:
    parts = text.split(",")
    if len(parts) != 4:
        raise HttpRequestError(f"{name} is {text[:40]!r}: give x,y,width,height as fractions of the photo, 0 to 1")
    x, y, width, height = (_number(name, part) for part in parts)
    return search_pb2.Region(x=x, y=y, width=width, height=height)


# Option -> the message it belongs to ("" is the request), its field there, and how its text is read.
_CAPTION_OPTIONS: Mapping[str, tuple[str, str, Callable[[str, str], Any]]] = {
    "num_beams": ("decoding", "num_beams", _whole),
    "length_penalty": ("decoding", "length_penalty", _number),
    "max_tokens": ("decoding", "max_tokens", _whole),
    "query_rule": ("", "query_rule", _rule),
    "region": ("", "region", _region),
}
_SEARCH_OPTIONS: Mapping[str, tuple[str, str, Callable[[str, str], Any]]] = {
    **_CAPTION_OPTIONS,
    "query_override": ("", "query_override", _text),
    "override_colour": ("word_override", "colour", _text),
    "override_thing": ("word_override", "thing", _text),
    "exclude": ("", "exclude", _words),
    "provider": ("", "provider", _text),
    "max_results": ("", "max_results", _whole),
    "min_visual_score": ("refinement", "min_visual_score", _number),
    "min_semantic_score": ("refinement", "min_semantic_score", _number),
    "min_price": ("filters", "min_price", _number),
    "max_price": ("filters", "max_price", _number),
    "available": ("filters", "available", _switch),
    "category": ("filters", "categories", _text),
    "include_dropped": ("", "explain", _switch),
}
CAPTION_OPTIONS = tuple(_CAPTION_OPTIONS)
SEARCH_OPTIONS = tuple(_SEARCH_OPTIONS)


def search_request(options: Iterable[tuple[str, str]]) -> search_pb2.SearchRequest:
    """Return the request of a search, without its photo.

    Raises:
        HttpRequestError: an option is unknown, given twice, or its text cannot be read. The service checks the limits.
    """
    request = search_pb2.SearchRequest()
    _set_options(request, options, _SEARCH_OPTIONS)
    return request


def caption_request(options: Iterable[tuple[str, str]]) -> search_pb2.CaptionRequest:
    """Return the request of a caption, without its photo.

    Raises:
        HttpRequestError: as `search_request`.
    """
    request = search_pb2.CaptionRequest()
    _set_options(request, options, _CAPTION_OPTIONS)
    return request


def _set_options(
    request: Any, options: Iterable[tuple[str, str]], known: Mapping[str, tuple[str, str, Callable[[str, str], Any]]]
) -> None:
    given = set()
    for name, text in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise HttpRequestError(f"{name[:40]!r} is no option of this method: {remedy}")
        if name in given:
            raise HttpRequestError(f"{name} is given twice: give it once")
        if len(text) > MAX_OPTION_CHARACTERS:
            raise HttpRequestError(f"{name} has {len(text)} characters; the limit is {MAX_OPTION_CHARACTERS}")
        given.add(name)
        message, field, read = known[name]
        target = getattr(request, message) if message else request
        value = read(name, text)
        if isinstance(value, search_pb2.Region):
            target.region.CopyFrom(value)
        elif field == "categories":
            target.categories.append(value)
        elif isinstance(value, list):
            getattr(target, field).extend(value)
        else:
            setattr(target, field, value)
