# SPDX-License-Identifier: Apache-2.0
"""What observing costs is the median of paired differences, beside what two equal gateways differ by."""

from __future__ import annotations

import pytest

from benchmarks.observability import difference, table


def test_pairs_are_compared_whatever_the_rounds_have_in_common() -> None:
    bare = [10.0, 100.0, 1000.0, 50.0, 70.0]
    assert difference([1.02 * one for one in bare], bare) == pytest.approx((0.02, 0.02, 0.02))


def test_interval_holds_the_median_and_grows_with_the_scatter() -> None:
    bare = 20 * [100.0]
    narrow = difference([101.0 + number % 2 for number in range(20)], bare)
    wide = difference([81.0 + 2 * number for number in range(20)], bare)
    for median, low, high in (narrow, wide):
        assert low <= median <= high
    assert narrow[2] - narrow[1] < wide[2] - wide[1]


def test_table_has_the_cost_and_the_difference_of_two_bare_gateways() -> None:
    turns = {
        "with metrics and access log": [99.0, 99.0],
        "without": [100.0, 100.0],
        "without, a second one": [101.5, 99.5],
    }
    record = {
        "commit": "abc", "machine": "two cores", "load_average": 1.0, "rates": turns,
        "gateway_ms": turns, "all_ms": turns,
        "counters": {"driver": {"OK": 4}, "gateway": {"OK": 4}},
    }  # fmt: skip
    text = table(record | {"all_ms": {name: [500.0, 500.0] for name in turns}})
    assert text.count("with metrics and access log: 99.00, -1.0% (-1.0% to -1.0%)") == 2
    assert "of all processes\n  with metrics and access log: -0.2% (-0.2% to -0.2%)" in text
    assert "  without: 100.00\n" in text
    assert "without, a second one: 100.50, +0.5% (-0.5% to +1.5%)" in text
    assert text.endswith("calls by code: driver {'OK': 4}, metrics {'OK': 4}")
