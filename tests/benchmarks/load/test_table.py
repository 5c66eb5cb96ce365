# SPDX-License-Identifier: Apache-2.0
"""The tables of a load test: what a reader looks for is in them, whichever phases were run."""

from __future__ import annotations

import dataclasses

from benchmarks.load.aims import load_aims
from benchmarks.load.table import load_table
from tests.fakes.load_record import load_record


def test_table_has_all_parts() -> None:
    record = load_record()
    record["aims"] = [dataclasses.asdict(aim) for aim in load_aims(record)]
    record["curve"][0]["counts"] |= {"unavailable": 2}
    record["curve"][0]["lost"] = 3
    text = load_table(record)
    row = next(line for line in text.splitlines() if line.startswith("| 1 callers"))
    assert row.startswith("| 1 callers | 30.0 | 33 |")
    assert "2 unavailable, 3 lost" in row
    assert "capacity 120.0/s, unloaded p50 33 ms" in text
    assert "encode 10.0 ms (20%), decode 30.0 ms (60%), other 10.0 ms (20%)" in text
    assert "1: 75% (10.0 ms), 32: 25% (20.0 ms)" in text
    assert "requests that were cancelled or had a short deadline: 3 cancelled, 2 deadline" in text
    assert "Warnings and errors in the gateway's log: 2\n  2 × WARNING triton: slow" in text
    assert "| 33.3 ÷ 20.8 ms a caption | 1.60 | ≤ 1.7 | reached |" in text
    assert "MISSED" not in text


def test_table_of_one_phase() -> None:
    record = load_record()
    only_soak = {name: value for name, value in record.items() if name not in ("curve", "compare", "open")}
    text = load_table(only_soak)
    assert "Soak: 100 requests" in text
    assert "Closed loop" not in text
