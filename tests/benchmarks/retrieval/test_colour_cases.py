# SPDX-License-Identifier: Apache-2.0
"""Photos that ask for another colour."""

from __future__ import annotations

from benchmarks.retrieval.colour_cases import MIN_PRODUCTS, colour_cases, colour_record, colour_table
from training.prepare_data import Product


def product(number: int, kind: str, colour: str) -> Product:
    return Product(str(number), f"{colour} {kind} {number}", kind, colour, "Men")


GALLERY = [product(number, "Shirts", ("Red", "Blue")[number % 2]) for number in range(2 * MIN_PRODUCTS)]
QUERIES = [product(100, "Shirts", "Red"), product(101, "Hats", "Red"), product(102, "Shirts", "Teal")]


def test_colour_is_one_that_the_type_has() -> None:
    cases = colour_cases(QUERIES, GALLERY)
    assert [(case.place, case.own, case.wanted) for case in cases] == [(0, "red", "blue")]


def test_first_result_needs_type_and_wanted_colour() -> None:
    cases = colour_cases(QUERIES, GALLERY)
    record = colour_record({"right": [[1, 3]], "unchanged": [[0, 1]], "none": [[]]}, cases, QUERIES, GALLERY, seed=0)
    means = [row["first has type and wanted colour"]["mean"] for row in record["systems"].values()]
    assert means == [1.0, 0.0, 0.0]
    assert [row["first has its own colour"] for row in record["systems"].values()] == [0.0, 1.0, 0.0]
    assert "| unchanged | 0.000 (0.000–0.000) | 1.000 (1.000–1.000) |" in colour_table(record)
