# SPDX-License-Identifier: Apache-2.0
"""The limits of this machine: matrix products per second by precision, and memory bandwidth.

The products are those of the captioner's libraries (ONNX Runtime and PyTorch) on all cores, on the encoder's shapes
and on large square ones. The shortest time counts, because longer ones include other work of the machine. PyTorch
must be installed; if it finds a CUDA GPU, the GPU is measured.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# M, K, N of [M, K] x [K, N]: projections of 8 photos and of one in ViT-B/16 (MLP and attention), and two squares.
SHAPES = ((1576, 768, 3072), (1576, 3072, 768), (197, 768, 3072), (1024, 1024, 1024), (2048, 2048, 2048))
READ_BYTES = 2**29  # far more than any cache
SECONDS = 0.6  # for each shape and library

Limits = dict[str, dict[str, float]]
Shape = tuple[int, int, int]
MakeProduct = Callable[[Shape, str, str], Callable[[], object]]  # of shape, precision and device


@dataclass(frozen=True, kw_only=True)
class MachineLimits:
    """The best figures that were measured."""

    gemm: Limits  # precision ("fp32", "fp16", "int8") -> library ("ONNX Runtime", "PyTorch") -> operations per second
    bandwidth: dict[str, float]  # pattern ("read", "copy") -> bytes per second; a copied byte counts twice

    def peak(self, precision: str) -> float | None:
        """Return the operations per second of the fastest library; None if the precision was not measured."""
        return max(self.gemm.get(precision, {}).values(), default=None)

    @property
    def read_bandwidth(self) -> float:
        """Bytes per second of the fastest pattern."""
        return max(self.bandwidth.values())

    def or_better(self, other: MachineLimits) -> MachineLimits:
        """Return the better figures of two measurements."""
        return MachineLimits(
            gemm={
                name: _better(self.gemm.get(name, {}), other.gemm.get(name, {}))
                for name in dict.fromkeys([*self.gemm, *other.gemm])
            },
            bandwidth=_better(self.bandwidth, other.bandwidth),
        )


def _better(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {name: max(one.get(name, 0.0), other.get(name, 0.0)) for name in dict.fromkeys([*one, *other])}


def measure_limits(
    shapes: tuple[Shape, ...] = SHAPES, read_bytes: int = READ_BYTES, seconds: float = SECONDS
) -> MachineLimits:
    """Measure everything; takes 10 to 30 seconds."""
    import torch

    ways: list[tuple[str, str, MakeProduct]]  # precision, library
    if torch.cuda.is_available():
        device = "cuda"
        ways = [(precision, "PyTorch", _torch_product) for precision in ("fp32", "fp16")]
        shapes = (*shapes, (8192, 8192, 8192))
    else:
        device = "cpu"
        # Idle threads of one library keep spinning for a while, so each library does all its products at once.
        ways = [(precision, "ONNX Runtime", _onnx_product) for precision in ("fp32", "int8")]
        ways.append(("fp32", "PyTorch", _torch_product))
    gemm: Limits = {}
    for precision, library, product in ways:
        best = max(_rate(shape, product(shape, precision, device), seconds) for shape in shapes)
        gemm.setdefault(precision, {})[library] = best
    return MachineLimits(gemm=gemm, bandwidth=_bandwidth(device, read_bytes, seconds))


def _rate(shape: Shape, product: Callable[[], object], seconds: float) -> float:
    rows, inner, columns = shape
    return 2 * rows * inner * columns / least_seconds(product, seconds)


def least_seconds(call: Callable[[], object], seconds: float) -> float:
    """Return the shortest time of a call.

    Args:
        call: what is timed, after one call that is not.
        seconds: how long calls are repeated; there are at least three.
    """
    call()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def _onnx_product(shape: Shape, precision: str, _device: str) -> Callable[[], object]:
    """Make ONNX Runtime's matrix product with constant weights, as in a model: FP32, or U8 x S8 with FP32 results."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rows, inner, columns = shape
    rng = np.random.default_rng(0)
    if precision == "fp32":
        weights: dict[str, npt.NDArray[Any]] = {"weights": rng.standard_normal((inner, columns), dtype=np.float32)}
        node = helper.make_node("MatMul", ["input", "weights"], ["output"])
        values: npt.NDArray[Any] = rng.standard_normal((rows, inner), dtype=np.float32)
        kind = TensorProto.FLOAT
    else:
        weights = {
            "weights": rng.integers(-127, 128, (inner, columns), dtype=np.int8),
            "input_scale": np.array(0.02, np.float32),
            "weight_scale": np.full(columns, 0.01, np.float32),
            "input_zero": np.array(128, np.uint8),
            "weight_zero": np.zeros(columns, np.int8),
        }
        node = helper.make_node("MatMulIntegerToFloat", ["input", *weights], ["output"], domain="com.microsoft")
        values, kind = rng.integers(0, 256, (rows, inner), dtype=np.uint8), TensorProto.UINT8
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("input", kind, [rows, inner])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [rows, columns])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"input": values})


def _torch_product(shape: Shape, precision: str, device: str) -> Callable[[], object]:
    import torch

    rows, inner, columns = shape
    dtype = torch.float16 if precision == "fp16" else torch.float32
    left = torch.randn(rows, inner, device=device).to(dtype)
    right = torch.randn(inner, columns, device=device).to(dtype)
    output = torch.empty(rows, columns, device=device, dtype=dtype)

    def product() -> None:
        torch.mm(left, right, out=output)
        _wait(device)

    return product


def _bandwidth(device: str, read_bytes: int, seconds: float) -> dict[str, float]:
    import torch

    columns = 1024
    matrix = torch.ones(read_bytes // 4 // columns, columns, device=device)
    vector, target = torch.ones(columns, device=device), torch.empty_like(matrix)

    def timed(call: Callable[[], Any]) -> float:
        def call_and_wait() -> None:
            call()
            _wait(device)

        return least_seconds(call_and_wait, seconds)

    # A product with a vector and a sum do little more than read the matrix, as a decoding step does with its weights.
    return {
        "read": matrix.nbytes / min(timed(lambda: torch.mv(matrix, vector)), timed(matrix.sum)),
        "copy": 2 * matrix.nbytes / timed(lambda: target.copy_(matrix)),
    }


def _wait(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def limits_text(limits: MachineLimits) -> str:
    """Format all figures in one line."""
    products = [
        f"{precision.upper()} {rate / 1e9:.0f} {'GOP/s' if precision == 'int8' else 'GFLOP/s'} ({way})"
        for precision, ways in limits.gemm.items()
        for way, rate in ways.items()
    ]
    memory = [f"{pattern} {rate / 1e9:.1f} GB/s" for pattern, rate in limits.bandwidth.items()]
    return ", ".join(itertools.chain(products, memory))
