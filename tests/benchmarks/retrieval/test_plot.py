# SPDX-License-Identifier: Apache-2.0
"""The plot of systems has a bar for each of them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from benchmarks.retrieval.plot import plot_systems


def test_more_systems_make_a_taller_picture(tmp_path: Path) -> None:
    row = {"nDCG@10": {"mean": 0.5, "low": 0.4, "high": 0.6}}
    heights = []
    for count in (2, 9):
        path = tmp_path / f"{count}.png"
        plot_systems({"systems": {f"system {number}": row for number in range(count)}}, path)
        with Image.open(path) as picture:
            heights.append(picture.height)
    assert heights[1] > 2 * heights[0]
