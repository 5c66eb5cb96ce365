# SPDX-License-Identifier: Apache-2.0
"""A product set in a Kaggle layout -> photos and names in memory, split by name.

The layouts, in a folder or in one ZIP file: `images/<id>.jpg` with `styles.csv` (the small set), or with
`styles/<id>.json` (the full set, which has both; then `styles.csv` is read). Rows that cannot be used are counted and
reported, never silently dropped. Knows nothing about tokens or models.
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
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from captioner.image_error import ImageError
from captioner.model_contract import Fit
from captioner.preprocessing import decode_photo, fit_photo, open_photo
from training.product_files import DataError as DataError  # raised here, so caught from here
from training.product_files import ProductFiles, UnreadableFileError, open_files, read_photo

VALIDATION_PER_MILLE = 50  # share of the product names held back

STYLE_COLUMNS = (
    "id", "gender", "masterCategory", "subCategory", "articleType",
    "baseColour", "season", "year", "usage", "productDisplayName",
)  # fmt: skip
REQUIRED_COLUMNS = frozenset({"id", "articleType", "baseColour", "gender", "productDisplayName"})

MAX_STYLES_BYTES = 64 * 2**20  # the full set's styles.csv has 4.3 MB, its largest styles/<id>.json less than 0.1
MAX_ID_CHARACTERS = 100

StyleRow = dict[str, str]  # each of STYLE_COLUMNS -> what it says about one product, "" if nothing


@dataclass(frozen=True)
class Product:
    """One row of `styles.csv`; `name` is the photo's caption."""

    id: str
    name: str
    article_type: str
    colour: str
    gender: str
    listed_name: str = ""  # the name in styles.csv, where a rule has made another caption of it


@dataclass
class ProductSet:
    """Products with their photos: `pixels` is uint8 [n, height, width, 3]."""

    products: list[Product]
    pixels: npt.NDArray[np.uint8]
    skipped: Counter[str] = field(default_factory=Counter)  # reason -> rows

    def __len__(self) -> int:
        return len(self.products)

    def subset(self, indices: list[int]) -> ProductSet:
        return ProductSet([self.products[i] for i in indices], self.pixels[indices])

    def split(self) -> tuple[ProductSet, ProductSet]:
        """(training, validation); products of one name are on one side.

        The name is the listed one, so that no rule for names changes the split. Where a small set has no name that is
        held back, the one with the lowest hash is.
        """
        shares = [split_share(product.listed_name or product.name) for product in self.products]
        bound = max(VALIDATION_PER_MILLE - 1, min(shares, default=0))
        held_back = [share <= bound for share in shares]
        return (
            self.subset([i for i, held in enumerate(held_back) if not held]),
            self.subset([i for i, held in enumerate(held_back) if held]),
        )

    def renamed(self, rule: Callable[[str], str]) -> ProductSet:
        """The same photos with the captions that `rule` (`product_names.NAME_RULES`) makes of the listed names."""
        products = []
        for product in self.products:
            listed = product.listed_name or product.name
            name = rule(listed)
            products.append(dataclasses.replace(product, name=name, listed_name="" if name == listed else listed))
        return ProductSet(products, self.pixels, self.skipped)


def is_validation(name: str) -> bool:
    """Whether products of this listed name are held back; a hash of it alone, so it never depends on the rest."""
    return split_share(name) < VALIDATION_PER_MILLE


def split_share(name: str) -> int:
    """Where a name's hash puts it, 0 to 999; case and spacing do not matter."""
    normalised = " ".join(name.lower().split())
    digest = hashlib.sha256(normalised.encode()).digest()
    return int.from_bytes(digest[:8], "big") % 1000


def read_rows(files: ProductFiles, name: str, skipped: Counter[str], *, progress: bool = False) -> Iterator[StyleRow]:
    """The usable rows of a set, in the order of `styles.csv` or of the ids of `styles/<id>.json`.

    Args:
        name: what messages call the set.
        skipped: reason -> rows that cannot be used; counted up.

    Raises:
        DataError: no such files, or a column is missing.
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
            raise DataError(f"styles.csv of {name} has more than {MAX_STYLES_BYTES:,} bytes: divide the set")
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
    # The id is the photo's file name: it must not lead out of images/.
    if len(product) > MAX_ID_CHARACTERS or product.startswith(".") or set(product) & set("/\\:"):
        return "id is no file name"
    if not product.isprintable():
        return "id is no file name"
    if not row["productDisplayName"]:
        return "no name"
    return "id is there twice" if product in seen else None


def _csv_rows(text: str, name: str, skipped: Counter[str]) -> Iterator[StyleRow]:
    """Every line is one row: a quote that is never closed costs its own row and not all behind it.

    The full Kaggle set has unquoted commas in a few names; what is over belongs to the name if that is the last column.
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
    """`{"data": {"id": 1, "productDisplayName": "..", "articleType": {"typeName": ".."}, ..}}` a product."""
    names = sorted(
        (name for name in entries if name.endswith(".json") and not name.startswith(".")),
        key=lambda name: (len(name), name),  # as numbers, which the ids are
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
    """A value of the JSON as `styles.csv` has it."""
    if isinstance(value, dict):  # {"id": 90, "typeName": "Shirts", ..}
        value = value.get("typeName")
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ""
    return str(value).encode("utf-8", "replace").decode()  # JSON can escape half a character; UTF-8 has none


def read_styles(folder: Path, skipped: Counter[str]) -> Iterator[Product]:
    """The usable rows of the set at `folder` (or of a packed file), without its photos.

    Raises:
        DataError: no such file, or a column is missing.
    """
    with open_files(folder) as files:
        yield from map(_product, read_rows(files, str(folder), skipped))


def _product(row: StyleRow) -> Product:
    return Product(row["id"], row["productDisplayName"], row["articleType"], row["baseColour"], row["gender"])


def load_products(
    folder: Path,
    *,
    height: int,
    width: int,
    fit: Fit,
    limit: int | None = None,
    only: Callable[[Product], bool] = lambda product: True,
    aspect: float | None = None,
    progress: bool = True,
) -> ProductSet:
    """Read and decode a set; photos become [height, width, 3].

    Args:
        folder: a folder in a Kaggle layout, or a ZIP file of one.
        limit: use only the first `limit` usable rows.
        only: which products to read; sees listed names.
        aspect: width / height that the photos had before somebody changed it; None: they have it still.

    Raises:
        DataError: the set is not in such a layout, or not one photo could be read.
    """
    skipped: Counter[str] = Counter()
    products: list[Product] = []
    with open_files(folder) as files:
        rows = read_rows(files, str(folder), skipped, progress=progress)
        chosen = [product for product in map(_product, rows) if only(product)]
        most = len(chosen) if limit is None else min(limit, len(chosen))
        # Filled in place: a list of photos and the array made of it would need the memory twice.
        pixels = np.empty((most, height, width, 3), dtype=np.uint8)
        for product in tqdm(chosen, desc=f"photos of {folder.name}", unit="photo", disable=not progress):
            if len(products) == most:
                break
            try:
                _, data = read_photo(files, product.id)
                if aspect is None:
                    pixels[len(products)] = decode_photo(data, height=height, width=width, fit=fit)
                else:
                    picture = open_photo(data)
                    picture = picture.resize((round(picture.height * aspect), picture.height))
                    pixels[len(products)] = fit_photo(picture, height=height, width=width, fit=fit)
            except FileNotFoundError:
                skipped["no photo"] += 1
            except ImageError as error:
                skipped["photo too large" if error.reason.is_size else "unreadable photo"] += 1
            except UnreadableFileError:
                skipped["unreadable photo"] += 1
            else:
                products.append(product)
    if not products:
        raise DataError(f"none of the products of {folder} that were asked for has a readable photo ({dict(skipped)})")
    return ProductSet(products, pixels[: len(products)], skipped)
