# SPDX-License-Identifier: Apache-2.0
"""The breaker against a plain model of what it promises: any order of calls, ends, cancellations and passing time."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from search_gateway.providers.guard.circuit_breaker import BreakerSettings, BreakerState, CircuitBreaker, Permit

SETTINGS = BreakerSettings(
    window_seconds=60, min_calls=3, max_failure_ratio=0.5, first_open_seconds=10, max_open_seconds=100, jitter=0.2
)


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def breaker_with(clock: Clock, random: float = 0.5, **changes: float) -> CircuitBreaker:
    return CircuitBreaker(BreakerSettings(**{**vars(SETTINGS), **changes}), clock=clock, random=lambda: random)  # type: ignore[arg-type]


def permitted(breaker: CircuitBreaker) -> Permit:
    permit = breaker.permit()
    assert permit is not None
    return permit


def open_it(breaker: CircuitBreaker) -> None:
    for _ in range(SETTINGS.min_calls):
        permitted(breaker).failed()
    assert breaker.state is BreakerState.OPEN


def test_few_failures_open_nothing() -> None:
    breaker = breaker_with(Clock())
    for _ in range(SETTINGS.min_calls - 1):
        permitted(breaker).failed()
    assert breaker.state is BreakerState.CLOSED


def test_failures_among_enough_successes_open_nothing() -> None:
    breaker = breaker_with(Clock())
    for _ in range(20):
        permitted(breaker).succeeded()
        permitted(breaker).succeeded()
        permitted(breaker).failed()
    assert breaker.state is BreakerState.CLOSED


def test_failures_that_are_long_ago_do_not_count() -> None:
    clock = Clock()
    breaker = breaker_with(clock)
    for _ in range(10):
        permitted(breaker).failed()
        clock.now += SETTINGS.window_seconds / (SETTINGS.min_calls - 1) + 1
    assert breaker.state is BreakerState.CLOSED


def test_successes_alone_never_open_even_where_no_failure_is_too_many() -> None:
    breaker = breaker_with(Clock(), max_failure_ratio=0.0)
    for _ in range(10):
        permitted(breaker).succeeded()
    assert breaker.state is BreakerState.CLOSED
    permitted(breaker).failed()
    assert breaker.state is BreakerState.OPEN


def test_open_breaker_permits_nothing_until_its_time_is_over() -> None:
    clock = Clock()
    breaker = breaker_with(clock)
    open_it(breaker)
    assert breaker.permit() is None
    assert breaker.seconds_until_probe == 10
    clock.now += 9.99
    assert breaker.permit() is None
    clock.now += 0.01
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.seconds_until_probe == 0


def test_there_is_one_probe_and_its_success_closes() -> None:
    clock = Clock()
    breaker = breaker_with(clock)
    open_it(breaker)
    clock.now += 10
    probe = permitted(breaker)
    assert not breaker.would_permit()
    assert breaker.permit() is None
    probe.succeeded()
    assert breaker.state is BreakerState.CLOSED
    for _ in range(SETTINGS.min_calls - 1):
        permitted(breaker).failed()
    assert breaker.state is BreakerState.CLOSED, "what was before the probe is forgotten"


def test_abandoned_probe_frees_its_place_and_decides_nothing() -> None:
    clock = Clock()
    breaker = breaker_with(clock)
    open_it(breaker)
    clock.now += 10
    permitted(breaker).abandoned()
    assert breaker.state is BreakerState.HALF_OPEN
    permitted(breaker).succeeded()
    assert breaker.state is BreakerState.CLOSED


def test_open_time_doubles_up_to_its_limit_and_starts_again_after_a_success() -> None:
    clock = Clock()
    breaker = breaker_with(clock)
    open_it(breaker)
    waits = []
    for _ in range(6):
        waits.append(breaker.seconds_until_probe)
        clock.now += breaker.seconds_until_probe
        permitted(breaker).failed()
    assert waits == [10, 20, 40, 80, 100, 100]
    clock.now += breaker.seconds_until_probe
    permitted(breaker).succeeded()
    open_it(breaker)
    assert breaker.seconds_until_probe == 10


def test_a_thousand_failed_probes_are_no_overflow() -> None:
    clock = Clock()
    breaker = breaker_with(clock)
    open_it(breaker)
    for _ in range(2000):
        clock.now += breaker.seconds_until_probe
        permitted(breaker).failed()
    assert breaker.seconds_until_probe == pytest.approx(100)


@pytest.mark.parametrize(("random", "seconds"), [(0.0, 8.0), (0.5, 10.0), (1.0, 12.0)])
def test_open_time_is_jittered(random: float, seconds: float) -> None:
    breaker = breaker_with(Clock(), random)
    open_it(breaker)
    assert breaker.seconds_until_probe == pytest.approx(seconds)


def test_call_of_an_earlier_period_decides_nothing() -> None:
    clock = Clock()
    breaker = breaker_with(clock)
    early_success, early_failure = permitted(breaker), permitted(breaker)
    open_it(breaker)
    early_success.succeeded()
    assert breaker.state is BreakerState.OPEN
    clock.now += 10
    probe = permitted(breaker)
    early_failure.failed()
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.permit() is None, "the place of the probe is still taken"
    probe.succeeded()
    assert breaker.state is BreakerState.CLOSED


def test_only_the_first_word_about_a_call_is_heard() -> None:
    breaker = breaker_with(Clock())
    for _ in range(SETTINGS.min_calls):
        permit = permitted(breaker)
        permit.succeeded()
        permit.failed()
    assert breaker.state is BreakerState.CLOSED


class BreakerMachine(RuleBasedStateMachine):
    """Calls that begin and end in any order. The model keeps what the promises speak of, in the simplest way."""

    permits = Bundle("permits")

    @initialize(random=st.floats(0, 1))
    def begin(self, random: float) -> None:
        self.clock = Clock()
        self.breaker = breaker_with(self.clock, random)
        self.state = BreakerState.CLOSED
        self.ends: list[tuple[float, bool]] = []  # of calls in the present closed period
        self.num_openings = 0
        self.opened_at = 0.0
        self.period = 0
        self.probe: Permit | None = None
        self.periods: dict[Permit, int] = {}

    def change(self, state: BreakerState) -> None:
        self.state = state
        self.period += 1
        self.probe = None
        if state is BreakerState.OPEN:
            self.opened_at = self.clock.now
            self.num_openings += 1
        if state is BreakerState.CLOSED:
            self.ends = []
            self.num_openings = 0

    @rule(seconds=st.sampled_from([0.0, 0.5, 5.0, 12.0, 60.0, 130.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds
        observed = self.breaker.state
        if self.state is BreakerState.OPEN:
            open_seconds = self.clock.now - self.opened_at
            expected = min(10 * 2 ** (self.num_openings - 1), 100)
            if open_seconds >= 1.2 * expected:
                assert observed is BreakerState.HALF_OPEN
            if open_seconds < 0.8 * expected:
                assert observed is BreakerState.OPEN
            if observed is BreakerState.HALF_OPEN:
                self.change(BreakerState.HALF_OPEN)

    @rule(target=permits)
    def call_begins(self) -> Permit | None:
        permit = self.breaker.permit()
        allowed = self.state is BreakerState.CLOSED or (self.state is BreakerState.HALF_OPEN and self.probe is None)
        assert (permit is not None) == allowed
        if permit is not None:
            self.periods[permit] = self.period
            if self.state is BreakerState.HALF_OPEN:
                self.probe = permit
        return permit

    @rule(permit=consumes(permits), how=st.sampled_from(["succeeded", "failed", "abandoned"]))
    def call_ends(self, permit: Permit | None, how: str) -> None:
        if permit is None:
            return
        getattr(permit, how)()
        if self.periods.pop(permit) != self.period:
            return
        if permit is self.probe:
            self.probe = None
            if how != "abandoned":
                self.change(BreakerState.CLOSED if how == "succeeded" else BreakerState.OPEN)
        elif how != "abandoned":
            self.ends.append((self.clock.now, how == "failed"))
            recent = [is_failure for end, is_failure in self.ends if end >= self.clock.now - 60]
            if len(recent) >= 3 and sum(recent) >= 0.5 * len(recent):
                self.change(BreakerState.OPEN)

    @precondition(lambda self: self.state is BreakerState.HALF_OPEN and self.probe is None)
    @rule()
    def place_of_a_probe_that_is_gone_is_free(self) -> None:
        assert self.breaker.would_permit()

    @invariant()
    def breaker_is_where_the_model_is(self) -> None:
        if hasattr(self, "breaker"):
            assert self.breaker.state is self.state


BreakerMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestBreaker = BreakerMachine.TestCase
