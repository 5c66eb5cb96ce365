# SPDX-License-Identifier: Apache-2.0
"""What each title style costs: the record of a run with --title-style, and its table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from benchmarks.common.report import markdown_table
from benchmarks.retrieval.metrics import Bootstrap, Floats
from benchmarks.retrieval.systems import OURS, OURS_BY_WORDS, VISUAL, WORDS
from benchmarks.retrieval.table import interval, signed

UNCHANGED = "unchanged"
STYLE_SYSTEMS = (OURS, OURS_BY_WORDS, WORDS)  # beside `VISUAL`, which no title changes
METRICS = ("nDCG@10", "P@1", "P@1 colour")
MAX_NDCG_LOSS, MAX_PRECISION_LOSS = 0.03, 0.03  # the aims: against unchanged titles

Scores = Mapping[str, Mapping[str, Mapping[str, Floats]]]  # style -> system -> metric -> [queries]


def style_rows(scores: Scores, bootstrap: Bootstrap) -> dict[str, dict[str, Any]]:
    """Return for each style and system the metrics, and how much less they are than with unchanged titles.

    Args:
        scores: of all styles, `UNCHANGED` among them.
        bootstrap: over the queries.
    """
    return {
        style: {
            system: {
                **{metric: asdict(bootstrap.interval(metrics[metric])) for metric in METRICS},
                "minus unchanged": {
                    metric: asdict(bootstrap.interval(metrics[metric] - scores[UNCHANGED][system][metric]))
                    for metric in METRICS
                },
            }
            for system, metrics in systems.items()
        }
        for style, systems in scores.items()
    }


def meets_aim(row: Mapping[str, Any]) -> bool:
    """Return whether a system's row of `style_rows` loses no more than the aims allow."""
    losses = row["minus unchanged"]
    return bool(losses["nDCG@10"]["mean"] >= -MAX_NDCG_LOSS and losses["P@1"]["mean"] >= -MAX_PRECISION_LOSS)


def style_table(record: Mapping[str, Any]) -> str:
    """Format a record as Markdown."""
    rows = []
    for style, systems in record["styles"].items():
        ours = systems[OURS]
        losses = ours["minus unchanged"]
        rows.append(
            [
                style,
                interval(ours["nDCG@10"]),
                "–" if style == UNCHANGED else signed(losses["nDCG@10"]),
                f"{ours['P@1']['mean']:.3f}",
                "–" if style == UNCHANGED else f"{100 * losses['P@1']['mean']:+.1f}",
                f"{ours['P@1 colour']['mean']:.3f}",
                f"{systems[OURS_BY_WORDS]['nDCG@10']['mean']:.3f}",
                f"{systems[WORDS]['nDCG@10']['mean']:.3f}",
                "yes" if meets_aim(ours) else "no",
            ]
        )
    header = [
        "titles", "ours, nDCG@10", "minus unchanged", "P@1", "points", "P@1 colour",
        "ours, by words alone", "two words", "within the aim",
    ]  # fmt: skip
    visual = record[VISUAL]
    return "\n\n".join(
        [
            f"{record['queries']:,} queries, {record['gallery']:,} products in the gallery; "
            f"visual only {interval(visual['nDCG@10'])}, P@1 {visual['P@1']['mean']:.3f}",
            markdown_table(header, rows),
        ]
    )
