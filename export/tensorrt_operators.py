# SPDX-License-Identifier: Apache-2.0
"""Check an ONNX graph against TensorRT's published operator list and documented limits, without TensorRT.

The list is `tensorrt_operators.json`, which names its source. Not covered are restrictions of operators that the models
do not use (pooling, resizing, recurrent layers), and problems that TensorRT finds only when it builds.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.inliner
from onnx import numpy_helper

LIST_FILE = Path(__file__).with_suffix(".json")

MAX_RANK = 8  # nvinfer1::Dims::MAX_DIMS
MAX_TOPK = 3840

_TYPE_NAMES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "FP32",
    onnx.TensorProto.FLOAT16: "FP16",
    onnx.TensorProto.BFLOAT16: "BF16",
    onnx.TensorProto.DOUBLE: "FP64",
    onnx.TensorProto.FLOAT8E4M3FN: "FP8",
    onnx.TensorProto.FLOAT4E2M1: "FP4",
}

# The list's types are those of an operator's data, usually the type variable of its first input. The exceptions:
_DATA_VARIABLES = {
    "Cast": {"T1", "T2"},
    "ConstantOfShape": {"T2"},
    "OneHot": {"T3"},
    "Pow": {"T", "T1"},
    "Where": {"T"},
}

# Inputs whose values determine the size of a result. TensorRT must know them in advance, from constants and shapes.
_SHAPE_INPUTS = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Tile": (1,),
    "TopK": (1,),
}
# Inputs that must be constants.
_CONSTANT_INPUTS = {"CumSum": (1,), "OneHot": (1,), "Squeeze": (1,), "Unsqueeze": (1,)} | {
    f"Reduce{kind}": (1,)
    for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
}
# Operators whose result's size depends on values: TensorRT builds them, but CUDA graphs cannot contain them.
_DATA_DEPENDENT = {"NonMaxSuppression", "NonZero"}


@dataclass(frozen=True)
class OperatorList:
    """What TensorRT supports."""

    version: str  # of TensorRT
    opsets: tuple[int, int]  # the lowest and the highest
    types: dict[str, frozenset[str]]  # operator -> types of its data


@functools.cache
def operator_list() -> OperatorList:
    """Read the published list."""
    content = json.loads(LIST_FILE.read_text(encoding="utf-8"))
    low, high = content["opsets"]
    types = {name: frozenset(types) for name, types in content["operators"].items()}
    return OperatorList(content["version"], (low, high), types)


def problems(model: onnx.ModelProto) -> list[str]:
    """One sentence for everything that TensorRT would refuse, or compute in another type than the graph's."""
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    known = operator_list()
    found = []
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and not known.opsets[0] <= entry.version <= known.opsets[1]:
            low, high = known.opsets
            found.append(f"opset {entry.version}: TensorRT {known.version} reads {low} to {high}")
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    found += _Graph(model.graph, opset).problems()
    return list(dict.fromkeys(found))


@dataclass
class _Graph:
    graph: onnx.GraphProto
    opset: int
    outer: _Graph | None = None
    types: dict[str, str] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    producers: dict[str, onnx.NodeProto] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.outer is not None:
            for name in ("types", "ranks", "constants", "producers"):
                getattr(self, name).update(getattr(self.outer, name))
        for tensor in (*self.graph.input, *self.graph.value_info, *self.graph.output):
            kind = tensor.type.tensor_type
            if kind.elem_type:
                self.types[tensor.name] = type_name(kind.elem_type)
            if kind.HasField("shape"):
                self.ranks[tensor.name] = len(kind.shape.dim)
        for constant in self.graph.initializer:
            self.constants[constant.name] = constant
            self.types[constant.name] = type_name(constant.data_type)
            self.ranks[constant.name] = len(constant.dims)
        for node in self.graph.node:
            self.producers.update(dict.fromkeys(node.output, node))
            value = _constant_of(node) if node.op_type == "Constant" else None
            if value is not None:
                self.constants[node.output[0]] = value

    def problems(self) -> Iterator[str]:
        yield from self._tensor_problems()
        for node in self.graph.node:
            where = f"{node.op_type} {node.name or node.output[0]}"
            for problem in self._node_problems(node):
                yield f"{where}: {problem}"
            for attribute in node.attribute:
                for graph in (attribute.g, *attribute.graphs):
                    if graph.node:
                        yield from _Graph(graph, self.opset, self).problems()

    def _tensor_problems(self) -> Iterator[str]:
        for name, kind in self.types.items():
            if kind == "FP64":
                yield f"tensor {name} is FP64: TensorRT computes in FP32 and clamps it"
            elif kind == "BF16":
                yield f"tensor {name} is BF16, which a T4 cannot compute"
        for name, rank in self.ranks.items():
            if rank > MAX_RANK:
                yield f"tensor {name} has {rank} axes, limit {MAX_RANK}"

    def _node_problems(self, node: onnx.NodeProto) -> Iterator[str]:
        if node.domain not in ("", "ai.onnx"):
            yield f"operator of the domain {node.domain}: TensorRT builds standard ONNX only"
            return
        allowed = operator_list().types.get(node.op_type)
        if allowed is None:
            yield f"TensorRT {operator_list().version} has no such operator"
            return
        yield from self._type_problems(node, allowed)
        for index in _SHAPE_INPUTS.get(node.op_type, ()):
            source = self._value_source(node.input[index]) if len(node.input) > index else None
            if source is not None:
                yield f"the shape of its result depends on the values of {source}: TensorRT must know it in advance"
        for index in _CONSTANT_INPUTS.get(node.op_type, ()):
            if len(node.input) > index and node.input[index] and node.input[index] not in self.constants:
                yield f"{node.input[index]} must be a constant"
        if node.op_type in _DATA_DEPENDENT:
            yield "the size of its result depends on values: no CUDA graph can contain it"
        yield from self._special_problems(node)

    def _type_problems(self, node: onnx.NodeProto, allowed: frozenset[str]) -> Iterator[str]:
        for name in dict.fromkeys(_data_tensors(node, self.opset)):
            kind = self.types.get(name)
            if kind is None or kind in allowed or kind in ("FP64", "BF16"):  # reported once per tensor
                continue
            remedy = "cast it first" if kind == "UINT8" else "only QuantizeLinear's and DequantizeLinear's may be"
            hint = f": {remedy}" if kind in ("UINT8", "INT8") else ""
            yield f"{name} is {kind}, TensorRT takes {', '.join(sorted(allowed))}{hint}"

    def _special_problems(self, node: onnx.NodeProto) -> Iterator[str]:
        attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        if node.op_type == "TopK":
            k = self._constant(node.input[1]) if len(node.input) > 1 else None
            if k is not None and k.size and int(k.max()) > MAX_TOPK:
                yield f"K is {int(k.max())}, limit {MAX_TOPK}"
            if attributes.get("sorted", 1) != 1:
                yield "TensorRT only returns sorted results: sorted must be 1"
        elif node.op_type == "LayerNormalization":
            if any(node.output[1:]):
                yield "TensorRT has the first output only"
        elif node.op_type == "ScatterND":
            if attributes.get("reduction", b"none") != b"none":
                yield f"reduction {attributes['reduction'].decode()} is not supported"
        elif node.op_type == "Constant":
            for name in attributes.keys() & {"sparse_value", "value_string", "value_strings"}:
                yield f"{name} is not supported"
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = self._constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
            if zero is not None and np.any(zero.astype(np.float64)):
                yield "the zero point must be 0: quantise symmetrically"
            quantised = node.output[0] if node.op_type == "QuantizeLinear" else node.input[0]
            # Without a zero point, QuantizeLinear returns UINT8.
            if self.types.get(quantised) == "UINT8":
                yield f"{quantised} is UINT8, TensorRT quantises to INT8: give an INT8 zero point"

    def _constant(self, name: str) -> npt.NDArray[Any] | None:
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None

    def _value_source(self, name: str) -> str | None:
        """A graph input from whose values (not shape) `name` is computed, if there is one."""
        seen, waiting = set(), [name]
        while waiting:
            name = waiting.pop()
            if not name or name in self.constants or name in seen:
                continue
            seen.add(name)
            node = self.producers.get(name)
            if node is None:
                return name
            if node.op_type not in ("Shape", "Size"):
                waiting += node.input
        return None


def _constant_of(node: onnx.NodeProto) -> onnx.TensorProto | None:
    for attribute in node.attribute:
        if attribute.name == "value":
            return attribute.t
        if attribute.name in ("value_int", "value_ints", "value_float", "value_floats"):
            return numpy_helper.from_array(np.array(onnx.helper.get_attribute_value(attribute)))
    return None


def _data_tensors(node: onnx.NodeProto, opset: int) -> Iterator[str]:
    """The inputs and outputs whose types the list restricts."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return
    if not schema.inputs:
        yield from node.output
        return
    variables = _DATA_VARIABLES.get(node.op_type, {schema.inputs[0].type_str})
    for names, parameters in ((node.input, schema.inputs), (node.output, schema.outputs)):
        yield from (name for name, kind in _with_types(names, parameters) if name and kind in variables)


def _with_types(
    names: Iterable[str], parameters: Iterable[onnx.defs.OpSchema.FormalParameter]
) -> Iterator[tuple[str, str]]:
    """Pair names with their type variables; a variadic last parameter is that of all further names."""
    kinds = [one.type_str for one in parameters]
    for index, name in enumerate(names):
        yield name, kinds[min(index, len(kinds) - 1)]


def type_name(elem_type: int) -> str:
    """The list's name of a type: FP16, INT64, BOOL, ..."""
    return _TYPE_NAMES.get(elem_type) or str(onnx.TensorProto.DataType.Name(elem_type))
