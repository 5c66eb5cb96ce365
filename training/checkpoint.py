# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind: the best captioner in Hugging Face format, and how it came about.

config.json, generation_config.json, model.safetensors (FP16)   the captioner
tokenizer.json, tokenizer_config.json, special_tokens_map.json  its tokenizer
auxiliary_heads.safetensors, auxiliary_classes.json             what names type, colour and wearer (FP32)
query_classes.json, query_captions.json                         what the query head can say, where there is one
title_encoder.safetensors                                       titles -> embeddings of photos (FP16), where trained
training.json                                                   preset, arguments, versions, best epoch
history.csv, history.md                                         one row per epoch (Table I of the paper)
loss.png, perplexity.png                                        the same over epochs (its figures 2 and 3)
"""

from __future__ import annotations

import copy
import csv
import dataclasses
import json
import math
import os
import platform
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from captioner.query_classes import QUERY_CLASSES_FILE
from training.captioning import CLASSES_FILE, HEADS_FILE, CheckpointError, load_heads
from training.curves import plot_curve
from training.query_classes import QUERY_CAPTIONS_FILE
from training.trainer import Trainer

TITLES_FILE = "title_encoder.safetensors"
HISTORY_FILE = "history.csv"
HISTORY_COLUMNS = (
    "epoch", "training_loss", "training_perplexity", "validation_loss", "validation_perplexity",
    "article_type_accuracy", "colour_accuracy", "query_accuracy", "phone_accuracy", "minutes",
)  # fmt: skip


def best_epoch(history: Sequence[Mapping[str, float]]) -> int:
    """Index of the row with the lowest validation perplexity; the earlier one of equals, and not a number is none."""

    def rank(row: int) -> float:
        perplexity = history[row]["validation_perplexity"]
        return math.inf if math.isnan(perplexity) else perplexity

    return min(range(len(history)), key=rank)


def save_checkpoint(trainer: Trainer, folder: Path, arguments: Mapping[str, str]) -> None:
    """After an epoch: its weights if they are the best so far, and the whole history.

    All of it is written aside and then put in place, the weights last: a kill or a full disk leaves what was there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    best = best_epoch(trainer.history)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as scratch:
        aside = Path(scratch)
        if best == len(trainer.history) - 1:
            _save_captioner(trainer, aside)
            _save_heads(trainer, aside)
        _save_record(trainer, aside, arguments, best)
        write_history(trainer.history, aside)
        for path in sorted(aside.iterdir(), key=lambda path: path.suffix == ".safetensors"):
            os.replace(path, folder / path.name)
    # Of an earlier run into this folder.
    stale = [] if len(trainer.model.heads) else [HEADS_FILE, CLASSES_FILE]
    stale += [QUERY_CLASSES_FILE, QUERY_CAPTIONS_FILE] if trainer.queries is None else []
    stale += [TITLES_FILE] if trainer.model.titles is None else []
    for name in stale:
        (folder / name).unlink(missing_ok=True)


def _save_record(trainer: Trainer, folder: Path, arguments: Mapping[str, str], best: int) -> None:
    record = {
        "preset": dataclasses.asdict(trainer.preset),
        "arguments": dict(arguments),
        "training_photos": len(trainer.training),
        "validation_photos": len(trainer.validation),
        "processes": trainer.processes.count,
        "device": torch.cuda.get_device_name() if trainer.processes.device.type == "cuda" else "cpu",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "commit": _commit(),
        "minutes": round(trainer.seconds / 60, 1),
        "step": trainer.step,
        "epoch_of_the_weights": trainer.history[best]["epoch"],
    }
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _commit() -> str | None:
    """Of the code that trains, with "-dirty" where it was changed since; None where there is no repository."""

    def git(*arguments: str) -> str:
        where = Path(__file__).parent
        return subprocess.run(["git", *arguments], cwd=where, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _save_captioner(trainer: Trainer, folder: Path) -> None:
    # A copy: another dtype, if only for a moment, would cost the weights their hooks that share gradients
    # between processes.
    copy.deepcopy(trainer.model.captioner).half().save_pretrained(folder)
    trainer.tokenizer.save_pretrained(folder)
    if trainer.queries is not None:
        trainer.queries.save(folder)
    if trainer.model.titles is not None:
        titles = {name: value.half().contiguous() for name, value in trainer.model.titles.state_dict().items()}
        save_file(titles, folder / TITLES_FILE)


def _save_heads(trainer: Trainer, folder: Path) -> None:
    if not len(trainer.model.heads):
        return
    heads = {name: value.contiguous().clone() for name, value in trainer.model.heads.state_dict().items()}
    save_file(heads, folder / HEADS_FILE)
    classes = {label: trainer.classes[label] for label in trainer.model.heads}
    (folder / CLASSES_FILE).write_text(json.dumps(classes, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def restore_heads(trainer: Trainer, folder: Path) -> None:
    """Go on with the auxiliary heads and the title encoder of a checkpoint, where it has them for the same classes.

    What the checkpoint lacks, or has for other classes, keeps the trainer's new weights.

    Args:
        trainer: before its first step, or before its state is loaded.
        folder: the checkpoint that the run goes on from.

    Raises:
        CheckpointError: the files are damaged, or one of them is missing.
    """
    with torch.no_grad():
        for label, head in load_heads(folder).items():
            if label in trainer.model.heads and trainer.classes[label] == head.values:
                trainer.model.heads[label].weight.copy_(head.weight)
                trainer.model.heads[label].bias.copy_(head.bias)
    if trainer.model.titles is None or not (folder / TITLES_FILE).is_file():
        return
    try:
        trainer.model.titles.load_state_dict(load_file(folder / TITLES_FILE))
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{folder / TITLES_FILE} cannot be read ({error}): copy it again") from error


def write_history(history: Sequence[Mapping[str, float]], folder: Path) -> None:
    """The history as CSV, as a Markdown table and as two pictures; `*` marks the epoch whose weights were kept."""
    with (folder / HISTORY_FILE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, HISTORY_COLUMNS)
        writer.writeheader()
        writer.writerows({key: f"{row[key]:.5g}" if key in row else "" for key in HISTORY_COLUMNS} for row in history)
    (folder / "history.md").write_text(history_table(history), encoding="utf-8")
    for quantity in ("loss", "perplexity"):
        plot_curve(history, quantity, folder / f"{quantity}.png")


def history_table(history: Sequence[Mapping[str, float]]) -> str:
    """Table I of the paper in Markdown: loss (nats per token) and perplexity of training and validation per epoch."""
    best = best_epoch(history)
    lines = [
        "| epoch | training loss | training perplexity | validation loss | validation perplexity | minutes so far |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for i, row in enumerate(history):
        lines.append(
            f"| {row['epoch']:.0f}{' *' if i == best else ''} | {row['training_loss']:.4f} "
            f"| {row['training_perplexity']:.3f} | {row['validation_loss']:.4f} "
            f"| {row['validation_perplexity']:.3f} | {row['minutes']:.1f} |"
        )
    return "\n".join(lines) + "\n"
