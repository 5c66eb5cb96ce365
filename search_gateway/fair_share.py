# SPDX-License-Identifier: Apache-2.0
"""The caller of the present call, and how callers share what is limited, so that none can keep the others out.

Without API keys, all calls have the same caller, "", and nothing here changes their order or number.
"""

from __future__ import annotations

import random
from contextvars import ContextVar

# The name of the key, token or certificate of the call in progress. Tasks that the call starts inherit it.
current_caller: ContextVar[str] = ContextVar("current_caller", default="")


def is_refused(num_own: int, num_total: int, num_callers: int, limit: int) -> bool:
    """Return whether a caller may not add one more item to a limited resource.

    A single caller may use all of it. Once it is full, a caller with less than an equal share is still let in, so that
    with n callers the total is at most limit × (1 + 1/2 + … + 1/n).

    Args:
        num_own: items that the caller has in it.
        num_total: items of all callers in it.
        num_callers: callers that have items in it, this one included.
        limit: of the resource.
    """
    return num_total >= limit and num_own >= limit // num_callers


def spread(pause_seconds: float) -> float:
    """Return up to twice a pause, so that calls that are refused at the same time do not all come again at once."""
    return pause_seconds * random.uniform(1.0, 2.0)


class FairTurns:
    """Numbers the items of a queue so that callers alternate when it is served in the order of these numbers.

    Start-time fair queueing (Goyal, Vin, Cheng 1996) with items of equal weight. The items of one caller keep their
    order.
    """

    def __init__(self) -> None:
        self._now = 0  # the turn that was served last
        self._last: dict[str, int] = {}  # the last turn of each caller that is not in the past

    def next(self, caller: str) -> int:
        """Return the turn of a caller's next item."""
        turn = self._last[caller] = max(self._now, self._last.get(caller, -1) + 1)
        return turn

    def served(self, turn: int) -> None:
        """Note that an item of this turn is being served; forget the callers that have waited for nothing since."""
        if turn > self._now:
            self._now = turn
            self._last = {caller: last for caller, last in self._last.items() if last >= turn}
