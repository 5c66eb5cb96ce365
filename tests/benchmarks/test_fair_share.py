# SPDX-License-Identifier: Apache-2.0
"""The keys of the benchmark are the gateway's, its callers pause as they are asked, and its text has the ratio."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from benchmarks.fair_share import PHASES, add_keys, fair_share_text, measured
from search_gateway.security.api_keys import ApiKeys
from tests.search_gateway.security.test_auth_interceptor import serving


def test_keys_are_made_by_the_gateways_command(tmp_path: Path) -> None:
    keys = add_keys(tmp_path / "keys.json", rate=5.0, concurrency=1.0)
    known = ApiKeys(tmp_path / "keys.json")
    callers = {name: known.caller_of(key) for name, key in keys.items()}
    assert {name: caller and caller.limits.rate for name, caller in callers.items()} == {
        "modest": None, "limited": 5.0, "unlimited": None,
    }  # fmt: skip


def test_every_phase_is_measured_and_the_limited_flood_is_refused(tmp_path: Path) -> None:
    keys = add_keys(tmp_path / "keys.json", rate=5.0, concurrency=1.0)

    async def run() -> None:
        async with serving(tmp_path / "keys.json") as server:
            seconds, floods = await measured(server.address, keys, samples=10, num_flooding=4)
        assert {phase: len(values) for phase, values in seconds.items()} == dict.fromkeys(PHASES, 10)
        assert floods["limited flood"]["refused"] > 0
        assert floods["unlimited flood"]["answered"] > floods["limited flood"]["answered"]
        assert floods["unlimited flood"]["refused"] == 0

    asyncio.run(run())


def test_text_names_the_ratio_to_the_caller_alone() -> None:
    record = {
        "milliseconds": {"alone": {"p50": 10.0, "p99": 20.0}, "limited flood": {"p50": 12.0, "p99": 30.0}},
        "flood_calls": {"limited flood": {"answered": 5, "refused": 7}},
        "commit": "abc", "machine": "two cores", "load_average": 1.0,
    }  # fmt: skip
    text = fair_share_text(json.loads(json.dumps(record)))
    assert "p99    30.0 ms (1.50 x)   flood: 5 answered, 7 refused" in text
