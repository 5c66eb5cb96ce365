# SPDX-License-Identifier: Apache-2.0
"""The times of a request's stages."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from search_gateway import stage_timer
from search_gateway.stage_timer import StageTimer


class Clock:
    """Goes on when it is told."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def spend(self, milliseconds: float) -> None:
        self.seconds += milliseconds / 1000


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stage_timer, "time", SimpleNamespace(perf_counter=lambda: clock.seconds))
    return clock


def test_stages_come_in_the_order_they_were_entered_and_total_last() -> None:
    watch = StageTimer()
    for name in ("preprocess", "encode", "decode"):
        with watch.stage(name):
            pass
    assert list(watch.milliseconds()) == ["preprocess", "encode", "decode", "total"]


def test_times_are_milliseconds(clock: Clock) -> None:
    watch = StageTimer()
    with watch.stage("encode"):
        clock.spend(5)
    assert watch.milliseconds() == pytest.approx({"encode": 5, "total": 5})


def test_a_stage_entered_twice_is_the_sum_in_its_first_place(clock: Clock) -> None:
    watch = StageTimer()
    with watch.stage("encode"):
        clock.spend(3)
    with watch.stage("decode"):
        pass
    with watch.stage("encode"):
        clock.spend(4)
    times = watch.milliseconds()
    assert list(times) == ["encode", "decode", "total"]
    assert times["encode"] == pytest.approx(7)


def test_a_stage_that_fails_is_timed_and_fails_all_the_same(clock: Clock) -> None:
    def break_after(milliseconds: float) -> None:
        clock.spend(milliseconds)
        raise KeyError("x")

    watch = StageTimer()
    with pytest.raises(KeyError), watch.stage("search"):
        break_after(2)
    assert watch.milliseconds()["search"] == pytest.approx(2)


def test_total_counts_what_lies_between_stages(clock: Clock) -> None:
    watch = StageTimer()
    with watch.stage("encode"):
        clock.spend(2)
    clock.spend(3)
    assert watch.milliseconds()["total"] == pytest.approx(5)
    clock.spend(1)
    assert watch.milliseconds()["total"] == pytest.approx(6)


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
