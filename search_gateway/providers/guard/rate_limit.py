# SPDX-License-Identifier: Apache-2.0
"""Rate limit: a minimum time between the starts of calls, over all callers, in the order of their arrival.

Not a library, because aiolimiter 1.3.0 does not report that a turn would come too late, does not limit its queue, and
has no jitter. Use it in one event loop.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

from search_gateway.errors import ProviderNotAskedError


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
        self._queue = asyncio.Lock()  # acquired in the order of arrival

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
        earliest = max(0.0, self._next - self._clock()) + self._num_waiting * self._min_seconds
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
                while (seconds := self._next - self._clock()) > 0:  # noqa: ASYNC110
                    await asyncio.sleep(seconds)
                self._next = self._clock() + self._min_seconds * (1 + self._jitter * self._random())
        finally:
            self._num_waiting -= 1
