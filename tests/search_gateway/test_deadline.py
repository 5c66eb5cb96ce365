# SPDX-License-Identifier: Apache-2.0
"""The one deadline of a request, on a clock that goes when told."""

from __future__ import annotations

import time

import pytest

from search_gateway.deadline import Deadline
from search_gateway.errors import DeadlineError


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_remaining_time_runs_out_with_the_clock() -> None:
    clock = Clock()
    deadline = Deadline(8.0, clock)
    assert deadline.remaining_seconds() == 8.0
    clock.now += 5.5
    assert deadline.remaining_seconds() == 2.5
    clock.now += 2.5
    assert deadline.remaining_seconds() == 0.0


def test_remaining_time_is_never_negative() -> None:
    clock = Clock()
    deadline = Deadline(1.0, clock)
    clock.now += 100
    assert deadline.remaining_seconds() == 0.0
    assert Deadline(-3.0, clock).remaining_seconds() == 0.0


def test_check_passes_while_there_is_time() -> None:
    clock = Clock()
    deadline = Deadline(1.0, clock)
    clock.now += 0.999
    deadline.check("decoding")


@pytest.mark.parametrize("seconds", [1.0, 2.0])
def test_check_names_what_was_still_to_be_done(seconds: float) -> None:
    clock = Clock()
    deadline = Deadline(1.0, clock)
    clock.now += seconds
    with pytest.raises(DeadlineError, match="^the deadline passed before decoding was done: allow more time$"):
        deadline.check("decoding")


def test_earlier_deadline_has_the_same_clock_and_is_never_before_now() -> None:
    clock = Clock()
    earlier = Deadline(1.0, clock).earlier(0.25)
    clock.now += 0.5
    assert earlier.remaining_seconds() == pytest.approx(0.25)
    assert earlier.earlier(9.0).remaining_seconds() == 0


def test_default_clock_is_one_that_nobody_can_set() -> None:
    before = time.monotonic()
    remaining = Deadline(60.0).remaining_seconds()
    assert 60.0 - (time.monotonic() - before) <= remaining <= 60.0
