# SPDX-License-Identifier: Apache-2.0
"""Where photos wait for the encoder: a bounded queue for each kind, served in turn. Pure; knows nothing of photos."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


class WaitingRoom(Generic[Item]):
    """First come, first served within a kind; between kinds one each in turn, so that no kind starves another.

    Args:
        limit: items of a kind that may wait at a time, unless it is one of `unbounded`.
    """

    def __init__(self, limit: int, unbounded: frozenset[int] = frozenset()):
        self._limit = limit
        self._unbounded = unbounded
        self._queues: dict[int, dict[Item, None]] = {}  # by kind, who is served next first; dicts keep their order

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def waiting(self, kind: int) -> int:
        return len(self._queues.get(kind, ()))

    def is_full(self, kind: int) -> bool:
        return kind not in self._unbounded and self.waiting(kind) >= self._limit

    def enter(self, kind: int, item: Item) -> None:
        """The caller has asked `is_full`."""
        self._queues.setdefault(kind, {})[item] = None

    def leave(self, kind: int, item: Item) -> None:
        """Of who does not want to wait any longer; nothing happens where it was taken before."""
        queue = self._queues.get(kind, {})
        queue.pop(item, None)
        if not queue:
            self._queues.pop(kind, None)

    def take(self, most: int, claim: Callable[[Item], bool]) -> list[Item]:
        """Up to `most` items, one of each kind in turn.

        Args:
            claim: whether there is place for this item; a kind whose first item finds none is passed over.
        """
        taken: list[Item] = []
        blocked: set[int] = set()
        while len(taken) < most:
            kind = next((one for one in self._queues if one not in blocked), None)
            if kind is None:
                break
            queue = self._queues[kind]
            item = next(iter(queue))
            if not claim(item):
                blocked.add(kind)
                continue
            del queue[item]
            taken.append(item)
            # To the end of the turn, also of the next call's.
            del self._queues[kind]
            if queue:
                self._queues[kind] = queue
        return taken
