# SPDX-License-Identifier: Apache-2.0
"""The curves of a training run: loss and perplexity, training and validation (the paper's figures 2 and 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # a file is written, no window opened
from matplotlib import pyplot
from matplotlib.ticker import MaxNLocator

UNITS = {"loss": "nats per token", "perplexity": "per token"}


def plot_curve(history: Sequence[Mapping[str, float]], quantity: str, path: Path) -> None:
    """Plot a quantity ("loss" or "perplexity") over the epochs, for training and validation, as a PNG."""
    epochs = [row["epoch"] for row in history]
    figure, axes = pyplot.subplots(figsize=(5.2, 3.6), layout="constrained")
    for part in ("training", "validation"):
        axes.plot(epochs, [row[f"{part}_{quantity}"] for row in history], marker="o", label=part)
    axes.set(xlabel="epoch", ylabel=UNITS[quantity], title=quantity)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
