# SPDX-License-Identifier: Apache-2.0
"""FLOPs and bytes against counts by hand."""

from __future__ import annotations

import json

import pytest

from benchmarks.captioning.costs import CaptionerShape, Cost, encoder_cost, least_seconds, prefill_cost, step_cost
from tests.conftest import ROOT
from training.lite0_shapes import convolutions

FULL = CaptionerShape(
    image_height=224, image_width=224, patch_size=16, channels=3, stem_channels=(), encoder_width=768,
    encoder_layers=12, encoder_inner=3072, width=768, layers=12, inner=3072, vocab_size=50257,
)  # fmt: skip


def test_encoder_of_full_size() -> None:
    patches = 2 * 196 * (16 * 16 * 3) * 768
    projections = 2 * 197 * 4 * 768 * 768
    attention = 2 * (2 * 197 * 197 * 768)
    mlp = 2 * 197 * (768 * 3072 + 3072 * 768)
    assert encoder_cost(FULL, 1, "fp32").flops == patches + 12 * (projections + attention + mlp)
    # Published for ViT-B/16: 17.56 G multiply-adds, with 0.77 M of a classifier that we have not.
    assert encoder_cost(FULL, 1, "fp32").flops / 2 == pytest.approx(17.56e9, rel=1e-3)
    assert encoder_cost(FULL, 8, "int8").flops == 8 * encoder_cost(FULL, 1, "fp32").flops
    weights = 16 * 16 * 3 * 768 + 12 * (4 * 768 * 768 + 2 * 768 * 3072)
    assert encoder_cost(FULL, 8, "int8").bytes_read == weights + 8 * 224 * 224 * 3


def test_prefill_of_full_size() -> None:
    weights = 12 * 2 * 768 * 768  # a key and a value projection per layer
    assert prefill_cost(FULL, 2, "fp16") == Cost(2 * 2 * 197 * weights, 2 * weights + 2 * 2 * 197 * 768)


def test_step_of_full_size() -> None:
    layer = 4 * 768 * 768 + 2 * 768 * 768 + 2 * 768 * 3072
    weights = 12 * layer + 768 * 50257
    one = step_cost(FULL, 1, 1, 5, "fp32")
    # Scores and weighted values: over 6 tokens (5 before and itself) and over 197 positions.
    assert one.flops == 2 * weights + 12 * 4 * 768 * (6 + 197)
    assert one.bytes_read == 4 * weights + 4 * 12 * 2 * 768 * (5 + 197)
    many = step_cost(FULL, 8, 4, 5, "int8")
    assert many.flops == 32 * one.flops
    # Weights once, self-attention's cache per beam, cross-attention's per photo; caches stay FP32.
    assert many.bytes_read == weights + 4 * 12 * 2 * 768 * (32 * 5 + 8 * 197)


def test_stem_of_the_small_model() -> None:
    config = json.loads((ROOT / "checkpoints" / "fashion-small" / "config.json").read_text(encoding="utf-8"))
    shape = CaptionerShape.of(config)
    assert (shape.patches, shape.positions) == (30, 31)
    stages = 48 * 36 * 9 * 3 * 24 + 24 * 18 * 9 * 24 * 48 + 12 * 9 * 9 * 48 * 96 + 6 * 5 * 9 * 96 * 192
    trunk = sum(outputs * products * positions for outputs, products, positions in convolutions(192, 144))
    projection = 30 * (320 + 192) * 256
    layers = 2 * (31 * (4 * 256 * 256 + 2 * 256 * 1024) + 2 * 31 * 31 * 256)
    assert encoder_cost(shape, 1, "fp32").flops == 2 * (trunk + stages + projection + layers)
    # EfficientNet-Lite0 has 407 million products at 224 x 224, its last convolution and classifier included.
    at_224 = sum(outputs * products * positions for outputs, products, positions in convolutions(224, 224))
    assert at_224 + 7 * 7 * 320 * 1280 + 1280 * 1000 == pytest.approx(407e6, rel=0.06)


def test_least_time_names_its_limit() -> None:
    assert least_seconds(Cost(100, 10), 50, 10) == (2.0, "compute")
    assert least_seconds(Cost(100, 10), 500, 10) == (1.0, "memory")
