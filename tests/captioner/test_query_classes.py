# SPDX-License-Identifier: Apache-2.0
"""The list of queries beside a model: read whole, or refused with what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from captioner.model_contract import ContractError
from captioner.query_classes import QUERY_CLASSES_FILE, load_query_classes

CLASSES = ["", "blue shirt", "sports shoes", "t-shirt"]


def written(folder: Path, content: object) -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / QUERY_CLASSES_FILE).write_text(text, encoding="utf-8")
    return folder


def test_classes_are_read_in_their_order(tmp_path: Path) -> None:
    assert load_query_classes(written(tmp_path, CLASSES), 4) == tuple(CLASSES)


def test_model_without_a_query_head_needs_no_file(tmp_path: Path) -> None:
    assert load_query_classes(tmp_path, 0) == ()


@pytest.mark.parametrize(
    ("content", "num_queries", "message"),
    [
        (CLASSES, 5, "has 4 queries, the model 5 by model_contract.json: export it again"),
        ("{", 4, "is not JSON"),
        ({"": 0}, 1, "is not a list of texts"),
        (["", 1], 2, "is not a list of texts"),
        (["blue shirt", ""], 2, "begins with 'blue shirt': class 0"),
        (["", ""], 2, "holds '', which is no query"),
        (["", "Blue Shirt"], 2, "holds 'Blue Shirt', which is no query"),
        (["", "men blue shirt"], 2, "holds 'men blue shirt', which is no query"),
        (["", "shirt", "shirt"], 3, "holds a query twice"),
    ],
)
def test_file_that_does_not_fit_is_refused(tmp_path: Path, content: object, num_queries: int, message: str) -> None:
    with pytest.raises(ContractError, match=f"{QUERY_CLASSES_FILE} {message}"):
        load_query_classes(written(tmp_path, content), num_queries)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"query_classes.json is missing: the model has 4 queries"):
        load_query_classes(tmp_path, 4)
