# SPDX-License-Identifier: Apache-2.0
"""Admission: how many requests are in progress at a time, over all services, and how long each may take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from search_gateway.deadline import Deadline
from search_gateway.errors import BadRequestError, OverloadedError

# For the answer's way back, so that it arrives before the caller gives up.
_ANSWER_SECONDS = 0.05

_RETRY_SECONDS = 0.5


class CallContext(Protocol):
    """What is asked of gRPC's context."""

    def time_remaining(self) -> float | None:
        """Seconds until the caller gives up; None where it set no deadline."""


class Admission:
    """One for all services of a gateway.

    Args:
        max_in_flight: requests at a time.
        max_deadline_seconds: for a request without a deadline, and at most for one with a longer one.
    """

    def __init__(self, max_in_flight: int, max_deadline_seconds: float):
        self._max_in_flight = max_in_flight
        self._max_deadline_seconds = max_deadline_seconds
        self._in_flight = 0

    @contextmanager
    def admitted(self, num_photos: int = 1) -> Iterator[None]:
        """A place for each photo of a request, or none for any.

        Raises:
            OverloadedError: as many requests as allowed are inside, or would be.
            BadRequestError: so many photos never fit.
        """
        if num_photos > self._max_in_flight:
            raise BadRequestError(
                f"the request has {num_photos} photos; the server works on {self._max_in_flight} at a time: send fewer"
            )
        if num_photos > 1 and self._in_flight + num_photos > self._max_in_flight:
            raise OverloadedError(
                f"the server works on {self._in_flight} requests, its limit is {self._max_in_flight}, and this one "
                f"counts as {num_photos}, one for each photo: try again shortly, or send fewer",
                retry_after_seconds=_RETRY_SECONDS,
            )
        if self._in_flight >= self._max_in_flight:
            raise OverloadedError(
                f"the server works on {self._in_flight} requests, its limit: try again shortly",
                retry_after_seconds=_RETRY_SECONDS,
            )
        self._in_flight += num_photos
        try:
            yield
        finally:
            self._in_flight -= num_photos

    def deadline(self, context: CallContext) -> Deadline:
        """A request's own, or the longest that is allowed."""
        remaining = context.time_remaining()
        seconds = self._max_deadline_seconds
        return Deadline(seconds if remaining is None else min(seconds, remaining) - _ANSWER_SECONDS)
