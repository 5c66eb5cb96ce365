# SPDX-License-Identifier: Apache-2.0
"""What a run leaves: the captioner of its best epoch, as Hugging Face and the gateway read it, and its history."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest

from captioner.caption_tokenizer import CaptionTokenizer

torch = pytest.importorskip("torch", reason="needs the training extra (torch)")
pytest.importorskip("matplotlib", reason="needs the training extra (matplotlib)")

from safetensors.torch import load_file  # noqa: E402
from transformers import AutoTokenizer, VisionEncoderDecoderModel  # noqa: E402

from tests.fakes.tiny_training import (  # noqa: E402
    STEPS_PER_EPOCH,
    TINY,
    TINY_PAPER,
    Data,
    drawn,
    new_trainer,
    of_two_kinds,
    train,
    weights_of,
)
from tests.fakes.tiny_training import one_thread as one_thread  # noqa: E402
from training.caption_model import normalise  # noqa: E402
from training.checkpoint import (  # noqa: E402
    CLASSES_FILE,
    HEADS_FILE,
    HISTORY_COLUMNS,
    HISTORY_FILE,
    best_epoch,
    history_table,
    save_checkpoint,
)
from training.trainer import Trainer  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def data() -> Data:
    """Drawn samples of two kinds, so that there are heads."""
    training, validation = drawn(TINY)
    return of_two_kinds(training), of_two_kinds(validation)


@pytest.fixture(scope="module")
def finished(data: Data, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, Path]:
    """A whole run and its checkpoint; validation gets better, so it is that of the last epoch."""
    folder = tmp_path_factory.mktemp("finished")
    trainer = new_trainer(TINY, data)
    assert train(trainer, folder, has_curves=True)
    assert best_epoch(trainer.history) == 1
    return trainer, folder / "checkpoint"


def row(epoch: int, validation_loss: float) -> dict[str, float]:
    return {
        "epoch": epoch, "training_loss": 1.0, "training_perplexity": math.e, "validation_loss": validation_loss,
        "validation_perplexity": math.exp(validation_loss), "article_type_accuracy": 0.5, "colour_accuracy": 0.25,
        "minutes": 1.5 * epoch,
    }  # fmt: skip


def test_checkpoint_is_read_by_hugging_face_and_captions_the_same_every_time(
    finished: tuple[Trainer, Path], data: Data
) -> None:
    trainer, folder = finished
    model = VisionEncoderDecoderModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
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


def test_weights_of_a_checkpoint_are_fp16_and_those_in_training_stay_as_they_are(
    finished: tuple[Trainer, Path], tmp_path: Path
) -> None:
    trainer, folder = finished
    model = VisionEncoderDecoderModel.from_pretrained(folder, dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    before = weights_of(trainer)
    save_checkpoint(trainer, tmp_path, {})
    after = weights_of(trainer)
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_tokenizer_of_a_checkpoint_reads_without_transformers(finished: tuple[Trainer, Path]) -> None:
    trainer, folder = finished
    tokenizer = CaptionTokenizer(folder)
    assert tokenizer.vocab_size == len(trainer.tokenizer)
    assert tokenizer.text(trainer.tokenizer.encode("Sketch Blue Tie")) == "Sketch Blue Tie"


def test_checkpoint_tells_how_it_was_made(finished: tuple[Trainer, Path]) -> None:
    trainer, folder = finished
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    assert record["step"] == 2 * STEPS_PER_EPOCH
    assert record["preset"] == json.loads(json.dumps(dataclasses.asdict(TINY)))
    assert record["arguments"] == {"save_every": "4", "preset": "tiny"}
    assert (record["training_photos"], record["validation_photos"]) == (50, 10)
    assert sum(record["training_photos_by_kind"].values()) == 50
    assert record["training_photos_by_kind"]["products"] == 50
    assert (record["processes"], record["device"], record["epoch_of_the_weights"]) == (1, "cpu", 2)
    assert record["versions"]["torch"] == torch.__version__


def test_history_is_a_row_per_epoch_with_two_pictures(finished: tuple[Trainer, Path]) -> None:
    trainer, folder = finished
    with (folder / HISTORY_FILE).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == HISTORY_COLUMNS
    assert [float(row["epoch"]) for row in rows] == [1, 2]
    unknown = {"query_accuracy", "phone_accuracy"}  # there is no query head, and there are no phone photos
    assert all(row[column] == "" for row in rows for column in unknown)
    for column in set(HISTORY_COLUMNS) - unknown:
        assert [float(row[column]) for row in rows] == pytest.approx(
            [line[column] for line in trainer.history], rel=1e-4
        )
    for name in ("loss.png", "perplexity.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_heads_are_stored_in_fp32_with_the_names_of_their_classes(finished: tuple[Trainer, Path]) -> None:
    trainer, folder = finished
    classes = json.loads((folder / CLASSES_FILE).read_text(encoding="utf-8"))
    assert classes["article_type"] == ["Ties", "Tshirts"]
    heads = load_file(folder / HEADS_FILE)
    wanted = trainer.model.heads.state_dict()
    assert heads.keys() == wanted.keys()
    assert all(torch.equal(heads[name], wanted[name]) for name in heads)
    for label, names in classes.items():
        assert heads[f"{label}.weight"].shape == (len(names), TINY.hidden_size)


def test_run_without_heads_leaves_none_of_an_earlier_run(tmp_path: Path) -> None:
    for name in (HEADS_FILE, CLASSES_FILE):
        (tmp_path / name).write_text("of an earlier run")
    trainer = new_trainer(TINY_PAPER, drawn(TINY_PAPER))
    trainer.history = [row(1, 2.0)]
    save_checkpoint(trainer, tmp_path, {})
    assert (tmp_path / "model.safetensors").is_file()
    assert not (tmp_path / HEADS_FILE).exists()
    assert not (tmp_path / CLASSES_FILE).exists()


def test_weights_on_disk_are_those_of_the_best_epoch(data: Data, tmp_path: Path) -> None:
    trainer = new_trainer(TINY, data)
    files = ("model.safetensors", HEADS_FILE)
    kept: list[list[bytes]] = []
    for epoch, validation_loss in enumerate([2.0, 3.0, 2.0, 1.5], start=1):
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.add_(0.01)
        trainer.history.append(row(epoch, validation_loss))
        save_checkpoint(trainer, tmp_path, {})
        kept.append([(tmp_path / name).read_bytes() for name in files])
        record = json.loads((tmp_path / "training.json").read_text(encoding="utf-8"))
        assert record["epoch_of_the_weights"] == (4 if epoch == 4 else 1)
        table = (tmp_path / "history.md").read_text(encoding="utf-8").splitlines()
        assert len(table) == 2 + epoch
        assert [line[: line.index(" |", 1)] for line in table if "*" in line] == [f"| {4 if epoch == 4 else 1} *"]
    # Neither a worse epoch nor one as good replaces the best.
    assert kept[0] == kept[1] == kept[2]
    assert all(last != first for last, first in zip(kept[3], kept[0], strict=True))


def test_table_has_the_papers_columns_and_marks_the_best_epoch() -> None:
    assert history_table([row(1, 1.0), row(2, 0.5), row(3, 0.75)]) == (
        "| epoch | training loss | training perplexity | validation loss | validation perplexity | minutes so far |\n"
        "|---:|---:|---:|---:|---:|---:|\n"
        "| 1 | 1.0000 | 2.718 | 1.0000 | 2.718 | 1.5 |\n"
        "| 2 * | 1.0000 | 2.718 | 0.5000 | 1.649 | 3.0 |\n"
        "| 3 | 1.0000 | 2.718 | 0.7500 | 2.117 | 4.5 |\n"
    )


def test_epoch_that_is_no_number_is_never_the_best() -> None:
    rows = [{"validation_perplexity": value} for value in (math.nan, 9.0, 8.0, math.nan)]
    assert best_epoch(rows) == 2


def test_checkpoint_is_whole_or_the_one_before(
    data: Data, finished: tuple[Trainer, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(finished[1], folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def disk_full(history: object, folder: Path) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("training.checkpoint.write_history", disk_full)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(finished[0], folder, {})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
