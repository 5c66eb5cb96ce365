# SPDX-License-Identifier: Apache-2.0
"""INT8 on graphs of two products: near FP32, the same for a row whatever its company, and small in the file."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.int8_graphs import look_up_in_int8, quantise

F32, I32, I8 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT8
WIDTH, HIDDEN, VOCABULARY = 16, 40, 60

Floats = npt.NDArray[np.float32]


def random_floats(*shape: int, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def save(
    path: Path, nodes: Sequence[onnx.NodeProto], inputs: Sequence[Any], outputs: Sequence[Any], **constants: Floats
) -> Path:
    graph = helper.make_graph(
        list(nodes), "test", [helper.make_tensor_value_info(*one) for one in inputs],
        [helper.make_tensor_value_info(*one) for one in outputs],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


@pytest.fixture
def perceptron(tmp_path: Path) -> Path:
    """y = relu(x @ first + bias) @ second; then the scores of y with itself, a product without constants."""
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["product"], name="one"),
        helper.make_node("Add", ["product", "bias"], ["biased"]),
        helper.make_node("Relu", ["biased"], ["active"]),
        helper.make_node("MatMul", ["active", "second"], ["y"], name="two"),
        helper.make_node("Transpose", ["y"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["y", "turned"], ["scores"], name="three"),
    ]
    return save(
        tmp_path / "fp32.onnx", nodes, [("x", F32, ("B", 3, WIDTH))],
        [("y", F32, ("B", 3, 4)), ("scores", F32, ("B", 3, 3))],
        first=random_floats(WIDTH, HIDDEN, seed=2), bias=random_floats(HIDDEN, seed=3),
        second=random_floats(HIDDEN, 4, seed=4),
    )  # fmt: skip


def samples(count: int = 8) -> list[dict[str, Floats]]:
    return [{"x": random_floats(4, 3, WIDTH, seed=100 + i)} for i in range(count)]


def run(path: Path, **inputs: npt.NDArray[Any]) -> list[Floats]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    outputs: list[Floats] = session.run(None, inputs)
    return outputs


def relative_error(expected: Floats, got: Floats) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def shapes(path: Path, element: int, at_least: int = 2) -> list[list[int]]:
    """Of the constants of one type with so many axes, in the file's order."""
    constants = onnx.load(path).graph.initializer
    return [list(one.dims) for one in constants if one.data_type == element and len(one.dims) >= at_least]


def test_result_is_near_fp32_but_not_equal(perceptron: Path) -> None:
    quantise(perceptron, perceptron.with_name("int8.onnx"), samples())
    x = random_floats(6, 3, WIDTH, seed=7)
    wanted, (got, scores) = run(perceptron, x=x)[0], run(perceptron.with_name("int8.onnx"), x=x)
    assert 1e-4 < relative_error(wanted, got) < 0.03
    assert relative_error(got @ got.transpose(0, 2, 1), scores) < 1e-6, "a product without constants was quantised"


def test_row_gets_the_same_result_in_any_company(perceptron: Path) -> None:
    target = perceptron.with_name("int8.onnx")
    quantise(perceptron, target, samples())
    x = random_floats(6, 3, WIDTH, seed=8)
    x[3] *= 1000  # far outside the range of the samples: measured anew, the range would be another one
    together = run(target, x=x)[0]
    for row in range(len(x)):
        assert np.array_equal(run(target, x=x[row : row + 1])[0][0], together[row])


def test_ranges_come_from_all_samples(perceptron: Path) -> None:
    """A range of the first samples alone would cut off what the last ones need."""
    target = perceptron.with_name("int8.onnx")
    wide = [*samples(), {"x": 20 * random_floats(4, 3, WIDTH, seed=9)}]
    x = wide[-1]["x"]
    errors = []
    for feeds in (wide[:-1], wide):
        quantise(perceptron, target, iter(feeds))
        errors.append(relative_error(run(perceptron, x=x)[0], run(target, x=x)[0]))
    assert errors[0] > 0.3
    assert errors[1] < 0.03


def test_weights_are_int8_in_the_file_and_there_once(perceptron: Path) -> None:
    target = perceptron.with_name("int8.onnx")
    quantise(perceptron, target, samples())
    assert shapes(target, I8) == [[WIDTH, HIDDEN], [HIDDEN, 4]]
    assert shapes(target, F32) == []
    scales = [one for one in onnx.load(target).graph.initializer if one.name.endswith("_scale")]
    assert {HIDDEN, 4} <= {one.dims[0] for one in scales if one.dims}, "one scale per output channel"
    operators = [node.op_type for node in onnx.load(target).graph.node]
    assert operators.count("MatMulIntegerToFloat") == 2
    assert "Add" not in operators, "the bias was not folded"


def test_kept_product_stays_fp32(perceptron: Path) -> None:
    target = perceptron.with_name("int8.onnx")
    quantise(perceptron, target, samples(), keep=["second"])
    assert shapes(target, I8) == [[WIDTH, HIDDEN]]
    constants = {one.name: numpy_helper.to_array(one) for one in onnx.load(target).graph.initializer}
    assert np.array_equal(constants["second"], random_floats(HIDDEN, 4, seed=4))
    everything = perceptron.with_name("all.onnx")
    quantise(perceptron, everything, samples(), keep=["first", "second"])
    x = random_floats(5, 3, WIDTH, seed=10)
    np.testing.assert_allclose(run(everything, x=x)[0], run(perceptron, x=x)[0], rtol=1e-4, atol=1e-4)


def test_unknown_weights_to_keep_are_named(perceptron: Path) -> None:
    target = perceptron.with_name("int8.onnx")
    with pytest.raises(ValueError, match="no product has the weights bias, third$"):
        quantise(perceptron, target, samples(), keep=["third", "first", "bias"])
    assert not target.exists()
    assert [path.name for path in target.parent.iterdir()] == ["fp32.onnx"]


def test_log_is_as_loud_as_before(perceptron: Path) -> None:
    level = logging.getLogger().level
    with pytest.raises(ValueError, match="third"):
        quantise(perceptron, perceptron.with_name("int8.onnx"), samples(), keep=["third"])
    assert logging.getLogger().level == level


# --- a vocabulary that is both table and weights ----------------------------------------------------------------------


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    """As the step model: columns of the vocabulary are looked up, changed, and multiplied by all of it."""
    nodes = [
        helper.make_node("Gather", ["vocabulary", "tokens"], ["columns"], axis=1, name="look_up"),
        helper.make_node("Transpose", ["columns"], ["embedded"], perm=[1, 0]),
        helper.make_node("Add", ["embedded", "position"], ["rows"]),
        helper.make_node("MatMul", ["rows", "between"], ["hidden"], name="inner"),
        helper.make_node("MatMul", ["hidden", "vocabulary"], ["logits"], name="outer"),
    ]
    return save(
        tmp_path / "fp32.onnx", nodes, [("tokens", I32, ("N",))],
        [("columns", F32, (WIDTH, "N")), ("logits", F32, ("N", VOCABULARY))],
        vocabulary=random_floats(WIDTH, VOCABULARY, seed=5), between=random_floats(WIDTH, WIDTH, seed=6),
        position=random_floats(WIDTH, seed=7),
    )  # fmt: skip


def test_vocabulary_is_there_once_in_int8_and_looked_up_there(tied: Path) -> None:
    target = tied.with_name("int8.onnx")
    tokens = np.arange(VOCABULARY, dtype=np.int32)
    quantise(tied, target, [{"tokens": tokens}])
    assert sorted(shapes(target, I8)) == [[WIDTH, WIDTH], [WIDTH, VOCABULARY]]
    assert shapes(target, F32) == []
    graph = onnx.load(target).graph
    constants = {one.name for one in graph.initializer}
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            assert node.input[0] not in constants, "all of the vocabulary is made FP32 in every step"
    for picked in (tokens, tokens[[7]], tokens[[3, 3, 59, 0]]):
        (columns, logits), (got_columns, got_logits) = run(tied, tokens=picked), run(target, tokens=picked)
        assert relative_error(columns, got_columns) < 0.01
        assert relative_error(logits, got_logits) < 0.03


def test_vocabulary_that_is_kept_is_there_once_in_fp32(tied: Path) -> None:
    target = tied.with_name("int8.onnx")
    tokens = np.arange(VOCABULARY, dtype=np.int32)
    quantise(tied, target, [{"tokens": tokens}], keep=["vocabulary"])
    assert shapes(target, I8) == [[WIDTH, WIDTH]]
    assert shapes(target, F32) == [[WIDTH, VOCABULARY]]
    assert np.array_equal(run(tied, tokens=tokens)[0], run(target, tokens=tokens)[0])


def table_dequantised(path: Path, *, gather_axis: int) -> onnx.ModelProto:
    """What the quantiser leaves, by hand: scales along axis 1."""
    nodes = [
        helper.make_node("DequantizeLinear", ["table", "scales", "zeros"], ["whole"], axis=1),
        helper.make_node("Gather", ["whole", "tokens"], ["y"], axis=gather_axis, name="look_up"),
    ]
    rng = np.random.default_rng(1)
    save(
        path, nodes, [("tokens", I32, ("N",))], [("y", F32, (None, None))],
        table=rng.integers(-127, 128, (WIDTH, VOCABULARY), dtype=np.int8),
        scales=rng.uniform(0.1, 1, VOCABULARY).astype(np.float32), zeros=np.zeros(VOCABULARY, np.int8),
    )  # fmt: skip
    return onnx.load(path)


def test_looked_up_columns_are_the_same_numbers(tmp_path: Path) -> None:
    model = table_dequantised(tmp_path / "whole.onnx", gather_axis=1)
    look_up_in_int8(model)
    onnx.save(model, tmp_path / "part.onnx")
    assert [node.op_type for node in model.graph.node] == ["Gather", "Gather", "Gather", "DequantizeLinear"]
    tokens = np.array([5, 59, 0, 5], np.int32)
    assert np.array_equal(run(tmp_path / "part.onnx", tokens=tokens)[0], run(tmp_path / "whole.onnx", tokens=tokens)[0])


def test_lookup_across_the_scales_is_refused(tmp_path: Path) -> None:
    model = table_dequantised(tmp_path / "whole.onnx", gather_axis=0)
    with pytest.raises(ValueError, match="look_up does not gather along the axis of the scales"):
        look_up_in_int8(model)
