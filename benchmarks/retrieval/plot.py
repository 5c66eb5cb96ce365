# SPDX-License-Identifier: Apache-2.0
"""Plots the systems of a run with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # a file is written, no window opened
from matplotlib import pyplot

from benchmarks.retrieval.systems import OURS


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
