# SPDX-License-Identifier: Apache-2.0
"""Tests of the catalogue's benchmark, on eight products."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.catalog_speed import measure, milliseconds, questions
from tests.search_gateway.catalog.test_store import TITLES, product, reader, writer
from training.prepare_data import is_validation


def test_questions_are_the_last_two_words_of_held_back_products(tmp_path: Path) -> None:
    names = [f"Turtle Men Shirt{number}, Blue" for number in range(200)]
    lines = [f'{number},"{name}"' for number, name in enumerate(names)]
    header = "id,gender,masterCategory,subCategory,articleType,baseColour,season,year,usage,productDisplayName"
    rows = [line.replace(",", ",,,,,,,,,", 1) for line in lines]
    (tmp_path / "images").mkdir()
    (tmp_path / "styles.csv").write_text("\n".join([header, *rows]))
    expected = sorted([f"shirt{number}", "blue"] for number, name in enumerate(names) if is_validation(name))
    assert expected
    assert sorted(questions(tmp_path, 1000)) == expected
    assert len(questions(tmp_path, 1)) == 1


def test_both_kinds_are_timed_and_the_first_is_told_apart(tmp_path: Path) -> None:
    with writer(tmp_path / "c.sqlite") as store:
        store.add([product(title) for title in TITLES])
    with reader(tmp_path / "c.sqlite") as store:
        measured = measure(store, [["blue", "shirt"], ["zebra"]], 5, 3)
    assert set(measured) == {"find", "find again", "similar"}
    for values in measured.values():
        assert 0 < values["p50"] <= values["p99"] <= values["longest"]
        assert values["first"] > 0


def test_a_question_that_fails_is_not_timed() -> None:
    def fails(one: int) -> None:
        raise ValueError(one)

    with pytest.raises(ValueError, match="7"):
        milliseconds(fails, [7])
