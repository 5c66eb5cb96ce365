# SPDX-License-Identifier: Apache-2.0
"""The command that proves variants: its table, its exit code, and the photos it compares."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch", reason="needs the export extra (torch)")

from export.calibration import drawn_photos  # noqa: E402
from export.check_parity import main, parse_args, photos_for, table  # noqa: E402
from export.onnx_export import load_captioner  # noqa: E402
from export.parity import Parity  # noqa: E402
from export.to_onnx import export_repository  # noqa: E402
from tests.conftest import SHARED_DATA  # noqa: E402
from tests.fakes.exported_captioner import tiny_checkpoint, tiny_repository  # noqa: E402
from tests.fakes.tiny_captioner import TINY, save_tiny_captioner  # noqa: E402
from tests.fakes.tiny_onnx_models import CONTRACT  # noqa: E402
from training.prepare_data import is_validation  # noqa: E402

pytestmark = pytest.mark.torch


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["check_parity", *map(str, arguments)])
    return main()


def test_table_has_one_line_per_variant_and_host() -> None:
    rows = [
        Parity("fp32", "onnxruntime", 8, {"embedding": 1.23e-6}, {1: 1.0, 4: 1.0}),
        Parity("int8", "triton", 8, {}, {1: 0.995, 4: 0.875}, {1: {"bleu": 0.25}, 4: {"bleu": 0.7, "cider": -2}}),
    ]
    assert table(rows).splitlines() == [
        "precision  host         embedding  equal, 1 beams  equal, 4 beams  worst metric          verdict",
        "fp32       onnxruntime  1.2e-06    100.00%         100.00%         -                     passes",
        "int8       triton       -          99.50%          87.50%          -0.70 bleu (4 beams)  refused",
    ]


def test_queries_have_a_column_where_a_model_has_a_query_head() -> None:
    rows = [
        Parity("fp32", "onnxruntime", 8, {}, {1: 1.0}, queries_equal=1.0),
        Parity("int8", "triton", 8, {}, {1: 1.0}, queries_equal=0.98, query_falls={"right queries": 0.25}),
    ]
    assert table(rows).splitlines() == [
        "precision  host         equal, 1 beams  equal queries  worst metric         verdict",
        "fp32       onnxruntime  100.00%         100.00%        -                    passes",
        "int8       triton       100.00%         98.00%         -0.25 right queries  refused",
    ]


def test_exit_code_is_0_where_all_pass(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, models = tiny_checkpoint(tmp_path_factory), tiny_repository(tmp_path_factory, "fp32")
    assert run_main(monkeypatch, "--checkpoint", checkpoint, "--models", models, "--photos", "30") == 0
    output = capsys.readouterr().out.splitlines()
    assert output[0] == "tiny, 30 drawn samples, compared with PyTorch in FP32"
    assert output[2].split()[:2] == ["fp32", "onnxruntime"]
    assert output[2].split()[-4:] == ["100.00%", "100.00%", "-", "passes"]


def test_exit_code_is_1_where_one_is_refused_and_it_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Compared with a checkpoint that was trained on after the export."""
    model, tokenizer = load_captioner(tiny_checkpoint(tmp_path_factory))
    with torch.no_grad():
        model.encoder.embeddings.position_embeddings.mul_(1.5)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    models = tiny_repository(tmp_path_factory, "fp32")
    code = run_main(monkeypatch, "--checkpoint", tmp_path, "--models", models, "--photos", "10", "--beams", "2")
    assert code == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1].endswith("refused")
    assert "fp32 on onnxruntime: hidden_states differs by" in captured.err
    assert "% of captions are equal, wanted 100%" in captured.err


def test_optimum_is_a_row_of_the_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a stock ViT and GPT-2 with random weights, since that is the architecture it knows."""
    pytest.importorskip("optimum.onnxruntime", reason="OPTIMUM IS NOT COMPARED: install the extra peers")
    checkpoint, models = tmp_path / "stock", tmp_path / "models"
    # Long enough for the sequences that it traces the models with.
    save_tiny_captioner(checkpoint, dataclasses.replace(TINY, stem_channels=(), max_tokens=32))
    export_repository(checkpoint, models)
    code = run_main(monkeypatch, "--checkpoint", checkpoint, "--models", models, "--photos", "30", "--peers")
    ours, optimum = (line.split() for line in capsys.readouterr().out.splitlines()[2:])
    assert (ours[:2], optimum[:2]) == (["fp32", "onnxruntime"], ["fp32", "optimum"])
    assert (ours[-1], optimum[-4:], code) == ("passes", ["100.00%", "100.00%", "-", "passes"], 0)


def test_optimum_that_cannot_be_compared_is_no_failure_of_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    """It does not know the tiny captioner's encoder, and may not be installed."""
    checkpoint, models = tiny_checkpoint(tmp_path_factory), tiny_repository(tmp_path_factory, "fp32")
    run = ("--checkpoint", checkpoint, "--models", models, "--photos", "2", "--beams", "1")
    assert run_main(monkeypatch, *run, "--peers") == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 3
    assert "optimum: " in captured.err


def test_host_that_is_not_there_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, models = tiny_checkpoint(tmp_path_factory), tiny_repository(tmp_path_factory, "fp32")
    run = ("--checkpoint", checkpoint, "--models", models, "--photos", "2", "--beams", "1")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert run_main(monkeypatch, *run, "--hosts", "cuda") == 2
    assert "cuda: this ONNX Runtime has no CUDAExecutionProvider" in capsys.readouterr().err


def test_every_variant_is_compared_on_every_host() -> None:
    args = parse_args(["--models", "one", "two", "--hosts", "triton", "onnxruntime"])
    assert args.models == [Path("one"), Path("two")]
    assert args.hosts == ["triton", "onnxruntime"]
    assert args.beams == [1, 4]
    with pytest.raises(SystemExit):
        parse_args(["--hosts", "elsewhere"])


def test_photos_are_drawn_where_there_are_no_real_ones() -> None:
    photos = photos_for(CONTRACT, None, 6)
    assert photos.products is None
    assert photos.pixels.shape == (6, CONTRACT.image_height, CONTRACT.image_width, 3)
    assert not np.array_equal(photos.pixels, drawn_photos(CONTRACT, 6)), "INT8 is calibrated with these"


@pytest.mark.data
def test_real_photos_are_validation_ones() -> None:
    folder = SHARED_DATA / "fashion-product-images-small"
    if not folder.is_dir():
        pytest.skip("no ../shared/data")
    photos = photos_for(CONTRACT, folder, 6)
    assert photos.pixels.shape == (6, CONTRACT.image_height, CONTRACT.image_width, 3)
    assert photos.products is not None
    assert len(photos.products) == 6
    assert all(is_validation(product.listed_name or product.name) for product in photos.products)
