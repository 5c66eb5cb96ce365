# SPDX-License-Identifier: Apache-2.0
"""Matches a list of titles with photos, and names the photos that have no line in it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import PurePosixPath

from search_gateway.catalog.base import NO_ATTRIBUTES, Attributes, CatalogEntry
from search_gateway.catalog.text_analysis import one_line

_BETWEEN_WORDS = re.compile(r"[\s_.+-]+")
_SUFFIX = re.compile(r"\.[a-z][a-z0-9]{1,4}$", re.IGNORECASE)  # of a file; "71.0" has none
# What tells several photos of a product apart: "71_1", "71-back", "71 (2)".
_VIEW_NAME = r"(?:\d{1,3}|[a-z]|front|back|side|left|right|top|bottom|detail|zoom|main|model|alt|extra)"
_VIEW_SUFFIX = re.compile(rf"[\s_.(-]+{_VIEW_NAME}\)?$")
_VIEW = re.compile(_VIEW_NAME)
_WHOLE_NUMBER = re.compile(r"0*(\d+?)(?:\.0+)?")
# As a spreadsheet writes a number; the digits are kept only if there are as many as the exponent says.
_SCIENTIFIC = re.compile(r"(\d)(?:[.,](\d+))?e\+?(\d+)")


@dataclass(frozen=True)
class TitleLine:
    """A line of a list of titles."""

    key: str  # the photo's path, its name, its name without suffix, or the product's id
    title: str
    url: str | None  # None where the list has no URLs
    number: int  # of the line in the file, from 1
    attributes: Attributes | None = None  # None where the list has no columns of them


class TitleList:
    """The lines of a titles file; of several with the same key the last one is used."""

    def __init__(self, lines: Iterable[TitleLine]) -> None:
        self.lines = list({line.key: line for line in lines}.values())

    def match(self, photos: Sequence[str]) -> dict[str, TitleLine]:
        """Return the line of each photo that has one.

        Exact paths, names and ids are preferred. The next steps ignore case, leading zeros, folders in front of the
        list's paths, and suffixes of several photos of one product. A photo that fits lines with different titles in
        the same step gets none of them.

        Args:
            photos: paths relative to the photos folder, with "/".
        """
        common = _common_folder([line.key for line in self.lines])
        found: dict[str, TitleLine] = {}
        for is_for_one_photo, forms_of_line, forms_of_photo in _steps(common):
            used = {line.key for line in found.values()} if is_for_one_photo else set()
            by_form: dict[str, TitleLine | None] = {}
            for line in self.lines:
                if line.key not in used:
                    for form in forms_of_line(line.key):
                        other = by_form.setdefault(form, line)
                        if other is not None and (other.title, other.url) != (line.title, line.url):
                            by_form[form] = None
            for photo in photos:
                if photo not in found:
                    lines = (by_form.get(form) for form in forms_of_photo(unicodedata.normalize("NFC", photo)))
                    if first := next((line for line in lines if line is not None), None):
                        found[photo] = first
        return found


def title_and_url(path: str, line: TitleLine | None, before: CatalogEntry | None) -> tuple[str, str]:
    """Return title and URL of a photo: from its line, else from its former entry, else from its file name."""
    kept_url = before.url if before is not None else ""
    if line is not None:
        return line.title, kept_url if line.url is None else line.url
    if before is not None and before.title != title_from_name(PurePosixPath(before.path)):
        return before.title, kept_url
    return title_from_name(PurePosixPath(path)), kept_url


def attributes_of(line: TitleLine | None, before: CatalogEntry | None) -> Attributes:
    """Return the attributes of a photo: from its line, else from its former entry."""
    if line is not None and line.attributes is not None:
        return line.attributes
    return NO_ATTRIBUTES if before is None else before.attributes


def title_from_name(photo: PurePosixPath) -> str:
    """Make a title from a file name: "blue_shirt-01.jpg" -> "blue shirt 01"."""
    return one_line(_BETWEEN_WORDS.sub(" ", photo.stem)) or photo.stem


_Forms = Callable[[str], Iterable[str]]


def _steps(common_folder: str) -> list[tuple[bool, _Forms, _Forms]]:
    """Return for each step: whether it skips used lines, and the forms of a line and of a photo that are compared."""
    return [
        (False, lambda key: [key], _endings),
        (False, lambda key: [_folded(key)], lambda photo: _endings(_folded(photo))),
        (True, lambda key: [_folded(key.removeprefix(common_folder))], lambda photo: [_folded(photo)]),
        (True, lambda key: _tails(_folded(key)), lambda photo: [_folded(photo)]),
        (False, lambda key: [] if "/" in key else [_stem(_folded(key))], _products),
        (
            False,
            lambda key: [_stem(_folded(key.removeprefix(common_folder)))],
            lambda photo: [] if "/" in photo else _products(photo),
        ),
    ]


def _common_folder(keys: Sequence[str]) -> str:
    common = commonprefix([key for key in keys if "/" in key])
    return common[: common.rfind("/") + 1]


def _tails(path: str) -> Iterator[str]:
    """Yield the path, the path without its first folder, and so on to the name."""
    while True:
        yield path
        folder, slash, path = path.partition("/")
        if not slash:
            return


def _endings(photo: str) -> Iterator[str]:
    """Yield the path, its ends and the name of a photo, then the same without the suffix."""
    yield from _tails(photo)
    yield from _tails(_stem(photo))


def _products(photo: str) -> Iterator[str]:
    """Yield ids of products of which this may be one of several photos."""
    folder, _, name = _stem(photo.casefold()).rpartition("/")
    yield _number(name)
    if folder and _VIEW.fullmatch(name):
        yield _number(folder.rpartition("/")[2])
    while (shorter := _VIEW_SUFFIX.sub("", name)) != name:
        name = shorter
        yield _number(name)


def _folded(path: str) -> str:
    """Return a path in lower case, with its name as `_number` writes it."""
    folder, slash, name = path.casefold().rpartition("/")
    suffix = _SUFFIX.search(name)
    stem, ending = (name[: suffix.start()], suffix[0]) if suffix else (name, "")
    return f"{folder}{slash}{_number(stem)}{ending}"


def _number(text: str) -> str:
    """Return "71" for "0071", "71.0" and "7.1e+01", and other texts unchanged."""
    if match := _WHOLE_NUMBER.fullmatch(text):
        return match[1]
    match = _SCIENTIFIC.fullmatch(text)
    digits = "" if match is None else match[1] + (match[2] or "")
    return digits if match is not None and len(digits) == int(match[3]) + 1 else text


def _stem(path: str) -> str:
    return _SUFFIX.sub("", path)
