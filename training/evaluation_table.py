# SPDX-License-Identifier: Apache-2.0
"""The figures of an evaluation as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_FIGURE_WIDTH, _COLUMN_WIDTH = 28, 12

# Heading -> the keys that lead to the column's figures.
_COLUMNS = {
    "checkpoint": (),
    "with query": ("served",),
    "true name": ("ceiling", "true_name"),
    "its last two": ("ceiling", "true_last_two_words"),
    "pair": ("baselines", "most_frequent_pair"),
    "by pixel": ("baselines", "nearest_by_pixel"),
    "by embedding": ("baselines", "nearest_by_embedding"),
}


def table(figures: Mapping[str, Any]) -> str:
    """Format the result of `training.evaluate.evaluate`; absent figures are left out."""
    parts = [
        _heading(figures),
        _comparison(figures),
        _baselines(figures),
        _robustness(figures),
        _determinism(figures),
        *_phone(figures),
        _calibration(figures),
        _no_product(figures),
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
    """One row per figure: the checkpoint's, then those of ceilings and baselines."""
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


def _phone(figures: Mapping[str, Any]) -> list[list[str]]:
    """Tables of the phone photos: overall, per label, and the confusion of garment words."""
    if "phone" not in figures:
        return []
    phone = figures["phone"]
    ways = [name for name in phone["named"] if ", " not in name]
    overall = [
        _row(f"{phone['n']} phone photos", ["named", "low", "high", "strictly", "low", "high"]),
        *(
            _row(way, [_number(part[key]) for part in parts for key in ("mean", "low", "high")])
            for way in ways
            for parts in [[phone["named"][way], phone["named"][f"{way}, strictly"]]]
        ),
        f"95 % intervals over {phone['senders']} senders; left out: {_counts(phone['left_out'])}",
    ]
    labels = [
        _row("label (photos)", [way.removesuffix(" words").removesuffix(" head") for way in ways]),
        *(_row(f"{label} ({row['n']})", [_number(row[way]) for way in ways]) for label, row in phone["labels"].items()),
    ]
    return [overall, labels, *(_confusion(name, one) for name, one in phone["confusion"].items())]


def _confusion(source: str, confusion: Mapping[str, Any]) -> list[str]:
    """One line per label with its garment words, the most frequent first."""
    lines = [f"first word that names a garment, {source}:"]
    for label, counts in zip(confusion["labels"], confusion["counts"], strict=True):
        words = sorted(zip(counts, confusion["words"], strict=True), key=lambda pair: -pair[0])
        lines.append(f"  {label:<12}" + ", ".join(f"{word} {count}" for count, word in words if count))
    lines.append(f"last words of texts without a garment word: {_counts(confusion['other_last_words'])}")
    return lines


def _calibration(figures: Mapping[str, Any]) -> list[str]:
    if "calibration" not in figures:
        return []
    lines = [_row("reliability of words", ["n", "probability", "right", "ECE width", "ECE mass"])]
    for source, rows in figures["calibration"].items():
        lines.append(f"{source}:")
        for name, row in rows.items():
            if row:
                keys = ("mean_probability", "accuracy", "ece_equal_width", "ece_equal_mass")
                cells = [str(row["n"]), *(_number(row[key]) for key in keys)]
                lines += [f"  {name}", _row("", cells)]
    return lines


def _no_product(figures: Mapping[str, Any]) -> list[str]:
    if "no_product" not in figures:
        return []
    found = figures["no_product"]
    scores = list(found["auroc"])
    lines = [_row("no product", [f"{score[:8]} {part}" for score in scores for part in ("1/4", "1/2", "3/4")])]
    for name, group in found["groups"].items():
        cells = [_number(value) for score in scores for value in group[score].values()]
        lines.append(_row(f"{name} ({group['n']})", cells))
    for score, values in found["auroc"].items():
        lines += [f"AUROC, {score}:", *(_row(f"  {name}", [_number(value)]) for name, value in values.items())]
    return lines


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


def _examples(figures: Mapping[str, Any]) -> list[str]:
    return [f"{one['id']:>8}  {one['name']:<50} -> {one['caption']}" for one in figures["examples"]]


def _row(title: str, cells: list[str]) -> str:
    return (f"{title:<{_FIGURE_WIDTH}}" + "".join(f" {cell:>{_COLUMN_WIDTH}}" for cell in cells)).rstrip()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
