# SPDX-License-Identifier: Apache-2.0
"""Pictures without a product: what is drawn and read, and how they are told from photos of products."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the training extra (torch)")

from training import no_product
from training.captioning import DescribedPhotos
from training.no_product import (
    drawn_pictures,
    no_product_figures,
    pictures_without_product,
    query_scores,
    wheel_photos,
)

pytestmark = pytest.mark.torch


def described(rows: list[list[float]]) -> DescribedPhotos:
    count = len(rows)
    logs = np.log(np.array(rows, np.float32))
    return DescribedPhotos([f"caption {i}" for i in range(count)], [[]] * count, np.zeros((count, 2), np.float32), logs)


def test_drawn_pictures_are_a_dozen_different_ones_and_the_same_again() -> None:
    pictures = drawn_pictures()
    assert len(pictures) >= 12
    assert all(one.dtype == np.uint8 and one.shape == (256, 256, 3) for one in pictures.values())
    assert len({one.tobytes() for one in pictures.values()}) == len(pictures)
    assert all(np.array_equal(one, pictures[name]) for name, one in drawn_pictures().items())
    assert not np.array_equal(drawn_pictures(seed=1)["1/f noise"], pictures["1/f noise"])
    assert set(pictures["white"].flat) == {255}
    assert 0.02 < (pictures["text page"] < 128).mean() < 0.3


def test_noise_of_a_falling_spectrum_is_smoother() -> None:
    pictures = drawn_pictures()
    roughness = {name: np.abs(np.diff(one.astype(int), axis=0)).mean() for name, one in pictures.items()}
    assert roughness["1/f² noise"] < roughness["1/f noise"] < roughness["white noise"]


def test_photographs_come_from_the_wheels_without_importing_them() -> None:
    if importlib.util.find_spec("skimage") is None or importlib.util.find_spec("sklearn") is None:
        pytest.skip("PHOTOGRAPHS WITHOUT A PRODUCT ARE NOT TESTED: install the development group (scikit-image)")
    found, notes = wheel_photos({"height": 32, "width": 24, "fit": "pad"})
    assert notes == []
    assert {"astronaut", "coffee", "chelsea", "rocket", "china", "flower"} <= found.keys()
    assert all(one.shape == (32, 24, 3) for one in found.values())


def test_what_is_not_installed_or_not_in_the_wheel_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheels = {"no_such_package": ("data", ("a.png",)), "numpy": ("data", ("b.png", "c.png"))}
    monkeypatch.setattr(no_product, "WHEELS", wheels)
    monkeypatch.setattr(no_product, "DISTRIBUTIONS", {"no_such_package": "no-such", "numpy": "numpy"})
    pictures, kinds, notes = pictures_without_product({"height": 32, "width": 24, "fit": "squash"})
    assert set(kinds.values()) == {"drawn"}
    assert list(pictures) == list(drawn_pictures())
    assert notes == [
        "photographs of no-such: it is not installed",
        "photographs of numpy: its wheel has no readable b.png, c.png",
    ]


def test_scores_of_a_head_and_of_a_caption() -> None:
    scores = query_scores(described([[0.6, 0.1, 0.3], [0.1, 0.8, 0.1]]))
    assert scores["no product"].tolist() == pytest.approx([0.6, 0.1])
    assert scores["highest query"].tolist() == pytest.approx([0.3, 0.8])
    words = [[("Nike", 0.1), ("Blue", 0.5), ("Shirt", 0.8)], [("Cap", 0.7)], []]
    stock = DescribedPhotos(["a", "b", "c"], words, np.zeros((3, 2), np.float32), None)
    scores = query_scores(stock)
    assert list(scores) == ["highest query"]
    assert scores["highest query"].tolist() == pytest.approx([0.4, 0.7, 0.0])


def test_pictures_without_a_product_are_told_apart_by_either_score() -> None:
    without = described([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1]])
    products = described([[0.1, 0.6, 0.3], [0.05, 0.9, 0.05]])
    found = no_product_figures(
        ["cat", "stripes"], {"cat": "photograph", "stripes": "drawn"}, without, {"studio": products}
    )
    assert found["pictures"]["cat"] == {
        "kind": "photograph", "no product": pytest.approx(0.8), "highest query": pytest.approx(0.1),
        "caption": "caption 0",
    }  # fmt: skip
    assert {name: group["n"] for name, group in found["groups"].items()} == {"photograph": 1, "drawn": 1, "studio": 2}
    assert found["groups"]["studio"]["highest query"]["median"] == pytest.approx(0.75)
    assert found["auroc"]["no product"] == {"studio": 1.0, "studio, photograph": 1.0, "studio, drawn": 1.0}
    assert found["auroc"]["highest query"] == {"studio": 0.75, "studio, photograph": 1.0, "studio, drawn": 0.5}
