# SPDX-License-Identifier: Apache-2.0
"""Reads a CSV file of titles as shops and spreadsheets write them, and refuses ambiguous lines."""

from __future__ import annotations

import codecs
import csv
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from search_gateway.catalog.base import Attributes, CatalogError
from search_gateway.catalog.build.titles import TitleLine, TitleList
from search_gateway.catalog.text_analysis import one_line

# Without spaces and marks, in order of preference: "Image Path" is "imagepath".
_FILE_COLUMNS = (
    "file", "filename", "filepath", "path", "image", "imagefile", "imagefilename", "imagename", "imagepath", "img",
    "imgpath", "photo", "photofile", "photoname", "photopath", "picture", "imagesrc", "imageurl", "imagelink",
    "id", "productid", "articleid", "itemid", "imageid", "sku", "productsku", "articlenumber", "articleno",
    "itemnumber", "productcode", "itemcode", "asin", "handle",
)  # fmt: skip
_TITLE_COLUMNS = (
    "productdisplayname", "title", "name", "producttitle", "productname", "prodname", "displayname", "articlename",
    "articletitle", "itemname", "itemtitle", "caption",
)  # fmt: skip
_URL_COLUMNS = ("url", "link", "producturl", "productlink", "pageurl")
_PRICE_COLUMNS = ("price", "saleprice", "currentprice", "productprice")
_AVAILABILITY_COLUMNS = ("availability", "available", "isavailable", "instock", "stock", "stockstatus", "quantity")
_CATEGORY_COLUMNS = (
    "category", "productcategory", "categoryname", "producttype", "producttypename", "googleproductcategory",
    "articletype",
)  # fmt: skip

_PRICE = re.compile(r"[^\d.,-]*([1-9]\d{0,2}(?:([.,' ])\d{3}(?:\2\d{3}){0,4})?|\d{1,15})(?:[.,](\d{1,2}))?[^\d.,-]*")
_IN_STOCK = frozenset(("true", "yes", "y", "instock", "available", "limitedavailability", "lowstock"))
_OUT_OF_STOCK = frozenset(
    ("false", "no", "n", "outofstock", "unavailable", "notavailable", "soldout", "discontinued", "preorder",
     "backorder")
)  # fmt: skip

_SEPARATORS = ",;\t|"
_EXCEL_SEPARATOR = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
_URL = re.compile(r"(https?://|/)\S*|[\w-]+(\.[\w-]+)+(:\d+)?(/\S*)?", re.IGNORECASE)

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, which begins alike
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OLD_ENCODINGS = ("cp1252", "mac_roman")
_FOREIGN = re.compile(r"[^\x00-\x7f]")
_LETTERS = frozenset("àâäåæçèéêëñöøùüßœáíóúãõîïôûìò")
_FOLLOWED_BY = {"œ": "uei", "ç": "aouãõéá ,.s", "ñ": "aeiouáéíóú"}
_FOREIGN_PAIR = re.compile(r"(?!.ß|ß.|ç[ãõ]|éé)[^\x00-\x7f]{2}")
_APOSTROPHE = re.compile(
    r".*(?:\w’(?:s|t|d|m|ll|re|ve)\b|\b(?:[dljmnstc]|qu)’[aeiouyhàâéèê]|\bO’[A-Z]|s’(?!\w))", re.IGNORECASE
)
# Marks, and between which two characters they stand.
_MARKS = {
    "‘": r"\W\w", "“": r"\W\S", "”": r"\S\W", "–": r"\s.|.\s|\d\d", "—": r"\s.|.\s|\d\d", "…": r".\W",
    "®": r"\S\W", "™": r"\S\W", "©": r".[\W\d]", "°": r"[\W\d].", "€": r"[\W\d][\W\d]", "£": r".\d", "½": r"[\W\d]\W",
    "¼": r"[\W\d]\W", "¾": r"[\W\d]\W", "·": r"..", "×": r"[\W\d].", "•": r"\s.", "«": r"\W.", "»": r".\W",
    "¿": r"\W\w", "\xa0": r"..",
}  # fmt: skip


def read_titles(
    path: Path, photos_folder: Path, *, file_column: str | None = None, title_column: str | None = None
) -> TitleList:
    """Read a CSV file with a column that names photos and one that names products.

    Case and punctuation in the names of columns do not matter. Columns of URLs, prices, availability and
    categories are optional, others are ignored. The
    separator is a comma, a semicolon, a tab or a bar. Lines without a title are skipped.

    Args:
        path: the CSV file.
        photos_folder: removed from the beginning of absolute paths in the file.
        file_column: name of the column with files or ids; None: one of the known names.
        title_column: name of the column with titles; None: one of the known names.

    Raises:
        CatalogError: the file cannot be read or lacks a column, or a line can be read in more than one way.
    """
    try:
        text = _text(path.read_bytes())
        records = _records(text)
        _, names = next(records, (0, []))
        header = [_plain(name) for name in names]
        file_at = _column(header, file_column, _FILE_COLUMNS)
        title_at = _column(header, title_column, _TITLE_COLUMNS)
        if file_at is None or title_at is None:
            wanted = " and ".join(
                f"a column {given}" if given else f"a column {known}"
                for given, known, at in (
                    (file_column, "file, image or id (or --file-column)", file_at),
                    (title_column, "title, name or productDisplayName (or --title-column)", title_at),
                )
                if at is None
            )
            raise CatalogError(f"need {wanted}; there are: {', '.join(map(str.strip, names)) or 'none'}")
        url_at = _column(header, None, _URL_COLUMNS)
        columns = _Columns(header, file_at, title_at, url_at, photos_folder.as_posix())
        return TitleList(line for number, row in records if (line := columns.line(number, row)))
    except OSError as error:
        raise CatalogError(f"the titles {path} cannot be read: {error.strerror}") from error
    except csv.Error as error:
        raise CatalogError(f"the titles {path} are not a CSV file: {error}") from error
    except CatalogError as error:
        raise CatalogError(f"the titles {path} {error}") from None


class _Columns:
    """The columns of a titles file."""

    def __init__(
        self, header: Sequence[str], file_at: int, title_at: int, url_at: int | None, photos_folder: str
    ) -> None:
        self._header = header
        self._file_at, self._title_at, self._url_at = file_at, title_at, url_at
        known = (_PRICE_COLUMNS, _AVAILABILITY_COLUMNS, _CATEGORY_COLUMNS)
        self._attributes_at = [_column(header, None, names) for names in known]
        self._photos_folder = f"{photos_folder}/"
        # Commas in titles that are not quoted can be told where nothing else may have any.
        used = {file_at, title_at, url_at}
        self._is_title_the_only_text = used >= set(range(len(header)))

    def line(self, number: int, row: list[str]) -> TitleLine | None:
        """Read a row; None if it has no title.

        Raises:
            CatalogError: a field of the row may belong to another column, or cannot be read.
        """
        title_at = self._title_at
        surplus = len(row) - len(self._header)
        if surplus > 0 and not any(map(str.strip, row[len(self._header) :])):
            del row[len(self._header) :]  # separators that end a line
        elif surplus > 0:
            # The Kaggle set has unquoted commas in names, its last column.
            if title_at != len(self._header) - 1 and not self._is_title_the_only_text:
                raise CatalogError(
                    f"have {len(row)} fields in line {number}, {surplus} more than columns: "
                    "put fields that contain the separator into quotes"
                )
            row[title_at : title_at + surplus + 1] = [",".join(row[title_at : title_at + surplus + 1])]
        if len(row) <= max(self._file_at, title_at) or not (title := one_line(row[title_at])):
            return None
        url = None
        if self._url_at is not None:
            url = one_line(row[self._url_at]) if self._url_at < len(row) else ""
            if url and not _URL.fullmatch(url):
                raise CatalogError(
                    f"have {url[:40]!r} instead of a URL in line {number}: put fields that contain the separator into "
                    "quotes, or name the column otherwise if it holds no URLs"
                )
        key = _key(row[self._file_at], self._photos_folder)
        return TitleLine(key, title, url, number, self._attributes(number, row)) if key else None

    def _attributes(self, number: int, row: list[str]) -> Attributes | None:
        """Read price, availability and category; None if the file has none of these columns.

        Raises:
            CatalogError: the price cannot be read.
        """
        if self._attributes_at == [None, None, None]:
            return None
        price, availability, category = (
            one_line(row[at]) if at is not None and at < len(row) else "" for at in self._attributes_at
        )
        in_stock = _plain(availability)
        is_available = None
        if in_stock.isdecimal():
            is_available = int(in_stock) > 0
        elif in_stock in _IN_STOCK or in_stock in _OUT_OF_STOCK:
            is_available = in_stock in _IN_STOCK
        return Attributes(_price(price, number), is_available, category)


def _price(text: str, number: int) -> float | None:
    """Read a price: "1,299.00", "1.299,00 EUR", "$15"; None for a text without digits.

    Raises:
        CatalogError: it can be read in more than one way.
    """
    if not any(map(str.isdecimal, text)):
        return None
    match = _PRICE.fullmatch(text)
    if match is None:
        raise CatalogError(f"have {text[:40]!r} as price in line {number}: give a number")
    whole = "".join(filter(str.isdigit, match[1]))
    return float(f"{whole}.{match[3] or '0'}")


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold()))


def _column(header: Sequence[str], given: str | None, known: Sequence[str]) -> int | None:
    names = known if given is None else (_plain(given),)
    return next((header.index(name) for name in names if name in header), None)


def _key(text: str, photos_folder: str) -> str:
    key = unicodedata.normalize("NFC", one_line(text))
    if "://" in key:
        parts = urlsplit(key)
        key = unquote(parts.netloc + parts.path)
    return key.replace("\\", "/").removeprefix(photos_folder).removeprefix("./").strip("/")


def _records(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not blank, each with the number of its first line.

    Raises:
        CatalogError: a quote is opened and never closed, or closed in another record.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n").split("\n")
    first = next((at for at, line in enumerate(lines) if line.strip(" \t,;|")), len(lines))
    separator = ""
    if first < len(lines) and (told := _EXCEL_SEPARATOR.fullmatch(lines[first])):
        separator = told[1]
        first += 1
        first += next((at for at, line in enumerate(lines[first:]) if line.strip(" \t,;|")), 0)
    separator = separator or max(_SEPARATORS, key=(lines[first] if first < len(lines) else "").count)
    physical = [f"{line}\n" for line in lines[first:]]
    reader = csv.reader(physical, delimiter=separator)
    start, num_columns = 0, 0
    for row in reader:
        if reader.line_num > start + 1:
            _check_quotes(physical[start : reader.line_num], separator, first + start + 1, num_columns)
        if any(map(str.strip, row)):
            num_columns = num_columns or len(row)
            yield first + start + 1, row
        start = reader.line_num


def _check_quotes(lines: list[str], separator: str, number: int, num_columns: int) -> None:
    """Check a record of several lines.

    Raises:
        CatalogError: it seems to contain other records, because of a quote that is not closed.
    """
    try:
        list(csv.reader(lines, delimiter=separator, strict=True))
        inner = csv.reader([line.replace('"', "") for line in lines[1:]], delimiter=separator)
        kind = _kind(lines[0].replace('"', ""), separator)
        is_torn = any(len(row) == num_columns and _kind(row[0], separator) == kind for row in inner)
    except csv.Error:
        is_torn = True
    if is_torn:
        raise CatalogError(
            f'open a quote (") in line {number} that is not closed there: close it, or write "" for a quote in a field'
        )


def _kind(line: str, separator: str) -> str:
    """Classify the first field of a line: a number, the suffix of a file, or else its text."""
    field = line.partition(separator)[0].strip()
    return "number" if field.isdigit() else PurePosixPath(field).suffix.casefold() or field


def _text(data: bytes) -> str:
    """Decode a file in UTF-8, UTF-16, UTF-32, Windows-1252 or Mac Roman.

    Raises:
        CatalogError: it is in none of them, or the file of a spreadsheet.
    """
    if data.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise CatalogError("are a spreadsheet, not a CSV file: save them as CSV UTF-8")
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and data.count(0) > len(data) // 5:
        encoding = "utf-16-be" if data[0] == 0 else "utf-16-le"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        if encoding == "utf-8" and (text := _old_text(data)) is not None:
            return text
        wrong = repr(data[error.start : error.start + 8])[2:-1]
        raise CatalogError(f"are in no encoding we know (line {number}: {wrong}): save them as CSV UTF-8") from None


def _old_text(data: bytes) -> str | None:
    """Decode a file in the encoding before Unicode that fits best; None if none fits."""
    replaced = data.decode("utf-8", "replace")
    num_wrong = replaced.count("\ufffd")
    if sum(character > "\x7f" for character in replaced) > 2 * num_wrong:
        return None  # UTF-8 with some damage
    best, most = None, 0
    for encoding in _OLD_ENCODINGS:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        fit = sum(_fit(text, found.start()) for found in _FOREIGN.finditer(text))
        if fit > most:
            best, most = text, fit
    return best


def _fit(text: str, at: int) -> int:
    """Return how well a character beyond ASCII fits between its neighbours: above 0 if well, below if badly."""
    character = text[at]
    before, after = text[at - 1 : at] or " ", text[at + 1 : at + 2] or " "
    if character == "’":
        return 3 if _APOSTROPHE.match(text, max(0, at - 3), at + 4) else 1 if before.isalnum() else -1
    if character in _MARKS:
        return 2 if re.fullmatch(_MARKS[character], f"{before}{after}") else -1
    if character.lower() not in _LETTERS:
        return -1
    neighbours = [f"{before}{character}".lower(), f"{character}{after}".lower()]
    if any(not pair.isascii() and pair.isalpha() and _FOREIGN_PAIR.search(pair) for pair in neighbours):
        return -3
    is_wrong_case = (character.isupper() and before.islower()) or (character.islower() and after.isupper())
    is_alone = not before.isalpha() and not after.isalpha() and character.lower() not in "àéáóõ"
    if is_wrong_case or is_alone or before.isdigit():
        return -2
    followed_by = _FOLLOWED_BY.get(character.lower())
    return 2 if followed_by is None or after.lower() in followed_by else -1
