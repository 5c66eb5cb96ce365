# SPDX-License-Identifier: Apache-2.0
"""The queue in front of the encoder: a bounded first-in-first-out queue for each kind of photo, served in turn."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


class RequestQueue(Generic[Item]):
    """First in, first out within a kind; round robin between kinds, so that no kind starves another.

    Args:
        limit: maximum number of queued items of a kind that is not in `unbounded`.
    """

    def __init__(self, limit: int, unbounded: frozenset[int] = frozenset()):
        self._limit = limit
        self._unbounded = unbounded
        self._queues: dict[int, dict[Item, None]] = {}  # by kind, the next one to be served first; dicts keep order

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def num_waiting(self, kind: int) -> int:
        """How many items of a kind are queued."""
        return len(self._queues.get(kind, ()))

    def is_full(self, kind: int) -> bool:
        """Whether a kind has reached its limit."""
        return kind not in self._unbounded and self.num_waiting(kind) >= self._limit

    def add(self, kind: int, item: Item) -> None:
        """Queue an item. The caller has checked `is_full`."""
        self._queues.setdefault(kind, {})[item] = None

    def remove(self, kind: int, item: Item) -> None:
        """Remove an item that no longer waits; nothing happens where `take` returned it before."""
        queue = self._queues.get(kind, {})
        queue.pop(item, None)
        if not queue:
            self._queues.pop(kind, None)

    def take(self, limit: int, reserve: Callable[[Item], bool]) -> list[Item]:
        """Remove and return up to `limit` items, one of each kind in turn.

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
            queue = self._queues[kind]
            item = next(iter(queue))
            if not reserve(item):
                blocked.add(kind)
                continue
            del queue[item]
            taken.append(item)
            # The kind goes to the end of the turn, also for the next call.
            del self._queues[kind]
            if queue:
                self._queues[kind] = queue
        return taken
