# SPDX-License-Identifier: Apache-2.0
"""Circuit breaker: stops calls to a provider that fails too often, and tests with single calls whether it recovered.

    closed     calls are permitted; too many failures within the last minute open it
    open       no call is permitted, for a time that doubles with every failed probe
    half-open  one call at a time is permitted, the probe; its success closes the breaker, its failure opens it again

It counts what callers report. It does not wait, and its clock is an argument.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

# Bounds the memory: only so many calls are remembered, however many the window has.
_MAX_REMEMBERED_CALLS = 1000


class BreakerState(enum.Enum):
    """The state of a circuit breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(frozen=True, kw_only=True)
class BreakerSettings:
    """When a breaker opens, and for how long."""

    window_seconds: float = 60.0  # calls that ended longer ago do not count
    min_calls: int = 3  # it opens only with at least so many calls in the window
    max_failure_ratio: float = 0.5  # it opens at this share of failures
    first_open_seconds: float = 10.0
    max_open_seconds: float = 600.0  # DuckDuckGo's bans end after 10 to 15 minutes
    jitter: float = 0.2  # open times are lengthened or shortened by at most this share


class Permit:
    """Permission for one call, whose end must be reported by one of the three methods; only the first report counts."""

    def __init__(self, report: Callable[[bool | None], None]):
        self._report: Callable[[bool | None], None] | None = report

    def succeeded(self) -> None:
        """Report that the provider answered."""
        self._tell(False)

    def failed(self) -> None:
        """Report that the provider failed."""
        self._tell(True)

    def abandoned(self) -> None:
        """Report an end that says nothing about the provider, such as a cancelled caller."""
        self._tell(None)

    def _tell(self, is_failure: bool | None) -> None:
        report, self._report = self._report, None
        if report is not None:
            report(is_failure)


class CircuitBreaker:
    """Decides whether a call may begin.

    Args:
        settings: when it opens, and for how long.
        clock: returns seconds and never goes back.
        random: returns a number from 0 to 1, for jitter, so that several gateways do not probe at the same time.
    """

    def __init__(self, settings: BreakerSettings, *, clock: Callable[[], float], random: Callable[[], float]):
        self._settings = settings
        self._clock = clock
        self._random = random
        self._state = BreakerState.CLOSED
        self._period = 0  # counts changes of the state; a call that began in an earlier period does not count
        self._calls: deque[tuple[float, bool]] = deque(maxlen=_MAX_REMEMBERED_CALLS)  # (end, is_failure)
        self._num_openings = 0  # since it was last closed
        self._open_until = 0.0
        self._is_probing = False

    @property
    def state(self) -> BreakerState:
        """The current state."""
        if self._state is BreakerState.OPEN and self._clock() >= self._open_until:
            self._change(BreakerState.HALF_OPEN)
        return self._state

    @property
    def seconds_until_probe(self) -> float:
        """The time until a probe is permitted; 0 if the breaker is not open."""
        return max(0.0, self._open_until - self._clock()) if self.state is BreakerState.OPEN else 0.0

    def would_permit(self) -> bool:
        """Whether `permit` would permit a call now."""
        state = self.state
        return state is BreakerState.CLOSED or (state is BreakerState.HALF_OPEN and not self._is_probing)

    def permit(self) -> Permit | None:
        """Return a permit for a call that begins now; None if no call may begin."""
        if not self.would_permit():
            return None
        self._is_probing = self._state is BreakerState.HALF_OPEN
        period = self._period
        return Permit(lambda is_failure: self._ended(period, is_failure))

    def _ended(self, period: int, is_failure: bool | None) -> None:
        if period != self._period:
            return
        if self._state is BreakerState.HALF_OPEN:
            self._is_probing = False
            if is_failure is not None:
                self._change(BreakerState.OPEN if is_failure else BreakerState.CLOSED)
        elif self._state is BreakerState.CLOSED and is_failure is not None:
            self._calls.append((self._clock(), is_failure))
            if self._fails_too_often():
                self._change(BreakerState.OPEN)

    def _fails_too_often(self) -> bool:
        oldest = self._clock() - self._settings.window_seconds
        while self._calls and self._calls[0][0] < oldest:
            self._calls.popleft()
        num_failures = sum(is_failure for _, is_failure in self._calls)
        return (
            len(self._calls) >= self._settings.min_calls
            and num_failures >= self._settings.max_failure_ratio * len(self._calls)
            and num_failures > 0
        )

    def _change(self, state: BreakerState) -> None:
        self._state = state
        self._period += 1
        self._is_probing = False
        if state is BreakerState.OPEN:
            self._open_until = self._clock() + self._open_seconds()
            self._num_openings += 1
        elif state is BreakerState.CLOSED:
            self._calls.clear()
            self._num_openings = 0

    def _open_seconds(self) -> float:
        settings = self._settings
        # The exponent is bounded: a float overflows after a thousand doublings.
        doubled = settings.first_open_seconds * 2.0 ** min(self._num_openings, 64)
        return min(doubled, settings.max_open_seconds) * (1 + settings.jitter * (2 * self._random() - 1))
