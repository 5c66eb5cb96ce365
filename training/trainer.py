# SPDX-License-Identifier: Apache-2.0
"""One training run: model, optimiser and how far they are. Knows no command line and writes no file but its state.

A step is made of micro-batches, numbered over all processes and accumulations. All random choices are functions of
(seed, step, micro-batch): a run that was interrupted ends with the same weights, and so does one of two processes and
one of a single process that accumulates two micro-batches, up to the rounding of a sum in another order.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, VisionEncoderDecoderModel

from demo.draw_samples import training_samples
from training.caption_dataset import IGNORED, AuxiliaryClasses, Batch, CaptionDataset
from training.caption_model import CaptionerInTraining, ConvStem, refresh_batch_statistics
from training.losses import AUXILIARY_SHARE, label_loss, token_losses, token_weights
from training.prepare_data import Product, ProductSet
from training.presets import Part, Precision, Preset
from training.processes import Processes
from training.schedule import apply_stage, learning_rate, parts_that_move

STATE_FILE = "training_state.pt"
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class StateError(ValueError):
    """A saved state cannot be gone on from. The message says why and what to do."""


class DivergedError(ArithmeticError):
    """The gradient is no number any more. The message says at which step and what to do."""


class BatchError(ValueError):
    """A batch cannot be cut into micro-batches. The message says why and what to do."""


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


def optimiser_of(model: torch.nn.Module, preset: Preset) -> torch.optim.AdamW:
    """AdamW; matrices decay, biases, norms and one-dimensional rest do not."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": preset.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=preset.peak_learning_rate, betas=(0.9, 0.98), fused=True)


class Trainer:
    """Trains `captioner` on `training` and measures it on `validation`.

    Raises:
        BatchError: the batch cannot be cut into equal micro-batches, or there are fewer photos than one batch has
            micro-batches.
    """

    def __init__(
        self,
        preset: Preset,
        training: ProductSet,
        validation: ProductSet,
        captioner: VisionEncoderDecoderModel,
        tokenizer: PreTrainedTokenizerFast,
        processes: Processes | None = None,
        origin: str = "random",
    ):
        self.preset = preset
        self.processes = processes or Processes(0, 1, torch.device("cpu"))
        self.tokenizer = tokenizer
        self._device = self.processes.device
        self._micro_batches = preset.accumulation * self.processes.count
        if preset.batch_size % self._micro_batches:
            raise BatchError(
                f"a batch of {preset.batch_size} photos cannot be cut into {self._micro_batches} equal micro-batches "
                f"({self.processes.count} processes x accumulation {preset.accumulation}): choose another --batch-size"
            )
        training = with_sketches(training, preset, min(preset.sketches, len(training)))
        products = [dataclasses.astuple(product) for part in (training, validation) for product in part.products]
        # Whether a saved state is of this run: as many photos under other names have other tokens.
        self._identity = {
            "preset": dataclasses.asdict(preset),
            "data": hashlib.sha256(repr(products).encode()).hexdigest(),
            "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
            "micro-batches": self._micro_batches,
            "weights it began with": origin,
        }
        classes = AuxiliaryClasses.from_products(training.products)
        self.classes = classes.values if preset.auxiliary_weight else {}
        self.training = CaptionDataset(training, tokenizer, classes, preset.max_tokens)
        self.validation = CaptionDataset(validation, tokenizer, classes, preset.max_tokens)
        if len(self.training) < self._micro_batches:
            raise BatchError(
                f"{len(self.training)} photos cannot be cut into {self._micro_batches} micro-batches: give more photos"
            )
        # A label without one frequent value (few products, or a column that is empty) has nothing to teach.
        sizes = {label: len(values) for label, values in self.classes.items() if values}
        torch.manual_seed(preset.seed)
        self.model = CaptionerInTraining(captioner, sizes)
        # Channels last: 6 % of a step, in the stem.
        self.model.to(self._device, memory_format=torch.channels_last)
        self.optimiser = optimiser_of(self.model, preset)
        # FP16's smallest gradients would be zero without it; for the other precisions it does nothing.
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=preset.precision == "fp16")
        self._moving: frozenset[Part] = frozenset()
        self._shared: torch.nn.Module | None = None
        self.steps_per_epoch = self.training.steps_per_epoch(preset.batch_size)
        self.total_steps = self.steps_per_epoch * preset.epochs
        self.step = 0
        self.seconds = 0.0  # spent training, over all interruptions
        self.epoch_losses: list[float] = []
        self.history: list[dict[str, float]] = []

    def train_step(self) -> float:
        """One optimiser step; returns the caption's loss in nats per token, over all processes."""
        shared = self._enter_stage()
        self.model.train()
        arguments = (self.step, self.preset.batch_size, self.preset.seed)
        targets = self.training.targets(self.training.training_rows(*arguments))
        weight = float(token_weights(targets.labels, targets.in_query, self.preset.query_weight).sum())
        known = {name: int((ids != IGNORED).sum()) for name, ids in targets.auxiliary.items()}
        nats = 0.0
        for i in range(self.preset.accumulation):
            index = self.processes.rank * self.preset.accumulation + i
            part = self.training.training_batch(*arguments, index, self._micro_batches)
            torch.manual_seed(self.preset.seed * 15_485_863 + self.step + index * 32_452_843)  # dropout
            with self.processes.accumulating(shared, last=i == self.preset.accumulation - 1):
                nats += self._backward(shared, part.to(self._device), weight, known)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, self.total_steps, self.preset)
        self._scaler.unscale_(self.optimiser)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.preset.max_gradient_norm)
        # The scaler leaves out a step of FP16 that overflowed and goes on with a smaller scale.
        if self.preset.precision != "fp16" and not torch.isfinite(norm):
            raise DivergedError(
                f"step {self.step}: the gradient's norm is {float(norm)}; the state saved before is untouched: go on "
                "from it with a lower --learning-rate, or begin anew"
            )
        self._scaler.step(self.optimiser)
        self._scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        return self.processes.sum(nats)[0] / int((targets.labels != IGNORED).sum())

    def _enter_stage(self) -> torch.nn.Module:
        """Freeze what this step's epoch leaves alone; returns the model with gradients shared between processes."""
        moving = parts_that_move(self.preset, self.step // self.steps_per_epoch)
        if moving != self._moving or self._shared is None:
            apply_stage(self.model, moving)
            self._moving = moving
            self._shared = None  # its hooks on the gradients go with it
            gc.collect()
            self._shared = self.processes.share_gradients_of(self.model)
        return self._shared

    def _backward(self, model: torch.nn.Module, batch: Batch, weight: float, known: dict[str, int]) -> float:
        """Gradients of one micro-batch, as its share of the whole batch; returns its caption's nats.

        Args:
            weight: sum of the token weights of the whole batch.
            known: how many photos of the whole batch have a known class, per label.
        """
        losses, labels = self._forward(model, batch)
        weights = token_weights(batch.labels, batch.in_query, self.preset.query_weight)
        loss = (losses * weights).sum() / weight
        for name, logits in labels.items():
            share = self.preset.auxiliary_weight * AUXILIARY_SHARE[name]
            loss = loss + share * label_loss(logits, batch.auxiliary[name]) / max(1, known[name])
        # Several processes' gradients are averaged; they are to be summed.
        self._scaler.scale(loss * self.processes.count).backward()
        return float(losses.detach().sum())

    def _forward(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Nats of each token, float32 [B, T'], and logits per label."""
        precision = DTYPES[self.preset.precision]
        with torch.autocast(self._device.type, dtype=precision, enabled=precision != torch.float32):
            logits, labels = model(batch.pixels, batch.labels)
        return token_losses(logits, batch.labels), labels

    def refresh_batch_statistics(self, batches: int = 40, size: int = 128) -> None:
        """Bring BatchNorm's statistics up to the present weights, on the first training photos as they are."""
        stem = self.model.captioner.encoder.embeddings.patch_embeddings
        if not isinstance(stem, ConvStem):
            return  # a plain ViT has no BatchNorm
        count = min(len(self.training), batches * size)
        starts = range(0, count, size)
        refresh_batch_statistics(
            stem, (self.training.batch(range(i, min(i + size, count))).pixels.to(self._device) for i in starts)
        )

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss in nats per token over the whole validation set, and how often the heads are right."""
        self.model.eval()
        nats, tokens = 0.0, 0
        names = ("article_type", "colour")
        right, known = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
        for batch in self._validation_batches():
            losses, labels = self._forward(self.model, batch)
            nats += float(losses.sum())
            tokens += int((batch.labels != IGNORED).sum())
            for name in right.keys() & labels.keys():
                right[name] += int((labels[name].argmax(dim=1) == batch.auxiliary[name]).sum())
                known[name] += int((batch.auxiliary[name] != IGNORED).sum())
        nats, tokens_everywhere, *counts = self.processes.sum(nats, tokens, *right.values(), *known.values())
        accuracies = {
            f"{name}_accuracy": hits / max(1.0, of)
            for name, hits, of in zip(names, counts[: len(names)], counts[len(names) :], strict=True)
        }
        return {"validation_loss": nats / max(1.0, tokens_everywhere), **accuracies}

    def _validation_batches(self, size: int = 128) -> Iterator[Batch]:
        """This process's share of the validation set."""
        starts = range(0, len(self.validation), size)
        for start in starts[self.processes.rank :: self.processes.count]:
            batch = self.validation.batch(range(start, min(start + size, len(self.validation))))
            yield batch.to(self._device)

    def save_state(self, folder: Path) -> None:
        """Everything needed to go on, written aside and renamed: a kill in the middle costs nothing."""
        if not self.processes.is_main:
            return
        folder.mkdir(parents=True, exist_ok=True)
        names = ("step", "seconds", "epoch_losses", "history")
        state = {name: getattr(self, name) for name in names}
        state |= {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(),
                  "scaler": self._scaler.state_dict(),
                  "identity": self._identity}  # fmt: skip
        torch.save(state, folder / (STATE_FILE + ".part"))
        os.replace(folder / (STATE_FILE + ".part"), folder / STATE_FILE)

    def load_state(self, folder: Path) -> bool:
        """Go on from a saved state; False where there is none.

        Raises:
            StateError: the state is of another run (another preset, tokenizer or number of micro-batches, other data,
                other weights to begin with), or not every process finds it.
        """
        path = folder / STATE_FILE
        found = round(self.processes.sum(float(path.is_file()))[0])
        if not found:
            return False
        if found < self.processes.count:  # without this, those that find none would begin anew beside the others
            raise StateError(
                f"only {found} of {self.processes.count} processes find {path}: give --state a folder that every host "
                "reads, or --restart to forget it"
            )
        state = torch.load(path, map_location=self._device, weights_only=True)
        identity = state.get("identity", {})
        if other := [name for name, value in self._identity.items() if identity.get(name) != value]:
            raise StateError(f"{path} is of another run ({', '.join(other)}): give --restart to forget it")
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self._scaler.load_state_dict(state["scaler"])
        for name in ("step", "seconds", "epoch_losses", "history"):
            setattr(self, name, state[name])
        return True

    def forget_state(self, folder: Path) -> None:
        """Remove a saved state, and nothing else that lies there."""
        if self.processes.is_main:
            for name in (STATE_FILE, STATE_FILE + ".part"):
                (folder / name).unlink(missing_ok=True)
        self.processes.wait()
