# SPDX-License-Identifier: Apache-2.0
"""The classifiers of photos by their embedding: what they say, and which files are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from captioner.model_contract import ContractError, ModelContract
from captioner.photo_labels import PHOTO_LABELS_FILE, PhotoLabels

REPOSITORY = Path(__file__).parents[2] / "model_repository"


def labels(weights: str = "w", width: int = 4) -> PhotoLabels:
    types, colours = np.zeros((width, 2), np.float32), np.zeros((width, 2), np.float32)
    types[0, 0] = types[1, 1] = colours[2, 0] = colours[3, 1] = 10
    zero = np.zeros(2, np.float32)
    return PhotoLabels(
        weights=weights, type_names=("Shirts", "Caps"), colour_names=("Red", "Blue"), type_weight=types, type_bias=zero,
        colour_weight=colours, colour_bias=zero, colour_directions=np.eye(width, dtype=np.float32)[2:4],
    )  # fmt: skip


def test_embedding_names_type_and_colour() -> None:
    red_cap = np.array([[0, 0.8, 0.6, 0]], np.float32)
    assert labels().types(red_cap)[0].tolist() == pytest.approx([0.0003, 0.9997], abs=1e-3)
    assert labels().colours(red_cap)[0].tolist() == pytest.approx([0.9975, 0.0025], abs=1e-3)


def test_without_colour_two_colours_of_a_product_are_one() -> None:
    red, blue = np.array([0, 0.8, 0.6, 0], np.float32), np.array([0, 0.8, 0, 0.6], np.float32)
    plain = labels().without_colour(np.stack([red, blue]))
    assert plain[0] == pytest.approx(plain[1])
    assert np.linalg.norm(plain, axis=1) == pytest.approx(1)
    only_colour = labels().without_colour(np.array([[0, 0, 1, 0]], np.float32))
    assert np.isfinite(only_colour).all()


@pytest.fixture
def contract() -> ModelContract:
    return replace(ModelContract.load(REPOSITORY), weights="w")


def test_file_keeps_them(tmp_path: Path, contract: ModelContract) -> None:
    saved = labels(width=contract.hidden_size)
    assert PhotoLabels.load(tmp_path, contract) is None
    saved.save(tmp_path)
    loaded = PhotoLabels.load(tmp_path, contract)
    assert loaded is not None
    assert (loaded.type_names, loaded.colour_names, loaded.weights) == (saved.type_names, saved.colour_names, "w")
    assert np.array_equal(loaded.colour_directions, saved.colour_directions)


def test_file_of_other_weights_is_refused(tmp_path: Path, contract: ModelContract) -> None:
    labels("other", contract.hidden_size).save(tmp_path)
    with pytest.raises(ContractError, match=r"is for weights other, but the models have w: run"):
        PhotoLabels.load(tmp_path, contract)


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "width", "nan"])
def test_damaged_file_is_refused(tmp_path: Path, contract: ModelContract, damage: str) -> None:
    made = labels(width=contract.hidden_size + (damage == "width"))
    if damage == "nan":
        made = replace(made, type_bias=np.array([np.nan, 0], np.float32))
    made.save(tmp_path)
    path = tmp_path / PHOTO_LABELS_FILE
    content = {"empty": b"", "text": b"no archive", "cut": path.read_bytes()[:-50]}
    path.write_bytes(content.get(damage, path.read_bytes()))
    with pytest.raises(ContractError, match="cannot be used"):
        PhotoLabels.load(tmp_path, contract)
