# SPDX-License-Identifier: Apache-2.0
"""Checkpoint -> ONNX: a model of random weights, exported and decoded by us, says what `generate()` says."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the export extra (torch)")

from captioner.model_contract import ContractError, ModelContract  # noqa: E402
from export.check_parity import compare, embedding_error, photos_for  # noqa: E402
from export.install_models import config_pbtxt, install  # noqa: E402
from export.onnx_captioner import OnnxCaptioner  # noqa: E402
from export.to_onnx import contract_of, load_captioner  # noqa: E402
from search_gateway.decoding import DecodingOptions  # noqa: E402
from search_gateway.server import model_fingerprint  # noqa: E402
from tests.conftest import MODELS, ROOT, SHARED_DATA  # noqa: E402
from training.caption_dataset import train_tokenizer  # noqa: E402
from training.new_captioner import complete, random_captioner  # noqa: E402
from training.presets import SMALL  # noqa: E402

pytestmark = pytest.mark.torch

TINY = dataclasses.replace(
    SMALL, name="tiny", image_height=16, image_width=16, patch_size=4, stem_channels=(4, 8), hidden_size=32,
    encoder_layers=1, decoder_layers=2, num_heads=2, vocab_size=300, max_tokens=7,
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(checkpoint, model repository) of a small model whose random weights are large, so that its words vary."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = train_tokenizer(["blue shirt", "red dress", "green shoes of the sea"] * 3, TINY.vocab_size)
    torch.manual_seed(5)
    model = random_captioner(TINY, tokenizer)
    complete(model, tokenizer, TINY)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    model.save_pretrained(folder / "checkpoint")
    tokenizer.save_pretrained(folder / "checkpoint")
    install(folder / "checkpoint", folder / "models", "tiny")
    return folder / "checkpoint", folder / "models"


def captioner_of(models: Path) -> OnnxCaptioner:
    contract = ModelContract.load(models)
    return OnnxCaptioner({s.name: models / s.name / "1" / "model.onnx" for s in contract.models}, contract, threads=1)


@pytest.mark.parametrize("beams", [1, 2, 4, 8])
def test_exported_models_say_what_generate_says(tiny: tuple[Path, Path], beams: int) -> None:
    checkpoint, models = tiny
    model, _ = load_captioner(checkpoint)
    pixels = np.random.default_rng(1).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    for length_penalty in (0.5, 1.0, 2.0):
        options = DecodingOptions(num_beams=beams, length_penalty=length_penalty, max_tokens=TINY.max_tokens)
        parity = compare(model, captioner_of(models), pixels, options)
        assert parity.different == ()


def test_embedding_is_normalised_and_equals_pytorch(tiny: tuple[Path, Path]) -> None:
    checkpoint, models = tiny
    model, _ = load_captioner(checkpoint)
    pixels = np.random.default_rng(2).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    captioner = captioner_of(models)
    assert embedding_error(model, captioner, pixels) < 1e-5
    assert np.linalg.norm(captioner.encode(pixels)[1], axis=1) == pytest.approx(1, abs=1e-5)


def test_captions_do_not_depend_on_their_company(tiny: tuple[Path, Path]) -> None:
    captioner = captioner_of(tiny[1])
    pixels = np.random.default_rng(3).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
    options = DecodingOptions(num_beams=3, max_tokens=TINY.max_tokens)
    together = captioner.caption(pixels, options)
    alone = [captioner.caption(pixels[i : i + 1], options)[0] for i in range(len(pixels))]
    words = [[[token.token for token in one[0].tokens] for one in group] for group in (together, alone)]
    assert words[0] == words[1]


def test_contract_comes_from_the_configuration(tiny: tuple[Path, Path]) -> None:
    model, tokenizer = load_captioner(tiny[0])
    contract = contract_of(model, "tiny")
    assert (contract.image_height, contract.image_width, contract.fit) == (16, 16, "pad")
    assert (contract.num_positions, contract.hidden_size) == (17, 32)
    assert contract.bos_token_id == tokenizer.bos_token_id
    model.config.decoder_start_token_id = None
    with pytest.raises(ContractError, match="decoder_start_token_id"):
        contract_of(model, "tiny")


def test_shipped_configs_are_those_the_export_writes() -> None:
    for spec in ModelContract.load(MODELS).models:
        assert (MODELS / spec.name / "config.pbtxt").read_text(encoding="utf-8") == config_pbtxt(spec)


def test_contract_names_the_weights_it_was_made_from(tiny: tuple[Path, Path]) -> None:
    """A model trained again under the same name must not be compared with the embeddings of the old one."""
    for checkpoint, models in (tiny, (ROOT / "checkpoints" / "fashion-small", MODELS)):
        digest = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
        contract = ModelContract.load(models)
        assert contract.weights == digest[:16]
        other = dataclasses.replace(contract, weights="0" * 16)
        assert model_fingerprint(contract) != model_fingerprint(other)


def test_shipped_models_equal_the_shipped_checkpoint() -> None:
    """On our own drawings; on real photos where they are at hand."""
    checkpoint = ROOT / "checkpoints" / "fashion-small"
    model, _ = load_captioner(checkpoint)
    captioner = captioner_of(MODELS)
    folder = SHARED_DATA / "fashion-product-images-small"
    pixels = photos_for(captioner.contract, folder if folder.is_dir() else None, 40)
    for beams in (1, 4):
        options = DecodingOptions(num_beams=beams, max_tokens=captioner.contract.max_tokens)
        assert compare(model, captioner, pixels, options).different == ()
