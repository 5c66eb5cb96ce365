# SPDX-License-Identifier: Apache-2.0
"""Tests of the comparison of indexes: what is taken for the truth, and what a recall is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.catalog_scale import vector_indexes
from benchmarks.catalog_scale.vector_indexes import nearest_by_brute_force, recall


def test_the_truth_is_the_order_of_all_cosines() -> None:
    generator = np.random.default_rng(0)
    rows, queries = (generator.normal(size=(count, 6)).astype(np.float32) for count in (200, 5))
    found = nearest_by_brute_force(rows, queries, 7)
    assert found.tolist() == np.argsort(-(queries @ rows.T), axis=1)[:, :7].tolist()


def test_recall_counts_the_nearest_among_the_first() -> None:
    found, truth = np.array([[1, 2, 3, 4], [5, 6, 7, 8]]), np.array([[2, 1, 9, 9], [8, 7, 6, 5]])
    assert recall(found, truth, 2) == 0.5
    assert recall(found, truth, 4) == 0.75


@pytest.mark.parametrize("name", ["brute", "ivf"])
def test_indexes_without_other_libraries_are_measured(tmp_path: Path, name: str) -> None:
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(400, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    file = tmp_path / "rows.npy"
    np.save(file, rows)
    assert vector_indexes._build(name, file, tmp_path / "index") >= 0
    found, times, _ = vector_indexes._measure(name, 20, file, tmp_path / "index", rows[:10])
    assert found[:, 0].tolist() == list(range(10))
    assert len(times) == 10
