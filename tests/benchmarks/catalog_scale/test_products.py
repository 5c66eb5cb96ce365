# SPDX-License-Identifier: Apache-2.0
"""Tests of made products: as many as wanted, as like the real ones as real ones are."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.catalog_scale.products import titles, write_embeddings


def test_made_embeddings_are_near_real_ones(tmp_path: Path) -> None:
    real = np.random.default_rng(1).normal(size=(50, 8)).astype(np.float32)
    real /= np.linalg.norm(real, axis=1, keepdims=True)
    rows = write_embeddings(real, 170, tmp_path / "rows.npy")
    assert np.array_equal(rows[:50], real)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    cosines = np.sum(rows * real[np.arange(170) % 50], axis=1)[50:]
    assert 0.6 < cosines.min() < np.median(cosines) < 0.99
    assert len(np.unique(rows, axis=0)) > 160


def test_made_titles_are_halves_of_real_ones() -> None:
    real = ["Puma Men Blue T-shirt", "Nike Women Red Dress"]
    made = list(titles(real, 6))
    assert made[:2] == real
    assert made == list(titles(real, 6))
    for number, title in enumerate(made[2:], start=2):
        first, second, third, fourth, last = title.split()
        assert (first, second) in {("Puma", "Men"), ("Nike", "Women")}
        assert (third, fourth) in {("Blue", "T-shirt"), ("Red", "Dress")}
        assert last == str(number)
