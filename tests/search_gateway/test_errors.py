# SPDX-License-Identifier: Apache-2.0
"""The tree of errors: what is drawn is what there is, and every leaf has a code."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import grpc
import pytest

from captioner.image_error import ImageError, ImageReason
from search_gateway import errors
from search_gateway.api.error_interceptor import public_message
from search_gateway.errors import ConfigError, OverloadedError, SearchError
from search_gateway.triton import embedded
from search_gateway.web.problems import HttpRequestError

# A line of the drawing: indentation and branches, the name, perhaps its base, perhaps its code.
_LINE = re.compile(
    r"^    (?P<branch>[│├└─ ]*)(?P<name>\w+Error)(?: \((?P<base>\w+)\))?(?:\s+(?P<code>[A-Z_]{6,}))?(?!\S)"
)


def drawn() -> Iterator[re.Match[str]]:
    assert errors.__doc__ is not None
    for line in errors.__doc__.splitlines():
        found = _LINE.match(line)
        if found:
            yield found


def subclasses(of: type[SearchError]) -> Iterator[type[SearchError]]:
    for child in of.__subclasses__():
        yield child
        yield from subclasses(child)


def existing() -> dict[str, type[Exception]]:
    """The exceptions this module defines, and those it draws from elsewhere."""
    own = inspect.getmembers(errors, lambda value: inspect.isclass(value) and issubclass(value, Exception))
    here = {name: value for name, value in own if value.__module__ == errors.__name__}
    return {
        **here,
        "HttpRequestError": HttpRequestError,
        "ImageError": ImageError,
        "TritonStartError": embedded.TritonStartError,
    }


# Every module that could define an error of the tree has been imported by these.
CHILDREN = [child for child in subclasses(SearchError) if child.__module__.startswith("search_gateway.")]


def test_drawn_tree_names_exactly_the_classes_that_exist() -> None:
    names = [line["name"] for line in drawn()]
    assert len(names) == len(set(names))
    assert set(names) == set(existing())


def test_every_error_of_the_tree_is_defined_in_this_module() -> None:
    # A private error never leaves its module.
    assert {child.__name__ for child in CHILDREN if not child.__name__.startswith("_")} <= set(existing())


def test_drawn_branches_are_the_base_classes() -> None:
    parents: list[str] = []
    for line in drawn():
        depth = len(line["branch"].replace("│", " ")) // 4
        if line["name"] == "ImageError":
            break
        parents[depth:] = [line["name"]]
        expected = Exception if depth == 0 else existing()[parents[depth - 1]]
        assert existing()[line["name"]].__base__ is expected, line["name"]


def test_drawn_codes_are_the_codes() -> None:
    num_codes = 0
    for line in drawn():
        kind = existing()[line["name"]]
        if line["code"]:
            num_codes += 1
            image_error = ImageError(ImageReason.UNREADABLE, "is empty", 0, None, "send a file")
            code = kind.code if issubclass(kind, SearchError) else public_message(image_error, "")[0]
            assert code.name == line["code"]
        elif issubclass(kind, SearchError) and kind is not SearchError:
            assert "code" not in vars(kind), f"{line['name']} has a code of its own that is not drawn"
    assert num_codes >= 6


@pytest.mark.parametrize("kind", CHILDREN, ids=lambda kind: kind.__name__)
def test_every_error_has_a_code_that_is_a_failure(kind: type[SearchError]) -> None:
    assert isinstance(kind.code, grpc.StatusCode)
    assert kind.code not in (grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)


def test_root_has_no_code_since_it_is_never_raised() -> None:
    assert not hasattr(SearchError, "code")


@pytest.mark.parametrize("kind", CHILDREN, ids=lambda kind: kind.__name__)
def test_message_is_what_the_caller_reads(kind: type[SearchError]) -> None:
    message = "the queue is full: try again shortly"
    error = OverloadedError(message, 1.5) if kind is OverloadedError else kind(message)
    assert str(error) == message


def test_overload_says_when_to_come_back() -> None:
    assert OverloadedError("full", retry_after_seconds=1.5).retry_after_seconds == 1.5


def test_configuration_errors_are_no_answer_to_a_request() -> None:
    assert issubclass(ConfigError, ValueError)
    assert not issubclass(ConfigError, SearchError)
