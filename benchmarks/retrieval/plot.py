# SPDX-License-Identifier: Apache-2.0
"""Plots the curves of a calibration, and the systems of a run with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # a file is written, no window opened
from matplotlib import pyplot

from benchmarks.retrieval.calibration import BY_WORDS, Calibrated
from benchmarks.retrieval.systems import OURS

_LABELS = {
    "neighbour_weight": "weight of the nearest neighbours' names",
    "visual_weight": "weight of the visual score",
    "min_visual_score": "least visual score",
    "min_semantic_score": "least semantic score",
    BY_WORDS: "least semantic score, found by words alone",
}


def plot_calibration(calibrated: Calibrated, path: Path) -> None:
    """Write a PNG: nDCG@10, precision and empty answers over the values of each setting, and the chosen values."""
    figure, grid = pyplot.subplots(1, len(calibrated.curves), figsize=(15, 3.2), layout="constrained", sharey=True)
    for axes, (name, curve) in zip(grid, calibrated.curves.items(), strict=True):
        values = [point.value for point in curve]
        axes.plot(values, [point.ndcg for point in curve], "o-", label="nDCG@10", color="#08519c")
        axes.plot(values, [point.precision for point in curve], "s-", label="precision (same type)", color="#fd8d3c")
        axes.plot(values, [point.empty for point in curve], "^-", label="empty answers", color="#7f7f7f")
        axes.axvline(
            getattr(calibrated.limits, name.partition(",")[0]), color="#a63603", linestyle="--", label="chosen"
        )
        axes.set(xlabel=_LABELS[name], ylim=(0, 1))
        axes.grid(alpha=0.3)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def plot_systems(record: Mapping[str, Any], path: Path) -> None:
    """Write a PNG: nDCG@10 of each system with its 95 % interval; ours is darkest, its variants less dark."""
    rows = [(name, row["nDCG@10"]) for name, row in record["systems"].items()][::-1]
    figure, axes = pyplot.subplots(figsize=(7.5, 0.36 * len(rows) + 0.9), layout="constrained")
    for place, (name, estimate) in enumerate(rows):
        error = [[estimate["mean"] - estimate["low"]], [estimate["high"] - estimate["mean"]]]
        colour = "#08519c" if name == OURS else "#6baed6" if name.startswith("ours") else "#c6dbef"
        axes.barh(place, estimate["mean"], color=colour, xerr=error, error_kw={"linewidth": 1})
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
    axes.set_xlabel("nDCG@10 with its 95 % interval over queries")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
