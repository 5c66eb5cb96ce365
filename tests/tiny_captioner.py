# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of a tiny captioner whose words differ from photo to photo. Torch must be there."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from training.caption_dataset import train_tokenizer
from training.new_captioner import complete, random_captioner
from training.presets import SMALL

TINY = dataclasses.replace(
    SMALL, name="tiny", image_height=16, image_width=16, patch_size=4, stem_channels=(4, 8), hidden_size=32,
    encoder_layers=1, decoder_layers=2, num_heads=2, vocab_size=300, max_tokens=7,
)  # fmt: skip


def save_tiny_captioner(folder: Path) -> Path:
    """Random weights, so large that the photo matters; the same ones every time."""
    tokenizer = train_tokenizer(["blue shirt", "red dress", "green shoes of the sea"] * 3, TINY.vocab_size)
    torch.manual_seed(5)
    model = random_captioner(TINY, tokenizer)
    complete(model, tokenizer, TINY)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
