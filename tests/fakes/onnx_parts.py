# SPDX-License-Identifier: Apache-2.0
"""What an ONNX file has in its graph and in the bodies of its loops."""

from __future__ import annotations

import onnx


def parts(model: onnx.ModelProto) -> list[onnx.GraphProto]:
    """The graph and the bodies of its loops."""
    bodies = [one.g for node in model.graph.node for one in node.attribute if one.type == onnx.AttributeProto.GRAPH]
    return [model.graph, *bodies]


def nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for part in parts(model) for node in part.node]


def constants_of(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {one.name: one for part in parts(model) for one in part.initializer}
