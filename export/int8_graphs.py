# SPDX-License-Identifier: Apache-2.0
"""Quantise an FP32 ONNX graph to INT8 for CPUs: weights int8 per output channel, activations uint8.

The activations' ranges are fixed by samples, not measured in every batch (dynamic quantisation). So a photo gets the
same words whatever else is in its batch, and no kernel has to read all values before it starts. Only products with
constant weights are quantised. `export/LOG.md` has the effect on words and speed.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
from onnx import helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from export.onnx_passes import fold_biases, optimise

Feeds = Mapping[str, npt.NDArray[Any]]


class _Samples(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, feeds: Iterable[Feeds]):
        self._feeds: Iterator[Feeds] = iter(feeds)

    def get_next(self) -> Feeds | None:
        return next(self._feeds, None)


def quantise(source: Path, target: Path, samples: Iterable[Feeds], keep: Iterable[str] = ()) -> None:
    """Quantise a graph and optimise it for ONNX Runtime on a CPU.

    Args:
        source: the FP32 graph.
        target: the file to write.
        samples: typical inputs; the minimum and maximum of each activation over all samples become its range.
        keep: names of weights whose products stay FP32.

    Raises:
        ValueError: no product has a weight of `keep`.
    """
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".int8-") as scratch:
        quantised = Path(scratch) / "quantised.onnx"
        with _quiet():
            quantize_static(
                source,
                quantised,
                _Samples(samples),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["MatMul"],
                nodes_to_exclude=_products_to_exclude(onnx.load(source), set(keep)),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options={
                    "OpTypesToExcludeOutputQuantization": ["MatMul"],
                    "WeightSymmetric": True,
                },
            )
        model = onnx.load(quantised)
        look_up_in_int8(model)
        onnx.save(model, quantised)
        optimise(quantised, target)
    model = onnx.load(target)
    fold_biases(model)
    onnx.save(model, target)


def look_up_in_int8(model: onnx.ModelProto) -> None:
    """Dequantise only the gathered columns of the vocabulary, in place.

    The last layer's weights are also the table of token embeddings, so the quantiser puts a DequantizeLinear of 50,257
    columns before a Gather of a few.

    Args:
        model: is changed.

    Raises:
        ValueError: a Gather is not along the axis of the scales.
    """
    nodes = {output: node for node in model.graph.node for output in node.output}
    for gather in [node for node in model.graph.node if node.op_type == "Gather"]:
        whole = nodes.get(gather.input[0])
        if whole is None or whole.op_type != "DequantizeLinear":
            continue
        axis = next(attribute.i for attribute in whole.attribute if attribute.name == "axis")
        if next((attribute.i for attribute in gather.attribute if attribute.name == "axis"), 0) != axis:
            raise ValueError(f"{gather.name} does not gather along the axis of the scales")
        table, scales, zero_points = whole.input
        indices, result = gather.input[1], gather.output[0]
        position = list(model.graph.node).index(gather)
        part = [f"{result}_{name}" for name in ("int8", "scale", "zero")]
        new = [
            helper.make_node("Gather", [table, indices], [part[0]], axis=axis),
            helper.make_node("Gather", [scales, indices], [part[1]], axis=0),
            helper.make_node("Gather", [zero_points, indices], [part[2]], axis=0),
            helper.make_node("DequantizeLinear", part, [result], axis=axis),
        ]
        model.graph.node.remove(gather)
        for offset, node in enumerate(new):
            model.graph.node.insert(position + offset, node)
    used = {name for node in model.graph.node for name in node.input} | {output.name for output in model.graph.output}
    for node in [node for node in model.graph.node if not used & set(node.output)]:
        model.graph.node.remove(node)


def _products_to_exclude(model: onnx.ModelProto, keep: set[str]) -> list[str]:
    constants = {tensor.name for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    if unknown := keep - {node.input[1] for node in products}:
        raise ValueError(f"no product has the weights {', '.join(sorted(unknown))}")
    return [node.name for node in products if node.input[1] not in constants or node.input[1] in keep]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantiser, which advises preprocessing (not needed for these graphs) and logs every range."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
