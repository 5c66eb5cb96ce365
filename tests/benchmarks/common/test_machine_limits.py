# SPDX-License-Identifier: Apache-2.0
"""What the machine can do: measured in small, and the better of two measurements."""

from __future__ import annotations

import pytest

from benchmarks.common.machine_limits import MachineLimits, least_seconds, limits_text, measure_limits


@pytest.mark.torch
def test_small_measurement_has_every_figure() -> None:
    pytest.importorskip("torch", reason="needs the export extra (torch)")
    limits = measure_limits(((64, 64, 64), (32, 128, 64)), 2**20, 0.005)
    assert limits.gemm.keys() >= {"fp32"}
    assert all(rate > 0 for ways in limits.gemm.values() for rate in ways.values())
    assert limits.bandwidth.keys() == {"read", "copy"}
    assert limits.read_bandwidth > 1e8


def test_better_of_two() -> None:
    one = MachineLimits(gemm={"fp32": {"PyTorch": 1e11, "ONNX Runtime": 3e11}}, bandwidth={"read": 2e10, "copy": 1e10})
    two = MachineLimits(gemm={"fp32": {"PyTorch": 2e11}, "int8": {"ONNX Runtime": 4e11}}, bandwidth={"read": 3e10})
    best = one.or_better(two)
    assert best.peak("fp32") == 3e11
    assert best.peak("fp16") is None
    assert best.read_bandwidth == 3e10
    assert limits_text(best) == (
        "FP32 200 GFLOP/s (PyTorch), FP32 300 GFLOP/s (ONNX Runtime), INT8 400 GOP/s (ONNX Runtime), "
        "read 30.0 GB/s, copy 10.0 GB/s"
    )


def test_at_least_three_calls_are_timed_after_one_that_is_not() -> None:
    calls: list[int] = []
    least_seconds(lambda: calls.append(1), 0.0)
    assert len(calls) == 4
