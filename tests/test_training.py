# SPDX-License-Identifier: Apache-2.0
"""A tiny captioner trained on drawn samples: interrupted or not, it ends with the same weights."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captioner.caption_tokenizer import CaptionTokenizer
from demo.draw_samples import training_samples
from training.prepare_data import Product, ProductSet

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from transformers import AutoTokenizer, VisionEncoderDecoderModel  # noqa: E402

from training.caption_dataset import IGNORED  # noqa: E402
from training.caption_model import normalise  # noqa: E402
from training.presets import SMALL  # noqa: E402
from training.train import (  # noqa: E402
    HISTORY_COLUMNS,
    HISTORY_FILE,
    STATE_FILE,
    Trainer,
    caption_loss,
    learning_rate,
    optimiser_of,
    run,
    with_sketches,
)

pytestmark = pytest.mark.torch

TINY = dataclasses.replace(
    SMALL, image_height=32, image_width=24, stem_channels=(4, 8, 8), hidden_size=16, encoder_layers=1,
    decoder_layers=1, num_heads=2, vocab_size=300, epochs=2, batch_size=8, sketches=0,
)  # fmt: skip
STEPS_PER_EPOCH, TOTAL_STEPS = 6, 12


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads on matrices this small do nothing but wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data() -> tuple[ProductSet, ProductSet]:
    """Fifty drawn samples to train on and ten to validate with."""
    samples = list(training_samples(60, 3, TINY.image_width, TINY.image_height))
    products = [
        Product(row["id"], row["productDisplayName"], row["articleType"], row["baseColour"], row["gender"])
        for _, row in samples
    ]
    whole = ProductSet(products, np.stack([np.asarray(picture) for picture, _ in samples]))
    return whole.subset(list(range(50))), whole.subset(list(range(50, 60)))


def train(trainer: Trainer, folder: Path, *, save_every: int = 4, stop_after: int | None = None) -> bool:
    args = argparse.Namespace(save_every=save_every, stop_after=stop_after, preset="tiny")
    return run(trainer, folder / "checkpoint", folder / "state", args)


def resumed(data: tuple[ProductSet, ProductSet], folder: Path) -> Trainer:
    """A new process's trainer, as far as the old one came."""
    trainer = Trainer(TINY, *data)
    assert trainer.load_state(folder / "state")
    return trainer


@pytest.fixture(scope="module")
def finished(data: tuple[ProductSet, ProductSet], tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, Path]:
    """A run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("finished")
    trainer = Trainer(TINY, *data)
    assert train(trainer, folder)
    return trainer, folder


def assert_same_end(trainer: Trainer, expected: Trainer) -> None:
    """Bit for bit the same weights, statistics, optimiser and history (its minutes aside)."""
    assert trainer.step == expected.step == TOTAL_STEPS
    state, wanted = trainer.model.state_dict(), expected.model.state_dict()
    assert list(state) == list(wanted)
    different = [name for name in state if not torch.equal(state[name], wanted[name])]
    assert not different
    moments, wanted_moments = trainer.optimiser.state_dict()["state"], expected.optimiser.state_dict()["state"]
    for index, values in wanted_moments.items():
        assert all(torch.equal(value, moments[index][key]) for key, value in values.items())

    def without_minutes(history: list[dict[str, float]]) -> list[dict[str, float]]:
        return [{key: value for key, value in line.items() if key != "minutes"} for line in history]

    assert without_minutes(trainer.history) == without_minutes(expected.history)
    assert len(trainer.history) == TINY.epochs


def test_training_learns(finished: tuple[Trainer, Path], data: tuple[ProductSet, ProductSet]) -> None:
    trainer, _ = finished
    assert (trainer.steps_per_epoch, trainer.total_steps) == (STEPS_PER_EPOCH, TOTAL_STEPS)
    losses = [line["training_loss"] for line in trainer.history]
    assert losses[1] < losses[0] < math.log(len(trainer.tokenizer))
    assert [line["epoch"] for line in trainer.history] == [1, 2]
    for line in trainer.history:
        assert line["validation_perplexity"] == pytest.approx(math.exp(line["validation_loss"]))


@pytest.mark.parametrize("stops", [(3, 8), (STEPS_PER_EPOCH,), (TOTAL_STEPS,)])
def test_run_that_was_stopped_goes_on_to_the_same_end(
    stops: tuple[int, ...], data: tuple[ProductSet, ProductSet], finished: tuple[Trainer, Path], tmp_path: Path
) -> None:
    trainer = Trainer(TINY, *data)
    for stop in stops:
        assert not train(trainer, tmp_path, stop_after=stop)
        assert trainer.step == stop
        trainer = resumed(data, tmp_path)
        assert trainer.step == stop
    assert train(trainer, tmp_path)
    assert_same_end(trainer, finished[0])


class KilledTrainer(Trainer):
    """Ends as a process does that is killed in the middle of its eighth step."""

    def _losses(self, batch: Any) -> Any:
        losses = super()._losses(batch)
        if self.step == 7:
            raise SystemError("killed")
        return losses


def test_run_that_was_killed_goes_on_from_the_last_saved_state(
    data: tuple[ProductSet, ProductSet], finished: tuple[Trainer, Path], tmp_path: Path
) -> None:
    with pytest.raises(SystemError):
        train(KilledTrainer(TINY, *data), tmp_path)
    trainer = resumed(data, tmp_path)
    assert trainer.step == STEPS_PER_EPOCH
    assert train(trainer, tmp_path)
    assert_same_end(trainer, finished[0])


class InterruptedTrainer(Trainer):
    """Gets a signal where it hurts: gradients there, weights changed but the step not counted, or while validating."""

    def __init__(self, where: str, number: int, data: tuple[ProductSet, ProductSet]):
        super().__init__(TINY, *data)
        self._where, self._number = where, number
        self.optimiser.register_step_post_hook(lambda *_: self._reach("weights", 7))

    def _reach(self, where: str, step: int) -> None:
        if (where, step) == (self._where, self.step):
            signal.raise_signal(self._number)

    def _losses(self, batch: Any) -> Any:
        losses = super()._losses(batch)
        self._reach("gradients", 7)
        return losses

    def validate(self) -> dict[str, float]:
        self._reach("validation", TOTAL_STEPS)
        return super().validate()


@pytest.fixture
def loud_signals() -> Iterator[None]:
    """As `main` sets them: both signals raise KeyboardInterrupt."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.signal(number, signal.default_int_handler) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == [signal.default_int_handler] * 2
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("loud_signals")
@pytest.mark.parametrize(
    ("where", "number"),
    [("gradients", signal.SIGINT), ("weights", signal.SIGTERM), ("validation", signal.SIGINT)],
)
def test_signal_costs_nothing_wherever_it_comes(
    where: str,
    number: int,
    data: tuple[ProductSet, ProductSet],
    finished: tuple[Trainer, Path],
    tmp_path: Path,
) -> None:
    assert not train(InterruptedTrainer(where, number, data), tmp_path)
    trainer = resumed(data, tmp_path)
    assert train(trainer, tmp_path)
    assert_same_end(trainer, finished[0])
    weights = "checkpoint/model.safetensors"
    assert (tmp_path / weights).read_bytes() == (finished[1] / weights).read_bytes()


class ImpatientTrainer(Trainer):
    """Whoever runs it presses Ctrl-C twice."""

    def _losses(self, batch: Any) -> Any:
        if self.step == 7:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return super()._losses(batch)


@pytest.mark.usefixtures("loud_signals")
def test_second_signal_ends_at_once_and_leaves_the_last_saved_state(
    data: tuple[ProductSet, ProductSet], finished: tuple[Trainer, Path], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(ImpatientTrainer(TINY, *data), tmp_path)
    trainer = resumed(data, tmp_path)
    assert trainer.step == STEPS_PER_EPOCH
    assert train(trainer, tmp_path)
    assert_same_end(trainer, finished[0])


def test_state_of_another_preset_or_other_data_is_refused(
    data: tuple[ProductSet, ProductSet], finished: tuple[Trainer, Path]
) -> None:
    training, validation = data
    others = [
        Trainer(dataclasses.replace(TINY, epochs=3), training, validation),
        Trainer(TINY, training.subset(list(range(49))), validation),
    ]
    for other in others:
        with pytest.raises(SystemExit, match="of another preset or other data: give --restart to forget it"):
            other.load_state(finished[1] / "state")
        assert other.step == 0


def test_there_is_no_state_before_the_first(data: tuple[ProductSet, ProductSet], tmp_path: Path) -> None:
    assert not Trainer(TINY, *data).load_state(tmp_path)


def test_state_is_written_aside_and_renamed(finished: tuple[Trainer, Path]) -> None:
    assert [path.name for path in (finished[1] / "state").iterdir()] == [STATE_FILE]


def test_data_without_frequent_labels_can_be_trained_on(finished: tuple[Trainer, Path]) -> None:
    """Of fifty samples no garment and no colour is there twenty times."""
    trainer, _ = finished
    assert set(trainer.model.heads) == {"gender"}
    assert [line["article_type_accuracy"] for line in trainer.history] == [0, 0]


def test_frequent_labels_get_heads_that_are_right_ever_more_often(
    data: tuple[ProductSet, ProductSet], tmp_path: Path
) -> None:
    kinds = ("Tshirts", "Ties")
    training, validation = (
        ProductSet(
            [dataclasses.replace(product, article_type=kinds[i % 2]) for i, product in enumerate(part.products)],
            # The first kind is drawn, the second is a black picture: not to be mistaken.
            part.pixels * (np.arange(len(part)) % 2 == 0)[:, None, None, None].astype(np.uint8),
        )
        for part in data
    )
    trainer = Trainer(dataclasses.replace(TINY, epochs=3, peak_learning_rate=1e-2), training, validation)
    assert train(trainer, tmp_path)
    assert set(trainer.model.heads) == {"article_type", "gender"}
    assert trainer.history[-1]["article_type_accuracy"] > 0.8
    assert trainer.history[-1]["colour_accuracy"] == 0


def test_decoder_reads_beginning_first_and_learns_the_end_last(
    finished: tuple[Trainer, Path], data: tuple[ProductSet, ProductSet]
) -> None:
    trainer, _ = finished
    batch = trainer.training.batch(range(8))
    bos, eos, pad = (trainer.tokenizer.bos_token_id, trainer.tokenizer.eos_token_id, trainer.tokenizer.pad_token_id)
    for row, product in zip(batch.labels.tolist(), data[0].products, strict=False):
        tokens = [token for token in row if token != IGNORED]
        assert tokens[-1] == eos
        assert bos not in tokens
        assert trainer.tokenizer.decode(tokens[:-1]).strip() == product.name
    inputs = torch.cat([torch.full((8, 1), bos), batch.labels[:, :-1]], dim=1)
    inputs[inputs == IGNORED] = pad
    trainer.model.eval()
    with torch.no_grad():
        logits, _ = trainer.model(batch.pixels, batch.labels)
        expected = trainer.model.captioner(pixel_values=normalise(batch.pixels), decoder_input_ids=inputs).logits
    assert torch.allclose(logits, expected, atol=1e-5)


def test_loss_is_the_mean_over_tokens_and_counts_the_end() -> None:
    logits = torch.zeros(2, 3, 4)
    logits[0, 0, 1] = 5.0
    labels = torch.tensor([[1, 2, 0], [3, IGNORED, IGNORED]])
    first = -float(torch.log_softmax(logits[0, 0], dim=0)[1])
    assert float(caption_loss(logits, labels)) == pytest.approx((first + 3 * math.log(4)) / 4)


def test_learning_rate_rises_and_falls_to_nothing() -> None:
    rates = [learning_rate(step, 100, TINY) for step in range(100)]
    peak = rates.index(max(rates))
    assert peak in (4, 5)
    assert max(rates) == pytest.approx(TINY.peak_learning_rate)
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert 0 < rates[0] < TINY.peak_learning_rate / 4
    assert 0 <= rates[-1] < TINY.peak_learning_rate / 100


def test_matrices_decay_and_the_rest_does_not(finished: tuple[Trainer, Path]) -> None:
    model = finished[0].model
    decayed, others = optimiser_of(model, TINY).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (TINY.weight_decay, 0.0)
    assert all(parameter.ndim >= 2 for parameter in decayed["params"])
    assert all(parameter.ndim < 2 for parameter in others["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(list(model.parameters()))


def test_sketches_are_added_behind_the_photos_on_white(data: tuple[ProductSet, ProductSet]) -> None:
    wide = dataclasses.replace(TINY, image_width=32)
    photos = ProductSet(data[0].products[:3], np.zeros((3, 32, 32, 3), np.uint8))
    mixed = with_sketches(photos, wide, 5)
    assert len(mixed) == 8
    assert [product.id for product in mixed.products[3:]] == [f"sketch-{i}" for i in range(5)]
    assert all(product.name.startswith("Sketch ") for product in mixed.products[3:])
    assert (mixed.pixels[:3] == 0).all()
    assert (mixed.pixels[3:, :, :4] == 255).all()
    assert (mixed.pixels[3:, :, -4:] == 255).all()
    assert (mixed.pixels[3:, :, 4:-4].min(axis=(1, 2, 3)) < 200).all()
    assert with_sketches(photos, wide, 0) is photos


# The checkpoint


def test_checkpoint_is_read_by_hugging_face_and_captions_the_same_every_time(
    finished: tuple[Trainer, Path], data: tuple[ProductSet, ProductSet]
) -> None:
    trainer, folder = finished
    model = VisionEncoderDecoderModel.from_pretrained(folder / "checkpoint", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "checkpoint")
    pixels = normalise(torch.from_numpy(data[1].pixels).permute(0, 3, 1, 2).float())
    with torch.no_grad():
        first, second = model.generate(pixels), model.generate(pixels)
        trainer.model.eval()
        in_training = trainer.model.captioner.generate(pixels)
    assert torch.equal(first, second)
    assert (first[:, 0] == tokenizer.bos_token_id).all()
    assert first.shape[1] <= TINY.max_tokens + 1
    # Stored in FP16: near, if not the same.
    weights, stored = trainer.model.captioner.state_dict(), model.state_dict()
    assert list(weights) == list(stored)
    assert all(torch.allclose(weights[name].float(), stored[name].float(), atol=1e-3) for name in weights)
    assert in_training.shape[0] == first.shape[0]


def test_weights_of_a_checkpoint_are_fp16_and_those_in_training_stay_fp32(finished: tuple[Trainer, Path]) -> None:
    trainer, folder = finished
    model = VisionEncoderDecoderModel.from_pretrained(folder / "checkpoint", dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}


def test_tokenizer_of_a_checkpoint_reads_without_transformers(finished: tuple[Trainer, Path]) -> None:
    trainer, folder = finished
    tokenizer = CaptionTokenizer(folder / "checkpoint")
    assert tokenizer.vocab_size == len(trainer.tokenizer)
    assert tokenizer.text(trainer.tokenizer.encode("Sketch Blue Tie")) == "Sketch Blue Tie"


def test_checkpoint_tells_how_it_was_made(finished: tuple[Trainer, Path]) -> None:
    trainer, folder = finished
    checkpoint = folder / "checkpoint"
    record = json.loads((checkpoint / "training.json").read_text(encoding="utf-8"))
    assert record["step"] == TOTAL_STEPS
    assert record["preset"] == json.loads(json.dumps(dataclasses.asdict(TINY)))
    assert record["arguments"] == {"save_every": "4", "preset": "tiny"}
    with (checkpoint / HISTORY_FILE).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == HISTORY_COLUMNS
    assert [float(row["training_loss"]) for row in rows] == pytest.approx(
        [line["training_loss"] for line in trainer.history], rel=1e-4
    )
    assert (checkpoint / "curves.png").read_bytes().startswith(b"\x89PNG")
