# SPDX-License-Identifier: Apache-2.0
"""The projection for a T4: its counts against torch's and the checkpoint's own, its document against its output."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from export import roofline
from export.roofline import (
    FASHION_SMALL,
    PEAK,
    T4,
    VIT_BASE_GPT2,
    Attainment,
    encoder_work,
    prefill_work,
    project,
    step_work,
)
from tests.conftest import MODELS, ROOT

CHECKPOINT = ROOT / "checkpoints" / "fashion-small"


def test_sizes_of_the_paper_are_those_of_239_million_parameters() -> None:
    assert round(VIT_BASE_GPT2.parameters / 1e6) == 239


def test_sizes_of_fashion_small_are_those_of_its_contract_and_configuration() -> None:
    contract = json.loads((MODELS / "model_contract.json").read_text(encoding="utf-8"))
    for name in (
        "image_height",
        "image_width",
        "num_positions",
        "hidden_size",
        "num_layers",
        "max_tokens",
        "vocab_size",
    ):
        assert getattr(FASHION_SMALL, name) == contract[name], name
    config = json.loads((CHECKPOINT / "config.json").read_text(encoding="utf-8"))
    assert list(FASHION_SMALL.stem_channels) == config["encoder"]["stem_channels"]
    assert FASHION_SMALL.encoder_layers == config["encoder"]["num_hidden_layers"]
    assert FASHION_SMALL.encoder_mlp == config["encoder"]["intermediate_size"]
    assert FASHION_SMALL.decoder_positions == config["decoder"]["n_positions"]


def test_parameters_of_fashion_small_are_those_in_its_file() -> None:
    with (CHECKPOINT / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    shapes = {
        name: tensor["shape"]
        for name, tensor in header.items()
        if name != "__metadata__" and not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    }
    total = 0
    for name, shape in shapes.items():
        if name != "decoder.lm_head.weight":  # is the word embeddings
            count = 1
            for length in shape:
                count *= length
            total += count
    assert total == FASHION_SMALL.parameters


@pytest.mark.torch
def test_counts_are_those_of_torch() -> None:
    """On torch's meta device: shapes and operations without numbers."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from torch.utils.flop_counter import FlopCounterMode

    size = VIT_BASE_GPT2
    with torch.device("meta"):
        encoder = transformers.ViTModel(transformers.ViTConfig(), add_pooling_layer=False).eval()
        decoder = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(add_cross_attention=True, is_decoder=True, attn_implementation="eager")
        ).eval()
        pixels = torch.zeros(2, 3, 224, 224)
        counted = sum(one.numel() for one in encoder.parameters())
        assert counted == size.encoder_parameters
        assert counted + sum(one.numel() for one in decoder.parameters()) == size.parameters
        with FlopCounterMode(display=False) as flops:
            encoder(pixels)
        assert flops.get_total_flops() == pytest.approx(encoder_work(size, 2).flops, rel=1e-3)
        # A step of one token with an empty cache, less the keys and values of the photo, which torch makes here too.
        with FlopCounterMode(display=False) as flops:
            decoder(
                torch.zeros(3, 1, dtype=torch.long), encoder_hidden_states=torch.zeros(3, size.num_positions, 768),
                use_cache=False,
            )  # fmt: skip
        step = step_work(size, 3, 1).flops - 3 * 2 * size.num_layers * 2 * 768 * (size.max_tokens - 1)
        assert flops.get_total_flops() == pytest.approx(step + prefill_work(size, 3).flops, rel=1e-3)


def test_caches_are_as_the_contract_shapes_them() -> None:
    assert VIT_BASE_GPT2.self_cache_bytes == 12 * 2 * 12 * 32 * 64 * 2
    assert VIT_BASE_GPT2.cross_cache_bytes == 12 * 2 * 12 * 197 * 64 * 2


def test_step_reads_weights_once_and_shares_cross_caches_among_beams() -> None:
    one, four = step_work(VIT_BASE_GPT2, 1, 1), step_work(VIT_BASE_GPT2, 1, 4)
    assert one.weight_bytes == four.weight_bytes == step_work(VIT_BASE_GPT2, 32, 4).weight_bytes
    assert four.other_bytes < 2 * one.other_bytes
    assert four.flops == 4 * one.flops


def test_nothing_is_faster_than_the_peaks() -> None:
    for photos in (1, 32):
        for beams in (1, 4):
            best = project(VIT_BASE_GPT2, photos, beams, 32, attained=PEAK)
            real = project(VIT_BASE_GPT2, photos, beams, 32)
            assert best.caption_seconds < real.caption_seconds
            assert best.captions_per_second > real.captions_per_second


# Photos per second by batch size, from the table that `Attainment` cites.
PUBLISHED_ENCODER = {1: 1 / 3.43e-3, 8: 8 / 14.46e-3, 16: 16 / 28.77e-3, 32: 32 / 57.22e-3}


@pytest.mark.parametrize("photos", sorted(PUBLISHED_ENCODER))
def test_expected_encoder_is_as_fast_as_the_published_one(photos: int) -> None:
    """Two numbers are taken from that table; the others must follow."""
    expected = photos / encoder_work(VIT_BASE_GPT2, photos).seconds(T4, Attainment())
    assert expected == pytest.approx(PUBLISHED_ENCODER[photos], rel=0.02)


def test_limits_are_those_the_document_tells() -> None:
    real = Attainment()
    assert encoder_work(VIT_BASE_GPT2, 8).limit(T4, real) == "compute"
    for photos in (1, 8, 32):
        assert step_work(VIT_BASE_GPT2, photos, 4).limit(T4, real) == "memory"
        assert step_work(FASHION_SMALL, photos, 4).limit(T4, real) == "launches"


@pytest.mark.parametrize(("name", "steps"), [("full", 32), ("small", 24)])
def test_document_shows_the_output(name: str, steps: int, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["roofline", "--size", name])
    roofline.main()
    output = capsys.readouterr().out
    assert f"a caption is {steps} steps" in output
    document = (ROOT / "docs" / "t4-roofline.md").read_text(encoding="utf-8")
    assert [line for line in output.splitlines() if line not in document] == []


@pytest.mark.parametrize("arguments", [["--batches", "0"], ["--steps", "33"], ["--steps", "0"], ["--beams", "-1"]])
def test_impossible_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        roofline.parse_args(arguments)
    assert end.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_knows_nothing_of_torch() -> None:
    text = Path(roofline.__file__).read_text(encoding="utf-8")
    assert "import torch" not in text
    assert "import numpy" not in text
