# SPDX-License-Identifier: Apache-2.0
"""Plots the record of a load test: on the left the closed loop and its comparisons, on the right the open loop."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # a file is written, no window opened
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.load.aims import BUSY, MAX_P99_OF_UNLOADED_P50
from benchmarks.load.phases import BATCHED, MANY, ONE_AT_A_TIME, PLAIN_LOOP, SINGLE

_OURS, _TAIL, _SHED, _GREY = "#08519c", "#9ecae1", "#d94801", "#525252"
_MIN_APART = 1.2  # factor between labels of the logarithmic axis
_OTHERS = {
    BATCHED: ("s", "#238b45"),
    SINGLE: ("^", "#74c476"),
    ONE_AT_A_TIME: ("D", "#6a51a3"),
    PLAIN_LOOP: ("o", "#d94801"),
}


def plot_load(record: Mapping[str, Any], path: Path) -> None:
    """Write a PNG; the half of a phase that was not run stays empty."""
    figure, grid = pyplot.subplots(2, 2, figsize=(10, 6.4), layout="constrained", height_ratios=(1.25, 1))
    _closed(record.get("curve") or [], record.get("compare") or [], grid[0][0], grid[1][0])
    _open(record.get("open"), grid[0][1], grid[1][1])
    for axes in grid.flat:
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _closed(curve: Sequence[Any], others: Sequence[Any], speed: Axes, latency: Axes) -> None:
    speed.set(title="Closed loop: callers wait for their answers", ylabel="captions per second")
    latency.set(xlabel="callers", ylabel="milliseconds")
    if curve:
        callers = [point["callers"] for point in curve]
        speeds = [point["throughput"] for point in curve]
        speed.plot(callers, speeds, "o-", color=_OURS, label="gateway, in flight")
        for many, value in zip(callers, speeds, strict=True):
            speed.annotate(
                f"{value:.0f}", (many, value), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8
            )
        for name, colour in (("p50", _OURS), ("p99", _TAIL)):
            values = [point["latency"][name] if point["latency"] else math.nan for point in curve]
            latency.plot(callers, values, "o-", color=colour, label=name)
        _milliseconds(latency)
        latency.legend(fontsize=8)
    for point in others:
        if point["name"] in _OTHERS:
            marker, colour = _OTHERS[point["name"]]
            place = 1 if point["name"] == SINGLE else MANY
            speed.plot(
                [place], [point["throughput"]], marker, color=colour, linestyle="none",
                label=f"{point['name']}: {point['throughput']:.0f}",
            )  # fmt: skip
    for axes in (speed, latency):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_minor_locator(NullLocator())
        if curve:
            axes.set_xticks(callers, [str(many) for many in callers])
    speed.set_ylim(0, 1.12 * speed.get_ylim()[1])
    if curve or others:
        speed.legend(fontsize=8)


def _open(run: Mapping[str, Any] | None, speed: Axes, latency: Axes) -> None:
    speed.set(title="Open loop: Poisson arrivals", ylabel="requests per second")
    latency.set(xlabel=f"offered load, % of the throughput with {MANY} callers", ylabel="milliseconds")
    if run is None:
        return
    points = run["points"]
    shares = [100 * point["share"] for point in points]
    speed.plot(shares, [point["goodput"] for point in points], "o-", color=_OURS, label="right, within the deadline")
    speed.plot(shares, [point["shed_rate"] for point in points], "o-", color=_SHED, label="refused")
    speed.axhline(run["capacity"], color=_GREY, linestyle="--", linewidth=1, label=f"capacity {run['capacity']:.0f}")
    for name, kind, percentile, colour in (
        ("answers, p50", "latency", "p50", _OURS),
        ("answers, p99", "latency", "p99", _TAIL),
        ("refusals, p99", "shed_latency", "p99", _SHED),
        ("health, p99", "health_latency", "p99", "#74c476"),
    ):
        values = [point[kind][percentile] if point[kind] else math.nan for point in points]
        if not all(map(math.isnan, values)):
            latency.plot(shares, values, "o-", color=colour, label=name)
    aim = MAX_P99_OF_UNLOADED_P50 * run["unloaded_p50_ms"]
    latency.plot(
        [100 * BUSY], [aim], "_", color=_GREY, markersize=18, markeredgewidth=2, label=f"aim for p99: {aim:.0f}"
    )
    _milliseconds(latency)
    for axes in (speed, latency):
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(shares, _labels(shares))
        axes.tick_params(axis="x", labelsize=8)
    speed.set_ylim(bottom=0)
    speed.legend(fontsize=8)
    latency.legend(fontsize=7, ncols=2)


def _milliseconds(axes: Axes) -> None:
    """Make the vertical axis logarithmic, with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _labels(shares: Sequence[float]) -> list[str]:
    """Return the labels of a logarithmic axis; a label too near to the one before is empty."""
    labels, last = [], 0.0
    for share in shares:
        is_apart = share > _MIN_APART * last
        labels.append(f"{share:g}" if is_apart else "")
        last = share if is_apart else last
    return labels
