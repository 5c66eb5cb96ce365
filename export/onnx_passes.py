# SPDX-License-Identifier: Apache-2.0
"""Passes over ONNX files that do not change the results: ONNX Runtime's own fusions, and a few that it lacks."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime

# Operators of ONNX Runtime that take a bias as one more input, and the number of that input.
_BIAS_INPUT = {"MatMulIntegerToFloat": 6}


def optimise(source: Path, target: Path) -> None:
    """Write the graph as ONNX Runtime fuses it for a CPU; the result is always the same file.

    The level is "extended", not "all": the remaining fusions depend on the processor and are done at load.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def fold_biases(model: onnx.ModelProto) -> int:
    """Turn the Add after a product into the product's bias, in place; return the number of such biases.

    ONNX Runtime does this when it fuses dynamic quantisation, but not for static quantisation. For a single token, the
    overhead of an operator is larger than its addition.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    users: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            users[name] = users.get(name, 0) + 1
    outputs = {output.name for output in model.graph.output}
    folded = 0
    for add in [node for node in model.graph.node if node.op_type == "Add"]:
        for product_name, bias in (tuple(add.input), tuple(reversed(add.input))):
            product = makers.get(product_name)
            if product is None or product.op_type not in _BIAS_INPUT:
                continue
            if users[product_name] > 1 or product_name in outputs:
                continue
            width = constants[product.input[1]].dims[-1] if product.input[1] in constants else None
            if bias not in constants or list(constants[bias].dims) != [width]:
                continue
            number = _BIAS_INPUT[product.op_type]
            product.input.extend([""] * (number - len(product.input)))
            product.input.append(bias)
            product.output[0] = add.output[0]
            model.graph.node.remove(add)
            folded += 1
            break
    return folded


def forget_sources(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes, in place: paths and lines of the source, which differ from machine to machine."""
    for one in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        one.ClearField("metadata_props")


def cast_first(model: onnx.ModelProto) -> None:
    """Let only a Cast read a uint8 input, in place: TensorRT has no other operator that accepts bytes.

    The exporter reads the shape from the input itself.
    """
    graph = model.graph
    for tensor in graph.input:
        if tensor.type.tensor_type.elem_type != onnx.TensorProto.UINT8:
            continue
        cast = next(node for node in graph.node if node.op_type == "Cast" and node.input[0] == tensor.name)
        graph.node.remove(cast)
        for node in graph.node:
            for i, name in enumerate(node.input):
                if name == tensor.name:
                    node.input[i] = cast.output[0]
        graph.node.insert(0, cast)
