# SPDX-License-Identifier: Apache-2.0
"""A folder in the Kaggle layout (`images/<id>.jpg` and `styles.csv`) -> photos and names in memory, split by name.

Rows that cannot be used are counted and reported, never silently dropped. Knows nothing about tokens or models.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from captioner.model_contract import Fit
from captioner.preprocessing import ImageError, decode_photo

VALIDATION_PER_MILLE = 50  # share of the product names held back


class DataError(ValueError):
    """The folder is not in a layout we read. The message says what was looked for and where."""


@dataclass(frozen=True)
class Product:
    """One row of `styles.csv`; `name` is the photo's caption."""

    id: str
    name: str
    article_type: str
    colour: str
    gender: str


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
        """(training, validation); products of one name are on one side, so that a near-twin cannot leak."""
        held_back = [is_validation(product.name) for product in self.products]
        return (
            self.subset([i for i, held in enumerate(held_back) if not held]),
            self.subset([i for i, held in enumerate(held_back) if held]),
        )


def is_validation(name: str) -> bool:
    """Whether products of this name are held back; a hash of the name alone, so it never depends on the rest."""
    normalised = " ".join(name.lower().split())
    digest = hashlib.sha256(normalised.encode()).digest()
    return int.from_bytes(digest[:8], "big") % 1000 < VALIDATION_PER_MILLE


def read_styles(folder: Path, skipped: Counter[str]) -> Iterator[Product]:
    """The usable rows of `folder/styles.csv`.

    The full Kaggle set has unquoted commas in a few names; what is over belongs to the name, its last column.

    Raises:
        DataError: no such file, or a column is missing.
    """
    path = folder / "styles.csv"
    if not path.is_file() or not (folder / "images").is_dir():
        raise DataError(
            f"{folder} does not hold images/ and styles.csv (the Kaggle layout): give --data another folder"
        )
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        reader = csv.reader(lines)
        header = next(reader, [])
        missing = {"id", "articleType", "baseColour", "gender", "productDisplayName"} - set(header)
        if missing:
            raise DataError(f"{path} lacks the columns {sorted(missing)}")
        for values in reader:
            if len(values) > len(header):
                values = [*values[: len(header) - 1], ",".join(values[len(header) - 1 :])]
            row = dict(zip(header, values, strict=False))
            name = " ".join(row.get("productDisplayName", "").split())
            if not name:
                skipped["no name"] += 1
                continue
            yield Product(row["id"], name, row.get("articleType", ""), row.get("baseColour", ""), row.get("gender", ""))


def load_products(
    folder: Path,
    *,
    height: int,
    width: int,
    fit: Fit,
    limit: int | None = None,
    only: Callable[[Product], bool] = lambda product: True,
    progress: bool = True,
) -> ProductSet:
    """Read and decode a folder in the Kaggle layout; photos become [height, width, 3].

    Args:
        limit: use only the first `limit` usable rows.
        only: which products to read.

    Raises:
        DataError: the folder is not in this layout, or not one photo could be read.
    """
    skipped: Counter[str] = Counter()
    rows = [product for product in read_styles(folder, skipped) if only(product)]
    products: list[Product] = []
    pixels: list[npt.NDArray[np.uint8]] = []
    for product in tqdm(rows, desc=f"photos of {folder.name}", unit="photo", disable=not progress):
        if limit is not None and len(products) == limit:
            break
        try:
            data = (folder / "images" / f"{product.id}.jpg").read_bytes()
            pixels.append(decode_photo(data, height=height, width=width, fit=fit))
        except FileNotFoundError:
            skipped["no photo"] += 1
        except ImageError:
            skipped["unreadable photo"] += 1
        else:
            products.append(product)
    if not products:
        raise DataError(f"not one product of {folder} has a readable photo ({dict(skipped)})")
    return ProductSet(products, np.stack(pixels), skipped)
