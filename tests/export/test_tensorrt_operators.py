# SPDX-License-Identifier: Apache-2.0
"""What TensorRT's operator list and limits forbid is found in a graph, and what they allow is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.tensorrt_operators import MAX_TOPK, operator_list, problems
from tests.fakes.tiny_onnx_models import tiny_contract, tiny_model

F32, I64, U8, I8, F64 = (
    TensorProto.FLOAT, TensorProto.INT64, TensorProto.UINT8, TensorProto.INT8, TensorProto.DOUBLE,
)  # fmt: skip


def node(operator: str, *inputs: str, to: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, [to], name=f"the_{operator}", **attributes)


def model(
    *nodes: onnx.NodeProto,
    x: int = F32,
    y: int = F32,
    shape: tuple[str | int, ...] = ("B", 4),
    constants: dict[str, Any] | None = None,
    opset: int = 20,
) -> onnx.ModelProto:
    """One input x, one output y of unknown shape."""
    graph = helper.make_graph(
        list(nodes), "test", [helper.make_tensor_value_info("x", x, shape)],
        [helper.make_tensor_value_info("y", y, None)],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in (constants or {}).items()],
    )  # fmt: skip
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_plain_models_have_no_problem(precision: Any) -> None:
    contract = tiny_contract(precision)
    for spec in contract.models:
        assert problems(tiny_model(spec, contract)) == []


def test_list_has_what_a_transformer_is_made_of() -> None:
    known = operator_list()
    assert known.opsets == (9, 24)
    for operator in ("MatMul", "Softmax", "LayerNormalization", "Gelu", "Conv", "Gemm"):
        assert {"FP32", "FP16"} <= known.types[operator]
    assert "INT64" in known.types["Gather"]
    assert "NonMaxSuppression" in known.types
    assert not {"MatMulInteger", "DynamicQuantizeLinear", "BitShift"} & known.types.keys()


@pytest.mark.parametrize("operator", sorted(operator_list().types))
def test_types_are_written_as_the_check_writes_them(operator: str) -> None:
    assert operator_list().types[operator] <= {
        "FP32", "FP16", "BF16", "FP8", "FP4", "INT4", "INT8", "UINT8", "INT32", "INT64", "BOOL",
    }  # fmt: skip


def test_operator_tensorrt_lacks_is_named() -> None:
    found = problems(model(node("BitwiseNot", "x"), x=I64, y=I64))
    assert found == ["BitwiseNot the_BitwiseNot: TensorRT 10.15 has no such operator"]


def test_operator_of_another_domain_is_named() -> None:
    found = problems(model(node("FusedMatMul", "x", "x", domain="com.microsoft")))
    assert found == [
        "FusedMatMul the_FusedMatMul: operator of the domain com.microsoft: TensorRT builds standard ONNX only"
    ]


def test_bytes_must_be_cast_before_anything_else() -> None:
    wrong = model(node("Transpose", "x", to="t", perm=[1, 0]), cast("t", F32), x=U8)
    assert problems(wrong) == [
        f"Transpose the_Transpose: {name} is UINT8, TensorRT takes BF16, BOOL, FP16, FP32, INT32, INT64: cast it first"
        for name in ("x", "t")
    ]
    assert problems(model(cast("x", F32, "t"), node("Transpose", "t", perm=[1, 0]), x=U8)) == []


def cast(name: str, kind: int, to: str = "y") -> onnx.NodeProto:
    return helper.make_node("Cast", [name], [to], name="the_Cast", to=kind)


def test_type_outside_the_list_is_named() -> None:
    found = problems(model(node("Softmax", "x"), x=F64, y=F64))
    assert any("x is FP64: TensorRT computes in FP32" in one for one in found)
    found = problems(model(node("CumSum", "x", "axis"), x=I64, y=I64, constants={"axis": np.int64(0)}))
    assert found == [f"CumSum the_CumSum: {name} is INT64, TensorRT takes BF16, FP16, FP32" for name in ("x", "y")]


def test_bf16_is_nothing_for_a_t4() -> None:
    bf16 = TensorProto.BFLOAT16
    assert any("BF16, which a T4 cannot compute" in one for one in problems(model(node("Relu", "x"), x=bf16, y=bf16)))


def test_indices_and_conditions_are_not_data() -> None:
    nodes = [
        node("Gather", "x", "indices", to="g", axis=1),
        node("Less", "g", "one", to="c"),
        node("Where", "c", "g", "one"),
    ]
    assert problems(model(*nodes, constants={"indices": np.array([0, 1]), "one": np.float32(1)})) == []


@pytest.mark.parametrize(("k", "wrong"), [(5, False), (MAX_TOPK, False), (MAX_TOPK + 1, True)])
def test_topk_has_a_limit(k: int, wrong: bool) -> None:
    best = helper.make_node("TopK", ["x", "k"], ["y", "indices"], name="best")
    found = problems(model(best, shape=("B", 5000), constants={"k": np.array([k])}))
    assert found == ([f"TopK best: K is {k}, limit {MAX_TOPK}"] if wrong else [])


def test_topk_must_be_sorted() -> None:
    best = helper.make_node("TopK", ["x", "k"], ["y", "indices"], name="best", sorted=0)
    assert "sorted must be 1" in problems(model(best, constants={"k": np.array([2])}))[0]


def test_shape_made_of_shapes_is_known_beforehand() -> None:
    nodes = [
        node("Shape", "x", to="s"),
        node("Gather", "s", "zero", to="b"),
        node("Concat", "b", "rest", to="target", axis=0),
        node("Reshape", "x", "target"),
    ]
    assert problems(model(*nodes, constants={"zero": np.array([0]), "rest": np.array([2, 2])})) == []


@pytest.mark.parametrize(("operator", "others"), [("Expand", ()), ("Reshape", ()), ("Tile", ()), ("Slice", ("many",))])
def test_shape_made_of_values_is_not(operator: str, others: tuple[str, ...]) -> None:
    nodes = [
        cast("x", I64, "as_shape"), node("Reshape", "as_shape", "flat", to="target"),
        node(operator, "data", "target", *others),
    ]  # fmt: skip
    constants = {"flat": np.array([-1]), "many": np.array([9] * 4), "data": np.ones((2, 2, 2, 2), np.float32)}
    found = problems(model(*nodes, shape=(4,), constants=constants))
    assert found == [
        f"{operator} the_{operator}: the shape of its result depends on the values of x: "
        "TensorRT must know it in advance"
    ]


def test_size_that_depends_on_values_fits_no_cuda_graph() -> None:
    assert "no CUDA graph can contain it" in problems(model(node("NonZero", "x"), y=I64))[0]


def test_axes_must_be_constants() -> None:
    wrong = model(
        node("Shape", "x", to="s"), node("Gather", "s", "zero", to="axes"), node("ReduceMean", "x", "axes"),
        constants={"zero": np.array([0])},
    )  # fmt: skip
    assert "ReduceMean the_ReduceMean: axes must be a constant" in problems(wrong)
    constant = helper.make_node("Constant", [], ["axes"], value_ints=[1])
    assert problems(model(constant, node("ReduceMean", "x", "axes"))) == []


def test_layernorm_has_one_output() -> None:
    norm = helper.make_node("LayerNormalization", ["x", "scale"], ["y", "", "deviation"], name="norm")
    found = problems(model(norm, constants={"scale": np.ones(4, np.float32)}))
    assert found == ["LayerNormalization norm: TensorRT has the first output only"]


@pytest.mark.parametrize(
    ("zero", "words"),
    [(np.int8(0), None), (np.int8(3), "the zero point must be 0"), (np.uint8(0), "q is UINT8"), (None, "q is UINT8")],
)
def test_int8_is_only_between_quantise_and_dequantise(zero: Any, words: str | None) -> None:
    extra = () if zero is None else ("zero",)
    nodes = [node("QuantizeLinear", "x", "scale", *extra, to="q"), node("DequantizeLinear", "q", "scale", *extra)]
    constants = {"scale": np.float32(0.1)} | ({} if zero is None else {"zero": zero})
    found = problems(model(*nodes, constants=constants))
    if words is None:
        assert found == []
    else:
        assert any(words in one for one in found)


def test_int8_elsewhere_is_named() -> None:
    found = problems(model(node("Relu", "x"), x=I8, y=I8))
    assert "x is INT8" in found[0]
    assert "only QuantizeLinear's and DequantizeLinear's may be" in found[0]


def test_opset_and_rank_have_limits() -> None:
    assert "opset 8: TensorRT 10.15 reads 9 to 24" in problems(model(node("Relu", "x"), opset=8))
    assert "tensor x has 9 axes, limit 8" in problems(model(node("Relu", "x"), shape=(1,) * 9))


def test_graphs_inside_graphs_are_looked_at() -> None:
    def branch(name: str, operator: str) -> onnx.GraphProto:
        inner = [helper.make_node(operator, ["x"], [name], name=name)]
        return helper.make_graph(inner, name, [], [helper.make_tensor_value_info(name, F32, None)])

    choose = helper.make_node(
        "If", ["flag"], ["y"], name="choose", then_branch=branch("good", "Relu"), else_branch=branch("bad", "Det")
    )
    found = problems(model(choose, shape=(4, 4), constants={"flag": np.array(True)}))
    assert found == ["Det bad: TensorRT 10.15 has no such operator"]


def test_functions_are_looked_into() -> None:
    function = helper.make_function(
        "local", "Twice", ["a"], ["b"], [helper.make_node("Det", ["a"], ["b"])], [helper.make_opsetid("", 20)]
    )
    outer = model(node("Twice", "x", domain="local"), shape=(4, 4))
    outer.functions.append(function)
    outer.opset_import.append(helper.make_opsetid("local", 1))
    assert len(problems(outer)) == 1
    assert "has no such operator" in problems(outer)[0]
