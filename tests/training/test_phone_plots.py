# SPDX-License-Identifier: Apache-2.0
"""The pictures of an evaluation on phone photos show what was measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib", reason="needs the training extra (matplotlib)")

from training.phone_accuracy import Confusion
from training.phone_plots import plot_confusion, plot_reliability
from training.reliability import reliability


def darkest_blue(path: Path) -> int:
    """Pixels of the colour that a share of 1 has, outside the colour bar's one column."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    return int((np.abs(pixels - (8, 48, 107)).sum(axis=2) < 12).sum())


def test_share_of_one_is_dark_and_of_a_half_is_not(tmp_path: Path) -> None:
    sure = Confusion(["Shirt", "Hat"], ["shirt", "cap"], [[4, 0], [0, 2]], {})
    unsure = Confusion(["Shirt", "Hat"], ["shirt", "cap"], [[2, 2], [1, 1]], {})
    plot_confusion(sure, "a title", tmp_path / "new" / "sure.png")
    plot_confusion(unsure, "a title", tmp_path / "unsure.png")
    assert darkest_blue(tmp_path / "new" / "sure.png") > 4 * darkest_blue(tmp_path / "unsure.png")


def test_curves_are_those_of_the_figures_and_empty_ones_are_left_out(tmp_path: Path) -> None:
    values = np.linspace(0.05, 0.95, 40)
    good = reliability(values, np.random.default_rng(1).random(40) < values)
    bad = reliability(values, np.arange(40) < 20)
    for name, curves in (("good", {"one": good}), ("same", {"one": good, "two": {}}), ("bad", {"one": bad})):
        plot_reliability(curves, tmp_path / f"{name}.png")
    read = {path.stem: path.read_bytes() for path in tmp_path.iterdir()}
    assert read["good"] == read["same"]
    assert read["good"] != read["bad"]
    plot_reliability({"two": {}}, tmp_path / "empty.png")
