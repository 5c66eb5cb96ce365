# SPDX-License-Identifier: Apache-2.0
"""The curves of a run are pictures that one can look at: one line for training, one for validation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib", reason="needs the training extra (matplotlib)")

from training.curves import plot_curve


def history(training: list[float], validation: list[float]) -> list[dict[str, float]]:
    return [
        {"epoch": i + 1, "training_loss": t, "validation_loss": v}
        for i, (t, v) in enumerate(zip(training, validation, strict=True))
    ]


def colours(path: Path) -> set[tuple[int, ...]]:
    """The colours that more than a few points of the picture have, greys aside."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    values, counts = np.unique(pixels[np.ptp(pixels.astype(int), axis=1) > 60], axis=0, return_counts=True)
    return {tuple(value.tolist()) for value, count in zip(values, counts, strict=True) if count > 60}


@pytest.mark.parametrize("epochs", [1, 5])
def test_both_lines_are_in_the_picture(epochs: int, tmp_path: Path) -> None:
    losses = np.linspace(3, 2, epochs).tolist()
    plot_curve(history(losses, [loss + 0.4 for loss in losses]), "loss", tmp_path / "loss.png")
    assert len(colours(tmp_path / "loss.png")) == 2


def test_what_is_drawn_is_what_was_measured(tmp_path: Path) -> None:
    for name, validation in (("a", [3.0, 2.5]), ("same", [3.0, 2.5]), ("other", [3.0, 2.9])):
        plot_curve(history([3.0, 2.0], validation), "loss", tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "same.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "other.png").read_bytes()
