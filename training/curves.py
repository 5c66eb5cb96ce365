# SPDX-License-Identifier: Apache-2.0
"""The curves of a training run: loss and perplexity, training and validation (the paper's figures 2 and 3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # a file is written, no window opened
from matplotlib import pyplot


def plot_curves(history: Sequence[dict[str, float]], path: Path) -> None:
    """Write a PNG with one panel for loss (nats per token) and one for perplexity, over epochs."""
    epochs = [row["epoch"] for row in history]
    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for panel, quantity in zip(panels, ("loss", "perplexity"), strict=True):
        for part in ("training", "validation"):
            panel.plot(epochs, [row[f"{part}_{quantity}"] for row in history], marker="o", label=part)
        panel.set(xlabel="epoch", title=quantity)
        panel.grid(alpha=0.3)
        panel.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
