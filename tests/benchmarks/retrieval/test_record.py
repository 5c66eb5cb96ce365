# SPDX-License-Identifier: Apache-2.0
"""Means, paired differences and slices of a few queries, by hand; and the tables made of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.retrieval.metrics import METRICS, Bootstrap
from benchmarks.retrieval.record import by_frequency, by_type, by_words, slices, system_rows
from benchmarks.retrieval.systems import OURS, VISUAL
from training.prepare_data import Product


def product(article_type: str, colour: str = "Red") -> Product:
    return Product("1", "a name", article_type, colour, "Men")


def scores(ours: list[float], visual: list[float]) -> dict[str, dict[str, np.ndarray[Any, Any]]]:
    return {
        OURS: {metric: np.array(ours) for metric in METRICS},
        VISUAL: {metric: np.array(visual) for metric in METRICS},
    }


def test_systems_have_means_and_what_ours_gains() -> None:
    found = scores([1.0, 0.5], [0.5, 0.0])
    rows: Any = system_rows(
        found, {OURS: [[1], [2]], VISUAL: [[1], []]}, {OURS: 2.0, VISUAL: 1.0}, Bootstrap(2, seed=0)
    )
    assert rows[VISUAL]["nDCG@10"]["mean"] == 0.25
    assert rows[VISUAL]["ours minus this"] == pytest.approx({"mean": 0.5, "low": 0.5, "high": 0.5})
    assert rows[OURS]["ours minus this"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert (rows[OURS]["empty"], rows[VISUAL]["empty"]) == (0.0, 0.5)
    assert rows[OURS]["ms per query"] == 2.0


def test_queries_are_cut_by_how_common_their_type_is() -> None:
    gallery = [product("Shirts")] * 1000 + [product("Bags")] * 200 + [product("Hats")]
    cut = by_frequency([product("Shirts"), product("Bags"), product("Hats"), product("Ties")], gallery)
    assert [mask.tolist() for mask in cut.values()] == [
        [True, False, False, False],
        [False, True, False, False],
        [False, False, True, True],
    ]


def test_queries_are_cut_by_what_the_caption_says() -> None:
    queries = [product("Shirts"), product("Shirts"), product("Shirts"), product("Shirts")]
    captions = ["Nike Red Shirt", "Nike Blue Shirt", "Nike Red Handbag", "Nike Blue Handbag"]
    cut = by_words(queries, captions)
    assert np.array(list(cut.values())).tolist() == np.eye(4, dtype=bool).tolist()


def test_slices_leave_out_what_nobody_asked() -> None:
    rows: Any = slices(scores([1.0], [0.25]), [product("Shirts")], ["Red Shirt"], [product("Shirts")])
    assert list(rows) == ["type with fewer than 200 products", "caption: type and colour right"]
    for row in rows.values():
        assert (row["queries"], row["ours"], row["visual only"]) == (1, 1.0, 0.25)
        assert row["difference"]["mean"] == 0.75


def test_types_begin_with_those_where_looking_alone_wins() -> None:
    queries = [product("Shirts")] * 20 + [product("Bags")] * 20 + [product("Hats")] * 19
    rows = by_type(scores([1.0] * 20 + [0.0] * 39, [0.5] * 59), queries)
    assert list(rows) == ["Bags", "Shirts"], "nineteen hats are too few"
