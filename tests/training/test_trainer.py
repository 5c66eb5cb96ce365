# SPDX-License-Identifier: Apache-2.0
"""A tiny captioner trained on drawn samples: interrupted or not, cut up or not, it ends with the same weights."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the training extra (torch)")
pytest.importorskip("matplotlib", reason="needs the training extra (matplotlib)")

from tests.fakes.tiny_training import (  # noqa: E402
    STEPS_PER_EPOCH,
    TINY,
    TINY_PAPER,
    Data,
    assert_same_end,
    beginning,
    changed,
    drawn,
    new_trainer,
    of_two_kinds,
    resumed,
    train,
    weights_of,
)
from tests.fakes.tiny_training import one_thread as one_thread  # noqa: E402
from training.caption_dataset import IGNORED, train_tokenizer  # noqa: E402
from training.caption_model import normalise  # noqa: E402
from training.prepare_data import ProductSet  # noqa: E402
from training.presets import Part, Precision, Preset  # noqa: E402
from training.schedule import part_of  # noqa: E402
from training.trainer import (  # noqa: E402
    STATE_FILE,
    BatchError,
    DivergedError,
    StateError,
    Trainer,
    optimiser_of,
    with_sketches,
)

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def data() -> Data:
    return drawn(TINY)


@pytest.fixture(scope="module")
def paper_data() -> Data:
    return drawn(TINY_PAPER)


@pytest.fixture(scope="module")
def finished(data: Data, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, Path]:
    """A run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("finished")
    trainer = new_trainer(TINY, data)
    assert train(trainer, folder)
    return trainer, folder


def test_training_learns(finished: tuple[Trainer, Path]) -> None:
    trainer, _ = finished
    assert (trainer.steps_per_epoch, trainer.total_steps) == (STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH)
    losses = [line["training_loss"] for line in trainer.history]
    assert losses[1] < losses[0] < math.log(len(trainer.tokenizer))


def test_decoder_reads_beginning_first_and_learns_the_end_last(finished: tuple[Trainer, Path], data: Data) -> None:
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
        logits = trainer.model(batch.pixels, batch.labels).logits
        expected = trainer.model.captioner(pixel_values=normalise(batch.pixels), decoder_input_ids=inputs).logits
    assert torch.allclose(logits, expected, atol=1e-5)


# Interrupted and gone on from


@pytest.mark.parametrize("stops", [(3, 8), (STEPS_PER_EPOCH,), (2 * STEPS_PER_EPOCH,)])
def test_run_that_was_stopped_goes_on_to_the_same_end(
    stops: tuple[int, ...], data: Data, finished: tuple[Trainer, Path], tmp_path: Path
) -> None:
    trainer = new_trainer(TINY, data)
    for stop in stops:
        assert not train(trainer, tmp_path, stop_after=stop)
        assert trainer.step == stop
        trainer = resumed(TINY, data, tmp_path)
        assert trainer.step == stop
    assert train(trainer, tmp_path)
    assert_same_end(trainer, finished[0])


class KilledTrainer(Trainer):
    """Ends as a process does that is killed in the middle of its eighth step."""

    def _forward(self, *args: Any) -> Any:
        result = super()._forward(*args)
        if self.step == 7:
            raise SystemError("killed")
        return result


def test_run_that_was_killed_goes_on_from_the_last_saved_state(
    data: Data, finished: tuple[Trainer, Path], tmp_path: Path
) -> None:
    with pytest.raises(SystemError, match="killed"):
        train(KilledTrainer(TINY, *data, *beginning(TINY, data)), tmp_path)
    trainer = resumed(TINY, data, tmp_path)
    assert trainer.step == STEPS_PER_EPOCH
    assert train(trainer, tmp_path)
    assert_same_end(trainer, finished[0])


def test_state_of_another_run_is_refused(data: Data, finished: tuple[Trainer, Path]) -> None:
    training, validation = data
    renamed = dataclasses.replace(training.products[0], name="Sketch Blue Hat")
    others = [
        new_trainer(dataclasses.replace(TINY, epochs=3), data),
        new_trainer(TINY, (training.subset(list(range(49))), validation)),
        # As many photos, another caption: other tokens under the same numbers.
        new_trainer(TINY, (ProductSet([renamed, *training.products[1:]], training.pixels), validation)),
    ]
    for other in others:
        before = weights_of(other)
        with pytest.raises(StateError, match=r"belongs to another run \((preset|data)\b.*\): give --restart to forget"):
            other.load_state(finished[1] / "state")
        assert other.step == 0
        assert not changed(before, weights_of(other))


def test_there_is_no_state_before_the_first(data: Data, tmp_path: Path) -> None:
    assert not new_trainer(TINY, data).load_state(tmp_path)


def test_state_is_written_aside_and_renamed(finished: tuple[Trainer, Path]) -> None:
    assert [path.name for path in (finished[1] / "state").iterdir()] == [STATE_FILE]


# Precision


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("preset", [TINY, TINY_PAPER], ids=lambda preset: preset.name)
def test_every_precision_learns_finite_weights_and_goes_on_exactly(
    preset: Preset, precision: Precision, data: Data, paper_data: Data, tmp_path: Path
) -> None:
    preset = dataclasses.replace(preset, precision=precision, epochs=1, stages=preset.stages[-1:])
    photos = data if preset.stem_channels else paper_data
    whole = new_trainer(preset, photos)
    losses = [whole.train_step() for _ in range(STEPS_PER_EPOCH)]
    assert all(math.isfinite(loss) for loss in losses)
    assert all(value.isfinite().all() for value in whole.model.state_dict().values())
    assert all(parameter.dtype == torch.float32 for parameter in whole.model.parameters())
    before = weights_of(new_trainer(preset, photos))
    assert {name for name in changed(before, weights_of(whole)) if "lm_head" in name}

    first = new_trainer(preset, photos)
    for _ in range(2):
        first.train_step()
    first.save_state(tmp_path / "state")
    second = resumed(preset, photos, tmp_path)
    assert [second.train_step() for _ in range(2, STEPS_PER_EPOCH)] == losses[2:]
    assert not changed(weights_of(second), weights_of(whole))


def test_scale_of_fp16_gradients_is_saved_and_restored(data: Data, tmp_path: Path) -> None:
    preset = dataclasses.replace(TINY, precision="fp16")
    new_trainer(preset, data).save_state(tmp_path / "state")
    state = torch.load(tmp_path / "state" / STATE_FILE, weights_only=True)
    assert state["scaler"]["scale"] > 1
    state["scaler"] |= {"scale": 512.0, "_growth_tracker": 3}
    torch.save(state, tmp_path / "state" / STATE_FILE)
    resumed(preset, data, tmp_path).save_state(tmp_path / "again")
    again = torch.load(tmp_path / "again" / STATE_FILE, weights_only=True)
    assert (again["scaler"]["scale"], again["scaler"]["_growth_tracker"]) == (512.0, 3)


class OverflowingTrainer(Trainer):
    """Its gradients of the third step are too large for FP16."""

    def _forward(self, *args: Any) -> Any:
        predictions = super()._forward(*args)
        factor = 1e38 if self.step == 2 else 1.0
        return dataclasses.replace(predictions, logits=predictions.logits.float() * factor)


def test_step_whose_fp16_gradients_overflow_changes_nothing_but_the_scale(data: Data, tmp_path: Path) -> None:
    preset = dataclasses.replace(TINY, precision="fp16")
    trainer = OverflowingTrainer(preset, *data, *beginning(preset, data))

    def scale() -> float:
        trainer.save_state(tmp_path)
        return float(torch.load(tmp_path / STATE_FILE, weights_only=True)["scaler"]["scale"])

    for _ in range(2):
        trainer.train_step()
    before = scale(), {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train_step()
    assert scale() == before[0] / 2
    assert not changed(before[1], dict(trainer.model.named_parameters()))


# Micro-batches


def gradients_of_first_step(preset: Preset, data: Data) -> tuple[float, dict[str, Any]]:
    """(loss, what the optimiser gets) of a run's first step."""
    trainer = new_trainer(preset, data)
    seen: dict[str, Any] = {}

    def note(*_: Any) -> None:
        seen.update({name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None})

    trainer.optimiser.register_step_pre_hook(note)
    return trainer.train_step(), seen


def test_micro_batches_sum_to_the_gradient_of_the_batch(paper_data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weighted tokens and labels that not every photo has: each micro-batch has another share of both."""
    monkeypatch.setattr("training.caption_dataset.augment", lambda pixels, generator, grounds=None: pixels)
    preset = dataclasses.replace(
        TINY_PAPER, stages=TINY_PAPER.stages[-1:], dropout=0.0, query_weight=1.5, auxiliary_weight=0.5,
        max_gradient_norm=1e9,
    )  # fmt: skip
    data = of_two_kinds(paper_data[0]), of_two_kinds(paper_data[1])
    loss, whole = gradients_of_first_step(preset, data)
    assert any("heads.article_type" in name for name in whole)
    for accumulation in (2, 4):
        part_loss, parts = gradients_of_first_step(dataclasses.replace(preset, accumulation=accumulation), data)
        assert part_loss == pytest.approx(loss, rel=1e-6)
        assert parts.keys() == whole.keys()
        for name, gradient in whole.items():
            assert torch.allclose(parts[name], gradient, rtol=1e-4, atol=1e-6), name


def test_batch_that_cannot_be_cut_into_equal_micro_batches_is_refused(data: Data) -> None:
    uneven = dataclasses.replace(TINY, accumulation=3)
    with pytest.raises(BatchError, match="a batch of 8 photos cannot be divided into 3 equal .* another --batch-size"):
        new_trainer(uneven, data)
    few = data[0].subset([0, 1, 2]), data[1]
    with pytest.raises(BatchError, match="3 photos cannot be divided into 4 micro-batches"):
        new_trainer(dataclasses.replace(TINY, accumulation=4), few)


# Stages


def expected_to_move(trainer: Trainer, parts: set[Part]) -> set[str]:
    """Names of the parameters of these parts; the output layer is GPT-2's own embedding under a second name."""
    moving = {name for name, _ in trainer.model.named_parameters(remove_duplicate=False) if part_of(name) in parts}
    assert ("captioner.decoder.lm_head.weight" in moving) == ("decoder" in parts)
    return moving


def test_paper_moves_cross_attention_first_then_gpt2_then_everything_but_the_pooler(paper_data: Data) -> None:
    trainer = new_trainer(TINY_PAPER, paper_data)
    stages: list[set[Part]] = [
        {"cross_attention"},
        {"cross_attention", "decoder"},
        {"cross_attention", "decoder", "encoder"},
    ]
    before = weights_of(trainer)
    pooler = {name for name in before if ".pooler." in name}
    assert pooler
    for parts in stages:
        for _ in range(STEPS_PER_EPOCH):
            trainer.train_step()
        after = weights_of(trainer)
        assert changed(before, after) == expected_to_move(trainer, parts)
        before = after
    assert changed(weights_of(new_trainer(TINY_PAPER, paper_data)), before) == set(before) - pooler


def test_run_stopped_in_the_middle_of_a_stage_goes_on_to_the_same_end(paper_data: Data, tmp_path: Path) -> None:
    whole = new_trainer(TINY_PAPER, paper_data)
    assert train(whole, tmp_path / "whole")
    trainer = new_trainer(TINY_PAPER, paper_data)
    for stop in (2, STEPS_PER_EPOCH, STEPS_PER_EPOCH + 3, 2 * STEPS_PER_EPOCH + 1):
        assert not train(trainer, tmp_path, stop_after=stop)
        trainer = resumed(TINY_PAPER, paper_data, tmp_path)
    assert train(trainer, tmp_path)
    assert_same_end(trainer, whole)


# Validation and heads


def test_validation_counts_every_token_of_every_photo_once(finished: tuple[Trainer, Path]) -> None:
    trainer, _ = finished
    trainer.model.eval()
    nats, tokens = 0.0, 0
    for i in range(len(trainer.validation)):
        batch = trainer.validation.batch([i])
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            logits = trainer.model(batch.pixels, batch.labels).logits
        chosen = torch.log_softmax(logits.float(), dim=-1)[0, torch.arange(batch.labels.shape[1]), batch.labels[0]]
        nats, tokens = nats - float(chosen.sum()), tokens + batch.labels.shape[1]
    validated = trainer.validate()
    assert validated["validation_loss"] == pytest.approx(nats / tokens, rel=1e-3)
    assert validated["validation_loss"] == pytest.approx(trainer.history[-1]["validation_loss"])


def test_data_without_frequent_labels_can_be_trained_on(finished: tuple[Trainer, Path]) -> None:
    """Of fifty samples no garment and no colour is there twenty times."""
    trainer, _ = finished
    assert set(trainer.model.heads) == {"gender"}
    assert [line["article_type_accuracy"] for line in trainer.history] == [0, 0]


def test_frequent_labels_get_heads_that_are_right_ever_more_often(data: Data, tmp_path: Path) -> None:
    preset = dataclasses.replace(TINY, epochs=3, peak_learning_rate=1e-2)
    trainer = new_trainer(preset, (of_two_kinds(data[0]), of_two_kinds(data[1])))
    assert train(trainer, tmp_path)
    assert set(trainer.model.heads) == {"article_type", "gender"}
    assert trainer.history[-1]["article_type_accuracy"] > 0.8
    assert trainer.history[-1]["colour_accuracy"] == 0


def test_preset_without_auxiliary_loss_has_no_heads(paper_data: Data) -> None:
    trainer = new_trainer(TINY_PAPER, (of_two_kinds(paper_data[0]), paper_data[1]))
    assert len(trainer.model.heads) == 0
    assert trainer.classes == {}


# What it is made of


def test_matrices_decay_and_the_rest_does_not(finished: tuple[Trainer, Path]) -> None:
    model = finished[0].model
    decayed, others = optimiser_of(model, TINY).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (TINY.weight_decay, 0.0)
    assert all(parameter.ndim >= 2 for parameter in decayed["params"])
    assert all(parameter.ndim < 2 for parameter in others["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(list(model.parameters()))


def test_sketches_are_added_behind_the_photos_on_white(data: Data) -> None:
    wide = dataclasses.replace(TINY, image_width=32)
    photos = ProductSet(data[0].products[:3], np.zeros((3, 32, 32, 3), np.uint8))
    mixed = with_sketches(photos, wide, 5)
    assert len(mixed) == 8
    assert [product.id for product in mixed.products[3:]] == [f"sketch-{i}" for i in range(5)]
    assert not any("Sketch" in product.name for product in mixed.products[3:])  # no brand of the demo in captions
    assert (mixed.pixels[:3] == 0).all()
    assert (mixed.pixels[3:, :, :4] == 255).all()
    assert (mixed.pixels[3:, :, -4:] == 255).all()
    assert (mixed.pixels[3:, :, 4:-4].min(axis=(1, 2, 3)) < 200).all()
    assert with_sketches(photos, wide, 0) is photos


def test_there_are_never_more_sketches_than_photos(data: Data) -> None:
    few = data[0].subset(list(range(10))), data[1]
    assert len(new_trainer(dataclasses.replace(TINY, sketches=600), few).training) == 20
    assert len(new_trainer(dataclasses.replace(TINY, sketches=4), few).training) == 14


def test_state_is_forgotten_without_what_lies_beside_it(data: Data, tmp_path: Path) -> None:
    trainer = new_trainer(TINY, data)
    trainer.save_state(tmp_path)
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    trainer.forget_state(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]
    trainer.forget_state(tmp_path / "nowhere")


def test_state_of_another_tokenizer_or_beginning_is_refused(
    data: Data, finished: tuple[Trainer, Path], tmp_path: Path
) -> None:
    captioner, tokenizer = beginning(TINY, data)
    other = Trainer(TINY, *data, captioner, tokenizer, origin="weights of another checkpoint")
    with pytest.raises(StateError, match="weights it began with"):
        other.load_state(finished[1] / "state")
    captioner, _ = beginning(TINY, data)
    cut = train_tokenizer([product.name for product in data[0].products[:30]], TINY.vocab_size)
    with pytest.raises(StateError, match="tokenizer"):
        Trainer(TINY, *data, captioner, cut).load_state(finished[1] / "state")


def test_gradient_that_is_no_number_ends_the_run_and_keeps_the_state(data: Data, tmp_path: Path) -> None:
    trainer = new_trainer(TINY, data)
    trainer.train_step()
    trainer.save_state(tmp_path)
    before = (tmp_path / STATE_FILE).read_bytes()
    with torch.no_grad():
        trainer.model.captioner.encoder.layernorm.weight.fill_(math.nan)
    with pytest.raises(DivergedError, match="step 1: the gradient's norm is nan.*lower --learning-rate"):
        trainer.train_step()
    assert trainer.step == 1
    assert (tmp_path / STATE_FILE).read_bytes() == before


def test_state_is_whole_or_the_one_before(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = new_trainer(TINY, data)
    trainer.save_state(tmp_path)
    before = (tmp_path / STATE_FILE).read_bytes()

    def disk_full(state: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(OSError, match="no space"):
        trainer.save_state(tmp_path)
    assert (tmp_path / STATE_FILE).read_bytes() == before
