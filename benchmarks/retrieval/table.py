# SPDX-License-Identifier: Apache-2.0
"""Formats the record of a run as Markdown tables, for the terminal and for docs/evaluation.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.common.report import markdown_table

_COLUMNS = ("nDCG@10", "P@1", "P@5", "P@10", "MRR", "P@1 colour", "P@10 colour")


def table(record: Mapping[str, Any]) -> str:
    """Return the tables of systems, kinds of queries and articleTypes."""
    rows = []
    for name, row in record["systems"].items():
        difference = row["ours minus this"]
        gain = signed(difference) if difference["low"] != difference["high"] else "–"
        cells = [interval(row[column]) if column == "nDCG@10" else f"{row[column]['mean']:.3f}" for column in _COLUMNS]
        rows.append([name, *cells, gain, percent(row["empty"]), f"{row['ms per query']:.1f}"])
    parts = [
        f"{record['queries']:,} queries, {record['gallery']:,} products in the gallery; P and MRR: same articleType, "
        "“colour”: same baseColour as well",
        markdown_table(["system", *_COLUMNS, "ours minus this, nDCG@10", "empty", "ms"], rows),
    ]
    for title, slices in (("queries", record["slices"]), ("articleType, from 20 queries on", record["types"])):
        rows = [
            [name, f"{row['queries']:,}", f"{row['visual only']:.3f}", f"{row['ours']:.3f}", signed(row["difference"])]
            for name, row in slices.items()
        ]
        parts.append(markdown_table([title, "n", "visual only", "ours", "difference"], rows))
    return "\n\n".join(parts)


def interval(estimate: Mapping[str, float]) -> str:
    """Format a mean with its interval: 0.612 (0.598–0.626)."""
    return f"{estimate['mean']:.3f} ({estimate['low']:.3f}–{estimate['high']:.3f})"


def signed(estimate: Mapping[str, float]) -> str:
    """Format a difference with its interval: +0.012 (+0.003 to +0.021)."""
    return f"{estimate['mean']:+.3f} ({estimate['low']:+.3f} to {estimate['high']:+.3f})"


def percent(share: float) -> str:
    """Format a share: 12.3 %."""
    return f"{100 * share:.1f} %"
