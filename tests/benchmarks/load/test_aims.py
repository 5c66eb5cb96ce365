# SPDX-License-Identifier: Apache-2.0
"""Which aims a record reaches, at their bounds."""

from __future__ import annotations

from typing import Any

from benchmarks.load.aims import load_aims, missed
from tests.fakes.load_record import load_record


def verdicts(record: dict[str, Any]) -> dict[str, tuple[float, bool | None]]:
    return {aim.name: (round(aim.value, 3), aim.passed) for aim in load_aims(record)}


def test_all_aims_are_told_and_reached() -> None:
    assert verdicts(load_record()) == {
        "32 callers ÷ one at a time": (4.0, None),
        "32 callers ÷ plain loop on Triton": (2.927, None),
        "32 callers ÷ in-process, batch 32": (0.857, True),
        "32 callers ÷ in-process, batch 1": (2.5, None),
        "time of one caption, gateway ÷ in-process, batch 1": (1.6, True),
        "p99 at 60% ÷ unloaded p50": (2.97, True),
        "goodput at 400% ÷ capacity": (0.908, True),
        "ms to a refusal at 400%, p99": (5.0, True),
        "ms to a refusal at 400%, max": (5.0, True),
        "refusals without RetryInfo": (0, True),
        "ms to a health answer at 400%, max": (4.0, True),
        "failed health checks at 400%": (0, True),
        "lost requests": (0, True),
        "wrong words": (0, True),
    }
    assert missed(load_aims(load_record())) == 0


def test_misses_are_told() -> None:
    record = load_record()
    record["compare"][1]["throughput"] = 28.2
    record["open"]["unloaded_p50_ms"] = 32.0
    flooded = record["open"]["points"][-1]
    flooded["goodput"] = 107.9
    flooded["shed_latency"] |= {"p99": 50.0, "max": 50.1}
    flooded["sheds_with_retry"] -= 1
    flooded["health_failures"] = 1
    record["curve"][2]["lost"] = 1
    record["soak"]["wrong_words"] = 2
    told = {name for name, (_, passed) in verdicts(record).items() if passed is False}
    assert told == {
        "time of one caption, gateway ÷ in-process, batch 1",
        "p99 at 60% ÷ unloaded p50",
        "goodput at 400% ÷ capacity",
        "ms to a refusal at 400%, max",
        "refusals without RetryInfo",
        "failed health checks at 400%",
        "lost requests",
        "wrong words",
    }


def test_phases_that_were_not_run_have_no_aims() -> None:
    record = {"soak": load_record()["soak"]}
    assert set(verdicts(record)) == {"lost requests", "wrong words"}
    assert verdicts({}) == {}
