# SPDX-License-Identifier: Apache-2.0
"""Titles for a folder of photos: from a CSV file or from the file names."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from search_gateway.catalog.store import CatalogError
from search_gateway.catalog.text_analysis import one_line

# Lower case, in order of preference. The first pair is that of the Kaggle set's styles.csv.
_KEY_COLUMNS = ("file", "path", "id")
_TITLE_COLUMNS = ("productdisplayname", "title", "name")
_URL_COLUMN = "url"

_BETWEEN_WORDS = re.compile(r"[\s_.+-]+")


@dataclass(frozen=True)
class TitleLine:
    """A line of a titles file."""

    key: str  # the photo's path, its name, or its name without suffix
    title: str
    url: str


class TitleList:
    """The lines of a titles file."""

    def __init__(self, lines: list[TitleLine]) -> None:
        self._lines = {line.key: line for line in lines}

    def __len__(self) -> int:
        return len(self._lines)

    def line_of(self, photo: PurePosixPath) -> TitleLine | None:
        """Return the line of a photo, given its path relative to the photos folder; None if there is none."""
        for key in (str(photo), photo.name, photo.stem):
            if line := self._lines.get(key):
                return line
        return None


def read_titles(path: Path, photos_folder: Path) -> TitleList:
    """Read a CSV file with a column file, path or id, and a column productDisplayName, title or name.

    The case of the names does not matter. A column `url` is optional, others are ignored. The separator is a comma, a
    semicolon or a tab. Lines without a title are skipped.

    Args:
        path: the CSV file.
        photos_folder: removed from the beginning of absolute paths in the file.

    Raises:
        CatalogError: the file cannot be read or lacks a column.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            rows = list(_rows(file.read()))
    except OSError as error:
        raise CatalogError(f"the titles {path} cannot be read: {error.strerror}") from error
    except csv.Error as error:
        raise CatalogError(f"the titles {path} are not a CSV file: {error}") from error
    header = [name.strip().lower() for name in rows[0]] if rows else []
    key_at = _first(header, _KEY_COLUMNS)
    title_at = _first(header, _TITLE_COLUMNS)
    if key_at is None or title_at is None:
        raise CatalogError(
            f"the titles {path} need a column file, path or id and a column productDisplayName, "
            f"title or name; there are: {', '.join(header) or 'none'}"
        )
    url_at = _first(header, (_URL_COLUMN,))
    lines = []
    for row in rows[1:]:
        if len(row) <= max(key_at, title_at):
            continue
        # The Kaggle set has unquoted commas in its last column, the names.
        rest = row[title_at:] if title_at == len(header) - 1 else row[title_at : title_at + 1]
        title = one_line(",".join(rest))
        url = one_line(row[url_at]) if url_at is not None and url_at < len(row) else ""
        if title:
            lines.append(TitleLine(_key(row[key_at], photos_folder), title, url))
    return TitleList(lines)


def title_from_name(photo: PurePosixPath) -> str:
    """Make a title from a file name: "blue_shirt-01.jpg" -> "blue shirt 01"."""
    return one_line(_BETWEEN_WORDS.sub(" ", photo.stem)) or photo.stem


def _rows(text: str) -> list[list[str]]:
    first_line = text.partition("\n")[0]
    separator = max(",;\t", key=first_line.count)
    return list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))


def _first(header: list[str], names: tuple[str, ...]) -> int | None:
    return next((header.index(name) for name in names if name in header), None)


def _key(text: str, photos_folder: Path) -> str:
    key = text.strip().replace("\\", "/")
    prefix = f"{photos_folder.as_posix()}/"
    return key.removeprefix(prefix).removeprefix("./")
