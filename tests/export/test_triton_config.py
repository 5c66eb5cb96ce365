# SPDX-License-Identifier: Apache-2.0
"""Triton's own parser reads both configurations, and finds in them what the contract says."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from captioner.model_contract import STEP, ModelSpec, TensorSpec, with_beams
from export.tensorrt_plan import build_arguments, provider_options
from export.triton_config import (
    GPU_PROVIDERS,
    GRAPH_BATCH_SIZES,
    MAX_BATCH_SIZE,
    PLAN_FILE,
    WARMUP_BEAMS,
    embedded_config,
    onnx_config,
    tensorrt_config,
)
from tests.fakes.tiny_onnx_models import tiny_contract

SPECS = pytest.mark.parametrize("spec", tiny_contract("fp16").models, ids=lambda spec: spec.name)
BOTH = pytest.mark.parametrize(
    "config_of",
    [onnx_config, tensorrt_config, *(functools.partial(onnx_config, provider=name) for name in GPU_PROVIDERS)],
    ids=["onnx", "tensorrt", *GPU_PROVIDERS],
)


def parsed(text: str) -> Any:
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def as_specs(tensors: Iterable[Any]) -> tuple[TensorSpec, ...]:
    names = model_config_pb2.DataType.Name
    return tuple(
        TensorSpec(tensor.name, names(tensor.data_type).removeprefix("TYPE_"), tuple(tensor.dims)) for tensor in tensors
    )


@BOTH
@SPECS
def test_tensors_are_the_contracts(spec: ModelSpec, config_of: Any) -> None:
    config = parsed(config_of(spec))
    assert config.name == spec.name
    assert as_specs(config.input) == spec.inputs
    assert as_specs(config.output) == spec.outputs
    assert config.max_batch_size == MAX_BATCH_SIZE


@BOTH
@SPECS
def test_requests_are_batched_without_delay(spec: ModelSpec, config_of: Any) -> None:
    config = parsed(config_of(spec))
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds == 0


@BOTH
@SPECS
def test_every_input_is_warmed_up_with_the_shapes_that_occur(spec: ModelSpec, config_of: Any) -> None:
    warmups = parsed(config_of(spec)).model_warmup
    assert [int(one.name) for one in warmups] == (list(WARMUP_BEAMS) if spec.name == STEP else [1])
    for warmup in warmups:
        assert (warmup.batch_size, warmup.count) == (1, 1)
        assert {
            name: (model_config_pb2.DataType.Name(value.data_type), tuple(value.dims), value.zero_data)
            for name, value in warmup.inputs.items()
        } == {
            tensor.name: (f"TYPE_{tensor.datatype}", with_beams(tensor, int(warmup.name)), True)
            for tensor in spec.inputs
        }


@SPECS
def test_onnx_model_runs_on_any_host_and_has_no_queue_policy(spec: ModelSpec) -> None:
    config = parsed(onnx_config(spec))
    assert config.backend == "onnxruntime"
    assert [group.kind for group in config.instance_group] == [model_config_pb2.ModelInstanceGroup.KIND_AUTO]
    assert not config.dynamic_batching.HasField("default_queue_policy")
    assert not config.HasField("optimization")


@SPECS
@pytest.mark.parametrize("provider", GPU_PROVIDERS)
def test_onnx_runtime_on_a_gpu_uses_one_provider_of_tritons_own_backend(spec: ModelSpec, provider: str) -> None:
    options = provider_options(provider, spec, tiny_contract("fp16"))
    config = parsed(onnx_config(spec, provider=provider, options=options))
    assert (config.backend, config.default_model_filename) == ("onnxruntime", "")
    assert [group.kind for group in config.instance_group] == [model_config_pb2.ModelInstanceGroup.KIND_GPU]
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (accelerator.name, dict(accelerator.parameters)) == (provider, options)
    assert not config.dynamic_batching.HasField("default_queue_policy")


@SPECS
def test_engines_of_onnx_runtime_have_the_shapes_of_ours(spec: ModelSpec) -> None:
    contract = tiny_contract("fp16")
    options = provider_options("tensorrt", spec, contract)
    flags = dict(argument.partition("=")[::2] for argument in build_arguments(spec, contract))
    for which in ("min", "opt", "max"):
        assert options[f"trt_profile_{which}_shapes"] == flags[f"--{which}Shapes"]


def test_embedded_host_may_leave_out_the_caches_and_nothing_else() -> None:
    contract = tiny_contract("fp32")
    text = embedded_config(contract.step, contract)
    assert text is not None
    config = parsed(text)
    optional = {tensor.name for tensor in config.input if tensor.optional}
    assert optional == {tensor.name for tensor in contract.caches}
    for tensor in config.input:
        tensor.optional = False
    assert config == parsed(onnx_config(contract.step, threads=1))


@pytest.mark.parametrize(("width", "threads"), [(256, "1"), (768, "0")])
def test_embedded_step_of_a_small_model_has_one_thread(width: int, threads: str) -> None:
    contract = dataclasses.replace(tiny_contract("int8"), hidden_size=width)
    text = embedded_config(contract.step, contract)
    assert text is not None
    assert parsed(text).parameters["intra_op_thread_count"].string_value == threads


def test_embedded_host_gives_the_encoders_output_to_prefill() -> None:
    contract = dataclasses.replace(tiny_contract("fp32"), hidden_size=512)
    text = embedded_config(contract.encoder, contract)
    assert text is not None
    config = parsed(text)
    assert config.parameters["then"].string_value == contract.prefill.name
    del config.parameters["then"]
    assert config == parsed(onnx_config(contract.encoder))
    assert embedded_config(contract.prefill, contract) is None


def test_embedded_encoder_of_a_small_model_goes_on_to_the_first_tokens() -> None:
    contract = tiny_contract("int8")
    text = embedded_config(contract.encoder, contract)
    assert text is not None
    config = parsed(text)
    assert config.instance_group[0].count == 2
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    assert parameters == {
        "intra_op_thread_count": "1",
        "then": "gpt2_prefill,gpt2_step",
        "intra_op_thread_count.gpt2_prefill": "1",
        "intra_op_thread_count.gpt2_step": "1",
        "alone_thread_count": "0",
    }
    more = [tensor.name for tensor in config.output][len(contract.encoder.outputs) :]
    assert more == ["candidate_logprobs", "candidate_tokens", "selected", "chain_seconds"]
    assert not config.model_warmup, "Triton's requests would ask for the outputs of the step without its inputs"


@SPECS
def test_engine_runs_on_the_gpu_and_nobody_waits_for_ever(spec: ModelSpec) -> None:
    config = parsed(tensorrt_config(spec))
    assert (config.backend, config.default_model_filename) == ("tensorrt", PLAN_FILE)
    (group,) = config.instance_group
    assert (group.kind, group.count) == (model_config_pb2.ModelInstanceGroup.KIND_GPU, 1)
    policy = config.dynamic_batching.default_queue_policy
    assert policy.timeout_action == model_config_pb2.ModelQueuePolicy.REJECT
    assert 0 < policy.default_timeout_microseconds <= 10_000_000
    assert policy.allow_timeout_override
    assert policy.max_queue_size >= 64, "the gateway alone has 64 requests in flight"


@SPECS
def test_cuda_graphs_of_the_step_name_the_shapes_of_all_inputs(spec: ModelSpec) -> None:
    config = parsed(tensorrt_config(spec))
    if spec.name != STEP:
        assert not config.optimization.cuda.graphs
        return
    cuda = config.optimization.cuda
    assert cuda.graphs
    found = set()
    for graph in cuda.graph_spec:
        assert not graph.HasField("graph_lower_bound"), "padding would be whatever the buffers hold"
        beams = graph.input["tokens"].dim[0]
        assert {name: tuple(shape.dim) for name, shape in graph.input.items()} == {
            tensor.name: with_beams(tensor, beams) for tensor in spec.inputs
        }
        found.add((graph.batch_size, beams))
    assert found == {(batch_size, beams) for batch_size in GRAPH_BATCH_SIZES for beams in WARMUP_BEAMS}
    assert len(cuda.graph_spec) == len(found)
    assert max(GRAPH_BATCH_SIZES) <= MAX_BATCH_SIZE
