# SPDX-License-Identifier: Apache-2.0
"""No name of a query is in its gallery, and relevance is graded by type and colour."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.retrieval.collection import Relevance, RetrievalSet, calibration_set, evaluation_set
from training.prepare_data import Product, ProductSet, is_validation


def product(number: int, name: str, article_type: str = "Shirts", colour: str = "Red") -> Product:
    return Product(str(number), name, article_type, colour, "Men")


def products_named(names: list[str]) -> ProductSet:
    products = [product(number, name) for number, name in enumerate(names)]
    return ProductSet(products, np.zeros((len(names), 1, 1, 3), np.uint8))


MANY = products_named([f"Shirt {number // 2}" for number in range(2000)])  # every name twice


@given(st.lists(st.text("abc ", min_size=1, max_size=3).filter(str.strip), min_size=3, max_size=60))
def test_names_are_never_on_both_sides(names: list[str]) -> None:
    for make in (evaluation_set, calibration_set):
        found = make(products_named(names))
        sides = [
            {" ".join(found.data.products[row].name.split()) for row in rows.tolist()}
            for rows in (found.query_rows, found.gallery_rows)
        ]
        assert not sides[0] & sides[1]


def test_halves_of_the_validation_split_ask_the_training_split() -> None:
    to_evaluate, to_calibrate = evaluation_set(MANY), calibration_set(MANY)
    train, validation = MANY.split()
    for found in (to_evaluate, to_calibrate):
        assert found.gallery == train.products
        assert 0.3 < len(found.queries) / len(validation) < 0.7
    assert sorted(one.id for one in to_evaluate.queries + to_calibrate.queries) == sorted(
        one.id for one in validation.products
    )


def test_what_calibrates_is_not_evaluated() -> None:
    names = [{one.name for one in found.queries} for found in (evaluation_set(MANY), calibration_set(MANY))]
    assert not names[0] & names[1]
    assert all(is_validation(name) for name in names[0] | names[1])


def test_a_sample_is_drawn_from_the_queries_only_and_is_the_same_each_time() -> None:
    found = evaluation_set(MANY)
    sample = found.sample(10, seed=1)
    assert sample.query_rows.tolist() == found.sample(10, seed=1).query_rows.tolist()
    assert sample.query_rows.tolist() != found.sample(10, seed=2).query_rows.tolist()
    assert set(sample.query_rows.tolist()) < set(found.query_rows.tolist())
    assert sample.gallery == found.gallery
    assert found.sample(10**6, seed=1) is found


def test_a_name_on_both_sides_is_refused() -> None:
    data = products_named(["Red Shirt", "red  shirt"])
    with pytest.raises(ValueError, match="red shirt"):
        RetrievalSet(data, np.array([0]), np.array([1]))


def test_grades() -> None:
    gallery = [
        product(1, "a", "Shirts", "Red"),
        product(2, "b", "Shirts", "Blue"),
        product(3, "c", "Bags", "Red"),
        product(4, "d", "Shirts", "NA"),
    ]
    relevance = Relevance(gallery)
    assert relevance.grades(product(0, "q", "Shirts", "Red")).tolist() == [2, 1, 0, 1]
    assert relevance.grades(product(0, "q", "Shirts", "NA")).tolist() == [1, 1, 0, 1]
    assert relevance.grades(product(0, "q", "Watches", "Red")).tolist() == [0, 0, 0, 0]
