# SPDX-License-Identifier: Apache-2.0
"""Which part moves in which epoch, and how fast: what the paper says, for every parameter of both presets' shapes."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest

torch = pytest.importorskip("torch", reason="needs the training extra (torch)")
pytest.importorskip("matplotlib", reason="needs the training extra (matplotlib)")

from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig  # noqa: E402

from tests.fakes.tiny_training import TINY, TINY_HYBRID, TINY_PAPER  # noqa: E402
from tests.fakes.tiny_training import one_thread as one_thread  # noqa: E402
from training.caption_dataset import train_tokenizer  # noqa: E402
from training.caption_model import CaptionerInTraining  # noqa: E402
from training.new_captioner import random_captioner  # noqa: E402
from training.presets import EVERYTHING, PAPER, PRESETS, SMALL, Part, Preset  # noqa: E402
from training.schedule import apply_stage, learning_rate, part_of, parts_that_move  # noqa: E402

pytestmark = pytest.mark.torch


def model_of(preset: Preset) -> CaptionerInTraining:
    captioner = random_captioner(preset, train_tokenizer(["blue shirt"], preset.vocab_size))
    return CaptionerInTraining(captioner, {"colour": 3})


def parts_of(model: CaptionerInTraining) -> dict[str, Part | None]:
    return {name: part_of(name) for name, _ in model.named_parameters()}


@pytest.mark.parametrize("preset", [TINY, TINY_PAPER, TINY_HYBRID], ids=lambda preset: preset.name)
def test_every_parameter_belongs_to_the_part_whose_module_holds_it(preset: Preset) -> None:
    model = model_of(preset)
    captioner = model.captioner
    cross = {
        id(parameter)
        for block in captioner.decoder.transformer.h
        for module in (block.crossattention, block.ln_cross_attn)
        for parameter in module.parameters()
    }
    pooler = captioner.encoder.pooler
    expected: dict[str, Part | None] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in cross:
            expected[name] = "cross_attention"
        elif any(parameter is other for other in captioner.decoder.parameters()):
            expected[name] = "decoder"
        elif pooler is not None and any(parameter is other for other in pooler.parameters()):
            expected[name] = None
        elif ".trunk." in name:
            expected[name] = "trunk"
        else:
            expected[name] = "encoder"  # and the heads that teach it
    assert parts_of(model) == expected
    assert {part for part in expected.values() if part} == set(get_args(Part)) - (
        {"trunk"} - {preset.trunk and "trunk"}
    )
    assert (None in expected.values()) == (pooler is not None) == (not preset.stem_channels)


def test_projection_between_parts_of_two_widths_belongs_to_the_cross_attention() -> None:
    shape = {"image_size": 16, "patch_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder = ViTConfig(hidden_size=8, intermediate_size=8, **shape)
    decoder = GPT2Config(vocab_size=50, n_positions=8, n_embd=12, n_layer=1, n_head=2, add_cross_attention=True)
    captioner = VisionEncoderDecoderModel(VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder))
    found = {name: part for name, part in parts_of(CaptionerInTraining(captioner, {})).items() if "enc_to_dec" in name}
    assert found == {f"captioner.enc_to_dec_proj.{name}": "cross_attention" for name in ("weight", "bias")}


@pytest.mark.parametrize(
    "moving", [{"cross_attention"}, {"cross_attention", "decoder"}, {"cross_attention", "decoder", "encoder"}, set()]
)
def test_stage_lets_its_parts_be_trained_and_no_other(moving: set[Part]) -> None:
    model = model_of(TINY_PAPER)
    for before in (EVERYTHING, ()):  # whatever was let go or held before
        apply_stage(model, before)
        trained = apply_stage(model, moving)
        parts = parts_of(model)
        names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert names == {name for name, part in parts.items() if part in moving}
        assert {id(p) for p in trained} == {id(p) for name, p in model.named_parameters() if name in names}
        assert len(trained) == len(names)


def test_part_that_is_none_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"unknown parts \['head'\]: the parts are cross_attention, decoder, encoder, trunk"
    ):
        apply_stage(model_of(TINY), ["head"])  # type: ignore[list-item]


def test_paper_has_three_stages_and_stays_in_the_third() -> None:
    assert [sorted(parts_that_move(PAPER, epoch)) for epoch in range(PAPER.epochs)] == [
        ["cross_attention"],
        ["cross_attention", "decoder"],
        *[["cross_attention", "decoder", "encoder"]] * (PAPER.epochs - 2),
    ]
    assert PAPER.epochs == 5


def test_small_moves_the_trunk_from_the_second_epoch_on() -> None:
    assert parts_that_move(SMALL, 0) == frozenset(get_args(Part)) - {"trunk"}
    assert {parts_that_move(SMALL, epoch) for epoch in range(1, SMALL.epochs)} == {frozenset(get_args(Part))}


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_learning_rate_rises_and_falls_to_nothing(preset: Preset) -> None:
    rates = [learning_rate(step, 200, preset) for step in range(200)]
    peak = rates.index(max(rates))
    assert peak == int(200 * preset.warmup_share) - 1
    assert max(rates) == pytest.approx(preset.peak_learning_rate)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak + 1 :] == sorted(rates[peak + 1 :], reverse=True)
    assert 0 < rates[0] < preset.peak_learning_rate / 4
    assert 0 < rates[-1] < preset.peak_learning_rate / 1000
    # A cosine is at half its height in the middle of its way.
    middle = (peak + 1 + 200) // 2
    assert rates[middle] == pytest.approx(preset.peak_learning_rate / 2, rel=0.02)


def test_run_without_a_warm_up_begins_at_the_peak() -> None:
    preset = dataclasses.replace(SMALL, warmup_share=0.0)
    rates = [learning_rate(step, 10, preset) for step in range(10)]
    assert rates[:2] == [preset.peak_learning_rate] * 2
    assert rates[2] < rates[1]
    assert learning_rate(0, 1, preset) == preset.peak_learning_rate
