# SPDX-License-Identifier: Apache-2.0
"""The record of a run as Markdown tables, for the terminal and for docs/evaluation.md alike. Pure text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_COLUMNS = ("nDCG@10", "P@1", "P@5", "P@10", "MRR", "P@1 colour", "P@10 colour")


def table(record: Mapping[str, Any]) -> str:
    """Systems, what ours gains over each, slices and types."""
    lines = [
        f"{record['queries']:,} queries, {record['gallery']:,} products in the gallery; P and MRR: same articleType, "
        "“colour”: same baseColour as well",
        "",
        "| system | " + " | ".join(_COLUMNS) + " | ours minus this, nDCG@10 | empty | ms |",
        "| --- |" + " ---: |" * (len(_COLUMNS) + 3),
    ]
    for name, row in record["systems"].items():
        difference = row["ours minus this"]
        gain = signed(difference) if difference["low"] != difference["high"] else "–"
        cells = [interval(row[column]) if column == "nDCG@10" else f"{row[column]['mean']:.3f}" for column in _COLUMNS]
        cells += [gain, f"{row['empty']:.1%}".replace("%", " %"), f"{row['ms per query']:.1f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for title, rows in (("queries", record["slices"]), ("articleType, from 20 queries on", record["types"])):
        lines += ["", f"| {title} | n | visual only | ours | difference |", "| --- | ---: | ---: | ---: | ---: |"]
        for name, row in rows.items():
            means = [f"{row[system]:.3f}" for system in ("visual only", "ours")]
            lines.append(f"| {name} | {row['queries']:,} | " + " | ".join([*means, signed(row["difference"])]) + " |")
    return "\n".join(lines)


def interval(estimate: Mapping[str, float]) -> str:
    """ "0.612 (0.598–0.626)" """
    return f"{estimate['mean']:.3f} ({estimate['low']:.3f}–{estimate['high']:.3f})"


def signed(estimate: Mapping[str, float]) -> str:
    """ "+0.012 (+0.003 to +0.021)" """
    return f"{estimate['mean']:+.3f} ({estimate['low']:+.3f} to {estimate['high']:+.3f})"
