# SPDX-License-Identifier: Apache-2.0
"""The aims of a load test, and whether its record reaches them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.load.phases import BATCHED, IN_FLIGHT, MANY, ONE_AT_A_TIME, PLAIN_LOOP, SINGLE

BUSY, FLOODED = 0.6, 4.0  # loads of the open loop that have aims, as shares of the capacity
MAX_SINGLE_OF_IN_PROCESS = 1.7
MIN_OF_IN_PROCESS = 0.85
MAX_P99_OF_UNLOADED_P50 = 3.0
MIN_GOODPUT_OF_CAPACITY = 0.9
MAX_SHED_MS = 50.0
MAX_HEALTH_MS = 200.0


@dataclass(frozen=True)
class LoadAim:
    """One aim."""

    name: str  # what is measured
    value: float  # its value
    aim: str  # the bound, for example "≥ 4"; "" if the value has none
    passed: bool | None  # whether the value is within the bound; None if it has none
    sides: str  # the figures that the value is made of


def load_aims(record: Mapping[str, Any]) -> list[LoadAim]:
    """Return the aims of all phases in a record of `benchmarks.load`."""
    aims = [*_comparisons(record), *_open(record)]
    points = [*record.get("curve", []), *record.get("compare", []), *record.get("open", {}).get("points", [])]
    if "soak" in record:
        points.append(record["soak"])
    if points:
        lost, wrong = (sum(point[name] for point in points) for name in ("lost", "wrong_words"))
        sent = sum(point["sent"] for point in points)
        aims.append(_most("lost requests", lost, 0, f"of {sent} sent"))
        aims.append(_most("wrong words", wrong, 0, f"of {sum(point['answered'] for point in points)} answered"))
    return aims


def _comparisons(record: Mapping[str, Any]) -> list[LoadAim]:
    speeds = {point["name"]: point["throughput"] for point in record.get("compare", [])}
    wanted: list[tuple[str, float | None]] = [
        (ONE_AT_A_TIME, None),
        (PLAIN_LOOP, None),
        (BATCHED, MIN_OF_IN_PROCESS),
        (SINGLE, None),
    ]
    aims = []
    for other, least in wanted:
        if IN_FLIGHT in speeds and speeds.get(other):
            name = f"{MANY} callers ÷ {other}"
            sides = f"{speeds[IN_FLIGHT]:.1f} ÷ {speeds[other]:.1f} captions/s"
            ratio = speeds[IN_FLIGHT] / speeds[other]
            aims.append(LoadAim(name, ratio, "", None, sides) if least is None else _least(name, ratio, least, sides))
    if speeds.get(ONE_AT_A_TIME) and speeds.get(SINGLE):
        sides = f"{1000 / speeds[ONE_AT_A_TIME]:.1f} ÷ {1000 / speeds[SINGLE]:.1f} ms a caption"
        ratio = speeds[SINGLE] / speeds[ONE_AT_A_TIME]
        aims.append(_most(f"time of one caption, gateway ÷ {SINGLE}", ratio, MAX_SINGLE_OF_IN_PROCESS, sides))
    return aims


def _open(record: Mapping[str, Any]) -> list[LoadAim]:
    if "open" not in record:
        return []
    run = record["open"]
    points: dict[float, Mapping[str, Any]] = {point["share"]: point for point in run["points"]}
    aims = []
    if (busy := points.get(BUSY)) and busy["latency"] and run["unloaded_p50_ms"]:
        p99, unloaded = busy["latency"]["p99"], run["unloaded_p50_ms"]
        aims.append(
            _most(
                f"p99 at {BUSY:.0%} ÷ unloaded p50",
                p99 / unloaded,
                MAX_P99_OF_UNLOADED_P50,
                f"{p99:.0f} ms ÷ {unloaded:.0f} ms",
            )
        )
    if flooded := points.get(FLOODED):
        goodput, capacity = flooded["goodput"], run["capacity"]
        aims.append(
            _least(
                f"goodput at {FLOODED:.0%} ÷ capacity",
                goodput / capacity,
                MIN_GOODPUT_OF_CAPACITY,
                f"{goodput:.1f} ÷ {capacity:.1f} captions/s",
            )
        )
        if sheds := flooded["shed_latency"]:
            told = f"{sheds['count']} refusals, p50 {sheds['p50']:.0f} ms, max {sheds['max']:.0f} ms"
            aims.append(_most(f"ms to a refusal at {FLOODED:.0%}, p99", sheds["p99"], MAX_SHED_MS, told))
            aims.append(_most(f"ms to a refusal at {FLOODED:.0%}, max", sheds["max"], MAX_SHED_MS, told))
            missing = flooded["counts"]["shed"] - flooded["sheds_with_retry"]
            aims.append(_most("refusals without RetryInfo", missing, 0, f"of {sheds['count']}"))
        if health := flooded["health_latency"]:
            told = f"{health['count']} checks, p50 {health['p50']:.0f} ms, p99 {health['p99']:.0f} ms"
            aims.append(_most(f"ms to a health answer at {FLOODED:.0%}, max", health["max"], MAX_HEALTH_MS, told))
            aims.append(_most(f"failed health checks at {FLOODED:.0%}", flooded["health_failures"], 0, told))
    return aims


def _least(name: str, value: float, least: float, sides: str) -> LoadAim:
    return LoadAim(name, value, f"≥ {least:g}", value >= least, sides)


def _most(name: str, value: float, most: float, sides: str) -> LoadAim:
    return LoadAim(name, value, f"≤ {most:g}", value <= most, sides)


def missed(aims: Sequence[LoadAim]) -> int:
    """Return how many aims were missed."""
    return sum(aim.passed is False for aim in aims)
