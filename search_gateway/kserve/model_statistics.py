# SPDX-License-Identifier: Apache-2.0
"""What ModelStatistics reports of one model: the number of requests and the time of their stages.

Our stages correspond to Triton's:

    queue           queue: waiting for a slot of the step model
    compute_input   preprocess: image file -> pixels
    compute_infer   encode, prefill, decode, search, thumbnails
    compute_output  query, refine, and building the response

The photos of a request are processed concurrently, so the stages of the slowest photo stand for the request. As in
Triton, requests that were cancelled or exceeded their deadline count as failed. An "execution" is a request.

The cache of `search` is that of answers from the web, for all requests of the gateway; its times are not measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from search_gateway.kserve.model_declarations import VERSION, ModelDeclaration
from search_gateway.kserve.protocol import service_pb2
from search_gateway.providers.guard.query_cache import CacheCounters

# Captions in a call of the step model -> (number of such calls, their nanoseconds in all).
StepBatches = Mapping[int, tuple[int, int]]

STAGES = {
    "queue": ("queue",),
    "compute_input": ("preprocess",),
    "compute_infer": ("encode", "prefill", "decode", "search", "thumbnails"),
    "compute_output": ("query", "refine"),
}


@dataclass
class _Total:
    count: int = 0
    nanoseconds: int = 0

    def add(self, nanoseconds: int) -> None:
        self.count += 1
        self.nanoseconds += nanoseconds

    def message(self) -> service_pb2.StatisticDuration:
        return service_pb2.StatisticDuration(count=self.count, ns=self.nanoseconds)


class ModelStatistics:
    """Counts the requests of one model.

    Args:
        model: the model.
        clock_ms: returns milliseconds since 1970.
    """

    def __init__(self, model: ModelDeclaration, clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000):
        self._model = model
        self._clock_ms = clock_ms
        self._last_ms = 0
        self._num_photos = 0
        self._success = _Total()
        self._fail = _Total()
        self._parts = {part: _Total() for part in STAGES}

    def succeeded(self, num_photos: int, *, total_ns: int, output_ns: int, stages_ms: Mapping[str, float]) -> None:
        """Count a request that was answered.

        Args:
            num_photos: its photos.
            total_ns: its duration.
            output_ns: duration of building the response, which is part of no stage.
            stages_ms: duration of the pipeline's stages, by name.
        """
        self._last_ms = self._clock_ms()
        self._num_photos += num_photos
        self._success.add(total_ns)
        for part, stages in STAGES.items():
            nanoseconds = int(1e6 * sum(stages_ms.get(stage, 0.0) for stage in stages))
            self._parts[part].add(nanoseconds + (output_ns if part == "compute_output" else 0))

    def failed(self, *, total_ns: int) -> None:
        """Count a request that was not answered."""
        self._last_ms = self._clock_ms()
        self._fail.add(total_ns)

    def message(self, step_batches: StepBatches, cache: CacheCounters | None = None) -> service_pb2.ModelStatistics:
        """Return the statistics since the start; `step_batches` is empty for a model without them."""
        cache = cache or CacheCounters()
        return service_pb2.ModelStatistics(
            name=self._model.name,
            version=VERSION,
            last_inference=self._last_ms,
            inference_count=self._num_photos,
            execution_count=self._success.count,
            inference_stats=service_pb2.InferStatistics(
                success=self._success.message(),
                fail=self._fail.message(),
                **{part: total.message() for part, total in self._parts.items()},
                cache_hit=service_pb2.StatisticDuration(count=cache.hits),
                cache_miss=service_pb2.StatisticDuration(count=cache.misses),
            ),
            batch_stats=[
                service_pb2.InferBatchStatistics(
                    batch_size=size, compute_infer=service_pb2.StatisticDuration(count=count, ns=nanoseconds)
                )
                for size, (count, nanoseconds) in sorted(step_batches.items())
            ],
        )
