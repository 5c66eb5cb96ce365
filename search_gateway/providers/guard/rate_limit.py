# SPDX-License-Identifier: Apache-2.0
"""Keeps the beginnings of calls apart: at least so many seconds, for all callers together, in the order they came.

Own lines instead of a library: aiolimiter 1.3.0 does not report that a turn would come too late, lets the queue grow
without bound and has no jitter. Lives in one event loop.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

from search_gateway.errors import ProviderNotAskedError


class RateLimit:
    """Args:
    min_seconds: between the beginnings of two calls; 0: they are not kept apart.
    jitter: a pause is lengthened by at most this share; never shortened.
    max_waiting: more callers are refused.
    clock: seconds, as the event loop counts them.
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
        self._queue = asyncio.Lock()  # hands over in the order of asking

    def check(self, timeout_seconds: float) -> None:
        """Raises:
        ProviderNotAskedError: the next free turn comes later than this, or the queue is full.
        """
        if self._num_waiting >= self._max_waiting:
            raise ProviderNotAskedError(
                f"{self._num_waiting} searches wait for their turn, and no more may: "
                "try again later or use another provider"
            )
        earliest = max(0.0, self._next - self._clock()) + self._num_waiting * self._min_seconds
        if earliest >= timeout_seconds:
            raise ProviderNotAskedError(
                f"it is asked at most once every {self._min_seconds:g} s, and this search's turn comes too late: "
                "try again later or use another provider"
            )

    async def turn(self, timeout_seconds: float) -> None:
        """Return when the caller may begin, and must. The first one waits not at all.

        Raises:
            ProviderNotAskedError: at once, as `check`.
        """
        self.check(timeout_seconds)
        self._num_waiting += 1
        try:
            async with self._queue:
                # Only the holder of the lock moves the time; a timer may be a little early.
                while (seconds := self._next - self._clock()) > 0:  # noqa: ASYNC110
                    await asyncio.sleep(seconds)
                self._next = self._clock() + self._min_seconds * (1 + self._jitter * self._random())
        finally:
            self._num_waiting -= 1
