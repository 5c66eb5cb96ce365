# SPDX-License-Identifier: Apache-2.0
"""Rate limit: a minimum time between the starts of calls, over all callers, in the order of their arrival.

What the provider says about its own limits (`learn`) and a refusal (`pause`) hold further calls back.

Not a library, because aiolimiter 1.3.0 does not report that a turn would come too late, does not limit its queue, and
has no jitter. Use it in one event loop.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable

from search_gateway.errors import ProviderNotAskedError
from search_gateway.providers.base import QuotaWindow

# A day, so that a wrong header cannot switch a provider off until the next restart.
_MAX_PAUSE_SECONDS = 86400.0
_SHORT_WINDOW_SECONDS = 1.0  # a rate; longer windows permit bursts
_MIN_LEARNT_SECONDS = 0.01


class RateLimit:
    """Gives callers their turns.

    Args:
        min_seconds: minimum time between the starts of two calls; 0: no limit.
        jitter: maximum share by which a pause is lengthened; it is never shortened.
        max_waiting: maximum number of waiting callers.
        clock: returns seconds, as the event loop counts them.
        random: returns a number from 0 to 1.
    """

    def __init__(
        self,
        min_seconds: float,
        *,
        jitter: float = 0.2,
        max_waiting: int = 16,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = random.random,
    ):
        self._min_seconds = min_seconds
        self._jitter = jitter
        self._max_waiting = max_waiting
        self._clock = clock
        self._random = random
        self._num_waiting = 0
        self._next = -float("inf")  # when the next call may begin
        self._paused_until = -float("inf")
        self._queue = asyncio.Lock()  # acquired in the order of arrival

    @property
    def paused_seconds(self) -> float:
        """How much longer no call may begin because the provider said so; 0 if none is held back."""
        return max(0.0, self._paused_until - self._clock())

    def pause(self, seconds: float) -> None:
        """Let no call begin for so long, a day at most."""
        self._paused_until = max(self._paused_until, self._clock() + min(seconds, _MAX_PAUSE_SECONDS))

    def learn(self, windows: Iterable[QuotaWindow]) -> None:
        """Take over a provider's own limits: its rate, and a pause until a used-up window begins again."""
        for window in windows:
            seconds = window.window_seconds
            if seconds is not None and 0 < seconds <= _SHORT_WINDOW_SECONDS and window.limit:
                self._min_seconds = max(_MIN_LEARNT_SECONDS, seconds / window.limit)
            if window.remaining:
                continue
            if window.reset_seconds is not None:
                self.pause(window.reset_seconds)
            elif seconds is not None and seconds <= 60:  # when a longer one begins again is unknown
                self.pause(seconds)

    def check(self, timeout_seconds: float) -> None:
        """Check whether a turn can come in time.

        Raises:
            ProviderNotAskedError: the next free turn comes later than `timeout_seconds`, or the queue is full.
        """
        if self._num_waiting >= self._max_waiting:
            raise ProviderNotAskedError(
                f"{self._num_waiting} searches already wait for their turn, the limit: "
                "try again later or use another provider"
            )
        paused = self.paused_seconds
        if paused >= timeout_seconds:
            raise ProviderNotAskedError(
                f"its own limit is reached and it is not asked for {duration(paused)}: use another provider meanwhile"
            )
        earliest = max(paused, self._next - self._clock(), 0.0) + self._num_waiting * self._min_seconds
        if earliest >= timeout_seconds:
            raise ProviderNotAskedError(
                f"it is asked at most once every {self._min_seconds:g} s, and this search's turn comes too late: "
                "try again later or use another provider"
            )

    async def turn(self, timeout_seconds: float) -> None:
        """Wait for the caller's turn; the call must then begin immediately.

        Raises:
            ProviderNotAskedError: immediately, as `check`.
        """
        self.check(timeout_seconds)
        self._num_waiting += 1
        try:
            async with self._queue:
                # Only the holder of the lock changes `_next`; a timer may fire slightly early, hence the loop.
                while (seconds := max(self._next, self._paused_until) - self._clock()) > 0:  # noqa: ASYNC110
                    await asyncio.sleep(seconds)
                self._next = self._clock() + self._min_seconds * (1 + self._jitter * self._random())
        finally:
            self._num_waiting -= 1


def duration(seconds: float) -> str:
    """Return a duration in words, such as "12 minutes" or "1 hour"; less than a minute in seconds."""
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            number = int(seconds // size)
            return f"{number} {unit}{'s' if number > 1 else ''}"
    return f"{seconds:.0f} seconds"
