# SPDX-License-Identifier: Apache-2.0
"""Tiny presets, drawn photos and complete runs for the tests of training; it needs torch."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast, VisionEncoderDecoderModel

from drawings.draw_samples import training_samples
from training import checkpoint
from training.new_captioner import new_captioner
from training.prepare_data import Product, ProductSet
from training.presets import PAPER, SCRATCH, SMALL, Preset
from training.processes import Processes
from training.train import run
from training.trainer import Trainer

Data = tuple[ProductSet, ProductSet]  # training, validation

TINY = dataclasses.replace(
    SCRATCH, name="tiny", image_height=32, image_width=24, stem_channels=(4, 8, 8), hidden_size=16, encoder_layers=1,
    decoder_layers=1, num_heads=2, vocab_size=300, epochs=2, batch_size=8, sketches=0,
)  # fmt: skip
# As SMALL in all that has to do with what it learns from; two rows and two columns of positions.
TINY_HYBRID = dataclasses.replace(
    SMALL, name="tiny-hybrid", image_height=64, image_width=48, stem_channels=(4, 4, 8, 8), hidden_size=16,
    encoder_layers=1, decoder_layers=1, num_heads=2, vocab_size=300, epochs=2, batch_size=8, sketches=0,
    no_product_pictures=10, phone_repeats=2, precision="bf16",
)  # fmt: skip
# As PAPER in all that has to do with its parts and stages; FP32, since FP16 leaves out steps that overflow.
TINY_PAPER = dataclasses.replace(
    PAPER, name="tiny-paper", encoder=None, decoder=None, image_height=32, image_width=32, patch_size=8,
    hidden_size=16, encoder_layers=1, decoder_layers=2, num_heads=2, vocab_size=300, max_tokens=24, epochs=3,
    batch_size=8, precision="fp32",
)  # fmt: skip
STEPS_PER_EPOCH = 6  # of 8 of the 50 photos


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread, as two would wait for each other on such small matrices; a module imports it to use it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def drawn(preset: Preset) -> Data:
    """Draw fifty samples for training and ten for validation."""
    samples = list(training_samples(60, 3, preset.image_width, preset.image_height))
    products = [
        Product(row["id"], row["productDisplayName"], row["articleType"], row["baseColour"], row["gender"])
        for _, row in samples
    ]
    whole = ProductSet(products, np.stack([np.asarray(picture) for picture, _ in samples]))
    return whole.subset(list(range(50))), whole.subset(list(range(50, 60)))


def of_two_kinds(data: ProductSet) -> ProductSet:
    """Return the photos with every other one black and of the type "Ties"; every tenth has no type."""
    kinds = [("Tshirts", "Ties")[i % 2] if i % 10 else "" for i in range(len(data))]
    products = [
        dataclasses.replace(product, article_type=kind) for product, kind in zip(data.products, kinds, strict=True)
    ]
    lit = (np.arange(len(data)) % 2 == 0)[:, None, None, None].astype(np.uint8)
    return ProductSet(products, data.pixels * lit)


def beginning(preset: Preset, data: Data) -> tuple[VisionEncoderDecoderModel, PreTrainedTokenizerFast]:
    """Make captioner and tokenizer of a new run, as `training.train` does."""
    torch.manual_seed(preset.seed)
    return new_captioner(preset, [product.name for product in data[0].products])


def new_trainer(preset: Preset, data: Data, processes: Processes | None = None) -> Trainer:
    return Trainer(preset, *data, *beginning(preset, data), processes)


def train(
    trainer: Trainer,
    folder: Path,
    *,
    save_every: int = 4,
    stop_after: int | None = None,
    has_curves: bool = False,
) -> bool:
    """`run` into folder/checkpoint with the state in folder/state; curves take long to draw and may stay empty."""
    args = argparse.Namespace(save_every=save_every, stop_after=stop_after, preset=trainer.preset.name)
    with pytest.MonkeyPatch.context() as patch:
        if not has_curves:
            patch.setattr(checkpoint, "plot_curve", lambda history, quantity, path: path.touch())
        return run(trainer, folder / "checkpoint", folder / "state", args)


def resumed(preset: Preset, data: Data, folder: Path, processes: Processes | None = None) -> Trainer:
    """Make a trainer that continues from the saved state."""
    trainer = new_trainer(preset, data, processes)
    assert trainer.load_state(folder / "state")
    return trainer


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Copy all parameters and buffers."""
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Return the names of tensors that differ in any bit."""
    assert list(before) == list(after)
    return {name for name in before if not torch.equal(before[name], after[name])}


def assert_same_end(trainer: Trainer, expected: Trainer) -> None:
    """Compare weights, statistics, optimiser and history (without its minutes) bit for bit."""
    assert trainer.step == expected.step == expected.total_steps
    assert not changed(weights_of(trainer), weights_of(expected))
    moments, wanted = trainer.optimiser.state_dict()["state"], expected.optimiser.state_dict()["state"]
    assert moments.keys() == wanted.keys()
    for index, values in wanted.items():
        assert all(torch.equal(value, moments[index][key]) for key, value in values.items())

    def without_minutes(history: list[dict[str, float]]) -> list[dict[str, float]]:
        return [{key: value for key, value in line.items() if key != "minutes"} for line in history]

    assert without_minutes(trainer.history) == without_minutes(expected.history)
    assert len(trainer.history) == trainer.preset.epochs
