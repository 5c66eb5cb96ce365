# SPDX-License-Identifier: Apache-2.0
"""How many captions a model computed at once, from the statistics of a KServe v2 server (ModelStatistics)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

MODEL = "caption"
_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class BatchCount:
    """The number of executions with one batch size, and the sum of their times in seconds."""

    executions: int = 0
    seconds: float = 0.0

    def __add__(self, other: BatchCount) -> BatchCount:
        return BatchCount(self.executions + other.executions, self.seconds + other.seconds)

    def __sub__(self, other: BatchCount) -> BatchCount:
        return BatchCount(self.executions - other.executions, self.seconds - other.seconds)


BatchSizes = dict[int, BatchCount]  # by batch size


def batch_sizes(address: str, model: str = MODEL) -> BatchSizes | None:
    """Ask a server for its executions by batch size since it started.

    Returns:
        None where the server does not count them.
    """
    try:
        with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStatistics(
                service_pb2.ModelStatisticsRequest(name=model), timeout=_TIMEOUT_SECONDS
            )
    except grpc.RpcError:
        return None
    return total(
        {one.batch_size: BatchCount(one.compute_infer.count, one.compute_infer.ns / 1e9)}
        for statistics in answer.model_stats
        for one in statistics.batch_stats
    )


def total(counts: Iterable[Mapping[int, BatchCount]]) -> BatchSizes:
    """Add up counts by batch size."""
    sums: BatchSizes = {}
    for one in counts:
        for size, count in one.items():
            sums[size] = sums.get(size, BatchCount()) + count
    return sums


def since(before: BatchSizes | None, after: BatchSizes | None) -> BatchSizes | None:
    """Return what was executed between two readings; None where a reading is missing."""
    if before is None or after is None:
        return None
    changes = {size: now - before.get(size, BatchCount()) for size, now in sorted(after.items())}
    return {size: change for size, change in changes.items() if change.executions > 0}


def mean_batch(sizes: Mapping[int, BatchCount] | None) -> float | None:
    """Return the captions per execution; None where nothing was executed."""
    executions = sum(one.executions for one in (sizes or {}).values())
    if not executions:
        return None
    return sum(size * one.executions for size, one in (sizes or {}).items()) / executions
