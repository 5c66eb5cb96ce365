# SPDX-License-Identifier: Apache-2.0
"""Triton's configuration of one model as text, for its ONNX file and for its TensorRT engine.

Names, types and shapes come from the model contract. `tritonserver --model-config-name=NAME` selects
`configs/NAME.pbtxt`: `tensorrt` is the engine's; `onnxruntime_cuda` and `onnxruntime_tensorrt` run the ONNX file with
these execution providers of Triton's own onnxruntime backend.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping

from captioner.model_contract import (
    CHAIN_SECONDS,
    ENCODER,
    PREFILL,
    STEP,
    ModelContract,
    ModelSpec,
    TensorSpec,
    with_beams,
)

MAX_BATCH_SIZE = 32  # photos of one Triton batch

TENSORRT_CONFIG = "configs/tensorrt.pbtxt"  # within a model's folder
EMBEDDED_CONFIG = "configs/embedded.pbtxt"
# Execution providers of ONNX Runtime on a GPU, as Triton calls them.
GPU_PROVIDERS = ("cuda", "tensorrt")
PLAN_FILE = "model.plan"

# Beams for which a step is warmed up and its CUDA graph is captured: greedy, and the most usual number of beams.
WARMUP_BEAMS = (1, 4)

# Batches whose step runs as one CUDA graph: small ones, for which launching some hundred kernels takes longer than
# running them, and two large ones. Other batches run without a graph.
GRAPH_BATCH_SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 16, MAX_BATCH_SIZE)

# Below this width a token's products are so small that waking a second thread takes longer than it saves.
_MIN_WIDTH_OF_THREADS = 512

# A request that waits this long fails, since its caller's deadline is near or over.
QUEUE_TIMEOUT_MICROSECONDS = 2_000_000
# More than a gateway with its defaults sends at a time; the limit is for other clients of the same Triton.
MAX_QUEUE_SIZE = 512


def embedded_config(spec: ModelSpec, contract: ModelContract) -> str | None:
    """A model's configuration for the embedded Triton, where it differs from `onnx_config`.

    The gateway's backend reads the step's caches from the gateway's memory, and runs encoder and prefill in one call.
    With a small model, such a call makes the caption's first tokens, too, and there is one instance of this chain for
    each of the gateway's two concurrent calls.
    """
    is_small = contract.hidden_size < _MIN_WIDTH_OF_THREADS
    if spec.name == STEP:
        return onnx_config(spec, optional={tensor.name for tensor in contract.caches}, threads=int(is_small))
    if spec.name == ENCODER and not (is_small and contract.ends_early):
        return onnx_config(spec) + _parameter("then", PREFILL)
    if spec.name == ENCODER:
        *first, _ = contract.step.outputs
        seconds = TensorSpec(CHAIN_SECONDS, "FP32", (3,))
        chain = dataclasses.replace(spec, outputs=(*spec.outputs, *first, seconds))
        parameters = {
            "then": f"{PREFILL},{STEP}",
            f"intra_op_thread_count.{PREFILL}": "1",
            f"intra_op_thread_count.{STEP}": "1",
            "alone_thread_count": "0",
        }
        return onnx_config(chain, threads=1, instances=2, has_warmup=False) + "".join(
            _parameter(key, value) for key, value in parameters.items()
        )
    return None


def _parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'


def onnx_gpu_config_file(provider: str) -> str:
    """The path of `onnx_config` for a provider, within a model's folder."""
    return f"configs/onnxruntime_{provider}.pbtxt"


def onnx_config(
    spec: ModelSpec,
    *,
    optional: Collection[str] = (),
    provider: str = "",
    options: Mapping[str, str] | None = None,
    threads: int = 0,
    instances: int = 1,
    has_warmup: bool = True,
) -> str:
    """The configuration of `1/model.onnx`.

    Args:
        spec: of the model.
        optional: inputs that a request may leave out, which only the gateway's own backend supports.
        provider: one of GPU_PROVIDERS; "": CUDA where there is a GPU, else the CPU.
        options: of the provider.
        threads: of a call on the CPU; 0: as many as cores.
        instances: that can compute calls at a time, each with weights of its own.
        has_warmup: whether Triton sends requests before the model is ready; they ask for all outputs.
    """
    if provider:
        placement = [
            "instance_group [ { count: 1 kind: KIND_GPU } ]",
            f'optimization {{ execution_accelerators {{ gpu_execution_accelerator: [ {{ name: "{provider}"',
            *(f'  parameters {{ key: "{key}" value: "{value}" }}' for key, value in (options or {}).items()),
            "} ] } }",
        ]
    else:
        placement = [
            "# On the GPU where there is one, else on the CPU.",
            f"instance_group [ {{ count: {instances} kind: KIND_AUTO }} ]",
            "# 0: as many threads as cores.",
            f'parameters {{ key: "intra_op_thread_count" value {{ string_value: "{threads}" }} }}',
        ]
    lines = [
        "# Written by export/triton_config.py from the model contract.",
        f'name: "{spec.name}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {MAX_BATCH_SIZE}",
        *_tensor_lines(spec, optional),
        "# No queue delay: a lone caller never waits for a batch; requests that wait anyway are batched.",
        "# No queue policy: with max_queue_size Triton 2.51 now and then lets a request lie for 500 ms.",
        "dynamic_batching { max_queue_delay_microseconds: 0 }",
        *placement,
        *(_warmup_lines(spec) if has_warmup else ()),
    ]
    return "\n".join(lines) + "\n"


def tensorrt_config(spec: ModelSpec) -> str:
    """The configuration of `1/model.plan`; it needs Triton 26.08 or newer because of the queue timeout."""
    lines = [
        "# Written by export/triton_config.py from the model contract.",
        f'name: "{spec.name}"',
        'backend: "tensorrt"',
        f'default_model_filename: "{PLAN_FILE}"',
        f"max_batch_size: {MAX_BATCH_SIZE}",
        *_tensor_lines(spec),
        "# No queue delay: a lone caller never waits for a batch; requests that wait anyway are batched.",
        "# A timeout only from Triton 26.08 on: before, each one that struck made the batcher slower for good (#8870).",
        "dynamic_batching {",
        "  max_queue_delay_microseconds: 0",
        "  default_queue_policy {",
        "    timeout_action: REJECT",
        f"    default_timeout_microseconds: {QUEUE_TIMEOUT_MICROSECONDS}",
        "    allow_timeout_override: true",
        f"    max_queue_size: {MAX_QUEUE_SIZE}",
        "  }",
        "}",
        "# One instance: a second would halve the batches and read all weights twice.",
        "instance_group [ { count: 1 kind: KIND_GPU } ]",
        *_graph_lines(spec),
        *_warmup_lines(spec),
    ]
    return "\n".join(lines) + "\n"


def request_sizes(spec: ModelSpec) -> list[tuple[int, int]]:
    """Photos and beams of the requests that Triton's configuration prepares for, and those of the largest batch."""
    beams = WARMUP_BEAMS if spec.name == STEP else (1,)
    return [(batch_size, count) for count in beams for batch_size in GRAPH_BATCH_SIZES]


def _tensor_lines(spec: ModelSpec, optional: Collection[str] = ()) -> Iterator[str]:
    for kind, tensors in (("input", spec.inputs), ("output", spec.outputs)):
        for tensor in tensors:
            more = " optional: true" if tensor.name in optional else ""
            yield (
                f'{kind} {{ name: "{tensor.name}" data_type: TYPE_{tensor.datatype} '
                f"dims: [ {_dims(tensor.shape)} ]{more} }}"
            )


def _graph_lines(spec: ModelSpec) -> Iterator[str]:
    """CUDA graphs of the step; encoder and prefill have few large kernels, whose launches take little time."""
    if spec.name != STEP:
        return
    yield "# A graph runs only for exactly its shapes, and each needs the shapes of all inputs."
    yield "# No graph_lower_bound: it would pad batches with whatever the buffers hold, and token ids index a table."
    yield "# No busy_wait_events: it keeps a core busy to save some microseconds a step; measure before you add it."
    yield "optimization {"
    yield "  cuda {"
    yield "    graphs: true"
    for beams in WARMUP_BEAMS:
        for batch_size in GRAPH_BATCH_SIZES:
            yield f"    graph_spec {{ batch_size: {batch_size}"
            for tensor in spec.inputs:
                yield f'      input {{ key: "{tensor.name}" value {{ dim: [ {_dims(with_beams(tensor, beams))} ] }} }}'
            yield "    }"
    yield "  }"
    yield "}"


def _warmup_lines(spec: ModelSpec) -> Iterator[str]:
    """Shapes that run once before the model is ready; only the step has several K."""
    for beams in WARMUP_BEAMS if spec.name == STEP else (1,):
        yield f'model_warmup {{ name: "{beams}" batch_size: 1 count: 1'
        for tensor in spec.inputs:
            dims = _dims(with_beams(tensor, beams))
            value = f"data_type: TYPE_{tensor.datatype} dims: [ {dims} ] zero_data: true"
            yield f'  inputs {{ key: "{tensor.name}" value {{ {value} }} }}'
        yield "}"


def _dims(shape: Iterable[int]) -> str:
    return ", ".join(map(str, shape))
