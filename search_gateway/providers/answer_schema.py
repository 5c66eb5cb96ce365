# SPDX-License-Identifier: Apache-2.0
"""Checks a provider's JSON answer against its pydantic model, and names what differs.

What belongs to the whole answer must be there. Single rows may differ, since providers leave out fields of some
pictures: such rows are left out and logged. If no row is left, the answer is an error that names the field of the
first one ("answer lacks results[].thumbnail.src") and never an empty answer.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from search_gateway.errors import ProviderError
from search_gateway.providers.base import Candidate

_log = logging.getLogger(__name__)

_MAX_ROWS = 1000  # looked at; APIs have 200 at most, and an answer of 4 MiB may have a million

_WANTED = {"string": "text", "list": "a list", "int": "a whole number", "model": "an object", "bool": "true or false"}

Row = TypeVar("Row", bound=BaseModel)


class Answer(BaseModel):
    """The base of the models: other fields are ignored, and no type is converted to another.

    Fields that a candidate can do without are declared as `object`, so that an odd one does not cost the row.
    """

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


def json_of(body: bytes, name: str) -> object:
    """Parse an answer.

    Args:
        body: the answer.
        name: of the provider, as callers know it.

    Raises:
        ProviderError: it is not JSON.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise ProviderError(f"{name}'s answer is not JSON: use another provider") from None


def checked(value: object, model: type[Row], name: str, path: str = "") -> Row:
    """Return a value as its model.

    Args:
        value: from JSON.
        model: what it must be.
        name: of the provider.
        path: where the value is in the answer.

    Raises:
        ProviderError: it lacks a field or has one of another type; the message names the field.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problem = _difference(error.errors(include_url=False, include_context=False)[0], path)
        raise ProviderError(f"{name}'s answer {problem}: use another provider") from None


def candidates_of(
    rows: Iterable[object], model: type[Row], name: str, made: Callable[[Row], Candidate | None], max_candidates: int
) -> list[Candidate]:
    """Return the candidates of the usable rows in order, without repeated thumbnails.

    Args:
        rows: of the answer.
        model: of one row.
        name: of the provider.
        made: makes a candidate of a row; None if its values cannot be used.
        max_candidates: maximum number of candidates.

    Raises:
        ProviderError: there are rows, but none can be used.
    """
    candidates: dict[str, Candidate] = {}
    problems: Counter[str] = Counter()
    num_rows = 0
    for row in islice(rows, _MAX_ROWS):
        if len(candidates) >= max_candidates:
            break
        num_rows += 1
        try:
            candidate = made(model.model_validate(row))
        except ValidationError as error:
            problems[_difference(error.errors(include_url=False, include_context=False)[0], "results[]")] += 1
            continue
        if candidate is None:
            problems["has results[] without a usable title, address or thumbnail"] += 1
        else:
            candidates.setdefault(candidate.thumbnail_url, candidate)
    if problems and not candidates:
        raise ProviderError(f"{name}'s answer {next(iter(problems))}: use another provider")
    for problem, number in problems.items():
        _log.info("%s's answer %s in %d of %d rows", name, problem, number, num_rows)
    return list(candidates.values())


def _difference(error: ErrorDetails, path: str) -> str:
    """Return what is wrong with a field, such as "lacks results[].title"."""
    where = path
    for part in error["loc"]:
        where += "[]" if isinstance(part, int) else f".{part}" if where else str(part)
    if error["type"] == "missing":
        return f"lacks {where}"
    wanted = _WANTED.get(error["type"].removesuffix("_type"), "of another type")
    # The value itself is untrusted text.
    return f"has {where or 'a body'} of type {type(error['input']).__name__}, which must be {wanted}"
