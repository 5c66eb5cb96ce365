# SPDX-License-Identifier: Apache-2.0
"""How likely it is that a photo shows a product: by head and distance, and what the file beside the models says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captioner.model_contract import ContractError, ModelContract
from captioner.photo_confidence import PHOTO_CONFIDENCE_FILE, ConfidenceModel, photo_confidence
from tests.conftest import MODELS

SIZE = 3
CONTRACT = replace(ModelContract.load(MODELS), hidden_size=SIZE, num_queries=2, weights="abc")
NEAR, FAR = np.array([1.0, 0.0, 0.0], np.float32), np.array([0.0, 1.0, 0.0], np.float32)


def model(**changes: Any) -> ConfidenceModel:
    whitening = np.array([[2, 0, 0], [1, 5, 0], [0, 0, 4]], np.float32)
    made = ConfidenceModel(
        weights="abc", mean=NEAR, whitening=whitening, bias=-3.0, head_weight=1.0, distance_weight=1.0
    )
    return replace(made, **changes)


def test_distance_is_that_of_the_inverse_covariance() -> None:
    inverse = model().whitening @ model().whitening.T
    offset = (FAR - NEAR).astype(np.float64)
    assert model().distances(np.stack([NEAR, FAR])) == pytest.approx([0, np.sqrt(offset @ inverse @ offset)])


def test_sure_photo_has_no_reason() -> None:
    sure = model().of_photo(0.1, NEAR)
    assert sure.value == pytest.approx(1 / (1 + np.exp(-3.0 + np.log(0.1 / 0.9))))
    assert (sure.unsure_reason, sure.sentence) == ("", "")


def test_head_alone_makes_a_photo_unsure() -> None:
    unsure = model().of_photo(0.99, NEAR)
    assert unsure.value < 0.5
    assert unsure.unsure_reason == "the photo may show no product"
    assert unsure.sentence == f"the photo may show no product (confidence {unsure.value:.0%})"


def test_distance_alone_makes_a_photo_unsure() -> None:
    unsure = model(distance_weight=5.0).of_photo(0.1, FAR)
    assert unsure.value < 0.5
    assert unsure.unsure_reason == (
        "the photo may show no product: it is unlike the photos that the model learned from"
    )


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_certain_head_gives_a_finite_confidence(probability: float) -> None:
    assert 0 <= model().of_photo(probability, FAR).value <= 1


def test_without_a_model_the_head_says_it_alone() -> None:
    assert photo_confidence(0.2).value == pytest.approx(0.8)
    assert photo_confidence(0.2).unsure_reason == ""
    assert photo_confidence(0.75).sentence == "the photo may show no product (confidence 25%)"


def test_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    saved = model(figures={"photos": 3})
    saved.save(tmp_path)
    loaded = ConfidenceModel.load(tmp_path, CONTRACT)
    assert loaded is not None
    assert (loaded.mean.tolist(), loaded.whitening.tolist()) == (saved.mean.tolist(), saved.whitening.tolist())
    assert (loaded.bias, loaded.head_weight, loaded.distance_weight) == (-3.0, 1.0, 1.0)
    assert (loaded.weights, loaded.figures) == ("abc", {"photos": 3})


def test_no_file_and_no_query_head_give_no_model(tmp_path: Path) -> None:
    assert ConfidenceModel.load(tmp_path, CONTRACT) is None
    model().save(tmp_path)
    assert ConfidenceModel.load(tmp_path, replace(CONTRACT, num_queries=0)) is None


def test_file_for_other_weights_is_refused(tmp_path: Path) -> None:
    model(weights="other").save(tmp_path)
    with pytest.raises(ContractError, match="is for weights other, but the models have abc: run `python -m export"):
        ConfidenceModel.load(tmp_path, CONTRACT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "its version is not 1"),
        ({"mean": "AAAA"}, "cannot be used"),
        ({"mean": 7}, "cannot be used"),
        ({"whitening": "?"}, "cannot be used"),
        ({"mean": "AADAfwAAwH8AAMB/"}, "does not have 3 finite numbers"),  # NaN
        ({"bias": "much"}, "cannot be used"),
        ({"bias": float("nan")}, "a parameter is not finite"),
        ({"weights": None}, "is for weights None"),
    ],
)
def test_broken_file_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    model().save(tmp_path)
    path = tmp_path / PHOTO_CONFIDENCE_FILE
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")
    with pytest.raises(ContractError, match=message):
        ConfidenceModel.load(tmp_path, CONTRACT)


@pytest.mark.parametrize("text", ["", "[]", "7", "{}", '"text"'])
def test_file_that_holds_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / PHOTO_CONFIDENCE_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(ContractError, match="cannot be used"):
        ConfidenceModel.load(tmp_path, CONTRACT)


def test_models_of_this_repository_have_their_confidence() -> None:
    assert ConfidenceModel.load(MODELS, ModelContract.load(MODELS)) is not None
