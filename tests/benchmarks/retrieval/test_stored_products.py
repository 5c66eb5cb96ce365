# SPDX-License-Identifier: Apache-2.0
"""Decoded photos are kept for the next run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.retrieval import stored_products as module
from benchmarks.retrieval.stored_products import stored_products
from captioner.model_contract import PhotoShape
from training.prepare_data import Product, ProductSet

SHAPE = PhotoShape(height=4, width=3, fit="pad")


def test_photos_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ProductSet([Product("1", "Red Shirt", "Shirts", "Red", "Men")], np.full((1, 4, 3, 3), 7, np.uint8))
    calls: list[Path] = []

    def load(folder: Path, **_: object) -> ProductSet:
        calls.append(folder)
        return data

    monkeypatch.setattr(module, "load_products", load)
    (tmp_path / "styles.csv").write_text("id\n1\n", encoding="utf-8")
    for _ in range(2):
        found = stored_products(tmp_path, tmp_path / "run", **SHAPE)
        assert found.products == data.products
        assert np.array_equal(found.pixels, data.pixels)
    assert len(calls) == 1
    (tmp_path / "styles.csv").write_text("id\n2\n", encoding="utf-8")
    stored_products(tmp_path, tmp_path / "run", **SHAPE)
    assert len(calls) == 2, "another list of products"
