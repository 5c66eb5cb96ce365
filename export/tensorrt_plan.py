# SPDX-License-Identifier: Apache-2.0
"""The shapes for which an engine is built, and the command lines of `trtexec`, as plain values.

`export.tensorrt_builder` builds engines; the same settings as arguments of `trtexec` are recorded beside each engine
and printed by --dry-run. File names in commands are relative to the working folder, since `trtexec` splits its lists at
commas and its pairs at the last colon, which a user's path may contain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from captioner.model_contract import ModelContract, ModelSpec, TensorSpec, with_beams
from export.triton_config import MAX_BATCH_SIZE

# The newest release whose notes name the T4's compute capability, 7.5. An engine runs only with the TensorRT version
# that built it, so the same image also serves: docker-compose.yml, deploy/Dockerfile.engines.
IMAGE = "nvcr.io/nvidia/tritonserver:26.10-py3"

# Shapes for which TensorRT chooses its kernels. A T4 is fully used from about eight photos on, so the encoder's choice
# for eight is right for 32 and little slower for one. A step of 8 photos x 4 beams has products of 32 rows: kernels for
# 32 rows read each weight once, as those for one row do, and reading the weights dominates a step. Kernels chosen for
# one row would read them again for every row of a full batch.
BEST_BATCH_SIZE = 8
BEST_BEAMS = 4

# MiB of scratch memory that a kernel may use. The largest intermediate of the large model (attention scores of 32
# photos, logits of 32 x 8 beams) has about 60 MB; the rest of a T4's 16 GB is for weights, caches and CUDA graphs.
WORKSPACE_MIB = 2048

TIMING_CACHE = "timing.cache"
OUTPUT_FILE = "output.json"


@dataclass(frozen=True)
class ShapeRange:
    """Shapes of one input, batch axis first: the smallest, the one for which kernels are chosen, the largest."""

    name: str
    least: tuple[int, ...]
    best: tuple[int, ...]
    most: tuple[int, ...]


def shape_ranges(spec: ModelSpec, contract: ModelContract) -> tuple[ShapeRange, ...]:
    """The shapes of every input; an engine refuses requests whose B or K is outside them."""
    best_beams = min(BEST_BEAMS, contract.max_beams)
    return tuple(
        ShapeRange(
            tensor.name,
            full_shape(tensor, 1, 1),
            full_shape(tensor, BEST_BATCH_SIZE, best_beams),
            full_shape(tensor, MAX_BATCH_SIZE, contract.max_beams),
        )
        for tensor in spec.inputs
    )


def full_shape(tensor: TensorSpec, batch_size: int, beams: int) -> tuple[int, ...]:
    """A tensor's shape with numbers for B and K, batch axis first."""
    return (batch_size, *with_beams(tensor, beams))


def provider_options(provider: str, spec: ModelSpec, contract: ModelContract) -> dict[str, str]:
    """The options of ONNX Runtime's execution provider in Triton; for TensorRT the shapes of its engines.

    Types come from the graph: TensorRT 11 has no "precision_mode". An engine is built when Triton loads the model; the
    shapes keep it from being built again for another batch.
    """
    if provider != "tensorrt":
        return {}
    ranges = shape_ranges(spec, contract)
    return {
        "trt_profile_min_shapes": _shapes({one.name: one.least for one in ranges}),
        "trt_profile_opt_shapes": _shapes({one.name: one.best for one in ranges}),
        "trt_profile_max_shapes": _shapes({one.name: one.most for one in ranges}),
        "max_workspace_size_bytes": str(WORKSPACE_MIB << 20),
        "trt_engine_cache_enable": "true",
        "trt_engine_cache_path": "/tmp",  # the only folder of the container that can be written to
    }


def build_arguments(spec: ModelSpec, contract: ModelContract) -> tuple[str, ...]:
    """The arguments of `trtexec` that build `<name>.plan` from `<name>.onnx` as `Builder.build` does."""
    ranges = shape_ranges(spec, contract)
    return (
        f"--onnx={onnx_file(spec.name)}",
        f"--saveEngine={plan_file(spec.name)}",
        # Types come from the ONNX file alone: needed for TensorRT 10, without effect on 11, which always does so.
        "--stronglyTyped",
        f"--minShapes={_shapes({one.name: one.least for one in ranges})}",
        f"--optShapes={_shapes({one.name: one.best for one in ranges})}",
        f"--maxShapes={_shapes({one.name: one.most for one in ranges})}",
        f"--memPoolSize=workspace:{WORKSPACE_MIB}",
        f"--timingCacheFile={TIMING_CACHE}",
        "--skipInference",
    )


def run_arguments(name: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """The arguments of `trtexec` that time `<name>.plan` on `<tensor>.bin` of each input and write all outputs."""
    files = ",".join(f"{tensor}:{input_file(tensor)}" for tensor in shapes)
    return (
        f"--loadEngine={plan_file(name)}",
        f"--shapes={_shapes(shapes)}",
        f"--loadInputs={files}",
        f"--exportOutput={OUTPUT_FILE}",
        "--iterations=20",
        "--warmUp=200",  # milliseconds
        "--duration=0",
    )


def onnx_file(name: str) -> str:
    """The name of a model's ONNX file in the working folder."""
    return f"{name}.onnx"


def plan_file(name: str) -> str:
    """The name of a model's engine in the working folder."""
    return f"{name}.plan"


def input_file(tensor: str) -> str:
    """The name of an input's file in the working folder."""
    return f"{tensor}.bin"


def _shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())
