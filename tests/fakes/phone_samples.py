# SPDX-License-Identifier: Apache-2.0
"""A small set of phone photos of drawings, in the layout that `training.phone_photos` reads."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from drawings.draw_samples import draw_sample
from training.phone_photos import PhonePhoto, is_validation_sender

# Label -> garment that is drawn for it.
DRAWINGS = {"T-Shirt": "T-shirt", "Shirt": "Shirt", "Dress": "Dress", "Pants": "Jeans", "Shorts": "Shorts",
            "Skirt": "Skirt", "Shoes": "Shoes", "Hat": "Cap"}  # fmt: skip


def senders(count: int, *, validation: bool) -> list[str]:
    """Return the first `count` senders on one side of the split."""
    return [name for i in range(40 * count) if is_validation_sender(name := str(i)) == validation][:count]


def phone_photo(label: str, sender: str = "1", image: str = "a") -> PhonePhoto:
    return PhonePhoto(image, sender, label, kids=False)


def write_rows(folder: Path, rows: Sequence[dict[str, str]], columns: Sequence[str] | None = None) -> None:
    """Write images.csv and an empty images/."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    columns = columns or ("image", "sender_id", "label", "kids")
    with (folder / "images.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def write_phone_photos(folder: Path, *, validation_senders: int = 4, training_senders: int = 2) -> list[dict[str, str]]:
    """Write two photos of each sender, and return the rows."""
    names = [*senders(validation_senders, validation=True), *senders(training_senders, validation=False)]
    labels = list(DRAWINGS)
    rows = []
    for i, sender in enumerate(names * 2):
        rows.append({"image": f"photo-{i}", "sender_id": sender, "label": labels[i % len(labels)], "kids": "False"})
    write_rows(folder, rows)
    for i, row in enumerate(rows):
        drawing = draw_sample(DRAWINGS[row["label"]], "Blue", np.random.default_rng(i))
        drawing.save(folder / "images" / f"{row['image']}.jpg", quality=90)
    return rows
