# SPDX-License-Identifier: Apache-2.0
"""Batch sizes as a KServe v2 server counts them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from benchmarks.common.gateway_statistics import BatchCount, batch_sizes, mean_batch, since


class Statistics(service_pb2_grpc.GRPCInferenceServiceServicer):
    def ModelStatistics(self, request: Any, context: Any) -> Any:
        if request.name != "caption":
            context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
        answer = service_pb2.ModelStatisticsResponse()
        model = answer.model_stats.add(name="caption")
        for size, count, nanoseconds in ((1, 4, 2_000_000_000), (32, 2, 500_000_000)):
            one = model.batch_stats.add(batch_size=size)
            one.compute_infer.count, one.compute_infer.ns = count, nanoseconds
        return answer


@pytest.fixture
def address() -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Statistics(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def test_sizes_are_read(address: str) -> None:
    assert batch_sizes(address) == {1: BatchCount(4, 2.0), 32: BatchCount(2, 0.5)}


def test_server_that_does_not_count_has_none(address: str) -> None:
    assert batch_sizes(address, "other") is None
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    assert batch_sizes(f"127.0.0.1:{port}") is None  # no such service
    server.stop(None)


def test_difference_and_mean() -> None:
    before, after = {1: BatchCount(4, 2.0)}, {1: BatchCount(4, 2.0), 8: BatchCount(3, 1.0), 2: BatchCount(1, 0.1)}
    assert since(before, after) == {2: BatchCount(1, 0.1), 8: BatchCount(3, 1.0)}
    assert mean_batch(since(before, after)) == pytest.approx(26 / 4)
    assert since(None, after) is None
    assert mean_batch(None) is None
    assert mean_batch({}) is None
