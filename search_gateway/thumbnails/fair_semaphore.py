# SPDX-License-Identifier: Apache-2.0
"""Shares a number of places fairly between searches. Use it in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Hashable


class SemaphoreClosedError(Exception):
    """`close` was called."""


class FairSemaphore:
    """A semaphore that gives a free place to the search with the fewest places.

    Of several such searches, the one that has waited longest since its last turn comes first. Round robin would not be
    enough: a search with slow work keeps its places longer, and would soon hold nearly all of them.

    Args:
        num_places: how many blocks run at a time.
    """

    def __init__(self, num_places: int):
        self._num_free = num_places
        self._held: Counter[Hashable] = Counter()  # places by search
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}  # by search, the next one first; none is empty
        self._is_closed = False

    @contextlib.asynccontextmanager
    async def place(self, search: Hashable) -> AsyncIterator[None]:
        """Wait for a place and keep it while the block runs.

        Args:
            search: equal ones share their part of the places.

        Raises:
            SemaphoreClosedError: `close` was called, before or meanwhile.
        """
        if self._is_closed:
            raise SemaphoreClosedError
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(search, deque()).append(granted)
        self._grant()
        try:
            await granted
            yield
        finally:
            waiting = self._waiting.pop(search, deque())
            if granted in waiting:
                waiting.remove(granted)
            if waiting:
                self._waiting[search] = waiting  # at the end of the line
            if not granted.cancelled() and granted.exception() is None:
                self._num_free += 1
                self._held -= Counter({search: 1})  # without the searches that have none
                self._grant()

    def close(self) -> None:
        """Refuse all who wait, and all who come later. Turns in progress continue."""
        self._is_closed = True
        for granted in [granted for waiting in self._waiting.values() for granted in waiting]:
            if not granted.done():
                granted.set_exception(SemaphoreClosedError())
        self._waiting.clear()

    def _grant(self) -> None:
        while self._num_free and self._waiting:
            search = min(self._waiting, key=self._held.__getitem__)
            waiting = self._waiting.pop(search)
            granted = waiting.popleft()
            if waiting:
                self._waiting[search] = waiting  # at the end of the line
            if not granted.done():
                granted.set_result(None)
                self._num_free -= 1
                self._held[search] += 1
