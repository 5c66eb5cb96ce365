# SPDX-License-Identifier: Apache-2.0
"""Which pairs of products count as alike."""

from __future__ import annotations

import numpy as np

from benchmarks.visual_threshold import pair_kinds
from training.prepare_data import Product, ProductSet


def product(name: str, article_type: str, colour: str) -> Product:
    return Product(name, name, article_type, colour, "Men")


def test_each_pair_is_of_one_kind_and_counted_once() -> None:
    products = [
        product("Red Shirt One", "Shirts", "Red"),
        product("Red Shirt Two", "Shirts", "Red"),
        product("Blue Shirt", "Shirts", "Blue"),
        product("Red Bag", "Handbags", "Red"),
    ]
    kinds = pair_kinds(ProductSet(products, np.zeros((4, 1, 1, 3), np.uint8)))
    assert {kind: [tuple(pair) for pair in np.argwhere(pairs).tolist()] for kind, pairs in kinds.items()} == {
        "same type and colour": [(0, 1)],
        "same type": [(0, 2), (1, 2)],
        "same colour": [(0, 3), (1, 3)],
        "neither": [(2, 3)],
    }


def test_products_of_one_name_are_no_pair() -> None:
    products = [product("Red Shirt", "Shirts", "Red"), product("red  shirt", "Shirts", "Red")]
    kinds = pair_kinds(ProductSet(products, np.zeros((2, 1, 1, 3), np.uint8)))
    assert not any(pairs.any() for pairs in kinds.values())
