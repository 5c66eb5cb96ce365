# SPDX-License-Identifier: Apache-2.0
"""A record of a load test as benchmarks.load writes it, with invented figures."""

from __future__ import annotations

import dataclasses
from typing import Any

from benchmarks.load.outcomes import HealthCheck, LoadTurn, Outcome, Sample, figures_of, stage_shares
from benchmarks.load.phases import BATCHED, IN_FLIGHT, ONE_AT_A_TIME, PLAIN_LOOP, SINGLE

STAGES = {"encode": 10.0, "decode": 30.0, "total": 50.0}


def point(name: str, throughput: float, *, p50: float = 0.1, p99: float = 0.2, sheds: int = 0, **more: Any) -> Any:
    """Make a point with 98 answers in `p50` seconds and two in `p99`; refusals take 5 ms."""
    samples = [Sample(0.0, 0.0, p50, Outcome("ok", stages_ms=STAGES))] * 98
    samples += [Sample(0.0, 0.0, p99, Outcome("ok", stages_ms=STAGES))] * 2
    samples += [Sample(0.0, 0.0, 0.005, Outcome("shed", retry_seconds=0.5))] * sheds
    turn = LoadTurn(len(samples), 0.0, 10.0, samples, [HealthCheck(0.004, True)] * 20)
    figures = dataclasses.asdict(figures_of(turn))
    rates = {"throughput": throughput, "goodput": throughput, "shed_rate": sheds / 10}
    return {
        "name": name,
        **figures,
        **rates,
        "wrong_words": 0,
        "stage_shares": stage_shares(figures["stages_ms"]),
        "throughput_rounds": [throughput],
        "cores": {"gateway": 0.3, "triton": 0.1, "stubs": 1.4, "other": 0.0, "driver": 0.1},
        "batches": {"1": {"executions": 3, "seconds": 0.03}, "32": {"executions": 1, "seconds": 0.02}},
        "mean_batch": 8.75,
        **more,
    }


def load_record() -> dict[str, Any]:
    """Make a record that reaches every aim."""
    callers = {1: 30.0, 2: 45.0, 4: 60.0, 8: 80.0, 16: 95.0, 32: 120.0, 64: 122.0}
    rates = {0.1: 12.0, 0.3: 36.0, 0.6: 72.0, 0.8: 95.0, 0.9: 104.0, 1.0: 110.0, 1.5: 112.0, 2.0: 110.0, 4.0: 109.0}
    soak = point("soak", 100.0)
    memory = [{"requests": n, "gateway": 10**8 + n, "triton": 5e7, "stubs": 3e8, "other": 0} for n in (0, 50, 100)]
    return {
        "commit": "1234567", "machine": "a machine", "load_average": 0.1, "measured": "2026-11-24T12:00:00+00:00",
        "oracle": {"photos": 200, "differ_from_in_process": 0, "examples": []},
        "curve": [
            point(f"{many} callers", speed, callers=many, p50=many / speed, p99=1.4 * many / speed)
            for many, speed in callers.items()
        ],
        "compare": [
            point(IN_FLIGHT, 120.0), point(ONE_AT_A_TIME, 30.0), point(PLAIN_LOOP, 41.0), point(BATCHED, 140.0),
            point(SINGLE, 48.0),
        ],
        "open": {
            "capacity": 120.0, "unloaded_p50_ms": 33.0, "deadline_seconds": 2.0,
            "points": [
                point(
                    f"{share:.0%}", rate, share=share, offered=120 * share, p50=0.04 + share**2 / 20,
                    p99=0.08 + share**2 / 20, sheds=int(max(0.0, 120 * share - rate)) if share >= 1 else 0,
                )
                for share, rate in rates.items()
            ],
        },
        "soak": {**soak, "intended": {"cancelled": 3, "deadline": 2}, "resident_bytes": memory},
        "peak_memory_bytes": 6e8,
        "complaints": ["2026-11-24 12:00:00,000 WARNING triton: slow", "2026-11-24 12:00:01,000 WARNING triton: slow"],
    }  # fmt: skip
