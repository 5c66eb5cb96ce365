# SPDX-License-Identifier: Apache-2.0
"""Remembers what providers found for which words; bounded in bytes, and in time by the library cachetools.

An answer is fresh for `ttl_seconds`. It is kept `stale_seconds` longer, to be used where the provider fails. Knows
nothing about calls: `guarded.py` decides what is remembered. Not for providers whose answer depends on more
than the words.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cachetools import TTLCache

from search_gateway.providers.base import Candidate

# What cachetools and its dictionaries hold for an entry, and ours around the candidates.
_ENTRY_BYTES = 1000


@dataclass
class CacheCounters:
    """Since the start. Every search is a hit or a miss."""

    hits: int = 0  # answered from the cache, fresh
    misses: int = 0  # all others
    shared: int = 0  # of the misses, those that waited for the call of another
    stale: int = 0  # of the misses, those answered with an old answer, since the provider failed


@dataclass(frozen=True)
class CachedAnswer:
    candidates: tuple[Candidate, ...]
    found_at: float  # on the cache's clock
    num_bytes: int


_Key = tuple[str, tuple[str, ...]]


class QueryCache:
    """Args:
    max_bytes: of all answers together; 0 keeps none. An answer that does not fit is not kept.
    clock: seconds, never going back.
    """

    def __init__(
        self,
        max_bytes: int,
        *,
        ttl_seconds: float,
        stale_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._ttl_seconds = ttl_seconds
        self._clock = clock
        self._answers: TTLCache[_Key, CachedAnswer] = TTLCache(
            max_bytes, ttl_seconds + stale_seconds, timer=clock, getsizeof=lambda answer: answer.num_bytes
        )
        self.counters = CacheCounters()

    @property
    def num_bytes(self) -> int:
        return int(self._answers.currsize)

    def fresh(self, provider: str, words: tuple[str, ...]) -> CachedAnswer | None:
        """Counted as a hit or a miss."""
        answer = self._answers.get((provider, words))
        if answer is None or self.age_seconds(answer) >= self._ttl_seconds:
            self.counters.misses += 1
            return None
        self.counters.hits += 1
        return answer

    def stale(self, provider: str, words: tuple[str, ...]) -> CachedAnswer | None:
        """What there is, however old. Counted where there is something."""
        answer = self._answers.get((provider, words))
        if answer is not None:
            self.counters.stale += 1
        return answer

    def put(self, provider: str, words: tuple[str, ...], candidates: Sequence[Candidate]) -> None:
        """Remember an answer; the least recently used ones make room."""
        num_bytes = _ENTRY_BYTES + sum(map(sys.getsizeof, words)) + sum(map(bytes_of, candidates))
        if num_bytes > self._answers.maxsize:
            # What is older must not outlive what is newer.
            self._answers.pop((provider, words), None)
            return
        self._answers[provider, words] = CachedAnswer(tuple(candidates), self._clock(), num_bytes)

    def age_seconds(self, answer: CachedAnswer) -> float:
        return max(0.0, self._clock() - answer.found_at)


def bytes_of(candidate: Candidate) -> int:
    """What a candidate holds in memory, as if it shared nothing with others."""
    fields = vars(candidate)
    num_bytes = 8 + sys.getsizeof(candidate) + sys.getsizeof(fields) + sum(map(sys.getsizeof, fields.values()))
    if candidate.embedding is not None and candidate.embedding.base is not None:
        # A view keeps the whole array that it looks at; sys.getsizeof tells of the view alone.
        num_bytes += sys.getsizeof(candidate.embedding.base)
    return num_bytes
