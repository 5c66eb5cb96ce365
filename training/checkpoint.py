# SPDX-License-Identifier: Apache-2.0
"""The files of a checkpoint: the best captioner in Hugging Face format, and a record of its run.

config.json, generation_config.json, model.safetensors (FP16)   the captioner
tokenizer.json, tokenizer_config.json, special_tokens_map.json  its tokenizer
auxiliary_heads.safetensors, auxiliary_classes.json             heads for type, colour and wearer (FP32)
query_classes.json, query_captions.json                         the query head's classes, where there is one
title_encoder.safetensors                                       embeds titles like photos (FP16), where it was trained
training.json                                                   preset, arguments, photos, versions, best epoch
history.csv, history.md                                         one row per epoch (Table I of the paper)
loss.png, perplexity.png                                        the same as plots (figures 2 and 3 of the paper)
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
    """Index of the first row with the lowest validation perplexity; NaN counts as infinite."""

    def rank(row: int) -> float:
        perplexity = history[row]["validation_perplexity"]
        return math.inf if math.isnan(perplexity) else perplexity

    return min(range(len(history)), key=rank)


def save_checkpoint(trainer: Trainer, folder: Path, arguments: Mapping[str, str]) -> None:
    """Save the state after an epoch: its weights if they are the best so far, and the whole history.

    The files are written to a temporary folder and then moved, the weights last, so that a kill or a full disk leaves
    the last checkpoint.

    Args:
        trainer: after a full epoch.
        folder: the checkpoint.
        arguments: of the command line, for the record.
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
    # Files of an earlier run with the same output.
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
        "training_photos_by_kind": {
            "products": trainer.training.num_products - trainer.num_sketches,
            "drawings": trainer.num_sketches,
            "phone photos, with repetitions": trainer.training.num_phone_rows,
            "pictures without a product": trainer.training.num_without_product,
        },
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
    """The commit of the training code, with "-dirty" where files were changed; None where there is no repository."""

    def git(*arguments: str) -> str:
        where = Path(__file__).parent
        return subprocess.run(["git", *arguments], cwd=where, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _save_captioner(trainer: Trainer, folder: Path) -> None:
    # A copy, since a change of dtype would remove the hooks by which the weights share gradients between processes.
    captioner = copy.deepcopy(trainer.model.captioner)
    captioner.half()
    captioner.save_pretrained(folder)
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
    """Take over the auxiliary heads and the title encoder of a checkpoint, where it has them for the same classes.

    The others keep the trainer's new weights.

    Args:
        trainer: before its first step, or before its state is loaded.
        folder: the checkpoint from which the run starts.

    Raises:
        CheckpointError: the files are damaged, or one of them is missing.
    """
    for label, head in load_heads(folder).items():
        if label in trainer.model.heads and trainer.classes[label] == head.values:
            trainer.model.heads[label].load_state_dict({"weight": head.weight, "bias": head.bias})
    if trainer.model.titles is None or not (folder / TITLES_FILE).is_file():
        return
    try:
        trainer.model.titles.load_state_dict(load_file(folder / TITLES_FILE))
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{folder / TITLES_FILE} cannot be read ({error}): copy it again") from error


def write_history(history: Sequence[Mapping[str, float]], folder: Path) -> None:
    """Write the history as CSV, as a Markdown table and as two plots; `*` marks the epoch with the best weights."""
    with (folder / HISTORY_FILE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, HISTORY_COLUMNS)
        writer.writeheader()
        writer.writerows({key: f"{row[key]:.5g}" if key in row else "" for key in HISTORY_COLUMNS} for row in history)
    (folder / "history.md").write_text(history_table(history), encoding="utf-8")
    for quantity in ("loss", "perplexity"):
        plot_curve(history, quantity, folder / f"{quantity}.png")


def history_table(history: Sequence[Mapping[str, float]]) -> str:
    """Format loss (nats per token) and perplexity per epoch as a Markdown table, Table I of the paper."""
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
