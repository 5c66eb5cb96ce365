# SPDX-License-Identifier: Apache-2.0
"""The figures of an evaluation as text for a terminal. Knows what they are called, not where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_FIGURE_WIDTH, _COLUMN_WIDTH = 28, 12

# Heading -> where the column's figures are.
_COLUMNS = {
    "checkpoint": (),
    "true name": ("ceiling", "true_name"),
    "its last two": ("ceiling", "true_last_two_words"),
    "pair": ("baselines", "most_frequent_pair"),
    "by pixel": ("baselines", "nearest_by_pixel"),
    "by embedding": ("baselines", "nearest_by_embedding"),
}


def table(figures: Mapping[str, Any]) -> str:
    """What `training.evaluate` collects -> lines; figures that are not there are left out."""
    parts = [
        _heading(figures),
        _comparison(figures),
        _baselines(figures),
        _robustness(figures),
        _determinism(figures),
        _examples(figures),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _heading(figures: Mapping[str, Any]) -> list[str]:
    left_out = ", ".join(f"{count} {reason}" for reason, count in figures["left_out"].items()) or "none"
    return [
        f"{figures['checkpoint']}: {figures['n']} photos, split {figures['split']}; left out: {left_out}",
        *(f"note: {note}" for note in figures["notes"]),
    ]


def _comparison(figures: Mapping[str, Any]) -> list[str]:
    """One row per figure of the checkpoint, beside it the same of ceilings and baselines."""
    columns = {}
    for heading, path in _COLUMNS.items():
        column: Any = figures
        for key in path:
            column = column.get(key, {})
        if column:
            columns[heading] = column
    lines = [_row("", list(columns))]
    for name, value in figures.items():
        if isinstance(value, float):
            lines.append(_row(name, [_number(column.get(name)) for column in columns.values()]))
    return lines


def _baselines(figures: Mapping[str, Any]) -> list[str]:
    if "baselines" not in figures:
        return []
    found = figures["baselines"]
    return [f"baselines: nearest of {found['known_photos']} photos; most frequent pair {found['pair']!r}"]


def _robustness(figures: Mapping[str, Any]) -> list[str]:
    if "robustness" not in figures:
        return []
    accuracies = figures["robustness"]["accuracies"]
    names = list(next(iter(accuracies.values())))
    short = [name.removesuffix("_accuracy").removesuffix("_normalised") for name in names]
    return [
        _row(f"degraded, {figures['robustness']['n']} photos", short),
        *(_row(kind, [_number(values[name]) for name in names]) for kind, values in accuracies.items()),
    ]


def _determinism(figures: Mapping[str, Any]) -> list[str]:
    if "determinism" not in figures:
        return []
    found = figures["determinism"]
    return [
        f"determinism: {found['captions_equal']} of {found['captions_compared']} captions equal, batches of "
        f"{', '.join(map(str, found['batch_sizes']))}; logits differ by {found['largest_logit_difference']:.1e} at most"
    ]


def _examples(figures: Mapping[str, Any]) -> list[str]:
    return [f"{one['id']:>8}  {one['name']:<50} -> {one['caption']}" for one in figures["examples"]]


def _row(title: str, cells: list[str]) -> str:
    return (f"{title:<{_FIGURE_WIDTH}}" + "".join(f" {cell:>{_COLUMN_WIDTH}}" for cell in cells)).rstrip()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
