# SPDX-License-Identifier: Apache-2.0
"""How long photos of one kind have waited and taken lately, which tells whose deadline cannot be met.

And how many there were at a time, which tells whether more are to be expected.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_KEPT = 32  # photos
_LEAST = 8  # of fewer photos, nothing is concluded
_FRESH_SECONDS = 5.0  # older times say nothing: the load was another one
_ARRIVALS = 16
# A wait says how fast the queue moves only if it was longer than the call of the encoder that it waited for.
_LEAST_AHEAD = 8


class ServiceTimes:
    """Estimates from the photos that were served in the last seconds; with few of them it estimates 0.

    Args:
        clock: returns seconds and never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._paces: deque[tuple[float, float]] = deque(maxlen=_KEPT)
        self._served: deque[tuple[float, float]] = deque(maxlen=_KEPT)

    def waited(self, num_ahead: int, seconds: float) -> None:
        """Note how long a photo was queued behind so many others; at least so long, if it left before its turn."""
        if num_ahead >= _LEAST_AHEAD:
            self._paces.append((self._clock(), seconds / num_ahead))

    def served(self, seconds: float) -> None:
        """Note how long a photo took from the queue to the last word."""
        self._served.append((self._clock(), seconds))

    def service(self) -> float:
        """Return the expected seconds from the queue to the last word."""
        return self._mean(self._served)

    def wait(self, num_ahead: int) -> float:
        """Return the expected seconds in the queue behind so many photos."""
        return num_ahead * self._mean(self._paces)

    def _mean(self, times: deque[tuple[float, float]]) -> float:
        begin = self._clock() - _FRESH_SECONDS
        fresh = [seconds for when, seconds in times if when >= begin]
        return sum(fresh) / len(fresh) if len(fresh) >= _LEAST else 0.0


class RecentPeak:
    """The largest of the last 16 counts that are younger than 5 s.

    Args:
        clock: returns seconds and never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._counts: deque[tuple[float, int]] = deque(maxlen=_ARRIVALS)

    def note(self, count: int) -> None:
        """Note a count."""
        self._counts.append((self._clock(), count))

    def peak(self) -> int:
        """Return the largest count; 0 without any."""
        begin = self._clock() - _FRESH_SECONDS
        return max((count for when, count in self._counts if when >= begin), default=0)
