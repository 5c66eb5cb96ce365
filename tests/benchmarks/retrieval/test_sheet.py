# SPDX-License-Identifier: Apache-2.0
"""Which answers are shown, and that their pictures and frames are where they belong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.retrieval.sheet import best_and_worst, row_picture, write_sheet


def test_best_come_first_and_worst_last() -> None:
    assert best_and_worst(np.array([0.1, -0.5, np.nan, 0.9, 0.0]), 1) == [3, 1]
    assert best_and_worst(np.array([0.1, 0.2]), 5) == [1, 0]


def test_a_row_shows_the_photo_and_each_answer_in_its_frame(tmp_path: Path) -> None:
    grey = np.full((20, 16, 3), 100, np.uint8)
    row = row_picture(grey, ["a name"], [[(grey, 2), (grey, 0)], []])
    pixels = np.asarray(row)
    assert pixels[10, 10].tolist() == [100, 100, 100], "the photo"
    colours = {tuple(colour) for colour in pixels.reshape(-1, 3).tolist()}
    assert {(40, 160, 60), (200, 40, 40)} <= colours
    assert (230, 180, 20) not in colours
    write_sheet([row, row], tmp_path / "deep" / "sheet.png")
    with Image.open(tmp_path / "deep" / "sheet.png") as sheet:
        assert sheet.width == row.width
        assert sheet.height > 2 * row.height
