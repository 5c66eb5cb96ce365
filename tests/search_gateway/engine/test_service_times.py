# SPDX-License-Identifier: Apache-2.0
"""Estimates need enough photos of the last seconds."""

from __future__ import annotations

import pytest

from search_gateway.engine.service_times import RecentPeak, ServiceTimes


def test_estimates_follow_the_last_photos() -> None:
    times = ServiceTimes(clock=lambda: 0.0)
    for seconds in (0.4, *[0.2] * 8):
        times.waited(10, 10 * seconds)
        times.served(seconds)
    assert times.service() == pytest.approx(2 / 9)
    assert times.wait(0) == 0
    assert times.wait(9) == pytest.approx(0.4 + 8 * 0.2)


def test_nothing_is_concluded_from_few_photos_or_old_ones() -> None:
    now = [0.0]
    times = ServiceTimes(clock=lambda: now[0])
    for number in range(8):
        assert (times.service(), times.wait(9)) == (0, 0), number
        times.waited(10, 1.0)
        times.served(1.0)
    assert times.service() > 0 < times.wait(9)
    now[0] = 5.1
    assert (times.service(), times.wait(9)) == (0, 0)


def test_wait_for_the_call_in_progress_says_nothing_about_the_queue() -> None:
    times = ServiceTimes(clock=lambda: 0.0)
    for _ in range(20):
        times.waited(7, 3.0)
    assert times.wait(100) == 0


def test_peak_is_that_of_the_last_counts_and_seconds() -> None:
    now = [0.0]
    counts = RecentPeak(clock=lambda: now[0])
    assert counts.peak() == 0
    counts.note(5)
    now[0] = 1.0
    counts.note(3)
    assert counts.peak() == 5
    now[0] = 5.1
    assert counts.peak() == 3
    for _ in range(16):
        counts.note(1)
    assert counts.peak() == 1
