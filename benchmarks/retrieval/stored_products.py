# SPDX-License-Identifier: Apache-2.0
"""Keeps decoded product photos in a file, since decoding 41,810 of them takes longer than ranking them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Unpack

import numpy as np

from captioner.model_contract import PhotoShape
from training.prepare_data import Product, ProductSet, load_products

_STYLES = "styles.csv"


def stored_products(folder: Path, store: Path, **shape: Unpack[PhotoShape]) -> ProductSet:
    """Load all products of a set; their photos are mapped from a file, which is written first where it is missing.

    Args:
        folder: as of `load_products`.
        store: where the file is kept; its name has a digest of the folder's list of products and the photos' shape.
        shape: of the photos.
    """
    styles = folder / _STYLES
    if not styles.is_file():  # a ZIP file
        return load_products(folder, **shape)
    digest = hashlib.sha256(styles.read_bytes() + json.dumps([str(folder.resolve()), shape], default=str).encode())
    path = store / f"products-{digest.hexdigest()[:16]}.npy"
    names = path.with_suffix(".json")
    if not names.exists():
        store.mkdir(parents=True, exist_ok=True)
        data = load_products(folder, **shape)
        np.save(path, data.pixels)
        # The names come last, so that an interrupted run leaves no file that looks whole.
        names.write_text(json.dumps([asdict(product) for product in data.products]), encoding="utf-8")
    products = [Product(**record) for record in json.loads(names.read_text(encoding="utf-8"))]
    return ProductSet(products, np.load(path, mmap_mode="r"))
