# SPDX-License-Identifier: Apache-2.0
"""Admission: how many requests all services work on at a time, and how long each request may take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from search_gateway.deadline import Deadline
from search_gateway.errors import BadRequestError, OverloadedError
from search_gateway.fair_share import current_caller, is_refused, spread

# Reserved for sending the answer, so that it arrives before the caller gives up.
_ANSWER_SECONDS = 0.05

_RETRY_SECONDS = 0.5


class CallContext(Protocol):
    """The part of gRPC's context that admission needs."""

    def time_remaining(self) -> float | None:
        """Return the seconds until the caller gives up; None if it set no deadline."""


class Admission:
    """Limits the requests in progress; one object for all services of a gateway.

    When the limit is reached, callers with less than an equal share are still let in, see `fair_share.is_refused`.

    Args:
        max_in_flight: maximum number of requests in progress.
        max_deadline_seconds: deadline of a request that sets none, and the maximum for one that does.
    """

    def __init__(self, max_in_flight: int, max_deadline_seconds: float):
        self._max_in_flight = max_in_flight
        self._max_deadline_seconds = max_deadline_seconds
        self._in_flight = 0
        self._of_caller: Counter[str] = Counter()

    @contextmanager
    def admitted(self, num_photos: int = 1) -> Iterator[None]:
        """Count a request as in progress while the block runs; each of its photos counts as one request.

        Args:
            num_photos: number of photos in the request.

        Raises:
            OverloadedError: the request would exceed the limit now.
            BadRequestError: the request alone exceeds the limit.
        """
        if num_photos > self._max_in_flight:
            raise BadRequestError(
                f"the request has {num_photos} photos; the server works on {self._max_in_flight} at a time: send fewer"
            )
        caller = current_caller.get()
        # The request itself is counted, but for its last photo.
        num_own, num_total = self._of_caller[caller] + num_photos - 1, self._in_flight + num_photos - 1
        is_over = is_refused(num_own, num_total, len(self._of_caller.keys() | {caller}), self._max_in_flight)
        if is_over and num_photos > 1:
            raise OverloadedError(
                f"the server works on {self._in_flight} requests, its limit is {self._max_in_flight}, and this one "
                f"counts as {num_photos}, one for each photo: try again shortly, or send fewer",
                retry_after_seconds=spread(_RETRY_SECONDS),
                reason="requests",
            )
        if is_over:
            raise OverloadedError(
                f"the server works on {self._in_flight} requests, its limit: try again shortly",
                retry_after_seconds=spread(_RETRY_SECONDS),
                reason="requests",
            )
        self._in_flight += num_photos
        self._of_caller[caller] += num_photos
        try:
            yield
        finally:
            self._in_flight -= num_photos
            self._of_caller -= Counter({caller: num_photos})  # drops callers with none

    def deadline(self, context: CallContext) -> Deadline:
        """Return the deadline of a request: its own, within the maximum."""
        remaining = context.time_remaining()
        seconds = self._max_deadline_seconds
        return Deadline(seconds if remaining is None else min(seconds, remaining) - _ANSWER_SECONDS)
