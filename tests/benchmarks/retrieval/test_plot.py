# SPDX-License-Identifier: Apache-2.0
"""Pictures are written and show one curve or bar for each thing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.retrieval.calibration import BY_WORDS, Calibrated, Point
from benchmarks.retrieval.plot import plot_calibration, plot_systems
from search_gateway.ranking.rerank import RefinementLimits


def test_curves_of_each_setting_side_by_side(tmp_path: Path) -> None:
    limits = RefinementLimits(min_visual_score=0.1, min_semantic_score=0.1, visual_weight=0.1, max_results=10)
    curve = [Point(0.0, 0.5, 0.6, 0.0, np.array([0.5])), Point(0.1, 0.6, 0.7, 0.1, np.array([0.6]))]
    names = ("neighbour_weight", "visual_weight", "min_visual_score", "min_semantic_score", BY_WORDS)
    plot_calibration(Calibrated(limits, dict.fromkeys(names, curve)), tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 2 * picture.height


def test_more_systems_make_a_taller_picture(tmp_path: Path) -> None:
    row = {"nDCG@10": {"mean": 0.5, "low": 0.4, "high": 0.6}}
    heights = []
    for count in (2, 9):
        path = tmp_path / f"{count}.png"
        plot_systems({"systems": {f"system {number}": row for number in range(count)}}, path)
        with Image.open(path) as picture:
            heights.append(picture.height)
    assert heights[1] > 2 * heights[0]
