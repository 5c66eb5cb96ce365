# SPDX-License-Identifier: Apache-2.0
"""Caches providers' answers by `Query.key`; limited in bytes, and in time by the library cachetools.

An answer is fresh for `ttl_seconds`. It is kept for `stale_seconds` longer, for use if the provider fails. Neither is
longer than the provider's terms allow. `guarded.py` decides what is cached. It must not be used for providers whose
answer depends on more than the words.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cachetools import TLRUCache

from search_gateway.providers.base import Candidate

# Memory of an entry in cachetools and its dictionaries, and of our objects around the candidates.
_ENTRY_BYTES = 1000


@dataclass
class CacheCounters:
    """Counts since the start. Every search is a hit or a miss."""

    hits: int = 0  # answered from the cache, fresh
    misses: int = 0  # all others
    shared: int = 0  # misses that shared the call of another search
    stale: int = 0  # misses answered with an old answer, since the provider failed


@dataclass(frozen=True)
class CachedAnswer:
    """An answer in the cache."""

    candidates: tuple[Candidate, ...]
    found_at: float  # on the cache's clock
    num_bytes: int
    max_age_seconds: float  # by the provider's terms


_Key = tuple[str, tuple[str, ...]]


class QueryCache:
    """A cache of answers.

    Args:
        max_bytes: of all answers; 0 disables the cache. A larger answer is not kept.
        ttl_seconds: how long an answer is fresh.
        stale_seconds: how much longer it is kept.
        clock: returns seconds and never goes back.

    Attributes:
        counters: updated by `fresh` and `stale`.
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
        self._answers: TLRUCache[_Key, CachedAnswer] = TLRUCache(
            max_bytes,
            lambda _, answer, now: now + min(ttl_seconds + stale_seconds, answer.max_age_seconds),
            timer=clock,
            getsizeof=lambda answer: answer.num_bytes,
        )
        self.counters = CacheCounters()

    @property
    def num_bytes(self) -> int:
        """Estimated memory of all answers."""
        return int(self._answers.currsize)

    def fresh(self, provider: str, words: tuple[str, ...]) -> CachedAnswer | None:
        """Return a fresh answer or None, and count a hit or a miss."""
        answer = self._answers.get((provider, words))
        if answer is None or self.age_seconds(answer) >= self._ttl_seconds:
            self.counters.misses += 1
            return None
        self.counters.hits += 1
        return answer

    def stale(self, provider: str, words: tuple[str, ...]) -> CachedAnswer | None:
        """Return the answer, however old, and count it; None if there is none."""
        answer = self._answers.get((provider, words))
        if answer is not None:
            self.counters.stale += 1
        return answer

    def put(
        self,
        provider: str,
        words: tuple[str, ...],
        candidates: Sequence[Candidate],
        max_age_seconds: float | None = None,
    ) -> None:
        """Cache an answer; the least recently used ones are removed if necessary.

        Args:
            provider: its name.
            words: of the query.
            candidates: the answer.
            max_age_seconds: what the provider's terms allow; 0: nothing is kept; None: no limit.
        """
        num_bytes = _ENTRY_BYTES + sum(map(sys.getsizeof, words)) + sum(map(bytes_of, candidates))
        if num_bytes > self._answers.maxsize or max_age_seconds == 0:
            # An older answer must not stay in the place of this one.
            self._answers.pop((provider, words), None)
            return
        limit = math.inf if max_age_seconds is None else max_age_seconds
        self._answers[provider, words] = CachedAnswer(tuple(candidates), self._clock(), num_bytes, limit)

    def age_seconds(self, answer: CachedAnswer) -> float:
        """Return the age of an answer."""
        return max(0.0, self._clock() - answer.found_at)


def bytes_of(candidate: Candidate) -> int:
    """Return the memory of a candidate, as if it shared no object with others except empty texts, 0 and None."""
    fields = vars(candidate)
    own = [value for value in fields.values() if value is not None and not (isinstance(value, str | int) and not value)]
    num_bytes = 8 + sys.getsizeof(candidate) + sys.getsizeof(fields) + sum(map(sys.getsizeof, own))
    if candidate.embedding is not None and candidate.embedding.base is not None:
        # A view keeps its whole base array alive, which sys.getsizeof does not count.
        num_bytes += sys.getsizeof(candidate.embedding.base)
    return num_bytes
