# SPDX-License-Identifier: Apache-2.0
"""Passes change the graph and not what it computes; each on a graph of a few nodes, run by ONNX Runtime."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.onnx_passes import cast_first, fold_biases, forget_sources, optimise
from tests.conftest import ROOT

F32, U8 = TensorProto.FLOAT, TensorProto.UINT8
RNG = np.random.default_rng(1)

Value = tuple[str, int, Sequence[int | str]]  # name, element type, shape


def model(
    nodes: Sequence[onnx.NodeProto], inputs: Sequence[Value], outputs: Sequence[Value], constants: dict[str, Any]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes), "test", [helper.make_tensor_value_info(*one) for one in inputs],
        [helper.make_tensor_value_info(*one) for one in outputs],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


def run(graph: onnx.ModelProto, **inputs: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs: list[npt.NDArray[Any]] = session.run(None, inputs)
    return outputs


def operators(graph: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in graph.graph.node]


# --- optimise ---------------------------------------------------------------------------------------------------------


def residual_block() -> onnx.ModelProto:
    """LayerNorm, product, bias, Gelu, and the sum around them: what transformers are made of."""
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale", "shift"], ["normed"]),
        helper.make_node("MatMul", ["normed", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["biased"]),
        helper.make_node("Gelu", ["biased"], ["activated"]),
        helper.make_node("Add", ["x", "activated"], ["summed"]),
        helper.make_node("LayerNormalization", ["summed", "scale", "shift"], ["y"]),
    ]
    constants = {name: RNG.normal(size=shape).astype(np.float32)
                 for name, shape in (("scale", 8), ("shift", 8), ("weights", (8, 8)), ("bias", 8))}  # fmt: skip
    return model(nodes, [("x", F32, ("B", 3, 8))], [("y", F32, ("B", 3, 8))], constants)


def test_optimise_fuses_and_computes_the_same(tmp_path: Path) -> None:
    plain = residual_block()
    onnx.save(plain, tmp_path / "plain.onnx")
    optimise(tmp_path / "plain.onnx", tmp_path / "fused.onnx")
    fused = onnx.load(tmp_path / "fused.onnx")
    assert len(fused.graph.node) < len(plain.graph.node)
    assert "com.microsoft" in {node.domain for node in fused.graph.node}
    for batch in (1, 5):
        x = RNG.normal(size=(batch, 3, 8)).astype(np.float32)
        np.testing.assert_allclose(run(fused, x=x)[0], run(plain, x=x)[0], rtol=1e-5, atol=1e-5)


def test_optimise_writes_the_same_bytes_every_time(tmp_path: Path) -> None:
    onnx.save(residual_block(), tmp_path / "plain.onnx")
    for name in ("one", "two"):
        optimise(tmp_path / "plain.onnx", tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


# --- fold_biases ------------------------------------------------------------------------------------------------------


def product_and_sum(
    bias: npt.NDArray[np.float32] | None = None,
    *,
    reverse: bool = False,
    more: Sequence[onnx.NodeProto] = (),
    outputs: Sequence[Value] = (("y", F32, ("B", 3)),),
    constants: Sequence[str] = ("b", "b_zero", "bias"),
) -> onnx.ModelProto:
    """y = dequantised(a @ b) + bias; what is no constant is an input."""
    values = {
        "a_scale": np.float32(0.02),
        "a_zero": np.uint8(120),
        "b": np.arange(-6, 6, dtype=np.int8).reshape(4, 3),
        "b_scale": np.array([0.1, 0.2, 0.3], np.float32),
        "b_zero": np.zeros(3, np.int8),
        "bias": np.array([1, -2, 3], np.float32) if bias is None else bias,
    }
    nodes = [
        helper.make_node(
            "MatMulIntegerToFloat", ["a", "b", "a_scale", "b_scale", "a_zero", "b_zero"], ["product"],
            domain="com.microsoft",
        ),
        helper.make_node("Add", ["bias", "product"] if reverse else ["product", "bias"], ["y"]),
        *more,
    ]  # fmt: skip
    inputs: list[Value] = [("a", U8, ("B", 4))]
    if "bias" not in constants:
        inputs.append(("bias", F32, values["bias"].shape))
    kept = {name: value for name, value in values.items() if name != "bias" or "bias" in constants}
    return model(nodes, inputs, outputs, kept)


A = RNG.integers(0, 256, (5, 4), dtype=np.uint8)


@pytest.mark.parametrize("reverse", [False, True])
def test_bias_is_folded_into_its_product(reverse: bool) -> None:
    graph = product_and_sum(reverse=reverse)
    wanted = run(graph, a=A)[0]
    assert fold_biases(graph) == 1
    assert operators(graph) == ["MatMulIntegerToFloat"]
    np.testing.assert_allclose(run(graph, a=A)[0], wanted, rtol=1e-6)


def test_bias_without_zero_points_before_it_is_still_the_seventh_input() -> None:
    graph = product_and_sum()
    del graph.graph.node[0].input[4:]  # zero points are optional
    wanted = run(graph, a=A)[0]
    assert fold_biases(graph) == 1
    assert list(graph.graph.node[0].input[4:]) == ["", "", "bias"]
    np.testing.assert_allclose(run(graph, a=A)[0], wanted, rtol=1e-6)


def test_each_of_two_products_gets_its_own_bias() -> None:
    graph = product_and_sum(
        more=[
            helper.make_node(
                "MatMulIntegerToFloat", ["a", "b", "a_scale", "b_scale", "a_zero", "b_zero"], ["second"],
                domain="com.microsoft",
            ),
            helper.make_node("Add", ["second", "b_scale"], ["z"]),
        ],
        outputs=[("y", F32, ("B", 3)), ("z", F32, ("B", 3))],
    )  # fmt: skip
    wanted = run(graph, a=A)
    assert fold_biases(graph) == 2
    for one, other in zip(run(graph, a=A), wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize(
    "graph",
    [
        pytest.param(
            product_and_sum(
                more=[helper.make_node("Neg", ["product"], ["z"])],
                outputs=[("y", F32, ("B", 3)), ("z", F32, ("B", 3))],
            ),
            id="product has another user",
        ),
        pytest.param(product_and_sum(constants=()), id="bias is an input"),
        pytest.param(product_and_sum(np.ones((5, 3), np.float32)), id="bias is a matrix"),
        pytest.param(product_and_sum(np.array(4, np.float32)), id="bias is one number"),
    ],
)
def test_what_is_no_bias_stays(graph: onnx.ModelProto) -> None:
    before = graph.SerializeToString()
    assert fold_biases(graph) == 0
    assert graph.SerializeToString() == before


def test_sums_behind_other_operators_stay() -> None:
    graph = residual_block()
    assert fold_biases(graph) == 0
    assert operators(graph) == operators(residual_block())


# --- cast_first -------------------------------------------------------------------------------------------------------


def test_nothing_but_the_cast_sees_bytes() -> None:
    """As the exporter writes the encoder: the batch's size is read from the photo's bytes, before they are cast."""
    nodes = [
        helper.make_node("Shape", ["pixels"], ["size"], start=0, end=1),
        helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
        helper.make_node("Cast", ["pixels"], ["floats"], to=F32),
        helper.make_node("ReduceSum", ["floats", "axis"], ["sums"], keepdims=0),
        helper.make_node("Add", ["sums", "zeros"], ["halfway"]),
        helper.make_node("Add", ["halfway", "other"], ["y"]),
    ]
    graph = model(nodes, [("pixels", U8, ("B", 6)), ("other", F32, ("B",))], [("y", F32, ("B",))],
                  {"axis": np.array([1], np.int64)})  # fmt: skip
    pixels, other = RNG.integers(0, 256, (3, 6), dtype=np.uint8), np.ones(3, np.float32)
    wanted = run(graph, pixels=pixels, other=other)[0]
    cast_first(graph)
    assert [node.op_type for node in graph.graph.node if "pixels" in node.input] == ["Cast"]
    assert graph.graph.node[0].op_type == "Cast"
    onnx.checker.check_model(graph, full_check=True)
    assert np.array_equal(run(graph, pixels=pixels, other=other)[0], wanted)


def test_graph_without_bytes_stays_as_it_is() -> None:
    graph = residual_block()
    before = graph.SerializeToString()
    cast_first(graph)
    assert graph.SerializeToString() == before


def test_paths_of_the_source_do_not_get_into_the_file() -> None:
    noted = model([helper.make_node("Neg", ["x"], ["y"])], [("x", F32, [2])], [("y", F32, [2])], {})
    entry = noted.graph.node[0].metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.stack_trace", 'File "/home/somebody/caption_graphs.py", line 144'
    forget_sources(noted)
    assert b"somebody" not in noted.SerializeToString()
    assert run(noted, x=np.ones(2, np.float32))[0].tolist() == [-1, -1]


@pytest.mark.parametrize("package", ["export", "benchmarks"])
def test_onnxruntime_reports_nothing_and_leaves_no_file(package: str, tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    program = [sys.executable, "-c", f"import {package}, onnxruntime"]
    subprocess.run(program, env={**environ, "TMPDIR": str(tmp_path)}, cwd=ROOT, check=True)
    assert not list(tmp_path.iterdir())
