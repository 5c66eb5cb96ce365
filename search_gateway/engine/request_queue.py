# SPDX-License-Identifier: Apache-2.0
"""The queue in front of the encoder: bounded, with kinds of photos and callers that are served in turn."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

from search_gateway.fair_share import is_refused

Item = TypeVar("Item", bound=Hashable)


class RequestQueue(Generic[Item]):
    """First in, first out within a kind and caller; round robin between kinds, and between the callers of a kind.

    No kind and no caller starves another.

    Args:
        limit: maximum number of queued items of a kind that is not in `unbounded`. Of a full kind, callers with less
            than an equal share of it may still add items, see `fair_share.is_refused`.
    """

    def __init__(self, limit: int, unbounded: frozenset[int] = frozenset()):
        self._limit = limit
        self._unbounded = unbounded
        # By kind and by caller, the next one to be served first; dicts keep order.
        self._queues: dict[int, dict[str, dict[Item, None]]] = {}
        self._places: dict[int, dict[str, int]] = {}  # kept by kind and caller

    def __len__(self) -> int:
        return sum(map(self.num_waiting, self._queues))

    def num_waiting(self, kind: int) -> int:
        """How many items of a kind are queued."""
        return sum(map(len, self._queues.get(kind, {}).values()))

    def kinds_waiting(self) -> dict[int, int]:
        """How many items of each kind are queued."""
        return {kind: self.num_waiting(kind) for kind in self._queues}

    def num_taken(self, kind: int) -> int:
        """How many places of a kind are taken: items, and places that are kept for some."""
        return sum(self._counts(kind).values())

    def num_ahead(self, kind: int, caller: str = "") -> int:
        """How many items of a kind are served before a new one of this caller, since callers take turns."""
        callers = self._counts(kind)
        num_own = callers.pop(caller, 0)
        return num_own + sum(min(count, num_own + 1) for count in callers.values())

    def is_full(self, kind: int, caller: str = "") -> bool:
        """Whether a kind has reached its limit for a caller; places that are kept count as items."""
        if kind in self._unbounded:
            return False
        counts = self._counts(kind)
        return is_refused(counts.get(caller, 0), sum(counts.values()), len(counts.keys() | {caller}), self._limit)

    @contextlib.contextmanager
    def place(self, kind: int, caller: str = "") -> Iterator[None]:
        """Keep a place within the block for an item that comes at its end. The caller has checked `is_full`."""
        places = self._places.setdefault(kind, {})
        places[caller] = places.get(caller, 0) + 1
        try:
            yield
        finally:
            places[caller] -= 1
            if not places[caller]:
                del places[caller]

    def _counts(self, kind: int) -> dict[str, int]:
        """Items and places of a kind by caller."""
        counts = {caller: len(items) for caller, items in self._queues.get(kind, {}).items()}
        for caller, count in self._places.get(kind, {}).items():
            counts[caller] = counts.get(caller, 0) + count
        return counts

    def add(self, kind: int, item: Item, caller: str = "") -> None:
        """Queue an item. The caller has checked `is_full`."""
        self._queues.setdefault(kind, {}).setdefault(caller, {})[item] = None

    def remove(self, kind: int, item: Item, caller: str = "") -> None:
        """Remove an item that no longer waits; nothing happens where `take` returned it before."""
        callers = self._queues.get(kind, {})
        callers.get(caller, {}).pop(item, None)
        if not callers.get(caller):
            callers.pop(caller, None)
        if not callers:
            self._queues.pop(kind, None)

    def take(self, limit: int, reserve: Callable[[Item], bool]) -> list[Item]:
        """Remove and return up to `limit` items, one of each kind in turn, and of a kind one of each caller in turn.

        Args:
            limit: maximum number of items.
            reserve: tries to reserve what an item needs. Where it returns False, this call skips the item's kind.
        """
        taken: list[Item] = []
        blocked: set[int] = set()
        while len(taken) < limit:
            kind = next((one for one in self._queues if one not in blocked), None)
            if kind is None:
                break
            callers = self._queues[kind]
            caller, queue = next(iter(callers.items()))
            item = next(iter(queue))
            if not reserve(item):
                blocked.add(kind)
                continue
            del queue[item]
            taken.append(item)
            # Kind and caller go to the end of their turns, also for the next call.
            del self._queues[kind], callers[caller]
            if queue:
                callers[caller] = queue
            if callers:
                self._queues[kind] = callers
        return taken
