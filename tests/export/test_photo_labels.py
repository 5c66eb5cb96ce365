# SPDX-License-Identifier: Apache-2.0
"""Making the classifiers of photos, on made embeddings."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the training extra (torch)")
pytest.importorskip("onnxruntime", reason="needs the export extra (onnxruntime)")

from export.photo_labels import colour_directions, likelihood

pytestmark = pytest.mark.torch


def test_colour_directions_are_those_in_which_colours_of_one_type_differ() -> None:
    rng = np.random.default_rng(1)
    types = np.array(["Shirts", "Caps"] * 60)
    colours = np.array(["Red", "Blue", "NA"] * 40)
    embeddings = rng.normal(scale=0.01, size=(120, 4)).astype(np.float32)
    embeddings[:, 0] += types == "Caps"
    embeddings[:, 1] += (colours == "Red") - 1.0 * (colours == "Blue")
    directions = colour_directions(embeddings, types.tolist(), colours.tolist(), 1)
    assert directions.shape == (1, 4)
    assert abs(directions[0, 1]) == pytest.approx(1, abs=0.05), "not that of the types"
    assert colour_directions(embeddings[:9], types[:9].tolist(), colours[:9].tolist(), 5).shape == (0, 4)


def test_likelihood_counts_names_without_a_class_as_improbable() -> None:
    said = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]], np.float32)
    log_likelihood, accuracy = likelihood(said, ["Red", "Blue"], ["Red", "Red", "Mauve"])
    assert accuracy == pytest.approx(1 / 3)
    assert log_likelihood == pytest.approx(np.log([0.9001, 0.2001, 0.0001]).mean(), abs=1e-4)
