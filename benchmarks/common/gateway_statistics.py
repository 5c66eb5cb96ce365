# SPDX-License-Identifier: Apache-2.0
"""How many captions went through a model together, as a KServe v2 server counts it (ModelStatistics)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

MODEL = "caption"
_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class BatchCount:
    """Executions with one batch size, and their seconds together."""

    executions: int
    seconds: float


BatchSizes = dict[int, BatchCount]


def batch_sizes(address: str, model: str = MODEL) -> BatchSizes | None:
    """Executions by batch size since the server started; None where it does not count them."""
    try:
        with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStatistics(
                service_pb2.ModelStatisticsRequest(name=model), timeout=_TIMEOUT_SECONDS
            )
    except grpc.RpcError:
        return None
    counts: BatchSizes = {}
    for statistics in answer.model_stats:
        for one in statistics.batch_stats:
            before = counts.get(one.batch_size, BatchCount(0, 0.0))
            counts[one.batch_size] = BatchCount(
                before.executions + one.compute_infer.count, before.seconds + one.compute_infer.ns / 1e9
            )
    return counts


def since(before: BatchSizes | None, after: BatchSizes | None) -> BatchSizes | None:
    """What happened between two readings; None where there is none."""
    if before is None or after is None:
        return None
    changes = {}
    for size, now in sorted(after.items()):
        then = before.get(size, BatchCount(0, 0.0))
        if now.executions > then.executions:
            changes[size] = BatchCount(now.executions - then.executions, now.seconds - then.seconds)
    return changes


def mean_batch(sizes: Mapping[int, BatchCount] | None) -> float | None:
    """Captions per execution; None where nothing was executed."""
    executions = sum(one.executions for one in (sizes or {}).values())
    if not executions:
        return None
    return sum(size * one.executions for size, one in (sizes or {}).items()) / executions
