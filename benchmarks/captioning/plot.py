# SPDX-License-Identifier: Apache-2.0
"""Plots the record of a captioning run: captions per second of each system, by photos at a time and beams."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # a file is written, no window opened
from matplotlib import pyplot

from benchmarks.captioning.table import column_title, number

_PEER_COLOURS = ("#7f7f7f", "#bdbdbd", "#d9d9d9")
_OUR_COLOURS = {"in-process": ("#9ecae1", "#4292c6", "#08519c"), "gateway": ("#fdd0a2", "#fd8d3c", "#a63603")}


def plot_captioning(record: Mapping[str, Any], path: Path) -> None:
    """Write a PNG: a group of bars for each number of photos and beams, each with a scale of its own."""
    groups = list(dict.fromkeys((one["photos"], one["beams"]) for one in record["captioning"]))
    speeds = {(one["system"], one["photos"], one["beams"]): one["captions_per_second"] for one in record["captioning"]}
    systems = [system for system in record["systems"] if not system["failure"]]
    colours = _colours(systems)
    figure, grid = pyplot.subplots(
        1, max(1, len(groups)), figsize=(2.9 * max(1, len(groups)) + 1, 3.6), layout="constrained", squeeze=False
    )
    for axes, group in zip(grid[0], groups, strict=False):
        for place, system in enumerate(systems):
            speed = speeds.get((system["name"], *group), 0.0)
            axes.bar(place, speed, color=colours[system["name"]], label=_label(system))
            axes.text(place, speed, number(speed), ha="center", va="bottom", fontsize=7)
        axes.set(title=column_title(*group), xticks=[])
        axes.margins(y=0.12)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    grid[0][0].set_ylabel("captions per second")
    if systems:
        figure.legend(
            *grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(systems)), fontsize=8
        )
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _label(system: Mapping[str, Any]) -> str:
    """Return the name with the precision, which the names of our systems already have."""
    return f"{system['name'].split()[0]} {system['precision']}" if system["is_peer"] else str(system["name"])


def _colours(systems: list[Any]) -> dict[str, str]:
    """Return a colour for each system: grey for peers, a hue for each kind of ours, darker for each precision."""
    used: dict[str, int] = {}
    colours = {}
    for system in systems:
        family = "peers" if system["is_peer"] else system["kind"]
        palette = _PEER_COLOURS if family == "peers" else _OUR_COLOURS[family]
        colours[system["name"]] = palette[used.get(family, 0) % len(palette)]
        used[family] = used.get(family, 0) + 1
    return colours
