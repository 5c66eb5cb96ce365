# SPDX-License-Identifier: Apache-2.0
"""Checkpoints, photos and exports of the captioning benchmark: the same every time, made once, never half."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the export extra (torch)")

from benchmarks.captioning.models import (  # noqa: E402
    _make_once,
    count_parameters,
    make_photos,
    our_models,
    stand_in_tokenizer,
)
from captioner.caption_tokenizer import CaptionTokenizer  # noqa: E402
from captioner.model_contract import ModelContract  # noqa: E402
from captioner.preprocessing import decode_photo  # noqa: E402
from export import to_onnx  # noqa: E402
from export.onnx_export import contract_of, load_captioner  # noqa: E402
from tests.fakes.tiny_captioner import TINY, save_tiny_captioner  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_captioner(tmp_path_factory.mktemp("tiny"))


def test_stand_in_tokenizer_has_a_word_for_every_token(tmp_path: Path) -> None:
    stand_in_tokenizer(1000).save_pretrained(tmp_path)
    tokenizer = CaptionTokenizer(tmp_path)
    assert tokenizer.vocab_size == 1000
    assert tokenizer.text([300, 998, 999, 300]) == "w300 w998 w300"  # the last token is the special one


def test_photos_are_what_their_files_decode_to(checkpoint: Path) -> None:
    photos = make_photos(checkpoint, 3, None)
    assert photos.pixels.shape == (3, 16, 16, 3)
    again = [decode_photo(file, height=16, width=16, fit="pad") for file in photos.files]
    assert np.array_equal(photos.pixels, np.stack(again))
    batch = photos.batch(2, 2)
    assert batch.files == [photos.files[2], photos.files[0]]
    assert np.array_equal(batch.pixels, photos.pixels[[2, 0]])


def test_models_are_made_once_of_the_same(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def export(folder: Path, output: Path, *, precision: str, name: str, calibration: object) -> None:
        assert (name, calibration) == (checkpoint.name, None)
        assert load_captioner(folder)[0].num_parameters() == load_captioner(checkpoint)[0].num_parameters()
        made.append(precision)
        contract_of(load_captioner(folder)[0], name, precision=precision).save(output)  # type: ignore[arg-type]

    monkeypatch.setattr(to_onnx, "export_repository", export)
    for _ in range(2):
        our_models(checkpoint, tmp_path / "models", "fp32", None, endless=True)
        contract = ModelContract.load(tmp_path / "models")
        assert contract.eos_token_id == contract.vocab_size  # no token has this id
    our_models(checkpoint, tmp_path / "models", "fp32", None, endless=False)
    assert ModelContract.load(tmp_path / "models").eos_token_id < contract.vocab_size
    our_models(checkpoint, tmp_path / "models", "int8", None, endless=False)
    assert made == ["fp32", "fp32", "int8"]


def test_parameters_are_counted_from_the_header(checkpoint: Path) -> None:
    model, _ = load_captioner(checkpoint)
    buffers = sum(buffer.numel() for name, buffer in model.named_buffers() if name in model.state_dict())
    assert count_parameters(checkpoint) == sum(weights.numel() for weights in model.parameters()) + buffers
    assert TINY.vocab_size * TINY.hidden_size < count_parameters(checkpoint)


def test_what_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        _make_once(tmp_path / "models", {"of": 1}, fail)
    assert [*tmp_path.iterdir()] == []
