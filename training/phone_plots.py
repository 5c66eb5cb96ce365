# SPDX-License-Identifier: Apache-2.0
"""Plots of an evaluation on phone photos: the confusion of garments and the reliability of the query's words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")  # a file is written, no window opened
from matplotlib import pyplot

from training.phone_accuracy import Confusion


def plot_confusion(confusion: Confusion, title: str, path: Path) -> None:
    """Write a PNG with the share of each garment word among a label's photos; cells show the number of photos.

    Args:
        confusion: the counts.
        title: of the plot.
        path: of the picture.

    Raises:
        OSError: the file cannot be written.
    """
    counts = np.array(confusion.counts)
    totals = counts.sum(axis=1)
    size = (2.6 + 0.42 * len(confusion.words), 2.0 + 0.34 * len(confusion.labels))
    figure, axes = pyplot.subplots(figsize=size, layout="constrained")
    shares = counts / np.maximum(totals, 1)[:, None]
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(confusion.words)), confusion.words, rotation=90)
    rows = [f"{label} ({count})" for label, count in zip(confusion.labels, totals.tolist(), strict=True)]
    axes.set_yticks(range(len(confusion.labels)), rows)
    for row, column in np.argwhere(counts > 0).tolist():
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=7, color=colour)
    axes.set(xlabel="first word that names a garment", ylabel="label (photos)", title=title)
    figure.colorbar(picture, ax=axes, label="share of the label's photos")
    _save(figure, path)


def plot_reliability(curves: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Write a PNG of reliability curves: accuracy over probability, bins of equal mass beside bins of equal width.

    Args:
        curves: name -> result of `reliability.reliability`; empty ones are left out.
        path: of the picture.

    Raises:
        OSError: the file cannot be written.
    """
    figure, (by_mass, by_width) = pyplot.subplots(1, 2, figsize=(9.6, 4.4), layout="constrained", sharey=True)
    for axes, kind in ((by_mass, "equal_mass"), (by_width, "equal_width")):
        axes.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1)
        for name, figures in curves.items():
            if not figures:
                continue
            bins = figures[f"bins_{kind}"]
            error = figures[f"ece_{kind}"]
            axes.plot(
                [one["probability"] for one in bins],
                [one["accuracy"] for one in bins],
                marker="o",
                markersize=4,
                label=f"{name} (ECE {error:.3f})",
            )
        axes.set(xlabel="probability", title=f"bins of {kind.replace('_', ' ')}", xlim=(0, 1), ylim=(0, 1))
        axes.grid(alpha=0.3)
        if axes.lines[1:]:
            axes.legend(fontsize=7)
    by_mass.set_ylabel("share that is right")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
