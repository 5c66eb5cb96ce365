# SPDX-License-Identifier: Apache-2.0
"""What is in `model_repository/`: the files in git honour the contract, and nothing in them is special to one host."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnx
import pytest
import tritonclient.grpc as triton
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from captioner.caption_tokenizer import CaptionTokenizer
from captioner.model_contract import ModelContract, TensorSpec
from tests.conftest import MODELS
from tests.fakes.onnx_parts import constants_of, nodes

_DATATYPES = {
    onnx.TensorProto.UINT8: "UINT8",
    onnx.TensorProto.INT32: "INT32",
    onnx.TensorProto.FLOAT: "FP32",
    onnx.TensorProto.FLOAT16: "FP16",
}

CONTRACT = ModelContract.load(MODELS)
SPECS = pytest.mark.parametrize("spec", CONTRACT.models, ids=lambda spec: spec.name)


def config_of(name: str) -> Any:
    return text_format.Parse(
        (MODELS / name / "config.pbtxt").read_text(encoding="utf-8"), model_config_pb2.ModelConfig()
    )


def as_specs(tensors: Iterable[Any]) -> list[TensorSpec]:
    names = model_config_pb2.DataType.Name
    return [
        TensorSpec(tensor.name, names(tensor.data_type).removeprefix("TYPE_"), tuple(tensor.dims)) for tensor in tensors
    ]


@SPECS
def test_config_honours_the_contract(spec: Any) -> None:
    config = config_of(spec.name)
    assert config.name == spec.name
    assert as_specs(config.input) == list(spec.inputs)
    assert as_specs(config.output) == list(spec.outputs)


@SPECS
def test_config_batches_without_delay_and_warms_up(spec: Any) -> None:
    config = config_of(spec.name)
    assert config.backend == "onnxruntime"
    assert config.max_batch_size > 1
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    assert not config.dynamic_batching.HasField("default_queue_policy"), (
        "it costs some requests 500 ms: docs/architecture.md"
    )
    assert config.model_warmup
    for warmup in config.model_warmup:
        assert set(warmup.inputs) == {tensor.name for tensor in spec.inputs}


@SPECS
def test_config_is_not_special_to_one_host(spec: Any) -> None:
    config = config_of(spec.name)
    assert [group.kind for group in config.instance_group] == [model_config_pb2.ModelInstanceGroup.KIND_AUTO]
    # The one parameter is also the native backend's.
    assert set(config.parameters) == {"intra_op_thread_count"}
    assert not config.runtime


@SPECS
def test_onnx_file_honours_the_contract(spec: Any) -> None:
    model = onnx.load(MODELS / spec.name / "1" / "model.onnx")
    assert next(entry.version for entry in model.opset_import if entry.domain == "") >= 17

    def tensors(values: Iterable[Any]) -> list[TensorSpec]:
        found = []
        for value in values:
            kind = value.type.tensor_type
            dims = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim)
            assert dims[0] == -1, "the batch axis is not dynamic"
            found.append(TensorSpec(value.name, _DATATYPES[kind.elem_type], dims[1:]))
        return found

    assert tensors(model.graph.input) == list(spec.inputs)
    assert tensors(model.graph.output) == list(spec.outputs)
    operators = {node.op_type for node in nodes(model)}
    if spec.name != "gpt2_prefill":
        assert "LayerNormalization" in operators, "LayerNorm was taken apart"
    # What ONNX Runtime has of its own is in every build of it; TensorRT gets the FP16 graphs (test_to_onnx.py).
    assert {node.domain for node in nodes(model)} <= {"", "ai.onnx", "com.microsoft"}


def test_tokenizer_fits_the_contract() -> None:
    tokenizer = CaptionTokenizer(MODELS)
    assert tokenizer.vocab_size == CONTRACT.vocab_size
    special = [CONTRACT.bos_token_id, CONTRACT.eos_token_id, CONTRACT.pad_token_id]
    assert tokenizer.text(special) == ""


def test_vocabulary_matrix_is_stored_once() -> None:
    """The embedding of tokens is also the last layer; the peers' export writes it twice."""
    model = onnx.load(MODELS / "gpt2_step" / "1" / "model.onnx")
    size = CONTRACT.vocab_size * CONTRACT.hidden_size
    large = [list(one.dims) for one in constants_of(model).values() if _elements(one.dims) == size]
    assert len(large) == 1, large


def _elements(dims: Iterable[int]) -> int:
    product = 1
    for dim in dims:
        product *= dim
    return product


def test_weights_in_git_stay_small() -> None:
    files = [*MODELS.rglob("*.onnx"), *(MODELS.parent / "checkpoints").rglob("*.safetensors")]
    assert sum(file.stat().st_size for file in files) <= 70e6


@pytest.mark.triton
def test_triton_serves_what_the_contract_says(triton_address: str) -> None:
    with triton.InferenceServerClient(triton_address) as client:
        for spec in CONTRACT.models:
            metadata = client.get_model_metadata(spec.name)
            served = [TensorSpec(one.name, one.datatype, tuple(one.shape)[1:]) for one in metadata.inputs]
            assert served == list(spec.inputs)
