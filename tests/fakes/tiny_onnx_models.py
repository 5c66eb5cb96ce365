# SPDX-License-Identifier: Apache-2.0
"""Three tiny ONNX models with the contract's tensors, in FP32 or FP16, for tests of engines.

They are not a captioner, but all their inputs affect their outputs.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from captioner.model_contract import ENCODER, PREFILL, STEP, ModelContract, ModelSpec, Precision, TensorSpec

CONTRACT = ModelContract(
    model="tiny", image_height=4, image_width=4, fit="pad", num_positions=4, hidden_size=4, num_layers=2, num_heads=2,
    head_size=2, max_tokens=5, num_candidates=8, max_beams=4, tokens_per_call=1, vocab_size=11, bos_token_id=0,
    eos_token_id=1, pad_token_id=2, weights="f00d",
)  # fmt: skip

_ELEMENTS = {
    "UINT8": TensorProto.UINT8,
    "INT32": TensorProto.INT32,
    "FP32": TensorProto.FLOAT,
    "FP16": TensorProto.FLOAT16,
}


def tiny_contract(precision: Precision, num_queries: int = 0) -> ModelContract:
    return dataclasses.replace(CONTRACT, precision=precision, num_queries=num_queries)


def write_repository(folder: Path, precision: Precision, num_queries: int = 0) -> ModelContract:
    """Write `<model>/1/model.onnx` of all three, and the contract."""
    contract = tiny_contract(precision, num_queries)
    for spec in contract.models:
        version = folder / spec.name / "1"
        version.mkdir(parents=True)
        onnx.save(tiny_model(spec, contract), version / "model.onnx")
    contract.save(folder)
    return contract


def tiny_model(spec: ModelSpec, contract: ModelContract) -> onnx.ModelProto:
    graph = _Graph(spec, contract)
    {ENCODER: _encoder, PREFILL: _prefill, STEP: _step}[spec.name](graph, contract)
    return graph.model()


class _Graph:
    def __init__(self, spec: ModelSpec, contract: ModelContract):
        self.spec = spec
        self.dtype = np.float16 if contract.float_datatype == "FP16" else np.float32
        self.float = _ELEMENTS[contract.float_datatype]
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(len(spec.name))

    def add(self, operator: str, *inputs: str, to: str | None = None, **attributes: Any) -> str:
        output = to or f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def constant(self, values: npt.ArrayLike, dtype: npt.DTypeLike = np.int64) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def weights(self, *shape: int) -> str:
        return self.constant(self.rng.normal(0, 0.7, shape), self.dtype)

    def model(self) -> onnx.ModelProto:
        def values(tensors: tuple[TensorSpec, ...]) -> list[onnx.ValueInfoProto]:
            return [
                helper.make_tensor_value_info(
                    one.name, _ELEMENTS[one.datatype], ["B", *("K" if size == -1 else size for size in one.shape)]
                )
                for one in tensors
            ]  # fmt: skip

        graph = helper.make_graph(
            self.nodes, self.spec.name, values(self.spec.inputs), values(self.spec.outputs), self.constants
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        return model


def _encoder(graph: _Graph, contract: ModelContract) -> None:
    pixels = graph.add("Mul", _cast(graph, "pixels"), graph.constant(1 / 255, graph.dtype))
    rows = graph.add("Reshape", pixels, graph.constant([0, contract.num_positions, 12]))
    hidden = graph.add("MatMul", rows, graph.weights(12, contract.hidden_size))
    graph.add("LayerNormalization", hidden, graph.constant(np.ones(4), graph.dtype), to="hidden_states")
    mean = graph.add("ReduceMean", "hidden_states", graph.constant([1]), keepdims=0)
    mean = graph.add("Add", _cast(graph, mean, TensorProto.FLOAT), graph.constant([1, 0, 0, 0], np.float32))
    size = graph.add("ReduceL2", mean, graph.constant([1]))
    graph.add("Div", mean, size, to="embedding")
    if contract.num_queries:
        weights = graph.constant(graph.rng.normal(0, 0.7, (contract.hidden_size, contract.num_queries)), np.float32)
        graph.add("LogSoftmax", graph.add("MatMul", mean, weights), axis=-1, to="query_logprobs")


def _prefill(graph: _Graph, contract: ModelContract) -> None:
    for tensor in graph.spec.outputs:
        projected = graph.add("MatMul", "hidden_states", graph.weights(4, 4))
        heads = graph.add("Reshape", projected, graph.constant([0, 0, contract.num_heads, contract.head_size]))
        graph.add("Transpose", heads, perm=[0, 2, 1, 3], to=tensor.name)


def _step(graph: _Graph, contract: ModelContract) -> None:
    layers, heads, size = contract.num_layers, contract.num_heads, contract.head_size
    hidden = graph.add("Gather", graph.weights(contract.vocab_size, 4), "tokens")  # [B, K, D]
    hidden = graph.add("Add", hidden, graph.add("Gather", graph.weights(contract.max_tokens, 4), "position"))
    ages = graph.add("ReduceMean", _cast(graph, "ancestors"), graph.constant([2]))  # [B, K, 1]
    hidden = graph.add("Add", hidden, graph.add("Mul", ages, graph.constant(0.1, graph.dtype)))
    for layer in range(layers):
        for part in ("key", "value"):
            photo = graph.add("ReduceMean", f"cross_{part}_{layer}", graph.constant([2]), keepdims=0)  # [B, H, d]
            photo = graph.add("Reshape", photo, graph.constant([0, 1, 4]))
            past = graph.add("ReduceSum", f"self_{part}_{layer}", graph.constant([2]), keepdims=0)  # [B, H, K, d]
            past = graph.add("Transpose", past, perm=[0, 2, 1, 3])
            past = graph.add("Reshape", past, graph.constant([0, 0, 4]))
            past = graph.add("Mul", past, graph.constant(0.2, graph.dtype))
            hidden = graph.add("Add", graph.add("Add", hidden, photo), past)
    new = graph.add("MatMul", hidden, graph.weights(4, layers * 2 * heads * size))
    new = graph.add("Reshape", new, graph.constant([0, 0, layers, 2, heads, 1, size]))
    graph.add("Transpose", new, perm=[0, 2, 3, 4, 5, 1, 6], to="new_kv")  # one token
    logits = _cast(graph, graph.add("MatMul", hidden, graph.weights(4, contract.vocab_size)), TensorProto.FLOAT)
    logprobs = graph.add("LogSoftmax", logits, axis=-1)
    one = graph.constant([1])
    best = helper.make_node(
        "TopK", [logprobs, graph.constant([contract.num_candidates])], ["best", "which"], name="best"
    )
    graph.nodes.append(best)
    graph.add("Unsqueeze", "best", one, to="candidate_logprobs")
    graph.add("Unsqueeze", _cast(graph, "which", TensorProto.INT32), one, to="candidate_tokens")
    totals = graph.add("Add", "best", graph.add("Unsqueeze", "scores", graph.constant([2])))
    totals = graph.add("Reshape", totals, graph.constant([0, -1]))
    beams = graph.add("Shape", "tokens", start=1, end=2)
    graph.nodes.append(helper.make_node("TopK", [totals, beams], ["chosen_scores", "chosen"], name="choice"))
    graph.add("Unsqueeze", _cast(graph, "chosen", TensorProto.INT32), one, to="selected")
    if contract.ends_early:  # declared, and used for nothing
        graph.add("Identity", "finished")
        graph.add("Identity", "limits")


def _cast(graph: _Graph, name: str, kind: int | None = None) -> str:
    output = f"cast_{len(graph.nodes)}"
    graph.nodes.append(helper.make_node("Cast", [name], [output], name=output, to=kind or graph.float))
    return output
