# SPDX-License-Identifier: Apache-2.0
"""The command: its flags, its run loop, and signals, which cost nothing wherever they come."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the training extra (torch)")
pytest.importorskip("matplotlib", reason="needs the training extra (matplotlib)")

from drawings.draw_samples import COLUMNS, draw_sample  # noqa: E402
from tests.fakes.tiny_training import (  # noqa: E402
    STEPS_PER_EPOCH,
    TINY,
    Data,
    assert_same_end,
    beginning,
    drawn,
    new_trainer,
    resumed,
    train,
)
from tests.fakes.tiny_training import one_thread as one_thread  # noqa: E402
from training.prepare_data import is_validation  # noqa: E402
from training.presets import PAPER, PRESETS, SMALL  # noqa: E402
from training.train import end_epoch, main, parse_args, preset_of, tokenizer_source  # noqa: E402
from training.trainer import STATE_FILE, Trainer  # noqa: E402

pytestmark = pytest.mark.torch

TOTAL_STEPS = 2 * STEPS_PER_EPOCH
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(scope="module")
def data() -> Data:
    return drawn(TINY)


@pytest.fixture(scope="module")
def finished(data: Data, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, Path]:
    """A run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("finished")
    trainer = new_trainer(TINY, data)
    assert train(trainer, folder)
    return trainer, folder


# Signals


class InterruptedTrainer(Trainer):
    """Gets a signal where it hurts: gradients there, weights changed but the step not counted, or while validating."""

    where = ""
    number = signal.SIGINT

    def interrupt(self, where: str, number: signal.Signals) -> Trainer:
        self.where, self.number = where, number
        self.optimiser.register_step_post_hook(lambda *_: self._reach("weights", 7))
        return self

    def _reach(self, where: str, step: int) -> None:
        if (where, step) == (self.where, self.step):
            signal.raise_signal(self.number)

    def _forward(self, *args: Any) -> Any:
        result = super()._forward(*args)
        self._reach("gradients", 7)
        return result

    def validate(self) -> dict[str, float]:
        self._reach("validation", TOTAL_STEPS)
        return super().validate()


@pytest.fixture
def loud_signals() -> Iterator[None]:
    """As `main` sets them: both signals raise KeyboardInterrupt, before a run and after it."""
    handlers = [signal.signal(number, signal.default_int_handler) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == [signal.default_int_handler] * 2
    for number, handler in zip(SIGNALS, handlers, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("loud_signals")
@pytest.mark.parametrize(
    ("where", "number"),
    [("gradients", signal.SIGINT), ("weights", signal.SIGTERM), ("validation", signal.SIGINT)],
)
def test_signal_costs_nothing_wherever_it_comes(
    where: str, number: signal.Signals, data: Data, finished: tuple[Trainer, Path], tmp_path: Path
) -> None:
    trainer = InterruptedTrainer(TINY, *data, *beginning(TINY, data)).interrupt(where, number)
    assert not train(trainer, tmp_path)
    trainer = resumed(TINY, data, tmp_path)
    assert trainer.step == (TOTAL_STEPS if where == "validation" else 8)
    assert train(trainer, tmp_path)
    assert_same_end(trainer, finished[0])
    weights = "checkpoint/model.safetensors"
    assert (tmp_path / weights).read_bytes() == (finished[1] / weights).read_bytes()


class ImpatientTrainer(Trainer):
    """Ctrl-C is pressed twice."""

    def _forward(self, *args: Any) -> Any:
        if self.step == 7:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return super()._forward(*args)


@pytest.mark.usefixtures("loud_signals")
def test_second_signal_ends_at_once_and_leaves_the_last_saved_state(
    data: Data, finished: tuple[Trainer, Path], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(ImpatientTrainer(TINY, *data, *beginning(TINY, data)), tmp_path)
    trainer = resumed(TINY, data, tmp_path)
    assert trainer.step == STEPS_PER_EPOCH
    assert train(trainer, tmp_path)
    assert_same_end(trainer, finished[0])


# The loop


def test_epoch_ends_with_one_line_of_history(finished: tuple[Trainer, Path]) -> None:
    trainer, _ = finished
    assert [line["epoch"] for line in trainer.history] == [1, 2]
    assert trainer.epoch_losses == []
    for line in trainer.history:
        assert line["training_perplexity"] == pytest.approx(math.exp(line["training_loss"]))
        assert line["validation_perplexity"] == pytest.approx(math.exp(line["validation_loss"]))
    assert 0 < trainer.history[0]["minutes"] < trainer.history[1]["minutes"]


def test_line_of_an_epoch_says_what_moved_and_how_good_it_is(data: Data, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = new_trainer(TINY, data)
    trainer.step, trainer.epoch_losses, trainer.seconds = STEPS_PER_EPOCH, [1.0, 2.0], 90.0
    end_epoch(trainer)
    line = trainer.history[0]
    assert (line["training_loss"], line["minutes"]) == (1.5, 1.5)
    assert capsys.readouterr().out == (
        f"epoch 1 (cross_attention, decoder, encoder): training 1.5000, validation {line['validation_loss']:.4f} nats "
        f"per token (perplexity {line['validation_perplexity']:.3f}), heads: type 0.0%, colour 0.0%, 1.5 min\n"
    )


def test_state_is_saved_every_few_steps_and_after_each_epoch(data: Data, tmp_path: Path) -> None:
    trainer = new_trainer(TINY, data)
    saved: list[int] = []
    trainer.save_state = lambda folder: saved.append(trainer.step)  # type: ignore[method-assign]
    assert train(trainer, tmp_path, save_every=4)
    assert saved == [4, 6, 8, 12]


# The command line


def parsed(monkeypatch: pytest.MonkeyPatch, *flags: str) -> argparse.Namespace:
    monkeypatch.setattr("sys.argv", ["training.train", "--data", "photos", *flags])
    return parse_args()


def test_presets_are_as_they_are_written_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    args = parsed(monkeypatch)
    assert preset_of(args) == SMALL
    assert args.output == Path(".run/training/fashion-small")
    args = parsed(monkeypatch, "--preset", "paper")
    assert preset_of(args) == PAPER
    assert args.output == Path(".run/training/fashion-paper")


def test_flags_take_the_place_of_the_presets_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = (
        "--preset paper --epochs 2 --batch-size 12 --accumulation 3 --precision fp32 --learning-rate 2e-4 "
        "--encoder a/vit --decoder a/gpt2"
    )
    assert preset_of(parsed(monkeypatch, *flags.split())) == dataclasses.replace(
        PAPER, epochs=2, batch_size=12, accumulation=3, precision="fp32", peak_learning_rate=2e-4, encoder="a/vit",
        decoder="a/gpt2",
    )  # fmt: skip


def test_from_scratch_leaves_the_shape_and_takes_the_weights_away(monkeypatch: pytest.MonkeyPatch) -> None:
    preset = preset_of(parsed(monkeypatch, "--preset", "paper", "--from-scratch"))
    assert preset == dataclasses.replace(PAPER, encoder=None, decoder=None)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--epochs 0", "--epochs is 0: it must be at least 1"),
        ("--batch-size -8", "--batch-size is -8: it must be at least 1"),
        ("--accumulation 0", "--accumulation is 0: it must be at least 1"),
        ("--save-every 0", "--save-every is 0: it must be at least 1"),
        ("--stop-after 0", "--stop-after is 0: it must be at least 1"),
        ("--limit 0", "--limit is 0: it must be at least 1"),
        ("--learning-rate 0", "--learning-rate is 0.0: it must be between 0 and 1"),
        ("--learning-rate nan", "--learning-rate is nan: it must be between 0 and 1"),
        ("--precision fp8", "invalid choice: 'fp8'"),
        ("--preset large", "invalid choice: 'large'"),
        ("--from-scratch --encoder a/vit", "leave out --encoder and --decoder"),
    ],
)
def test_flag_out_of_range_is_named_with_its_value_and_limit(
    flags: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed(monkeypatch, *flags.split())
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_gpt2s_tokenizer_is_looked_for_beside_the_data_by_the_preset_that_uses_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def source(*flags: str) -> Path | None:
        args = parsed(monkeypatch, *flags, "--data", str(tmp_path / "photos"))
        return tokenizer_source(args, preset_of(args))

    assert source("--preset", "paper") is None
    (tmp_path / "gpt2-tokenizer").mkdir()
    (tmp_path / "gpt2-tokenizer" / "vocab.json").write_text("{}")
    assert source("--preset", "paper") == tmp_path.resolve() / "gpt2-tokenizer"
    assert source("--preset", "paper", "--from-scratch") == tmp_path.resolve() / "gpt2-tokenizer"
    assert source("--preset", "small") is None
    for preset in PRESETS:
        assert source("--preset", preset, "--gpt2-tokenizer", "elsewhere") == Path("elsewhere")


# The whole of it


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve drawings in the Kaggle layout; four of their names are held back for validation."""
    folder = tmp_path_factory.mktemp("catalogue")
    (folder / "images").mkdir()
    names = [f"Mark {i} Red Tie" for i in range(999)]
    of_side = {held: iter([name for name in names if is_validation(name) == held]) for held in (True, False)}
    lines = [",".join(COLUMNS)]
    for i in range(12):
        name = next(of_side[i % 3 == 2])
        draw_sample("Tie", "Red", width=24, height=32).save(folder / "images" / f"{i}.jpg")
        lines.append(f"{i},Men,Accessories,Ties,Ties,Red,Summer,2012,Casual,{name}")
    (folder / "styles.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def command(
    catalogue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., str]]:
    """`python -m training.train` with a tiny preset; returns what it prints."""
    monkeypatch.setitem(PRESETS, "small", dataclasses.replace(TINY, name="small", epochs=2, batch_size=4))

    def run(*flags: str) -> str:
        monkeypatch.setattr("sys.argv", ["training.train", "--data", str(catalogue), "--output", str(tmp_path / "out"),
                                         *flags])  # fmt: skip
        main()
        return capsys.readouterr().out

    handlers = [signal.getsignal(number) for number in SIGNALS]
    yield run
    for number, handler in zip(SIGNALS, handlers, strict=True):
        signal.signal(number, handler)


def test_command_stops_goes_on_begins_anew_and_leaves_a_checkpoint(command: Callable[..., str], tmp_path: Path) -> None:
    printed = command("--stop-after", "3")
    assert "8 training and 4 validation photos; left out: none" in printed
    assert "4 steps of 4 photos, bf16, 1 process\n" in printed
    assert "stopped at step 3 of 4: the same command continues" in printed
    assert f"continuing from step 3 of 4 ({tmp_path / 'out.state'})" in (printed := command())
    assert f"checkpoint: {tmp_path / 'out'}" in printed
    stopped = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert "going on" not in (printed := command("--restart"))
    assert "epoch 2" in printed
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == stopped
    record = json.loads((tmp_path / "out" / "training.json").read_text(encoding="utf-8"))
    # Of paths only the names, for they are of one machine.
    assert (record["arguments"]["output"], record["arguments"]["restart"]) == ("out", "True")
    assert str(tmp_path) not in json.dumps(record)
    assert (tmp_path / "out.state" / STATE_FILE).is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--limit 1", "of 1 products, 0 are for training and 1 for validation .* give more products"),
        ("--data nothing", "nothing"),
        ("--init-from nothing", "nothing is not a checkpoint of a captioner: give --init-from"),
        ("--accumulation 3", "a batch of 4 photos cannot be divided into 3 .* choose another --batch-size"),
        ("--encoder nothing", "encoder 'nothing' and decoder None are given: give both"),
    ],
)
def test_what_cannot_be_trained_ends_in_one_line_with_a_remedy(
    flags: str, message: str, command: Callable[..., str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=f"^training.train: .*{message}"):
        command(*flags.split())
    assert not (tmp_path / "out").exists()


def test_cpu_takes_bf16_for_a_presets_fp16_unless_fp16_is_asked_for(
    command: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(PRESETS, "small", dataclasses.replace(PRESETS["small"], precision="fp16"))
    printed = command("--stop-after", "1")
    assert "fp16 is for GPUs: bf16 instead (--precision fp16 insists)" in printed
    assert " bf16, 1 process" in printed
    assert " fp16, 1 process" in command("--stop-after", "1", "--restart", "--precision", "fp16")


def test_state_of_another_run_ends_the_command_in_one_line(command: Callable[..., str]) -> None:
    command("--stop-after", "1")
    with pytest.raises(SystemExit, match=r"^training.train: .* give --restart to forget it"):
        command("--epochs", "3")
    assert "8 training" in command("--epochs", "3", "--restart", "--stop-after", "1")


def test_checkpoint_of_another_run_is_not_replaced_unasked(command: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_bytes(b"precious")
    with pytest.raises(SystemExit, match="holds a checkpoint of another run: give --output another folder"):
        command()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == b"precious"
    command("--overwrite", "--epochs", "1")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() != b"precious"
    # Its own run goes on into the same folder without being asked.
    assert "already finished at step" in command("--overwrite", "--epochs", "1")


def test_interrupted_run_says_so_by_its_exit_code(command: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.train.train", lambda args, processes: False)
    with pytest.raises(SystemExit) as caught:
        command()
    assert caught.value.code == 130


@pytest.mark.parametrize("flags", ["--from-scratch", "--encoder a", "--decoder a", "--gpt2-tokenizer a"])
def test_init_from_brings_everything_it_begins_with(
    flags: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parsed(monkeypatch, "--init-from", "checkpoint", *flags.split())
    assert "--init-from has weights and a tokenizer" in capsys.readouterr().err
