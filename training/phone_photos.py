# SPDX-License-Identifier: Apache-2.0
"""Photos that people took of their own clothes, with one garment label each, split by sender.

The layout is that of Alexey Grigorev's clothing data set: `images/<image>.jpg` with `images.csv` (image, sender_id,
label, kids). Photos of one sender show the same rooms and often the same garment, so a sender is either for training or
for validation, never for both.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from captioner.image_error import ImageError
from captioner.model_contract import Fit
from captioner.preprocessing import decode_photo
from captioner.word_folding import fold
from training.product_files import MAX_PHOTO_BYTES, DataError

VALIDATION_PER_MILLE = 250  # share of the senders held back
COLUMNS = frozenset({"image", "sender_id", "label"})


@dataclass(frozen=True)
class Garment:
    """What a label of the phone photos is called in the words of a shop.

    Attributes:
        words: words that name the garment, the first one what a caption for training says.
        near_words: words of garments so much alike that a user would accept them.
        types: articleTypes of the studio set that are this garment.
        near_types: articleTypes that a user would accept in its place.
    """

    words: tuple[str, ...]
    types: tuple[str, ...]
    near_words: tuple[str, ...] = ()
    near_types: tuple[str, ...] = ()

    def is_named_by(self, words: Iterable[str]) -> bool:
        """Whether one of these words names the garment or a near one; case, hyphens and plurals do not matter."""
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

    image: str
    sender: str
    label: str
    kids: bool

    @property
    def garment(self) -> Garment:
        """What the label is called."""
        return GARMENTS[self.label]


@dataclass
class PhonePhotoSet:
    """Photos with labels: `pixels` is uint8 [n, height, width, 3], RGB."""

    photos: list[PhonePhoto]
    pixels: npt.NDArray[np.uint8]
    skipped: Counter[str] = field(default_factory=Counter)  # reason -> rows

    def __len__(self) -> int:
        return len(self.photos)

    def subset(self, indices: list[int]) -> PhonePhotoSet:
        """The photos at these places."""
        return PhonePhotoSet([self.photos[i] for i in indices], self.pixels[indices], self.skipped)


def is_validation_sender(sender: str) -> bool:
    """Whether photos of this sender are held back; a hash of the sender alone, so it never depends on the rest."""
    digest = hashlib.sha256(f"phone sender {sender}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % 1000 < VALIDATION_PER_MILLE


def read_phone_rows(folder: Path, skipped: Counter[str]) -> Iterator[PhonePhoto]:
    """The rows of `images.csv` whose label is a garment; others are counted in `skipped`.

    Raises:
        DataError: there is no such file, or a column is missing.
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
        elif not image or not image.isprintable() or image.startswith(".") or set(image) & set("/\\:"):
            skipped["image is no file name"] += 1
        else:
            yield PhonePhoto(image, row["sender_id"] or "", row["label"], (row.get("kids") or "").lower() == "true")


def load_phone_photos(
    folder: Path,
    *,
    height: int,
    width: int,
    fit: Fit,
    validation: bool | None = None,
    limit: int | None = None,
    progress: bool = True,
) -> PhonePhotoSet:
    """Read and decode the photos of garments.

    Args:
        folder: holds `images/` and `images.csv`.
        height, width: pixels.
        fit: as `decode_photo`.
        validation: True or False for one side of the split by sender, None for both.
        limit: use only the first `limit` rows of that side.

    Returns:
        The photos in the order of `images.csv`.

    Raises:
        DataError: the folder is not in this layout, or not one photo could be read.
    """
    skipped: Counter[str] = Counter()
    rows = [
        row
        for row in read_phone_rows(folder, skipped)
        if validation is None or is_validation_sender(row.sender) == validation
    ][:limit]
    photos: list[PhonePhoto] = []
    pixels = np.empty((len(rows), height, width, 3), dtype=np.uint8)
    for row in tqdm(rows, desc=f"photos of {folder.name}", unit="photo", disable=not progress):
        try:
            data = (folder / "images" / f"{row.image}.jpg").read_bytes()
            if len(data) > MAX_PHOTO_BYTES:
                skipped["photo too large"] += 1
                continue
            pixels[len(photos)] = decode_photo(data, height=height, width=width, fit=fit)
        except FileNotFoundError:
            skipped["no photo"] += 1
        except (ImageError, OSError):
            skipped["unreadable photo"] += 1
        else:
            photos.append(row)
    if not photos:
        raise DataError(f"none of the phone photos of {folder} that were asked for can be read ({dict(skipped)})")
    return PhonePhotoSet(photos, pixels[: len(photos)], skipped)
