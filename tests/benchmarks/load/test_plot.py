# SPDX-License-Identifier: Apache-2.0
"""A picture is written, whichever phases were run."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="needs the training extra (matplotlib)")

from PIL import Image

from benchmarks.load.plot import plot_load
from tests.fakes.load_record import load_record


@pytest.mark.parametrize("phases", [("curve", "compare", "open"), ("compare",), ("open",), ()])
def test_picture_is_written(phases: tuple[str, ...], tmp_path: Path) -> None:
    record = load_record()
    plot_load({phase: record[phase] for phase in phases}, tmp_path / "load.png")
    with Image.open(tmp_path / "load.png") as picture:
        assert picture.width >= 900
