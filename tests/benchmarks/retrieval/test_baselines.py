# SPDX-License-Identifier: Apache-2.0
"""The systems of other papers: their variants are chosen, and they search with what was chosen."""

from __future__ import annotations

import json

import numpy as np

from benchmarks.retrieval.baseline_features import CNN_POOLINGS, DESCRIPTORS
from benchmarks.retrieval.baselines import (
    CAPTIONS,
    CONTENT,
    IMAGENET,
    BaselineChoice,
    BaselineInputs,
    baseline_systems,
    choice_table,
    choose,
)
from tests.benchmarks.retrieval.test_systems import QUERY
from training.baselines import unit_length

PRODUCTS, QUERIES = 60, 12
KINDS = np.arange(PRODUCTS) % 4
ROWS = np.arange(PRODUCTS)


def inputs() -> BaselineInputs:
    """Only the colour and the mean pooling tell the kind of a product; all else is noise."""
    draw = np.random.default_rng(0)

    def noise() -> np.ndarray:
        return unit_length(draw.normal(size=(PRODUCTS, 6)).astype(np.float32))

    telling = unit_length(np.eye(4, 6, dtype=np.float32)[KINDS] + 0.1 * noise())
    return BaselineInputs(
        cnn={name: telling if name == "mean" else noise() for name in CNN_POOLINGS},
        described={name: telling if name == "colour" else noise() for name in DESCRIPTORS},
        captions=[
            f"Brand{number} {['red', 'blue', 'black', 'white'][kind]} shirt" for number, kind in enumerate(KINDS)
        ],
        said=telling,
    )


def test_telling_variants_are_chosen_and_used() -> None:
    queries, gallery = ROWS[:QUERIES], ROWS[QUERIES:]
    grades = [(KINDS[gallery] == KINDS[row]).astype(np.int64) for row in queries]
    found = choose(inputs(), queries, gallery, grades)
    choice = BaselineChoice.of_record(json.loads(json.dumps(found["choice"])))
    assert "mean" in choice.poolings
    assert choice.weights["colour"] == max(choice.weights.values())
    assert len(found["tried"][CAPTIONS]) == 4
    assert set(found["tried"]) == {IMAGENET, CONTENT, CAPTIONS}
    assert choice_table(found).count("| ImageNet") == 1
    every = baseline_systems(inputs(), gallery, choice, {QUERY.product_id: 3})
    for search in every.values():
        assert {int(KINDS[gallery][place]) for place in search(QUERY)[:5]} == {3}


def test_without_pretrained_weights_the_network_is_left_out() -> None:
    without = BaselineInputs({}, inputs().described, inputs().captions)
    assert IMAGENET not in baseline_systems(without, ROWS[QUERIES:], BaselineChoice(), {})
