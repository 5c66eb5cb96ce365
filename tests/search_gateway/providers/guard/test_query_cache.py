# SPDX-License-Identifier: Apache-2.0
"""What is remembered, for how long, and that it costs no more memory than it says."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_gateway.providers.base import Candidate
from search_gateway.providers.guard import query_cache
from search_gateway.providers.guard.query_cache import CacheCounters, QueryCache, bytes_of

WORDS = ("blue", "shirt")


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def candidate(number: int = 0, thumbnail_bytes: int = 0, embedding: np.ndarray | None = None) -> Candidate:
    return Candidate(
        title=f"Blue Shirt {number}",
        url=f"https://shop.example/{number}",
        thumbnail_url=f"https://tse1.mm.bing.net/{number}",
        source="Bing",
        embedding=embedding,
        thumbnail=bytes(bytearray(thumbnail_bytes)) if thumbnail_bytes else None,
    )


def cache_of(max_bytes: int = 10**6, clock: Clock | None = None) -> QueryCache:
    return QueryCache(max_bytes, ttl_seconds=60, stale_seconds=600, clock=clock or Clock())


def test_answer_is_fresh_then_stale_then_gone() -> None:
    clock = Clock()
    cache = cache_of(clock=clock)
    assert cache.fresh("web", WORDS) is None
    assert cache.stale("web", WORDS) is None
    cache.put("web", WORDS, [candidate()])
    clock.now += 59
    fresh = cache.fresh("web", WORDS)
    assert fresh is not None
    assert fresh.candidates == (candidate(),)
    clock.now += 1
    assert cache.fresh("web", WORDS) is None
    stale = cache.stale("web", WORDS)
    assert stale is not None
    assert cache.age_seconds(stale) == 60
    clock.now += 600
    assert cache.stale("web", WORDS) is None
    assert cache.counters == CacheCounters(hits=1, misses=2, stale=1)


def test_providers_and_words_do_not_mix() -> None:
    cache = cache_of()
    cache.put("web", WORDS, [candidate(1)])
    cache.put("other", WORDS, [candidate(2)])
    cache.put("web", ("shirt", "blue"), [candidate(3)])
    found = [cache.fresh("web", WORDS), cache.fresh("other", WORDS), cache.fresh("web", ("shirt", "blue"))]
    assert [one and one.candidates[0].url[-1] for one in found] == ["1", "2", "3"]
    assert cache.fresh("web", ("blue shirt",)) is None


def test_what_the_caller_does_with_its_list_changes_nothing() -> None:
    cache = cache_of()
    candidates = [candidate()]
    cache.put("web", WORDS, candidates)
    candidates.clear()
    answer = cache.fresh("web", WORDS)
    assert answer is not None
    assert len(answer.candidates) == 1


def test_least_recently_used_answers_make_room() -> None:
    cache = cache_of(max_bytes=100_000)
    for number in range(4):
        cache.put("web", (str(number),), [candidate(number, thumbnail_bytes=20_000)])
    assert cache.fresh("web", ("0",)) is not None
    cache.put("web", ("4",), [candidate(4, thumbnail_bytes=20_000)])
    kept = [number for number in range(5) if cache.fresh("web", (str(number),)) is not None]
    assert kept == [0, 2, 3, 4]
    assert cache.num_bytes <= 100_000


def test_answer_that_does_not_fit_is_not_kept_and_leaves_no_older_one() -> None:
    cache = cache_of(max_bytes=10_000)
    cache.put("web", WORDS, [candidate(1)])
    cache.put("web", WORDS, [candidate(2, thumbnail_bytes=10_000)])
    assert cache.stale("web", WORDS) is None
    assert cache.num_bytes == 0


def test_cache_of_no_bytes_keeps_nothing() -> None:
    cache = cache_of(max_bytes=0)
    cache.put("web", WORDS, [candidate()])
    assert cache.fresh("web", WORDS) is None


@given(sizes=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 40_000)), max_size=40))
def test_bytes_stay_within_the_limit(sizes: list[tuple[int, int]]) -> None:
    cache = cache_of(max_bytes=100_000)
    for key, thumbnail_bytes in sizes:
        cache.put("web", (str(key),), [candidate(key, thumbnail_bytes)])
        assert 0 < cache.num_bytes <= 100_000
        answer = cache.stale("web", (str(key),))
        assert answer is not None
        assert answer.candidates == (candidate(key, thumbnail_bytes),)


def test_pictures_and_embeddings_are_counted() -> None:
    bare = bytes_of(candidate())
    assert bytes_of(candidate(thumbnail_bytes=50_000)) >= bare + 50_000
    assert bytes_of(candidate(embedding=np.zeros(256, np.float32))) >= bare + 1024
    view = np.zeros((1000, 256), np.float32)[0]
    assert bytes_of(candidate(embedding=view)) >= bare + 1000 * 1024, "a view keeps all that it looks into"


@pytest.mark.parametrize("thumbnail_bytes", [0, 3000])
def test_count_is_what_python_really_takes(thumbnail_bytes: int) -> None:
    gc.collect()
    tracemalloc.start()
    try:
        cache = cache_of(max_bytes=10**9)
        for query in range(200):
            cache.put("web", (f"word {query}",), [candidate(100 * query + i, thumbnail_bytes) for i in range(20)])
        gc.collect()
        # Not what other threads take meanwhile: a dataclass's methods are of the file "<string>".
        files = [tracemalloc.Filter(True, name) for name in (__file__, query_cache.__file__, "<string>")]
        taken = sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces(files).traces)
    finally:
        tracemalloc.stop()
    assert 0.95 * taken <= cache.num_bytes <= 1.5 * taken


@pytest.mark.parametrize(
    ("max_age_seconds", "is_fresh", "is_stale"),
    [(0, False, False), (30, False, False), (None, True, True), (100, True, True)],
)
def test_terms_bound_the_age(max_age_seconds: float | None, is_fresh: bool, is_stale: bool) -> None:
    clock = Clock()
    cache = cache_of(clock=clock)
    cache.put("web", WORDS, [candidate()], max_age_seconds)
    clock.now += 31
    assert (cache.fresh("web", WORDS) is not None) == is_fresh
    clock.now += 40
    assert cache.fresh("web", WORDS) is None
    assert (cache.stale("web", WORDS) is not None) == is_stale
    clock.now += 30
    assert (cache.stale("web", WORDS) is not None) == (max_age_seconds is None)


def test_answer_beyond_the_terms_takes_no_memory() -> None:
    clock = Clock()
    cache = cache_of(clock=clock)
    cache.put("web", WORDS, [candidate()], 30)
    clock.now += 31
    cache.put("web", ("other",), [candidate()])
    one = cache_of()
    one.put("web", ("other",), [candidate()])
    assert cache.num_bytes == one.num_bytes


def test_answer_that_may_not_be_kept_removes_the_one_before() -> None:
    cache = cache_of()
    cache.put("web", WORDS, [candidate()])
    cache.put("web", WORDS, [candidate(1)], 0)
    assert cache.stale("web", WORDS) is None
    assert cache.num_bytes == 0
