# SPDX-License-Identifier: Apache-2.0
"""The one deadline of a request, handed to every stage."""

from __future__ import annotations

import time
from collections.abc import Callable

from search_gateway.errors import DeadlineError


class Deadline:
    """A point in time by which a request must be answered.

    Args:
        seconds: from now.
        clock: returns seconds and never goes back.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._end = clock() + seconds

    def remaining_seconds(self) -> float:
        """Return the time left; 0 if the deadline has passed."""
        return max(0.0, self._end - self._clock())

    def earlier(self, seconds: float) -> Deadline:
        """Return a deadline this many seconds before this one."""
        return Deadline(self.remaining_seconds() - seconds, self._clock)

    def check(self, stage: str) -> None:
        """Check the deadline before a stage.

        Args:
            stage: what is to be done next; the message names it.

        Raises:
            DeadlineError: the deadline has passed.
        """
        if self.remaining_seconds() <= 0:
            raise DeadlineError(f"the deadline passed before {stage} was done: allow more time")
