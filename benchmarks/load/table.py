# SPDX-License-Identifier: Apache-2.0
"""Formats the record of a load test as text: a table for each phase, then the aims."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.common.report import markdown_table

Point = Mapping[str, Any]
Column = tuple[str, Callable[[Point], str]]


def load_table(record: Mapping[str, Any]) -> str:
    """Return the text of a record that went through JSON."""
    parts = [_head(record)]
    if record.get("curve"):
        parts.append("Closed loop, greedy captions\n\n" + _table(record["curve"], _RATES + _SERVER))
    if record.get("compare"):
        parts.append("Comparison with the same photos in the same order\n\n" + _table(record["compare"], _RATES))
    if "open" in record:
        run = record["open"]
        title = (
            f"Open loop, Poisson arrivals, {run['deadline_seconds']:g} s deadline, latency from the time due; "
            f"capacity {run['capacity']:.1f}/s, unloaded p50 {run['unloaded_p50_ms']:.0f} ms\n\n"
        )
        parts.append(title + _table(run["points"], _OPEN))
    for name, point in _with_stages(record):
        shares = point["stage_shares"]
        told = ", ".join(
            f"{stage} {point['stages_ms'].get(stage, shares[stage] * point['stages_ms']['total']):.1f} ms"
            f" ({shares[stage]:.0%})"
            for stage in shares
        )
        parts.append(f"Stages, mean, {name}: {told}")
    for name, point in _with_batches(record):
        parts.append(f"Captions per step, {name}: {_batches(point)}")
    if "soak" in record:
        parts.append(_soak(record["soak"]))
    if record.get("peak_memory_bytes"):
        parts.append(f"Peak memory of gateway and Triton: {record['peak_memory_bytes'] / 1e6:,.0f} MB")
    if "counters" in record:
        parts.append(_counters(record["counters"]))
    if record.get("complaints"):
        # The first 24 characters are the time.
        lines = Counter(line[24:] if line[:2] == "20" else line for line in record["complaints"])
        told = "\n".join(f"  {count} × {line[:160]}" for line, count in lines.most_common(10))
        parts.append(f"Warnings and errors in the gateway's log: {lines.total()}\n{told}")
    if record.get("aims"):
        parts.append(_aims(record["aims"]))
    return "\n\n".join(parts)


def _head(record: Mapping[str, Any]) -> str:
    oracle = record["oracle"]
    differ = oracle["differ_from_in_process"]
    return (
        f"{record['commit']}, {record['machine']}, load {record['load_average']:.1f}, {record['measured']}\n"
        f"{oracle['photos']} photos; captioned alone, gateway and in-process models differ for {differ}"
    )


def _counters(counters: Mapping[str, Mapping[str, int]]) -> str:
    driver, gateway = counters["driver"], counters["gateway"]
    told = ", ".join(
        f"{code} {driver.get(code, 0):,} / {gateway.get(code, 0):,}" for code in sorted({*driver, *gateway})
    )
    verdict = "equal" if driver == gateway else "different"
    return f"Calls by code, driver / metrics of the gateway: {told}: {verdict}"


def _latency(name: str, percentile: str) -> Callable[[Point], str]:
    def cell(point: Point) -> str:
        return "–" if not point[name] else f"{point[name][percentile]:,.0f}"

    return cell


def _cores(part: str) -> Callable[[Point], str]:
    return lambda point: f"{point['cores'].get(part, 0.0):.2f}"


def _failures(point: Point) -> str:
    """Count the outcomes that are neither right nor refused, by name."""
    told = [f"{count} {kind}" for kind, count in point["counts"].items() if count and kind not in ("ok", "shed")]
    if point["lost"]:
        told.append(f"{point['lost']} lost")
    return ", ".join(told) or "–"


_RATES: list[Column] = [
    ("", lambda point: str(point["name"])),
    ("captions/s", lambda point: f"{point['throughput']:.1f}"),
    ("p50 ms", _latency("latency", "p50")),
    ("p95", _latency("latency", "p95")),
    ("p99", _latency("latency", "p99")),
    ("max", _latency("latency", "max")),
    ("shed", lambda point: str(point["counts"]["shed"])),
    ("failed", _failures),
]
_SERVER: list[Column] = [
    ("per step", lambda point: "–" if point["mean_batch"] is None else f"{point['mean_batch']:.1f}"),
    ("health p99", _latency("health_latency", "p99")),
    ("cores: gateway", _cores("gateway")),
    ("triton", _cores("triton")),
    ("stubs", _cores("stubs")),
    ("driver", _cores("driver")),
]
_OPEN: list[Column] = [
    ("", lambda point: str(point["name"])),
    ("offered/s", lambda point: f"{point['offered']:.1f}"),
    ("goodput/s", lambda point: f"{point['goodput']:.1f}"),
    ("shed/s", lambda point: f"{point['shed_rate']:.1f}"),
    ("p50 ms", _latency("latency", "p50")),
    ("p99", _latency("latency", "p99")),
    ("max", _latency("latency", "max")),
    ("shed p99", _latency("shed_latency", "p99")),
    ("max", _latency("shed_latency", "max")),
    ("health p99", _latency("health_latency", "p99")),
    ("max", _latency("health_latency", "max")),
    ("late", lambda point: f"{point['late_ms']:.0f}"),
    ("failed", _failures),
]


def _table(points: Sequence[Point], columns: Sequence[Column]) -> str:
    return markdown_table([title for title, _ in columns], [[cell(point) for _, cell in columns] for point in points])


def _with_stages(record: Mapping[str, Any]) -> list[tuple[str, Point]]:
    """Return the first and the last point of the curve."""
    curve = [point for point in record.get("curve", []) if point["stage_shares"]]
    return [(point["name"], point) for point in (curve if len(curve) < 3 else [curve[0], curve[-1]])]


def _with_batches(record: Mapping[str, Any]) -> list[tuple[str, Point]]:
    return [(point["name"], point) for point in record.get("curve", []) if point["batches"]]


def _batches(point: Point) -> str:
    """Return `32: 51% (9.8 ms)` for each size: its share of the executions, and the mean time of one."""
    total = sum(one["executions"] for one in point["batches"].values())
    return ", ".join(
        f"{size}: {one['executions'] / total:.0%} ({1000 * one['seconds'] / one['executions']:.1f} ms)"
        for size, one in point["batches"].items()
    )


def _soak(soak: Point) -> str:
    intended = ", ".join(f"{count} {kind}" for kind, count in sorted(soak["intended"].items())) or "none"
    counts = ", ".join(f"{count} {kind}" for kind, count in soak["counts"].items() if count)
    lines = [
        f"Soak: {soak['sent']:,} requests, {soak['throughput']:.1f} right answers/s, {soak['lost']} lost, "
        f"{soak['wrong_words']} wrong captions",
        f"  normal requests: {counts}; requests that were cancelled or had a short deadline: {intended}",
    ]
    if soak["latency"]:
        lines.append("  p50 {p50:,.0f} ms, p99 {p99:,.0f} ms, max {max:,.0f} ms".format(**soak["latency"]))
    for part in ("gateway", "triton", "stubs"):
        memory = [one[part] / 1e6 for one in soak["resident_bytes"]]
        middle = memory[len(memory) // 2]
        lines.append(
            f"  memory of {part}: {memory[0]:,.0f} MB before, {middle:,.0f} MB half-way, {memory[-1]:,.0f} MB after"
        )
    lines += [f"  {count} × {detail}" for detail, count in soak["details"].items()]
    return "\n".join(lines)


def _aims(aims: Sequence[Mapping[str, Any]]) -> str:
    marks = {True: "reached", False: "MISSED", None: ""}
    rows = [
        [aim["name"], aim["sides"], f"{aim['value']:.2f}".removesuffix(".00"), aim["aim"], marks[aim["passed"]]]
        for aim in aims
    ]
    return markdown_table(["aim", "of", "value", "bound", ""], rows, left=2)
