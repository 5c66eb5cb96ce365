# SPDX-License-Identifier: Apache-2.0
"""Every request is counted once, and its stages stand where Triton's clients look for them."""

from __future__ import annotations

import pytest

from search_gateway.kserve.model_declarations import CAPTION
from search_gateway.kserve.model_statistics import ModelStatistics
from search_gateway.providers.guard.query_cache import CacheCounters

MS = 1_000_000

STAGES = {
    "preprocess": 2.0, "queue": 5.0, "encode": 7.0, "prefill": 11.0, "decode": 19.0, "query": 0.5, "search": 97.0,
    "thumbnails": 1.0, "refine": 2.0, "total": 200.0,
}  # fmt: skip


def test_fresh_statistics_are_nought() -> None:
    message = ModelStatistics(CAPTION).message({})
    assert (message.name, message.version) == ("caption", "1")
    assert message.last_inference == message.inference_count == message.execution_count == 0
    assert message.inference_stats.success.count == 0


def test_stages_stand_in_tritons_places() -> None:
    statistics = ModelStatistics(CAPTION)
    statistics.succeeded(1, total_ns=150 * MS, output_ns=3 * MS, stages_ms=STAGES)
    told = statistics.message({}).inference_stats
    assert told.success.ns == 150 * MS
    assert told.queue.ns == 5 * MS
    assert told.compute_input.ns == 2 * MS
    assert told.compute_infer.ns == (7 + 11 + 19 + 97 + 1) * MS
    assert told.compute_output.ns == pytest.approx((0.5 + 2 + 3) * MS)


def test_photos_and_requests_are_counted_apart() -> None:
    statistics = ModelStatistics(CAPTION, clock_ms=lambda: 1234)
    statistics.succeeded(3, total_ns=30 * MS, output_ns=0, stages_ms={"encode": 10.0})
    statistics.succeeded(1, total_ns=10 * MS, output_ns=0, stages_ms={"encode": 10.0})
    statistics.failed(total_ns=5 * MS)
    message = statistics.message({})
    assert message.inference_count == 4
    assert message.execution_count == 2
    assert message.last_inference == 1234
    told = message.inference_stats
    assert (told.success.count, told.success.ns) == (2, 40 * MS)
    assert (told.fail.count, told.fail.ns) == (1, 5 * MS)
    assert (told.compute_infer.count, told.compute_infer.ns) == (2, 20 * MS)
    assert told.queue.count == 2, "a stage that a request did not have took no time"


def test_cache_of_answers_stands_where_tritons_does() -> None:
    told = ModelStatistics(CAPTION).message({}, CacheCounters(hits=7, misses=5, stale=1, shared=2)).inference_stats
    assert (told.cache_hit.count, told.cache_miss.count) == (7, 5)
    none = ModelStatistics(CAPTION).message({}).inference_stats
    assert (none.cache_hit.count, none.cache_miss.count) == (0, 0)


def test_calls_of_the_step_model_are_the_batches() -> None:
    batches = ModelStatistics(CAPTION).message({4: (10, 90), 1: (7, 20)}).batch_stats
    assert [(one.batch_size, one.compute_infer.count, one.compute_infer.ns) for one in batches] == [
        (1, 7, 20),
        (4, 10, 90),
    ]
