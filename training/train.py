# SPDX-License-Identifier: Apache-2.0
"""Train a captioner: `python -m training.train --data FOLDER --output checkpoints/fashion-small`.

Interrupted with Ctrl-C or killed, the same command goes on from the last saved state and ends with the same weights:
all random choices are functions of (seed, step).
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import transformers
from torch.nn import functional
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerFast, VisionEncoderDecoderModel

from demo.draw_samples import training_samples
from training.caption_dataset import IGNORED, AuxiliaryClasses, Batch, CaptionDataset, train_tokenizer
from training.caption_model import CaptionerInTraining, refresh_batch_statistics
from training.curves import plot_curves
from training.prepare_data import Product, ProductSet, load_products
from training.presets import PRESETS, Preset, build_captioner

STATE_FILE = "training_state.pt"
HISTORY_FILE = "history.csv"
HISTORY_COLUMNS = ("epoch", "training_loss", "training_perplexity", "validation_loss", "validation_perplexity",
                   "article_type_accuracy", "colour_accuracy", "minutes")  # fmt: skip
AUXILIARY_SHARE = {"article_type": 1.0, "colour": 1.0, "gender": 1 / 3}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and styles.csv")
    parser.add_argument("--output", type=Path, default=Path("checkpoints/fashion-small"), help="checkpoint folder")
    parser.add_argument("--state", type=Path, help="folder of the resumable state (default: OUTPUT.state)")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="small")
    parser.add_argument("--init-from", type=Path, help="checkpoint whose weights and tokenizer to begin with")
    parser.add_argument("--epochs", type=int, help="instead of the preset's")
    parser.add_argument("--limit", type=int, help="use only the first N products")
    parser.add_argument("--save-every", type=int, default=200, help="steps between saved states")
    parser.add_argument("--stop-after", type=int, help="stop after this step of the whole run, as Ctrl-C would")
    parser.add_argument("--restart", action="store_true", help="forget a saved state instead of going on from it")
    return parser.parse_args()


def with_sketches(data: ProductSet, preset: Preset, count: int) -> ProductSet:
    """The products and `count` drawn samples, so that the model also reads the demo's pictures."""
    if not count:
        return data
    products, pixels = list(data.products), [data.pixels]
    # 3:4 as the photos; the borders of the encoder's input are white in both.
    width = preset.image_height * 3 // 4
    canvas = np.full((count, preset.image_height, preset.image_width, 3), 255, dtype=np.uint8)
    left = (preset.image_width - width) // 2
    samples = training_samples(count, preset.seed, width, preset.image_height)
    for i, (picture, row) in enumerate(samples):
        canvas[i, :, left : left + width] = np.asarray(picture)
        products.append(
            Product(f"sketch-{i}", row["productDisplayName"], row["articleType"], row["baseColour"], row["gender"])
        )
    pixels.append(canvas)
    return ProductSet(products, np.concatenate(pixels))


def learning_rate(step: int, total_steps: int, preset: Preset) -> float:
    """Linear warm-up, then a cosine to zero."""
    warmup = max(1, int(total_steps * preset.warmup_share))
    if step < warmup:
        return preset.peak_learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return preset.peak_learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Nats of each token, 0 where there is none; logits [B, T', V], labels int64 [B, T'] -> float32 [B, T']."""
    losses = functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view_as(labels)


def optimiser_of(model: torch.nn.Module, preset: Preset) -> torch.optim.AdamW:
    """AdamW; matrices decay, biases, norms and one-dimensional rest do not."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": preset.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=preset.peak_learning_rate, betas=(0.9, 0.98), fused=True)


class Trainer:
    """One run: model, optimiser and how far they are."""

    def __init__(self, preset: Preset, training: ProductSet, validation: ProductSet, init_from: Path | None = None):
        self.preset = preset
        torch.manual_seed(preset.seed)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if init_from is None:
            self.tokenizer = train_tokenizer([p.name for p in training.products], preset.vocab_size)
        else:
            self.tokenizer = AutoTokenizer.from_pretrained(init_from)
        training = with_sketches(training, preset, min(preset.sketches, len(training)))
        classes = AuxiliaryClasses.from_products(training.products)
        self.training = CaptionDataset(training, self.tokenizer, classes, preset.max_tokens)
        self.validation = CaptionDataset(validation, self.tokenizer, classes, preset.max_tokens)
        # A label without one frequent value (few products, or a column that is empty) has nothing to teach.
        sizes = {label: len(values) for label, values in classes.values.items() if values}
        captioner = build_captioner(preset, self.tokenizer)
        if init_from is not None:
            captioner.load_state_dict(VisionEncoderDecoderModel.from_pretrained(init_from).state_dict())
        # Channels last: 6 % of a step, in the stem.
        self.model = CaptionerInTraining(captioner, sizes).to(self.device, memory_format=torch.channels_last)
        self.optimiser = optimiser_of(self.model, preset)
        self.steps_per_epoch = self.training.steps_per_epoch(preset.batch_size)
        self.total_steps = self.steps_per_epoch * preset.epochs
        self.step = 0
        self.seconds = 0.0  # spent training, over all interruptions
        self.epoch_losses: list[float] = []
        self.history: list[dict[str, float]] = []

    def train_step(self) -> float:
        """One optimiser step; returns the caption's loss in nats per token."""
        self.model.train()
        torch.manual_seed(self.preset.seed * 15_485_863 + self.step)  # dropout
        batch = self.training.training_batch(self.step, self.preset.batch_size, self.preset.seed).to(self.device)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, self.total_steps, self.preset)
        losses, auxiliary = self._losses(batch)
        weights = torch.where(batch.in_query, self.preset.query_weight, 1.0) * (batch.labels != IGNORED)
        ((losses * weights).sum() / weights.sum() + auxiliary).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.preset.max_gradient_norm)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        return float(losses.detach().sum() / (batch.labels != IGNORED).sum())

    def _losses(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            logits, labels = self.model(batch.pixels, batch.labels)
        auxiliary = torch.zeros((), device=self.device)
        for name, label_logits in labels.items():
            target = batch.auxiliary[name]
            if (target != IGNORED).any():
                term = functional.cross_entropy(label_logits.float(), target, ignore_index=IGNORED)
                auxiliary = auxiliary + self.preset.auxiliary_weight * AUXILIARY_SHARE[name] * term
        return token_losses(logits, batch.labels), auxiliary

    def refresh_batch_statistics(self, batches: int = 40, size: int = 128) -> None:
        """Bring BatchNorm's statistics up to the present weights, on the first training photos as they are."""
        stem = self.model.captioner.encoder.embeddings.patch_embeddings
        count = min(len(self.training), batches * size)
        starts = range(0, count, size)
        refresh_batch_statistics(
            stem, (self.training.batch(range(i, min(i + size, count))).pixels.to(self.device) for i in starts)
        )

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss in nats per token over the whole validation set, and how often the heads are right."""
        self.model.eval()
        nats, tokens = 0.0, 0
        right = dict.fromkeys(("article_type", "colour"), 0)
        known = dict(right)
        for batch in self._batches(self.validation):
            with torch.autocast(self.device.type, dtype=torch.bfloat16):
                logits, labels = self.model(batch.pixels, batch.labels)
            nats += float(token_losses(logits, batch.labels).sum())
            tokens += int((batch.labels != IGNORED).sum())
            for name in right.keys() & labels.keys():
                right[name] += int((labels[name].argmax(dim=1) == batch.auxiliary[name]).sum())
                known[name] += int((batch.auxiliary[name] != IGNORED).sum())
        accuracies = {f"{name}_accuracy": right[name] / max(1, known[name]) for name in right}
        return {"validation_loss": nats / max(1, tokens), **accuracies}

    def _batches(self, dataset: CaptionDataset, size: int = 128) -> Iterator[Batch]:
        for start in range(0, len(dataset), size):
            yield dataset.batch(range(start, min(start + size, len(dataset)))).to(self.device)

    def save_state(self, folder: Path) -> None:
        """Everything needed to go on, written aside and renamed: a kill in the middle costs nothing."""
        folder.mkdir(parents=True, exist_ok=True)
        names = ("step", "seconds", "epoch_losses", "history")
        state = {name: getattr(self, name) for name in names}
        state |= {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(),
                  "preset": dataclasses.asdict(self.preset), "products": len(self.training)}  # fmt: skip
        torch.save(state, folder / (STATE_FILE + ".part"))
        os.replace(folder / (STATE_FILE + ".part"), folder / STATE_FILE)

    def load_state(self, folder: Path) -> bool:
        """Go on from a saved state; False where there is none.

        Raises:
            SystemExit: the state is of another preset or other data.
        """
        path = folder / STATE_FILE
        if not path.is_file():
            return False
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["preset"] != dataclasses.asdict(self.preset) or state["products"] != len(self.training):
            raise SystemExit(f"{path} is of another preset or other data: give --restart to forget it")
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        for name in ("step", "seconds", "epoch_losses", "history"):
            setattr(self, name, state[name])
        return True


def save_checkpoint(trainer: Trainer, folder: Path, arguments: dict[str, str]) -> None:
    """The captioner in Hugging Face format (FP16 weights), its tokenizer, how it was made and its curves."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.clone() for name, value in trainer.model.captioner.state_dict().items()}
    trainer.model.captioner.half().save_pretrained(folder)
    trainer.model.captioner.float().load_state_dict(state)
    tokenizer: PreTrainedTokenizerFast = trainer.tokenizer
    tokenizer.save_pretrained(folder)
    record = {"preset": dataclasses.asdict(trainer.preset), "arguments": arguments, "step": trainer.step}
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    with (folder / HISTORY_FILE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, HISTORY_COLUMNS)
        writer.writeheader()
        writer.writerows({key: f"{row[key]:.5g}" for key in HISTORY_COLUMNS} for row in trainer.history)
    plot_curves(trainer.history, folder / "curves.png")


@contextlib.contextmanager
def signals_held() -> Iterator[list[int]]:
    """SIGINT and SIGTERM are only noted, in the list this gives: half a step or half a validation cannot be saved.

    A second signal is not held back; whatever was saved last is there then.
    """
    came: list[int] = []

    def note(number: int, frame: object) -> None:
        came.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        restore()


def run(trainer: Trainer, output: Path, state: Path, args: argparse.Namespace) -> bool:
    """Train to the end; returns False where --stop-after, SIGINT (Ctrl-C) or SIGTERM came first."""
    # Of a path only its name: where things lay on one machine is of no use on another.
    arguments = {
        key: value.name if isinstance(value, Path) else str(value)
        for key, value in vars(args).items()
        if value is not None
    }
    # In a log file a line every half minute is enough.
    interval = 0.1 if sys.stderr.isatty() else 30.0
    bar = tqdm(total=trainer.total_steps, initial=trainer.step, unit="step", smoothing=0.05, mininterval=interval)
    since = time.monotonic()
    with bar, signals_held() as came:
        while trainer.step < trainer.total_steps:
            trainer.epoch_losses.append(trainer.train_step())
            bar.update()
            recent = trainer.epoch_losses[-50:]
            loss = sum(recent) / len(recent)
            rate = bar.format_dict["rate"] or 0.0
            bar.set_postfix(
                refresh=False,
                epoch=f"{trainer.step / trainer.steps_per_epoch:.2f}",
                loss=f"{loss:.3f}",
                perplexity=f"{math.exp(loss):.2f}",
                photos_per_s=f"{rate * trainer.preset.batch_size:.0f}",
            )
            if trainer.step % trainer.steps_per_epoch == 0:
                trainer.seconds += time.monotonic() - since
                since = time.monotonic()
                end_epoch(trainer)
                save_checkpoint(trainer, output, arguments)
            if trainer.step % args.save_every == 0 or trainer.step % trainer.steps_per_epoch == 0:
                trainer.seconds += time.monotonic() - since
                since = time.monotonic()
                trainer.save_state(state)
            if came or trainer.step == args.stop_after:
                trainer.seconds += time.monotonic() - since
                trainer.save_state(state)
                tqdm.write(
                    f"stopped at step {trainer.step} of {trainer.total_steps}: the same command goes on from here"
                )
                return False
    return True


def end_epoch(trainer: Trainer) -> None:
    """Validate and write one line of history."""
    trainer.refresh_batch_statistics()
    validated = trainer.validate()
    loss = sum(trainer.epoch_losses) / len(trainer.epoch_losses)
    trainer.epoch_losses = []
    row = {
        "epoch": trainer.step / trainer.steps_per_epoch,
        "training_loss": loss,
        "training_perplexity": math.exp(loss),
        "validation_perplexity": math.exp(validated["validation_loss"]),
        "minutes": trainer.seconds / 60,
        **validated,
    }
    trainer.history.append(row)
    tqdm.write(
        f"epoch {row['epoch']:.0f}: training {loss:.4f}, validation {row['validation_loss']:.4f} nats per token "
        f"(perplexity {row['validation_perplexity']:.3f}), heads: type {row['article_type_accuracy']:.1%}, "
        f"colour {row['colour_accuracy']:.1%}, {row['minutes']:.1f} min"
    )


def main() -> None:
    args = parse_args()
    # In the background of a script SIGINT is ignored unless asked for; SIGTERM, too, is to save before it ends.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    transformers.logging.set_verbosity_error()
    preset = PRESETS[args.preset]
    if args.epochs is not None:
        preset = dataclasses.replace(preset, epochs=args.epochs)
    state = args.state or args.output.with_name(args.output.name + ".state")
    data = load_products(
        args.data, height=preset.image_height, width=preset.image_width, fit=preset.fit, limit=args.limit
    )
    training, validation = data.split()
    print(f"{len(training)} training and {len(validation)} validation photos; left out: {dict(data.skipped) or 'none'}")
    trainer = Trainer(preset, training, validation, args.init_from)
    if args.restart:
        shutil.rmtree(state, ignore_errors=True)
    elif trainer.load_state(state):
        print(f"going on from step {trainer.step} of {trainer.total_steps} ({state})")
    parameters = sum(p.numel() for p in trainer.model.captioner.parameters())
    print(f"{parameters / 1e6:.1f} M parameters, {trainer.total_steps} steps of {preset.batch_size} photos")
    if run(trainer, args.output, state, args):
        print(f"checkpoint: {args.output}")


if __name__ == "__main__":
    main()
