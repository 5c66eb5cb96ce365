# SPDX-License-Identifier: Apache-2.0
"""Formats a captioning record as Markdown for the README: `python -m benchmarks.captioning.table FILE.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.machine_limits import MachineLimits, limits_text
from benchmarks.common.report import make_parser, markdown_table

_TITLES = {
    "generate": "Hugging Face `generate`",
    "optimum": "optimum `ORTModelForVision2Seq`",
    "in-process": "ours, in-process",
    "gateway": "ours, gRPC → gateway → Triton",
}
_NONE = "–"

Record = Mapping[str, Any]


def captioning_table(record: Record) -> str:
    """Return all tables of a run, with a line about their contents."""
    parts = [_heading(record), speed_table(record)]
    if record["callers"]:
        parts.append(callers_table(record))
    parts.append(stage_table(record))
    parts.append(_ending(record))
    return "\n\n".join(parts)


def speed_table(record: Record) -> str:
    """Return the captions per second of each system, a column for each number of photos and beams."""
    figures = {(one["system"], one["photos"], one["beams"]): one for one in record["captioning"]}
    columns = list(dict.fromkeys((one["photos"], one["beams"]) for one in record["captioning"]))
    head = ["captions per second", "", *(column_title(*column) for column in columns), "equal", "peak memory"]
    rows = []
    for system in record["systems"]:
        name = system["name"]
        if system["failure"]:
            cells = [_escaped(system["failure"]), *[""] * (len(columns) + 1)]
        else:
            cells = [speed_cell(figures, name, column) for column in columns]
            cells += [_equal(name, record["captioning"]), _memory(system["peak_memory_bytes"])]
        rows.append([_TITLES[system["kind"]], system["precision"].upper(), *cells])
    return markdown_table(head, rows, left=2)


def speed_cell(figures: Mapping[tuple[str, int, int], Record], name: str, column: tuple[int, int]) -> str:
    """Return captions per second and, except for `generate`, their ratios to `generate` and optimum."""
    figure = figures.get((name, *column))
    if figure is None:
        return _NONE
    speed = figure["captions_per_second"]
    ratios = [
        f"{speed / peer['captions_per_second']:.1f}×"
        for peer_name in ("generate", "optimum")
        if peer_name != name and name != "generate" and (peer := figures.get((peer_name, *column)))
    ]
    return number(speed) + (f" ({', '.join(ratios)})" if ratios else "")


def callers_table(record: Record) -> str:
    """Return the speed of many callers through gRPC, and that of `generate` called for one photo at a time."""
    systems = {system["name"]: system for system in record["systems"]}
    alone = next((one for one in record["callers"] if one["system"] == "generate"), None)
    rows = []
    for one in record["callers"]:
        system = systems[one["system"]]
        ratio = f"{one['captions_per_second'] / alone['captions_per_second']:.1f}×" if alone else _NONE
        rows.append(
            [
                _TITLES[system["kind"]], system["precision"].upper(), str(one["photos"]),
                number(one["captions_per_second"]), ratio, _equal(one["system"], record["callers"]),
            ]
        )  # fmt: skip
    head = ["many callers", "", "at a time", "captions per second", "× `generate` one by one", "equal words"]
    return markdown_table(head, rows, left=2)


def stage_table(record: Record) -> str:
    """Return the times of our models alone, and the least times that this machine could need."""
    rows = []
    for one in record["stages"]:
        milliseconds = 1000 * one["seconds"]["median"]
        limit, share = _NONE, _NONE
        if one["share_of_limit"] is not None:
            limit, share = f"{1000 * one['least_seconds']:.2f} ({one['bound']})", f"{100 * one['share_of_limit']:.0f} %"
        beams = f" × {one['beams']}" if one["stage"] == "step" else ""
        rows.append(
            [
                one["stage"], one["precision"].upper(), f"{one['photos']}{beams}", f"{milliseconds:.2f}",
                number(one["flops"] / one["seconds"]["median"] / 1e9),
                number(one["bytes_read"] / one["seconds"]["median"] / 1e9), limit, share,
            ]
        )  # fmt: skip
    head = ["model alone", "", "photos × beams", "ms", "GFLOP/s", "GB/s", "least ms possible (bound by)", "share"]
    return markdown_table(head, rows, left=2)


def column_title(photos: int, beams: int) -> str:
    """Return, for example, "8 photos, greedy"."""
    return f"{photos} {'photo' if photos == 1 else 'photos'}, {'greedy' if beams == 1 else f'{beams} beams'}"


def number(value: float) -> str:
    """Format a number with three digits, or as a whole number from 100 on."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _heading(record: Record) -> str:
    exactly = "exactly" if record["size"] == "full" else "at most"
    return (
        f"{record['parameters'] / 1e6:.0f} M parameters, {exactly} {record['tokens']} tokens a caption, medians of "
        f"{record['repeats']} turns; in brackets: ratio to `generate`, ratio to optimum; equal: share of tokens (gRPC: "
        "words) that equal those of `generate` at the same place."
    )


def _ending(record: Record) -> str:
    limits = limits_text(MachineLimits(**record["limits"]))
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    load = f"load before the run {record['load_average']:.1f}"
    return (
        f"Best of this machine in the same run: {limits}.\n"
        f"Commit {record['commit']}, {record['measured']}, {record['machine']}, {load}; {versions}."
    )


def _equal(name: str, figures: Sequence[Record]) -> str:
    """Return the share of tokens (text: words) that equal those of `generate`, over all workloads."""
    mine = [one for one in figures if one["system"] == name]
    equal, compared = sum(one["equal"] for one in mine), sum(one["compared"] for one in mine)
    if name == "generate" or not compared:
        return _NONE
    # Rounded down, so that only equal captions have 100 %.
    return f"{equal * 1000 // compared / 10:.1f} %" if equal < compared else "100 %"


def _memory(count: int | None) -> str:
    return _NONE if count is None else f"{count / 1e6:,.0f} MB"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Run the command."""
    parser = make_parser("benchmarks.captioning.table", __doc__)
    parser.add_argument("record", type=Path, metavar="FILE.json", help="a record of benchmarks.captioning --json")
    args = parser.parse_args()
    print(captioning_table(json.loads(args.record.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
