# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of a tiny captioner whose words differ from photo to photo; it needs torch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from torch import nn
from transformers import VisionEncoderDecoderModel

from captioner.query_classes import QUERY_CLASSES_FILE
from training.caption_dataset import train_tokenizer
from training.caption_model import embedding_of, normalise
from training.new_captioner import complete, random_captioner
from training.presets import SCRATCH, Preset

TINY = dataclasses.replace(
    SCRATCH, name="tiny", image_height=16, image_width=16, patch_size=4, stem_channels=(4, 8), hidden_size=32,
    encoder_layers=1, decoder_layers=2, num_heads=2, vocab_size=300, max_tokens=7,
)  # fmt: skip

QUERIES = ("", "blue shirt", "red dress", "green shoes", "sea", "the sea", "blue dress")


@torch.no_grad()
def add_query_head(model: VisionEncoderDecoderModel, queries: tuple[str, ...] = QUERIES) -> None:
    """Add a query head with random weights, scaled so that the most likely query differs from photo to photo."""
    height, width = model.config.encoder.image_size
    generator = torch.Generator().manual_seed(6)
    patches = 255 * torch.rand(64, 3, height // 4, width // 4, generator=generator)
    pixels = patches.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    embeddings = embedding_of(model.encoder(normalise(pixels)).last_hidden_state)
    head = nn.Linear(embeddings.shape[1], len(queries))
    weight = torch.randn(head.weight.shape, generator=generator)
    logits = embeddings @ weight.T
    head.weight.copy_(2 * weight / logits.std(dim=0)[:, None])
    head.bias.copy_(-2 * logits.mean(dim=0) / logits.std(dim=0))
    model.encoder.query_head = head.eval()
    model.config.encoder.num_queries = len(queries)


def save_queries(folder: Path, queries: tuple[str, ...] = QUERIES) -> None:
    """Write the list of queries beside a checkpoint."""
    (folder / QUERY_CLASSES_FILE).write_text(json.dumps(queries), encoding="utf-8")


def save_tiny_captioner(folder: Path, preset: Preset = TINY) -> Path:
    """Save a captioner with random weights that are large enough for the photo to matter; always the same ones."""
    tokenizer = train_tokenizer(["blue shirt", "red dress", "green shoes of the sea"] * 3, preset.vocab_size)
    torch.manual_seed(5)
    model = random_captioner(preset, tokenizer)
    complete(model, tokenizer, preset)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
