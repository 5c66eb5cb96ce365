# SPDX-License-Identifier: Apache-2.0
"""The one deadline of a request, handed to every stage."""

from __future__ import annotations

import time
from collections.abc import Callable

from search_gateway.errors import DeadlineError


class Deadline:
    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._end = clock() + seconds

    def remaining_seconds(self) -> float:
        """Never negative."""
        return max(0.0, self._end - self._clock())

    def check(self, stage: str) -> None:
        """Raises:
        DeadlineError: the time is over; `stage` names what was still to be done.
        """
        if self.remaining_seconds() <= 0:
            raise DeadlineError(f"the deadline passed before {stage} was done: allow more time")
