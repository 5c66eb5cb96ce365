# SPDX-License-Identifier: Apache-2.0
"""Lets concurrent callers with the same key share one call. Use it in one event loop.

A shared call is a separate task: it continues when the caller that began it leaves, and is cancelled when the last one
leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class FlightCancelledError(Exception):
    """The call was cancelled, though its caller was not."""


@dataclass
class _Flight(Generic[T]):
    task: asyncio.Task[T]
    num_waiting: int = 0


class SingleFlight(Generic[T]):
    """The calls in progress, by key.

    Args:
        name: of the tasks, for the log.
    """

    def __init__(self, name: str | None = None) -> None:
        self._name = name
        self._flights: dict[Hashable, _Flight[T]] = {}
        self._tasks: set[asyncio.Task[T]] = set()  # also those that nobody can join any more
        self._is_closed = False

    def is_under_way(self, key: Hashable) -> bool:
        """Whether a call for a key is in progress."""
        return key in self._flights

    async def join(self, key: Hashable, begin: Callable[[], Coroutine[Any, Any, T]], timeout_seconds: float) -> T:
        """Return the result of the call in progress for a key, or begin one.

        Args:
            key: equal keys share a call.
            begin: makes the call.
            timeout_seconds: of this caller.

        Raises:
            TimeoutError: this caller's time is over. The call continues if others wait for it.
            FlightCancelledError: `close` was called, or the call cancelled itself.
            Exception: what the call raised, or `begin`.
        """
        if self._is_closed:
            raise FlightCancelledError
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.create_task(begin(), name=self._name))
            self._tasks.add(flight.task)
            flight.task.add_done_callback(self._tasks.discard)
            flight.task.add_done_callback(lambda _: self._forget(key, flight))
        flight.num_waiting += 1
        try:
            async with asyncio.timeout(timeout_seconds):
                return await asyncio.shield(flight.task)
        except asyncio.CancelledError:
            me = asyncio.current_task()
            if flight.task.cancelled() and me is not None and not me.cancelling():
                raise FlightCancelledError from None
            raise
        finally:
            flight.num_waiting -= 1
            if not flight.num_waiting and not flight.task.done():
                # Now, not when the task has ended: new callers must not join a call that is being cancelled.
                self._forget(key, flight)
                flight.task.cancel()

    async def close(self, timeout_seconds: float) -> int:
        """Cancel all calls, wait for their end, and begin no more.

        Returns:
            The number of calls that have not ended by then: they ignore their cancellation.
        """
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        if not self._tasks:
            return 0
        _, unfinished = await asyncio.wait(self._tasks, timeout=timeout_seconds)
        return len(unfinished)

    def _forget(self, key: Hashable, flight: _Flight[T]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if flight.task.done() and not flight.task.cancelled():
            flight.task.exception()  # retrieved, or asyncio would log it
