# SPDX-License-Identifier: Apache-2.0
"""A captioner with a query head in every precision: a third output, in FP32, with its list of queries beside it."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

torch = pytest.importorskip("torch", reason="needs the export extra (torch)")

from transformers import VisionEncoderDecoderModel  # noqa: E402

from captioner.model_contract import PRECISIONS, ContractError, ModelContract, Precision  # noqa: E402
from captioner.photo_confidence import PHOTO_CONFIDENCE_FILE, ConfidenceModel  # noqa: E402
from captioner.query_classes import QUERY_CLASSES_FILE, load_query_classes  # noqa: E402
from captioner.title_reader import TITLE_READER_FILE, TitleReader  # noqa: E402
from export import to_onnx  # noqa: E402
from export.caption_graphs import EncoderGraph, to_half  # noqa: E402
from export.check_parity import Photos, Reference, measure  # noqa: E402
from export.onnx_captioner import OnnxCaptioner  # noqa: E402
from export.onnx_export import contract_of, load_captioner  # noqa: E402
from export.parity import MAX_ERROR, tensor_errors  # noqa: E402
from export.to_onnx import export_repository  # noqa: E402
from tests.conftest import MODELS  # noqa: E402
from tests.fakes.exported_captioner import HALF_TOKENS, export_graphs_once, random_photos, tiny_checkpoint  # noqa: E402
from tests.fakes.tiny_captioner import QUERIES, add_query_head, save_queries  # noqa: E402
from training.caption_model import embedding_of, normalise  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> VisionEncoderDecoderModel:
    model, _ = load_captioner(tiny_checkpoint(tmp_path_factory))
    add_query_head(model)
    return model


@pytest.fixture
def checkpoint(
    model: VisionEncoderDecoderModel, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:  # fmt: skip
    """One that is read as `model`."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for path in tiny_checkpoint(tmp_path_factory).iterdir():
        (folder / path.name).symlink_to(path)
    save_queries(folder)
    monkeypatch.setattr(to_onnx, "load_captioner", lambda _: (model, None))
    export_graphs_once(tmp_path_factory, monkeypatch)
    return folder


@torch.no_grad()
def expected(model: VisionEncoderDecoderModel, pixels: np.ndarray) -> np.ndarray:
    photo = normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2).float())
    hidden = model.encoder(photo).last_hidden_state
    return model.encoder.query_head(embedding_of(hidden)).log_softmax(-1).numpy()


def export_in(precision: Precision, checkpoint: Path, folder: Path) -> None:
    tokens = HALF_TOKENS if precision == "fp16" else None
    export_repository(checkpoint, folder, precision=precision, name="tiny", tokens_per_call=tokens)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_names_the_queries_of_the_checkpoint(
    model: VisionEncoderDecoderModel, checkpoint: Path, tmp_path: Path, precision: Precision
) -> None:
    export_in(precision, checkpoint, tmp_path / "models")
    contract = ModelContract.load(tmp_path / "models")
    assert contract.num_queries == len(QUERIES)
    assert load_query_classes(tmp_path / "models", contract.num_queries) == QUERIES
    pixels = random_photos(12, 1)
    wanted = expected(model, pixels)
    assert len(set(wanted.argmax(-1))) > 1, "all photos are named the same: the test shows little"
    captioner = OnnxCaptioner(tmp_path / "models", threads=1)
    got = captioner.query_logprobs(pixels)
    assert got.dtype == np.float32
    assert np.exp(got).sum(-1) == pytest.approx(np.ones(12), abs=1e-5)
    likely = wanted > np.log(0.01)
    limit = {"fp32": 1e-3, "fp16": 0.1, "int8": 2.0}[precision]
    assert np.abs(got - wanted)[likely].max() < limit
    assert [output.shape for output in captioner.encode(pixels)] == [(12, 17, 32), (12, 32)]
    errors = tensor_errors(model, captioner, pixels)
    assert errors["query_logprobs"] < MAX_ERROR[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_of_the_head_are_the_checkpoints_own(
    model: VisionEncoderDecoderModel, checkpoint: Path, tmp_path: Path, precision: Precision
) -> None:
    export_in(precision, checkpoint, tmp_path / "models")
    graph = onnx.load(tmp_path / "models" / "vit_encoder" / "1" / "model.onnx").graph
    weights = model.encoder.query_head.weight.detach().numpy()
    stored = [numpy_helper.to_array(one) for one in graph.initializer]
    assert any(
        one.dtype == np.float32 and one.shape in (weights.shape, weights.T.shape)
        and (np.array_equal(one, weights) or np.array_equal(one, weights.T))
        for one in stored
    )  # fmt: skip


def test_parity_compares_the_likeliest_queries(
    model: VisionEncoderDecoderModel, checkpoint: Path, tmp_path: Path
) -> None:
    export_repository(checkpoint, tmp_path / "models", name="tiny")
    reference = Reference(model, Photos(random_photos(40, 2), None), {})
    (row,) = measure(tmp_path / "models", reference, ["onnxruntime"])
    assert (row.queries_equal, row.query_falls, row.problems) == (1.0, None, [])
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.encoder.query_head.bias[3] += 2
    (row,) = measure(tmp_path / "models", Reference(other, reference.photos, {}), ["onnxruntime"])
    assert row.queries_equal is not None
    assert row.queries_equal < 0.95
    assert any("of likeliest queries are equal, wanted 100%" in problem for problem in row.problems)


def test_model_that_loses_its_head_loses_its_list(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_repository(checkpoint, tmp_path / "models")
    assert (tmp_path / "models" / QUERY_CLASSES_FILE).exists()
    monkeypatch.setattr(to_onnx, "load_captioner", load_captioner)
    export_repository(checkpoint, tmp_path / "models")
    assert ModelContract.load(tmp_path / "models").num_queries == 0
    assert not (tmp_path / "models" / QUERY_CLASSES_FILE).exists()


def test_confidence_goes_with_the_models_it_was_fitted_for(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contract = export_repository(checkpoint, tmp_path / "models")
    size = contract.hidden_size
    fitted = ConfidenceModel(
        weights=contract.weights,
        mean=np.zeros(size, np.float32),
        whitening=np.eye(size, dtype=np.float32),
        bias=0.0,
        head_weight=1.0,
        distance_weight=0.0,
    )
    fitted.save(checkpoint)
    export_repository(checkpoint, tmp_path / "models")
    assert ConfidenceModel.load(tmp_path / "models", contract) is not None
    replace(fitted, weights="other").save(checkpoint)
    export_repository(checkpoint, tmp_path / "models")
    assert not (tmp_path / "models" / PHOTO_CONFIDENCE_FILE).exists()
    assert "photo_confidence.json is left out" in capsys.readouterr().err


def test_title_reader_goes_with_the_models(checkpoint: Path, tmp_path: Path) -> None:
    models, file = tmp_path / "models", checkpoint / TITLE_READER_FILE
    shutil.copyfile(MODELS / TITLE_READER_FILE, file)
    assert export_repository(checkpoint, models).title_reader == ModelContract.load(MODELS).title_reader
    file.write_bytes(b"PK")
    with pytest.raises(ContractError, match=f"{TITLE_READER_FILE} cannot be used"):
        export_repository(checkpoint, models)
    assert TitleReader.load(models) is not None  # the models are left as they were
    file.unlink()
    assert export_repository(checkpoint, models).title_reader == ""
    assert not (models / TITLE_READER_FILE).exists()


def test_queries_that_do_not_fit_are_told_before_anything_is_written(checkpoint: Path, tmp_path: Path) -> None:
    save_queries(checkpoint, QUERIES[:-1])
    with pytest.raises(ContractError, match="has 6 queries, the model 7"):
        export_repository(checkpoint, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_config_must_agree_with_the_head(tmp_path_factory: pytest.TempPathFactory) -> None:
    model, _ = load_captioner(tiny_checkpoint(tmp_path_factory))
    model.config.encoder.num_queries = 7
    with pytest.raises(ContractError, match="config says num_queries 7, but its encoder has no query head"):
        contract_of(model, "tiny")
    add_query_head(model)
    model.config.encoder.num_queries = 6
    with pytest.raises(ContractError, match="num_queries 6, but its encoder has a query head of 7 queries"):
        contract_of(model, "tiny")


@torch.no_grad()
def test_half_keeps_the_head_as_it_is(model: VisionEncoderDecoderModel) -> None:
    graph = EncoderGraph(model).eval()
    half = to_half(graph)
    assert torch.equal(half.query_head.weight, graph.query_head.weight)
    pixels = torch.from_numpy(random_photos(4, 5))
    wanted, got = graph(pixels)[2], half(pixels)[2]
    assert got.dtype == torch.float32
    assert (got - wanted).abs().max() < 0.5
