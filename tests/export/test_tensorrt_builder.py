# SPDX-License-Identifier: Apache-2.0
"""TensorRT-RTX compiles our models for a T4 on this machine; tensors and shapes are those of contract and Triton.

Nothing is executed: that needs a GPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2

from captioner.model_contract import PREFILL, STEP, ContractError, ModelContract, ModelSpec, TensorSpec
from export import tensorrt_builder
from export.tensorrt_builder import TURING, Builder, BuildError
from export.tensorrt_plan import shape_ranges
from export.to_tensorrt import main
from export.triton_config import request_sizes, tensorrt_config
from tests.fakes.tiny_onnx_models import tiny_contract, tiny_model, write_repository

pytest.importorskip("tensorrt_rtx", reason="ENGINES ARE NOT COMPILED: TensorRT-RTX has no wheel for this machine")

CONTRACT = tiny_contract("fp16", num_queries=5)


@pytest.fixture(scope="module")
def rtx() -> Builder:
    return Builder.load("rtx", TURING)


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def test_all_models_are_compiled_for_a_t4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The query head multiplies in FP32, of which TensorRT-RTX has no product for Turing."""
    write_repository(tmp_path, "fp16", num_queries=5)
    before = sorted(tmp_path.rglob("*"))
    assert main(["--backend=rtx", "--compute-capability=7.5", f"--models={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert "parsed and compiled, NOT EXECUTED" in said
    assert [line.split(":")[0] for line in said.splitlines() if " MB in " in line] == [
        spec.name for spec in CONTRACT.models
    ]
    assert "1 to 32 photos, 1 to 4 beams" in said
    assert sorted(tmp_path.rglob("*")) == before, "nothing is kept"


def test_engine_is_for_the_capability_that_was_asked_for(tmp_path: Path) -> None:
    file = saved(tiny_model(CONTRACT.prefill, CONTRACT), tmp_path)
    turing, ada = (Builder.load("rtx", one).build(file, CONTRACT.prefill, CONTRACT) for one in ("7.5", "8.9"))
    assert turing != ada


def test_unknown_capability_is_an_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_repository(tmp_path, "fp16")
    assert main(["--backend=rtx", "--compute-capability=7.0", f"--models={tmp_path}"]) == 1
    assert "compute capability 7.0 is none of 7.5, 8.0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--compute-capability=7.5"])


def test_missing_library_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tensorrt_builder._MODULES, "rtx", ("no_such_module",))
    with pytest.raises(BuildError, match="no_such_module cannot be imported .* install tensorrt-rtx-cu12"):
        Builder.load("rtx")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda one: dataclasses.replace(one, datatype="FP32"), "is FP16 .*, the contract says FP32"),
        (lambda one: dataclasses.replace(one, shape=(*one.shape, 1)), r"the contract says FP16 \[-1, .*, 1\]"),
        (lambda one: dataclasses.replace(one, name="renamed"), "{name} is not in the contract; .* renamed is missing"),
    ],
    ids=["type", "shape", "name"],
)
@pytest.mark.parametrize("kind", ["inputs", "outputs"])
def test_tensor_that_differs_from_the_contract_is_refused(
    rtx: Builder, tmp_path: Path, kind: str, change: Any, words: str
) -> None:
    file = saved(tiny_model(CONTRACT.prefill, CONTRACT), tmp_path)
    tensors: Sequence[TensorSpec] = getattr(CONTRACT.prefill, kind)
    spec = dataclasses.replace(CONTRACT.prefill, **{kind: (change(tensors[0]), *tensors[1:])})
    with pytest.raises(ContractError, match=words.format(name=tensors[0].name)):
        rtx.build(file, spec, CONTRACT)


def test_tensor_that_the_contract_lacks_is_refused(rtx: Builder, tmp_path: Path) -> None:
    file = saved(tiny_model(CONTRACT.encoder, CONTRACT), tmp_path)
    spec = dataclasses.replace(CONTRACT.encoder, outputs=CONTRACT.encoder.outputs[:-1])
    with pytest.raises(ContractError, match="output query_logprobs is not in the contract"):
        rtx.build(file, spec, CONTRACT)


def test_engine_that_would_refuse_what_triton_prepares_for_is_not_built(rtx: Builder, tmp_path: Path) -> None:
    """Triton warms the step up and captures graphs with four beams."""
    narrow = dataclasses.replace(CONTRACT, max_beams=2)
    file = saved(tiny_model(narrow.step, narrow), tmp_path)
    with pytest.raises(ContractError, match=r"Triton may send tokens \[1, 4\], the engine takes \[1, 1\] to \[32, 2\]"):
        rtx.build(file, narrow.step, narrow)


def test_operator_that_the_library_lacks_is_an_error(rtx: Builder, tmp_path: Path) -> None:
    spec = ModelSpec(PREFILL, (TensorSpec("x", "FP32", (4,)),), (TensorSpec("y", "FP32", (4,)),))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Det2", ["x"], ["y"], domain="nobody")], "g", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("nobody", 1)]
    file = saved(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path)
    with pytest.raises(BuildError, match=r"(?s)gpt2_prefill: the ONNX parser refuses .*Det2"):
        rtx.build(file, spec, CONTRACT)


@pytest.mark.parametrize("spec", CONTRACT.models, ids=lambda spec: spec.name)
def test_shapes_of_the_engine_are_those_of_tritons_configuration(spec: ModelSpec) -> None:
    config: Any = text_format.Parse(tensorrt_config(spec), model_config_pb2.ModelConfig())
    ranges = {one.name: one for one in shape_ranges(spec, CONTRACT)}
    assert ranges.keys() == {tensor.name for tensor in config.input}
    for tensor in config.input:
        one = ranges[tensor.name]
        assert (one.least[0], one.most[0]) == (1, config.max_batch_size)
        for size, low, high in zip(tensor.dims, one.least[1:], one.most[1:], strict=True):
            assert (low, high) == ((1, CONTRACT.max_beams) if size == -1 else (size, size))
    graphs = {(one.batch_size, one.input["tokens"].dim[0]) for one in config.optimization.cuda.graph_spec}
    warm = {(one.batch_size, one.inputs["tokens"].dims[0] if spec.name == STEP else 1) for one in config.model_warmup}
    assert warm | graphs <= set(request_sizes(spec))


def engines_compiled(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Compile a repository, and show its sizes and seconds."""
    code = main(["--backend=rtx", f"--compute-capability={TURING}", f"--models={models}"])
    said = capsys.readouterr()
    with capsys.disabled():
        print(f"\n{said.out.rstrip()}")
    assert (code, said.err) == (0, "")


@pytest.mark.torch
def test_exported_tiny_model_is_compiled(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="needs the export extra (torch)")
    from tests.fakes.exported_captioner import tiny_repository

    engines_compiled(tiny_repository(tmp_path_factory, "fp16"), capsys)


@pytest.mark.tensorrt
@pytest.mark.torch
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("size", ["small", "full"])
def test_exported_model_of_real_size_is_compiled(size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`make test-tensorrt`; the full size has random weights, since there is no checkpoint of it."""
    pytest.importorskip("torch", reason="needs the export extra (torch)")
    from benchmarks.captioning.models import SMALL_CHECKPOINT, full_size_checkpoint
    from export.to_onnx import export_repository

    checkpoint = SMALL_CHECKPOINT
    if size == "full":
        checkpoint = tmp_path / "vit-base-gpt2-random-weights"
        full_size_checkpoint(checkpoint)
    contract = export_repository(checkpoint, tmp_path / "models", precision="fp16")
    assert contract == ModelContract.load(tmp_path / "models")
    engines_compiled(tmp_path / "models", capsys)
