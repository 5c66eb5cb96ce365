# SPDX-License-Identifier: Apache-2.0
"""Make the step model for CPUs of the model of one token: an ONNX Loop that ends when no photo wants more tokens.

The weights are in the file once, however many tokens a call makes, and INT8's ranges are the same for each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from captioner.model_contract import STEP, ModelContract, ModelSpec, TensorSpec
from export.caption_graphs import MASKED

RECENT = -2  # in a shape: the number R of columns that this call's tokens have

Feeds = dict[str, npt.NDArray[Any]]

_ELEMENTS = {"INT32": TensorProto.INT32, "FP32": TensorProto.FLOAT}
_ANSWERS = ("candidate_logprobs", "candidate_tokens", "selected")


def token_spec(contract: ModelContract) -> ModelSpec:
    """The inputs and outputs of the model of one token, see `export.caption_graphs.TokenGraph`."""
    carried = (
        *(tensor for tensor in contract.step.inputs if tensor.name not in _names(contract.caches, {"ancestors"})),
        TensorSpec("mask", "FP32", (-1, contract.max_tokens, -1)),
        TensorSpec("recent_mask", "FP32", (-1, RECENT)),
        *(
            TensorSpec(f"recent_{tensor.name}", "FP32", (contract.num_heads, RECENT, contract.head_size))
            for tensor in contract.self_caches
        ),
    )
    outputs = {tensor.name: tensor for tensor in contract.step.outputs}
    answers = [TensorSpec(f"token_{name}", outputs[name].datatype, outputs[name].shape[1:]) for name in _ANSWERS]
    return ModelSpec(
        STEP,
        (*(_renamed("now", tensor) for tensor in carried), *contract.caches),
        (*(_renamed("next", tensor) for tensor in carried), *answers, TensorSpec("goes_on", "BOOL", ())),
    )


def loop_of(token: onnx.ModelProto, contract: ModelContract) -> onnx.ModelProto:
    """Make the step model.

    Args:
        token: the model of one token.
        contract: has the shapes.
    """
    spec, step = token_spec(contract), contract.step
    carried = [tensor.name.removeprefix("now_") for tensor in spec.inputs if tensor.name.startswith("now_")]
    graph = _Graph()
    start = {name: name for name in carried} | _start(graph, contract)
    ends = {name: f"end_{name}" for name in carried}
    stacked = {name: f"stacked_{name}" for name in _ANSWERS}
    graph.add(
        "Loop",
        [_trip_count(graph), "", *(start[name] for name in carried)],
        *ends.values(),
        *stacked.values(),
        body=_body(token.graph, spec, carried),
    )
    shapes = {tensor.name: tensor.shape for tensor in step.outputs}
    for name, stack in stacked.items():  # [N, B, ...]
        axes = list(range(len(shapes[name]) + 1))
        graph.add("Transpose", [stack], name, perm=[1, 0, *axes[2:]])
    recent = graph.add("Concat", [ends[f"recent_{tensor.name}"] for tensor in contract.self_caches], axis=1)
    beams = graph.add("Shape", ["tokens"], start=1, end=2)
    layers, heads, size = contract.num_layers, contract.num_heads, contract.head_size
    shape = graph.add("Concat", [graph.constant([0, layers, 2, heads, -1]), beams, graph.constant([size])], axis=0)
    graph.add("Reshape", [recent, shape], "new_kv")
    whole = helper.make_graph(
        graph.nodes, step.name, _values(step.inputs), _values(step.outputs), initializer=graph.constants
    )
    return helper.make_model(whole, opset_imports=list(token.opset_import), ir_version=token.ir_version)


def first_token_feeds(feeds: Feeds, contract: ModelContract) -> Feeds:
    """Make the inputs of the model of one token of those of a step."""
    ancestors, position = feeds["ancestors"], feeds["position"]
    photos, beams = feeds["tokens"].shape
    owners = np.where(np.arange(contract.max_tokens) < position[:, :, None], ancestors, -1)
    nothing = np.zeros((photos, contract.num_heads, 0, contract.head_size), np.float32)
    return {
        **{f"now_{name}": feeds[name] for name in ("tokens", "scores", "position", "finished", "limits")},
        **{tensor.name: feeds[tensor.name] for tensor in contract.caches},
        "now_mask": np.where(owners[..., None] == np.arange(beams), 0, MASKED).astype(np.float32),
        "now_recent_mask": np.zeros((photos, beams, 0), np.float32),
        **{f"now_recent_{tensor.name}": nothing for tensor in contract.self_caches},
    }


class _Graph:
    """The nodes around the loop."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operator: str, inputs: Sequence[str], *outputs: str, **attributes: Any) -> str:
        names = outputs or (f"around_{len(self.nodes)}",)
        self.nodes.append(helper.make_node(operator, inputs, names, name=f"{operator}_{len(self.nodes)}", **attributes))
        return names[0]

    def constant(self, values: npt.ArrayLike, datatype: npt.DTypeLike = np.int64) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(values, datatype), f"constant_{len(self.constants)}"))
        return self.constants[-1].name


def _start(graph: _Graph, contract: ModelContract) -> dict[str, str]:
    """What the first token gets beyond the inputs of the step: the mask of the cache, and no recent columns."""
    zero, last = graph.constant([0]), graph.constant([2])
    times = graph.constant(np.arange(contract.max_tokens), np.int32)
    is_past = graph.add("Less", [times, graph.add("Unsqueeze", ["position", last])])  # [B, 1, T]
    owners = graph.add("Where", [is_past, "ancestors", graph.constant(-1, np.int32)])
    owners = graph.add("Unsqueeze", [owners, graph.constant([3])])  # [B, K, T, 1]
    count = graph.add("Squeeze", [graph.add("Shape", ["tokens"], start=1, end=2), zero])
    beams = graph.add("Cast", [graph.add("Range", [graph.constant(0), count, graph.constant(1)])], to=TensorProto.INT32)
    mask = graph.add(
        "Where",
        [graph.add("Equal", [owners, beams]), graph.constant(0, np.float32), graph.constant(MASKED, np.float32)],
    )
    no_columns = graph.add("Slice", ["cross_key_0", zero, zero, last])  # [B, H, 0, d]
    no_mask = graph.add("Cast", [graph.add("Slice", ["ancestors", zero, zero, last])], to=TensorProto.FLOAT)
    recent = dict.fromkeys((f"recent_{tensor.name}" for tensor in contract.self_caches), no_columns)
    return {"mask": mask, "recent_mask": no_mask, **recent}


def _trip_count(graph: _Graph) -> str:
    """The largest number of tokens that a photo wants, at least 1."""
    wanted = graph.add("Slice", ["limits", graph.constant([0]), graph.constant([1]), graph.constant([1])])
    wanted = graph.add("ReduceMax", [graph.add("Cast", [wanted], to=TensorProto.INT64)], keepdims=0)
    return graph.add("Max", [wanted, graph.constant(1)])


def _body(token: onnx.GraphProto, spec: ModelSpec, carried: Sequence[str]) -> onnx.GraphProto:
    """The graph of one token as a loop's body, which finds the caches outside."""
    inputs = {value.name: value for value in token.input}
    body = onnx.GraphProto()
    body.CopyFrom(token)
    del body.input[:], body.output[:], body.value_info[:]
    body.input.append(helper.make_tensor_value_info("iteration", TensorProto.INT64, []))
    body.input.append(helper.make_tensor_value_info("went_on", TensorProto.BOOL, []))
    body.input.extend(inputs[f"now_{name}"] for name in carried)
    outputs = {value.name: value for value in token.output}
    names = ["goes_on", *(f"next_{name}" for name in carried), *(f"token_{name}" for name in _ANSWERS)]
    body.output.extend(outputs[name] for name in names)
    assert len(names) == len(spec.outputs)
    return body


def _values(tensors: Sequence[TensorSpec]) -> list[onnx.ValueInfoProto]:
    """The contract's tensors as ONNX declares them. An output's two free sizes are N and, behind it, K."""
    values = []
    for tensor in tensors:
        free = iter(["N", "K"] if tensor.shape.count(-1) == 2 or tensor.name == "selected" else ["K"])
        shape = ["B", *(next(free) if size == -1 else size for size in tensor.shape)]
        values.append(helper.make_tensor_value_info(tensor.name, _ELEMENTS[tensor.datatype], shape))
    return values


def _names(tensors: Sequence[TensorSpec], more: set[str]) -> set[str]:
    return {tensor.name for tensor in tensors} | more


def _renamed(prefix: str, tensor: TensorSpec) -> TensorSpec:
    return TensorSpec(f"{prefix}_{tensor.name}", tensor.datatype, tensor.shape)
