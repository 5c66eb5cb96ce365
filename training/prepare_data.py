# SPDX-License-Identifier: Apache-2.0
"""Read a product set in a Kaggle layout into memory, photos and names, and split it by name.

The layouts, in a folder or in one ZIP file, are `images/<id>.jpg` with `styles.csv` (the small set) or with
`styles/<id>.json` (the full set; it has both, and `styles.csv` is read). Rows that cannot be used are counted and
reported.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from captioner.model_contract import PhotoShape
from captioner.preprocessing import decode_photo, fit_photo, open_photo
from training.product_files import DataError as DataError  # raised here, so caught from here
from training.product_files import (
    ProductFiles,
    UnreadableFileError,
    decode_photos,
    is_file_name,
    open_files,
    read_photo,
)

VALIDATION_PER_MILLE = 50  # share of the product names held back

STYLE_COLUMNS = (
    "id", "gender", "masterCategory", "subCategory", "articleType",
    "baseColour", "season", "year", "usage", "productDisplayName",
)  # fmt: skip
REQUIRED_COLUMNS = frozenset({"id", "articleType", "baseColour", "gender", "productDisplayName"})

MAX_STYLES_BYTES = 64 * 2**20  # the full set's styles.csv has 4.3 MB, its largest styles/<id>.json less than 0.1
MAX_ID_CHARACTERS = 100

StyleRow = dict[str, str]  # one product's value of each of STYLE_COLUMNS, "" where there is none


@dataclass(frozen=True)
class Product:
    """One row of `styles.csv`."""

    id: str  # also the name of the photo's file
    name: str  # the photo's caption
    article_type: str  # articleType, e.g. "Tshirts"
    colour: str  # baseColour
    gender: str  # whom the product is for
    listed_name: str = ""  # the name in `styles.csv`, where a rule made another caption of it; else ""


@dataclass
class ProductSet:
    """Products with their photos."""

    products: list[Product]  # n products
    pixels: npt.NDArray[np.uint8]  # uint8 [n, height, width, 3], RGB
    skipped: Counter[str] = field(default_factory=Counter)  # reason -> how many rows were left out

    def __len__(self) -> int:
        return len(self.products)

    def subset(self, indices: list[int]) -> ProductSet:
        """The products at these indices."""
        return ProductSet([self.products[i] for i in indices], self.pixels[indices])

    def split(self) -> tuple[ProductSet, ProductSet]:
        """Divide into training and validation products; products of one listed name are on the same side.

        Where no name of a small set is held back by its hash, the name with the lowest hash is.
        """
        shares = [split_share(product.listed_name or product.name) for product in self.products]
        bound = max(VALIDATION_PER_MILLE - 1, min(shares, default=0))
        held_back = [share <= bound for share in shares]
        return (
            self.subset([i for i, held in enumerate(held_back) if not held]),
            self.subset([i for i, held in enumerate(held_back) if held]),
        )

    def renamed(self, rule: Callable[[str], str]) -> ProductSet:
        """The same photos with the captions that `rule` (of `product_names.NAME_RULES`) makes of the listed names."""
        products = []
        for product in self.products:
            listed = product.listed_name or product.name
            name = rule(listed)
            products.append(dataclasses.replace(product, name=name, listed_name="" if name == listed else listed))
        return ProductSet(products, self.pixels, self.skipped)


def is_validation(name: str) -> bool:
    """Whether products of a listed name are held back; only a hash of the name decides, so other rows do not matter."""
    return split_share(name) < VALIDATION_PER_MILLE


def split_share(name: str) -> int:
    """The hash of a name, 0 to 999; case and spacing do not matter."""
    normalised = " ".join(name.lower().split())
    digest = hashlib.sha256(normalised.encode()).digest()
    return int.from_bytes(digest[:8], "big") % 1000


def read_rows(files: ProductFiles, name: str, skipped: Counter[str], *, progress: bool = False) -> Iterator[StyleRow]:
    """Read the usable rows of a set, in the order of `styles.csv` or of the ids of `styles/<id>.json`.

    Args:
        files: of the set.
        name: of the set in messages.
        skipped: reason -> number of unusable rows, which is increased.
        progress: show a progress bar on stderr.

    Yields:
        Rows with all of STYLE_COLUMNS, an id that is a file name, and a name.

    Raises:
        DataError: the files or a column are missing.
    """
    if files.names("images") is None:
        raise _wrong_layout(name)
    try:
        data = files.read("styles.csv", MAX_STYLES_BYTES)
    except FileNotFoundError:
        entries = files.names("styles")
        if entries is None:
            raise _wrong_layout(name) from None
        rows = _json_rows(files, entries, skipped, progress)
    except UnreadableFileError as error:
        raise DataError(f"{name} has a damaged styles.csv ({error}): copy it again") from None
    else:
        if len(data) > MAX_STYLES_BYTES:
            raise DataError(f"styles.csv of {name} has more than {MAX_STYLES_BYTES:,} bytes: split the set")
        rows = _csv_rows(data.decode("utf-8-sig", errors="replace"), name, skipped)
    seen: set[str] = set()
    for row in rows:
        row = {column: row.get(column, "").strip() for column in STYLE_COLUMNS}
        row["productDisplayName"] = " ".join(row["productDisplayName"].split())
        if reason := _fault(row, seen):
            skipped[reason] += 1
            continue
        seen.add(row["id"])
        yield row


def _wrong_layout(name: str) -> DataError:
    return DataError(
        f"{name} does not hold images/ and styles.csv or styles/*.json (the Kaggle layouts): "
        "give --data another folder or packed file"
    )


def _fault(row: StyleRow, seen: set[str]) -> str | None:
    """Why a row cannot be used; None if it can."""
    product = row["id"]
    if not product:
        return "no id"
    if len(product) > MAX_ID_CHARACTERS or not is_file_name(product):
        return "id is no file name"
    if not row["productDisplayName"]:
        return "no name"
    return "id is there twice" if product in seen else None


def _csv_rows(text: str, name: str, skipped: Counter[str]) -> Iterator[StyleRow]:
    """Parse each line as one row, so that an unclosed quote spoils its own row only.

    A few names of the full Kaggle set have unquoted commas: surplus values belong to the name if that is the last
    column.
    """
    lines = io.StringIO(text, newline=None)
    header = next(csv.reader([next(lines, "")]), [])
    missing = REQUIRED_COLUMNS - set(header)
    if missing:
        raise DataError(
            f"styles.csv of {name} lacks the columns {sorted(missing)}: it needs {sorted(REQUIRED_COLUMNS)}"
        )
    name_is_last = header[-1] == "productDisplayName"
    for line in lines:
        if not line.strip():
            continue
        try:
            values = next(csv.reader([line]))
        except csv.Error:
            skipped["row cannot be read"] += 1
            continue
        if len(values) < len(header):
            skipped["too few columns"] += 1
        elif len(values) > len(header) and not name_is_last:
            skipped["too many columns"] += 1
        else:
            last = len(header) - 1
            yield dict(zip(header, [*values[:last], ",".join(values[last:])], strict=True))


def _json_rows(files: ProductFiles, entries: list[str], skipped: Counter[str], progress: bool) -> Iterator[StyleRow]:
    """Parse one file for each product: `{"data": {"id": 1, "articleType": {"typeName": "Shirts"}, ..}}`."""
    names = sorted(
        (name for name in entries if name.endswith(".json") and not name.startswith(".")),
        key=lambda name: (len(name), name),  # the order of numbers, which the ids are
    )
    for name in tqdm(names, desc="styles/*.json", unit="file", disable=not progress):
        try:
            data = files.read(f"styles/{name}", MAX_STYLES_BYTES)
            content = json.loads(data.decode("utf-8-sig", errors="replace"))
        except (FileNotFoundError, UnreadableFileError, ValueError, RecursionError):
            skipped["broken JSON"] += 1
            continue
        product = content.get("data") if isinstance(content, dict) else None
        if not isinstance(product, dict):
            skipped["JSON without a product"] += 1
            continue
        yield {column: _text(product.get(column)) for column in STYLE_COLUMNS}


def _text(value: Any) -> str:
    """A value of the JSON in the form that `styles.csv` has."""
    if isinstance(value, dict):  # {"id": 90, "typeName": "Shirts", ..}
        value = value.get("typeName")
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ""
    return str(value).encode("utf-8", "replace").decode()  # JSON can escape half a character; UTF-8 has none


def read_styles(folder: Path, skipped: Counter[str]) -> Iterator[Product]:
    """Read the usable rows of a set without its photos.

    Args:
        folder: a folder in a Kaggle layout, or a ZIP file of one.
        skipped: reason -> number of unusable rows, which is increased.

    Yields:
        The products in the order of the rows.

    Raises:
        DataError: the files or a column are missing.
    """
    with open_files(folder) as files:
        yield from map(_product, read_rows(files, str(folder), skipped))


def _product(row: StyleRow) -> Product:
    return Product(row["id"], row["productDisplayName"], row["articleType"], row["baseColour"], row["gender"])


def load_products(
    folder: Path,
    *,
    limit: int | None = None,
    validation: bool | None = None,
    only: Callable[[Product], bool] = lambda product: True,
    aspect: float | None = None,
    progress: bool = True,
    **shape: Unpack[PhotoShape],
) -> ProductSet:
    """Read and decode a set.

    Args:
        folder: a folder in a Kaggle layout, or a ZIP file of one.
        limit: largest number of products.
        validation: True or False for one side of the split by name, None for both.
        only: a further condition; it sees listed names.
        aspect: width / height of the photos before they were squashed; None: they were not.
        progress: show progress bars on stderr.
        shape: of the photos.

    Returns:
        The products in the order of the rows, with photos uint8 [n, height, width, 3].

    Raises:
        DataError: the set is not in such a layout, or no photo could be read.
    """
    skipped: Counter[str] = Counter()
    with open_files(folder) as files:

        def picture_of(product: Product) -> npt.NDArray[np.uint8]:
            _, data = read_photo(files, product.id)
            if aspect is None:
                return decode_photo(data, **shape)
            picture = open_photo(data)
            picture = picture.resize((round(picture.height * aspect), picture.height))
            return fit_photo(picture, **shape)

        chosen = [
            product
            for product in map(_product, read_rows(files, str(folder), skipped, progress=progress))
            if validation in (None, is_validation(product.name)) and only(product)
        ]
        bar = tqdm(chosen, desc=f"photos of {folder.name}", unit="photo", disable=not progress)
        most = len(chosen) if limit is None else min(limit, len(chosen))
        products, pixels = decode_photos(bar, picture_of, (most, shape["height"], shape["width"], 3), skipped)
    if not products:
        raise DataError(f"none of the requested products of {folder} has a readable photo ({dict(skipped)})")
    return ProductSet(products, pixels, skipped)
