# SPDX-License-Identifier: Apache-2.0
"""Photos that people took of their own clothes, with one garment label each, split by sender.

The layout is that of Alexey Grigorev's clothing data set: `images/<image>.jpg` with `images.csv` (image, sender_id,
label, kids). Photos of one sender show the same rooms and often the same garment, so all of them are either training
or validation photos.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Unpack

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from captioner.model_contract import PhotoShape
from captioner.preprocessing import decode_photo
from captioner.word_folding import fold
from training.product_files import DataError, decode_photos, is_file_name

VALIDATION_PER_MILLE = 250  # share of the senders held back
COLUMNS = frozenset({"image", "sender_id", "label"})


@dataclass(frozen=True)
class Garment:
    """A label of the phone photos in a shop's words."""

    words: tuple[str, ...]  # words that name the garment
    types: tuple[str, ...]  # articleTypes of the studio set that are this garment
    near_words: tuple[str, ...] = ()  # words for garments so similar that a user would accept them
    near_types: tuple[str, ...] = ()  # articleTypes that a user would accept instead

    def is_named_by(self, words: Iterable[str]) -> bool:
        """Whether one of `words` names the garment or a near one; case, hyphens and plurals do not matter."""
        accepted = {fold(word) for word in (*self.words, *self.near_words)}
        return any(fold(word) in accepted for word in words)

    def accepts_type(self, article_type: str) -> bool:
        """Whether a studio product of this articleType is the garment or a near one."""
        return article_type in self.types or article_type in self.near_types


_TEE_WORDS = ("T-shirt", "tee", "polo", "top", "vest", "undershirt", "camisole", "tank")
_TEE_TYPES = ("Tshirts", "Lounge Tshirts", "Tops", "Innerwear Vests", "Camisoles")

GARMENTS: dict[str, Garment] = {
    "T-Shirt": Garment(("T-shirt", "tee"), ("Tshirts", "Lounge Tshirts"), _TEE_WORDS, _TEE_TYPES),
    "Polo": Garment(("T-shirt", "polo", "tee"), ("Tshirts", "Lounge Tshirts"), _TEE_WORDS, _TEE_TYPES),
    "Undershirt": Garment(
        ("vest", "undershirt", "camisole", "T-shirt", "top"),
        ("Innerwear Vests", "Camisoles", "Tshirts", "Tops"),
        _TEE_WORDS,
        _TEE_TYPES,
    ),
    "Top": Garment(("top", "T-shirt", "tunic", "camisole"), ("Tops", "Tshirts", "Camisoles"), _TEE_WORDS, _TEE_TYPES),
    "Body": Garment(
        ("T-shirt", "bodysuit", "romper", "top", "onesie"),
        ("Tshirts", "Rompers", "Tops", "Clothing Set"),
        (*_TEE_WORDS, "dress", "set"),
        (*_TEE_TYPES, "Dresses"),
    ),
    "Longsleeve": Garment(
        ("T-shirt", "sweatshirt", "sweater", "top", "pullover", "jumper"),
        ("Tshirts", "Sweatshirts", "Sweaters", "Tops"),
        _TEE_WORDS,
        _TEE_TYPES,
    ),
    "Hoodie": Garment(
        ("sweatshirt", "hoodie"), ("Sweatshirts",), ("sweater", "jacket", "pullover"), ("Sweaters", "Jackets")
    ),
    "Outwear": Garment(
        ("jacket", "coat", "windcheater"),
        ("Jackets", "Rain Jacket", "Nehru Jackets"),
        ("blazer", "waistcoat", "hoodie", "sweatshirt", "cardigan"),
        ("Blazers", "Waistcoat", "Sweatshirts"),
    ),
    "Blazer": Garment(
        ("blazer", "jacket", "coat", "suit"), ("Blazers", "Jackets", "Nehru Jackets"), ("waistcoat",), ("Waistcoat",)
    ),
    "Shirt": Garment(("shirt",), ("Shirts",), ("blouse",), ()),
    "Blouse": Garment(
        ("top", "blouse", "shirt", "tunic"), ("Tops", "Shirts", "Tunics"), ("kurti", "kurta"), ("Kurtis", "Kurtas")
    ),
    "Dress": Garment(
        ("dress", "gown", "nightdress", "jumpsuit"),
        ("Dresses", "Nightdress", "Jumpsuit"),
        ("tunic", "kurta", "kurti"),
        ("Tunics", "Kurtas", "Kurtis"),
    ),
    "Skirt": Garment(("skirt",), ("Skirts",)),
    "Pants": Garment(
        ("trousers", "jeans", "pants", "chinos", "leggings", "capris", "jeggings", "tights", "slacks"),
        ("Trousers", "Jeans", "Track Pants", "Leggings", "Capris", "Lounge Pants", "Jeggings", "Tights"),
        ("churidar", "salwar", "patiala", "pyjamas"),
        ("Churidar", "Salwar", "Patiala"),
    ),
    "Shorts": Garment(
        ("shorts", "boxers", "bermudas"), ("Shorts", "Lounge Shorts", "Boxers"), ("capris",), ("Capris",)
    ),
    "Shoes": Garment(
        ("shoes", "sneakers", "sandals", "heels", "flats", "boots", "slippers", "flops", "loafers", "floaters",
         "booties", "chappals", "clogs", "pumps", "wedges", "mules", "trainers"),
        ("Casual Shoes", "Sports Shoes", "Formal Shoes", "Heels", "Flats", "Sandals", "Sports Sandals", "Flip Flops",
         "Booties"),
    ),
    "Hat": Garment(("cap", "hat", "beanie", "headband"), ("Caps", "Hat"), (), ("Headband",)),
}  # fmt: skip


@dataclass(frozen=True)
class PhonePhoto:
    """One row of `images.csv` whose label is a garment."""

    image: str  # name of the file without its suffix
    sender: str  # who took the photo
    label: str  # a key of GARMENTS
    kids: bool  # whether the garment is for a child

    @property
    def garment(self) -> Garment:
        """The words and types of the label."""
        return GARMENTS[self.label]


@dataclass
class PhonePhotoSet:
    """Photos with labels."""

    photos: list[PhonePhoto]  # n rows
    pixels: npt.NDArray[np.uint8]  # uint8 [n, height, width, 3], RGB
    skipped: Counter[str] = field(default_factory=Counter)  # reason -> how many rows were left out

    def __len__(self) -> int:
        return len(self.photos)

    def subset(self, indices: list[int]) -> PhonePhotoSet:
        """The photos at these indices."""
        return PhonePhotoSet([self.photos[i] for i in indices], self.pixels[indices], self.skipped)


def is_validation_sender(sender: str) -> bool:
    """Whether a sender's photos are held back; only a hash of the sender decides, so other rows do not matter."""
    digest = hashlib.sha256(f"phone sender {sender}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % 1000 < VALIDATION_PER_MILLE


def read_phone_rows(folder: Path, skipped: Counter[str]) -> Iterator[PhonePhoto]:
    """Read the rows of `images.csv` whose label is a garment; the others are counted in `skipped`.

    Raises:
        DataError: the file or a column is missing.
    """
    path = folder / "images.csv"
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise DataError(
            f"{folder} does not hold images/ and images.csv ({error.strerror}): give the folder of the phone photos"
        ) from None
    rows = csv.DictReader(text.splitlines())
    missing = COLUMNS - set(rows.fieldnames or ())
    if missing:
        raise DataError(f"{path} lacks the columns {sorted(missing)}: it needs {sorted(COLUMNS)}")
    for row in rows:
        image = row["image"] or ""
        if row["label"] not in GARMENTS:
            skipped[f"label {row['label']!r}"] += 1
        elif not is_file_name(image):
            skipped["image is no file name"] += 1
        else:
            yield PhonePhoto(image, row["sender_id"] or "", row["label"], (row.get("kids") or "").lower() == "true")


def load_phone_photos(
    folder: Path,
    *,
    validation: bool | None = None,
    limit: int | None = None,
    progress: bool = True,
    **shape: Unpack[PhotoShape],
) -> PhonePhotoSet:
    """Read and decode the photos of garments.

    Args:
        folder: holds `images/` and `images.csv`.
        validation: True or False for one side of the split by sender, None for both.
        limit: use only the first `limit` rows of that side.
        progress: show a progress bar on stderr.
        shape: of the photos.

    Returns:
        The photos in the order of `images.csv`.

    Raises:
        DataError: the folder is not in this layout, or no photo could be read.
    """
    skipped: Counter[str] = Counter()
    rows = [
        row
        for row in read_phone_rows(folder, skipped)
        if validation is None or is_validation_sender(row.sender) == validation
    ][:limit]

    def picture_of(row: PhonePhoto) -> npt.NDArray[np.uint8]:
        data = (folder / "images" / f"{row.image}.jpg").read_bytes()
        return decode_photo(data, **shape)

    bar = tqdm(rows, desc=f"photos of {folder.name}", unit="photo", disable=not progress)
    photos, pixels = decode_photos(bar, picture_of, (len(rows), shape["height"], shape["width"], 3), skipped)
    if not photos:
        raise DataError(f"none of the requested phone photos of {folder} can be read ({dict(skipped)})")
    return PhonePhotoSet(photos, pixels, skipped)
