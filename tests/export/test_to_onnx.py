# SPDX-License-Identifier: Apache-2.0
"""Checkpoint -> model repository, in all precisions: complete, small, the same every time, and never half."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="needs the export extra (torch)")

from onnx import numpy_helper  # noqa: E402

from captioner.model_contract import (  # noqa: E402
    PRECISIONS,
    REFINEMENT_FILE,
    ContractError,
    ModelContract,
    Precision,
    model_fingerprint,
)
from export import to_onnx  # noqa: E402
from export.onnx_export import contract_of, load_captioner  # noqa: E402
from export.to_onnx import export_repository, products_kept  # noqa: E402
from export.triton_config import EMBEDDED_CONFIG, embedded_config, onnx_config, tensorrt_config  # noqa: E402
from tests.conftest import MODELS, ROOT  # noqa: E402
from tests.fakes.exported_captioner import (  # noqa: E402
    export_graphs_once,
    files_of,
    tiny_checkpoint,
    tiny_repository,
)
from tests.fakes.onnx_parts import constants_of, nodes  # noqa: E402
from tests.fakes.tiny_captioner import TINY  # noqa: E402

pytestmark = pytest.mark.torch

FLOAT, INT8, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.INT8, onnx.TensorProto.FLOAT16
ENCODER, PREFILL, STEP = "vit_encoder", "gpt2_prefill", "gpt2_step"
NORMS = {ENCODER: 2 * TINY.encoder_layers + 1, PREFILL: 0, STEP: 3 * TINY.decoder_layers + 1}
KILOBYTE = 1000  # less is not worth a thought

in_all_precisions = pytest.mark.parametrize("precision", PRECISIONS)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory)


@pytest.fixture
def own_checkpoint(checkpoint: Path, tmp_path: Path) -> Path:
    """One that a test may change."""
    return Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def quick(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    export_graphs_once(tmp_path_factory, monkeypatch)


def graphs(repository: Path) -> dict[str, onnx.ModelProto]:
    return {name: onnx.load(repository / name / "1" / "model.onnx") for name in (ENCODER, PREFILL, STEP)}


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in nodes(model))


def large_constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {name: one for name, one in constants_of(model).items() if numpy_helper.to_array(one).nbytes >= KILOBYTE}


# --- what is written --------------------------------------------------------------------------------------------------


@in_all_precisions
def test_repository_is_complete(
    precision: Precision, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    repository = tiny_repository(tmp_path_factory, precision)
    files = files_of(repository)
    wanted = {f"{name}/{file}" for name in NORMS for file in ("1/model.onnx", "config.pbtxt")}
    wanted |= {f"{name}/configs/embedded.pbtxt" for name in (ENCODER, STEP)}
    if precision == "fp16":
        configs = ("tensorrt", "onnxruntime_cuda", "onnxruntime_tensorrt")
        wanted |= {f"{name}/configs/{config}.pbtxt" for name in NORMS for config in configs}
    assert files.keys() == wanted | {"model_contract.json", "tokenizer.json"}
    contract = ModelContract.load(repository)
    assert (contract.precision, contract.model) == (precision, "tiny")
    assert contract.weights == hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()[:16]
    assert files["tokenizer.json"] == (checkpoint / "tokenizer.json").read_bytes()
    for spec in contract.models:
        assert files[f"{spec.name}/config.pbtxt"].decode() == onnx_config(spec)
        if precision == "fp16":
            assert files[f"{spec.name}/configs/tensorrt.pbtxt"].decode() == tensorrt_config(spec)


@in_all_precisions
def test_files_honour_the_contract(precision: Precision, tmp_path_factory: pytest.TempPathFactory) -> None:
    repository = tiny_repository(tmp_path_factory, precision)
    names = {onnx.TensorProto.UINT8: "UINT8", onnx.TensorProto.INT32: "INT32", FLOAT: "FP32", HALF: "FP16"}
    for spec in ModelContract.load(repository).models:
        model = onnx.load(repository / spec.name / "1" / "model.onnx")
        assert next(one.version for one in model.opset_import if one.domain == "") >= 17
        for values, tensors in ((model.graph.input, spec.inputs), (model.graph.output, spec.outputs)):
            found = []
            for value in values:
                kind = value.type.tensor_type
                dims = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim)
                assert dims[0] == -1, "the batch axis is not dynamic"
                found.append((value.name, names[kind.elem_type], dims[1:]))
            assert found == [(one.name, one.datatype, one.shape) for one in tensors]


@in_all_precisions
def test_norms_are_operators_not_taken_apart(precision: Precision, tmp_path_factory: pytest.TempPathFactory) -> None:
    """TensorRT keeps the operator in FP32, and ONNX Runtime has a kernel for it; of its parts neither knows."""
    repository = tiny_repository(tmp_path_factory, precision)
    tokens = ModelContract.load(repository).tokens_per_call if precision == "fp16" else 1  # others are a loop
    for name, model in graphs(repository).items():
        count = operators(model)
        norms = NORMS[name] * (tokens if name == STEP else 1)
        assert count["LayerNormalization"] + count["SkipLayerNormalization"] == norms
        assert count["Sqrt"] == count["Pow"] == 0
        assert count["ReduceMean"] == (1 if name == ENCODER else 0)  # the embedding's


@in_all_precisions
def test_weights_are_in_a_file_once(precision: Precision, tmp_path_factory: pytest.TempPathFactory) -> None:
    for model in graphs(tiny_repository(tmp_path_factory, precision)).values():
        constants = large_constants(model)
        assert constants
        values = [numpy_helper.to_array(one) for one in constants.values()]
        # A transposed copy is a copy, and one in another type is nearly one.
        for i, one in enumerate(values):
            for other in values[i + 1 :]:
                assert not (one.shape == other.shape and np.array_equal(one, other))
                assert not (one.ndim == 2 and one.T.shape == other.shape and np.array_equal(one.T, other))
        assert not any(node.op_type == "Constant" and len(node.SerializeToString()) > KILOBYTE
                       for node in nodes(model))  # fmt: skip


def test_half_has_no_single_weights_but_those_of_norms(tmp_path_factory: pytest.TempPathFactory) -> None:
    for name, model in graphs(tiny_repository(tmp_path_factory, "fp16")).items():
        of_norms = {
            one for node in model.graph.node if node.op_type == "LayerNormalization" for one in node.input[1:]
        }  # fmt: skip
        single = {one.name for one in model.graph.initializer if one.data_type == FLOAT and np.prod(one.dims) > 1}
        assert single <= of_norms
        assert bool(of_norms) == bool(NORMS[name])
        assert any(one.data_type == HALF for one in model.graph.initializer)


def test_half_graphs_have_onnx_operators_only(tmp_path_factory: pytest.TempPathFactory) -> None:
    for name, model in graphs(tiny_repository(tmp_path_factory, "fp16")).items():
        assert {node.domain for node in model.graph.node} == {""}, name


def test_int8_has_products_in_int8_and_is_the_smallest(tmp_path_factory: pytest.TempPathFactory) -> None:
    single, small = (graphs(tiny_repository(tmp_path_factory, one)) for one in ("fp32", "int8"))
    for name, model in small.items():
        assert operators(model)["MatMulIntegerToFloat"] > 3
        weights = {one.name.removesuffix("_quantized"): one for one in large_constants(model).values()
                   if one.data_type == INT8}  # fmt: skip
        assert weights
        wanted = constants_of(single[name])
        for weight, quantised in weights.items():
            assert list(quantised.dims) == list(wanted[weight].dims)
        assert not weights.keys() & constants_of(model).keys(), "the FP32 weights are still there"
        assert model.ByteSize() < 0.6 * single[name].ByteSize()


def test_command_line_says_what_it_wrote(tmp_path_factory: pytest.TempPathFactory) -> None:
    """All tests of FP32 run what the command wrote."""
    repository = tiny_repository(tmp_path_factory, "fp32")
    lines = repository.with_suffix(".txt").read_text(encoding="utf-8").splitlines()
    assert [line.split()[0] for line in lines[:3]] == [ENCODER, PREFILL, STEP]
    for line, name in zip(lines, NORMS, strict=False):
        size = (repository / name / "1" / "model.onnx").stat().st_size
        assert line.split()[1:] == [f"{size / 1e6:.1f}", "MB", str(repository / name)]
    assert lines[3:] == ["tiny in fp32: (16, 16, 3) uint8 -> words"]


def test_same_checkpoint_gives_the_same_bytes(
    checkpoint: Path, quick: None, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The first of them in another process."""
    export_repository(checkpoint, tmp_path / "again", name="tiny")
    assert files_of(tmp_path / "again") == files_of(tiny_repository(tmp_path_factory, "fp32"))


def test_int8_is_the_same_again_with_the_same_photos(
    checkpoint: Path, quick: None, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    export_repository(checkpoint, tmp_path / "again", precision="int8", name="tiny")
    first, again = files_of(tiny_repository(tmp_path_factory, "int8")), files_of(tmp_path / "again")
    assert first == again
    black = np.zeros((4, 16, 16, 3), np.uint8)
    export_repository(checkpoint, tmp_path / "black", precision="int8", name="tiny", calibration=black)
    assert files_of(tmp_path / "black")["vit_encoder/1/model.onnx"] != again["vit_encoder/1/model.onnx"]


# --- contract ---------------------------------------------------------------------------------------------------------


def test_contract_comes_from_the_configuration(checkpoint: Path) -> None:
    model, tokenizer = load_captioner(checkpoint)
    contract = contract_of(model, "tiny")
    assert (contract.image_height, contract.image_width, contract.fit) == (16, 16, "pad")
    assert (contract.num_positions, contract.hidden_size) == (17, 32)
    assert (contract.num_layers, contract.num_heads, contract.head_size) == (2, 2, 16)
    assert (contract.max_tokens, contract.vocab_size) == (7, len(tokenizer))
    assert contract.bos_token_id == tokenizer.bos_token_id
    assert contract.eos_token_id == tokenizer.eos_token_id
    assert contract.pad_token_id == tokenizer.pad_token_id


@pytest.mark.parametrize("missing", ["decoder_start_token_id", "eos_token_id", "pad_token_id"])
def test_contract_needs_all_special_tokens(checkpoint: Path, missing: str) -> None:
    model, _ = load_captioner(checkpoint)
    setattr(model.config, missing, None)
    with pytest.raises(ContractError, match=missing):
        contract_of(model, "tiny")


def test_contract_names_the_weights_it_was_made_from(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A model trained again under the same name must not be compared with the embeddings of the old one."""
    ours = (checkpoint, tiny_repository(tmp_path_factory, "int8"))
    for folder, models in (ours, (ROOT / "checkpoints" / "fashion-small", MODELS)):
        digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        contract = ModelContract.load(models)
        assert contract.weights == digest[:16]
        other = dataclasses.replace(contract, weights="0" * 16)
        assert model_fingerprint(contract) != model_fingerprint(other)


def test_shipped_configs_are_those_the_export_writes() -> None:
    for spec in ModelContract.load(MODELS).models:
        assert (MODELS / spec.name / "config.pbtxt").read_text(encoding="utf-8") == onnx_config(spec)
    contract = ModelContract.load(MODELS)
    for spec in (contract.encoder, contract.step):
        embedded = (MODELS / spec.name / EMBEDDED_CONFIG).read_text(encoding="utf-8")
        assert embedded == embedded_config(spec, contract)


# --- int8.json --------------------------------------------------------------------------------------------------------


def write_int8_file(folder: Path, content: object) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "int8.json").write_text(text, encoding="utf-8")


def test_what_the_checkpoint_keeps_stays_fp32(
    own_checkpoint: Path, quick: None, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    write_int8_file(own_checkpoint, {"keep_fp32": {PREFILL: ["*"], STEP: ["vocabulary"]}})
    repository = tmp_path / "int8"
    export_repository(own_checkpoint, repository, precision="int8", name="tiny")
    kept, single = graphs(repository), tiny_repository(tmp_path_factory, "fp32")
    assert kept[PREFILL] == onnx.load(single / PREFILL / "1" / "model.onnx")
    constants = large_constants(kept[STEP])
    assert constants["vocabulary"].data_type == FLOAT
    assert [one for one, tensor in constants.items() if tensor.data_type == FLOAT] == ["vocabulary"]
    everything = graphs(tiny_repository(tmp_path_factory, "int8"))
    assert kept[ENCODER] == everything[ENCODER]
    # The last layer's product, and no other.
    products = [operators(one[STEP])["MatMulIntegerToFloat"] for one in (everything, kept)]
    assert products[0] - products[1] == 1


def test_checkpoint_need_not_say_anything(tmp_path: Path) -> None:
    assert products_kept(tmp_path) == {}


def test_shipped_int8_file_can_be_read() -> None:
    kept = products_kept(ROOT / "checkpoints" / "fashion-small")
    assert kept.keys() <= {ENCODER, PREFILL, STEP}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"int8\.json is not .*keep_fp32"),
        ("[]", r"int8\.json is not .*keep_fp32"),
        ("{}", r"int8\.json is not .*keep_fp32"),
        ({"keep_fp32": {"decoder": ["*"], STEP: ["*"]}}, rf"int8\.json names decoder; the models are {ENCODER}, "),
    ],
)
def test_broken_int8_file_is_named(tmp_path: Path, content: object, message: str) -> None:
    write_int8_file(tmp_path, content)
    with pytest.raises(ContractError, match=message):
        products_kept(tmp_path)


@pytest.mark.parametrize("content", [{"keep_fp32": [STEP]}, {"keep_fp32": {STEP: "vocabulary"}}])
def test_int8_file_of_another_shape_is_named(tmp_path: Path, content: object) -> None:
    write_int8_file(tmp_path, content)
    with pytest.raises(ContractError, match=r"int8\.json is not .*keep_fp32"):
        products_kept(tmp_path)


def test_unknown_weights_are_named_and_nothing_is_written(own_checkpoint: Path, quick: None, tmp_path: Path) -> None:
    write_int8_file(own_checkpoint, {"keep_fp32": {STEP: ["lm_head"]}})
    with pytest.raises(ValueError, match="lm_head"):
        export_repository(own_checkpoint, tmp_path / "int8", precision="int8")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


# --- never half -------------------------------------------------------------------------------------------------------


@pytest.fixture
def old(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that is being served."""
    return Path(shutil.copytree(tiny_repository(tmp_path_factory, "fp32"), tmp_path / "served"))


def test_checkpoint_that_cannot_be_exported_leaves_the_old_repository(own_checkpoint: Path, old: Path) -> None:
    config = json.loads((own_checkpoint / "config.json").read_text(encoding="utf-8"))
    config["decoder_start_token_id"] = None
    (own_checkpoint / "config.json").write_text(json.dumps(config), encoding="utf-8")
    before = files_of(old)
    with pytest.raises(ContractError, match="decoder_start_token_id"):
        export_repository(own_checkpoint, old)
    assert files_of(old) == before


def test_checkpoint_without_weights_leaves_the_old_repository(own_checkpoint: Path, old: Path) -> None:
    (own_checkpoint / "model.safetensors").unlink()
    before = files_of(old)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        export_repository(own_checkpoint, old)
    assert files_of(old) == before


@pytest.mark.parametrize("failing", [ENCODER, STEP])
@pytest.mark.parametrize("stage", ["export_onnx", "quantise"])
def test_interrupted_export_leaves_the_old_repository(
    checkpoint: Path, old: Path, quick: None, monkeypatch: pytest.MonkeyPatch, failing: str, stage: str
) -> None:
    go_on = getattr(to_onnx, stage)

    def interrupted(*args: Any) -> None:
        if failing in repr(args):
            raise KeyboardInterrupt
        go_on(*args)

    monkeypatch.setattr(to_onnx, stage, interrupted)
    before = files_of(old)
    with pytest.raises(KeyboardInterrupt):
        export_repository(checkpoint, old, precision="int8")
    assert files_of(old) == before
    assert [path.name for path in old.parent.iterdir()] == ["served"], "something was left behind"


def test_new_repository_replaces_all_of_the_old(checkpoint: Path, old: Path, quick: None) -> None:
    (old / STEP / "1" / "model.plan").write_bytes(b"an engine of the old weights")
    (old / "README.md").write_text("ours", encoding="utf-8")
    export_repository(checkpoint, old, precision="int8", name="tiny")
    assert ModelContract.load(old).precision == "int8"
    assert not (old / STEP / "1" / "model.plan").exists()
    assert (old / "README.md").exists()


def test_calibration_of_the_checkpoint_goes_with_the_models(own_checkpoint: Path, old: Path, quick: None) -> None:
    (own_checkpoint / REFINEMENT_FILE).write_text("{}", encoding="utf-8")
    export_repository(own_checkpoint, old, precision="fp32")
    assert (old / REFINEMENT_FILE).read_text(encoding="utf-8") == "{}"
    (own_checkpoint / REFINEMENT_FILE).unlink()
    export_repository(own_checkpoint, old, precision="fp32")
    assert not (old / REFINEMENT_FILE).exists(), "that of other weights is left"
