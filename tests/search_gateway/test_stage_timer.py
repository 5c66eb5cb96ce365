# SPDX-License-Identifier: Apache-2.0
"""The times of a request's stages."""

from __future__ import annotations

import time

import pytest

from search_gateway.stage_timer import StageTimer


def spin(milliseconds: float) -> None:
    """Be busy for so long."""
    end = time.perf_counter() + milliseconds / 1000
    while time.perf_counter() < end:
        pass


def test_stages_come_in_the_order_they_were_entered_and_total_last() -> None:
    watch = StageTimer()
    for name in ("preprocess", "encode", "decode"):
        with watch.stage(name):
            pass
    assert list(watch.milliseconds()) == ["preprocess", "encode", "decode", "total"]


def test_times_are_milliseconds() -> None:
    watch = StageTimer()
    with watch.stage("encode"):
        spin(5)
    times = watch.milliseconds()
    assert 5 <= times["encode"] <= times["total"] < 5000


def test_a_stage_entered_twice_is_the_sum_in_its_first_place() -> None:
    watch = StageTimer()
    with watch.stage("encode"):
        spin(3)
    with watch.stage("decode"):
        pass
    with watch.stage("encode"):
        spin(3)
    times = watch.milliseconds()
    assert list(times) == ["encode", "decode", "total"]
    assert times["encode"] >= 6


def test_a_stage_that_fails_is_timed_and_fails_all_the_same() -> None:
    def break_after(milliseconds: float) -> None:
        spin(milliseconds)
        raise KeyError("x")

    watch = StageTimer()
    with pytest.raises(KeyError), watch.stage("search"):
        break_after(2)
    assert watch.milliseconds()["search"] >= 2


def test_total_counts_what_lies_between_stages() -> None:
    watch = StageTimer()
    with watch.stage("encode"):
        pass
    spin(3)
    times = watch.milliseconds()
    assert times["total"] >= times["encode"] + 3
    assert watch.milliseconds()["total"] > times["total"]


def test_a_watch_without_stages_has_a_total() -> None:
    assert list(StageTimer().milliseconds()) == ["total"]


def test_a_stage_that_was_timed_elsewhere_takes_its_place_among_the_others() -> None:
    watch = StageTimer()
    with watch.stage("preprocess"):
        pass
    watch.add("encode", 0.25)
    with watch.stage("search"):
        pass
    watch.add("encode", 0.5)
    times = watch.milliseconds()
    assert list(times) == ["preprocess", "encode", "search", "total"]
    assert times["encode"] == 750
    assert times["total"] < 750, "the total is the watch's own time, whatever was added"
