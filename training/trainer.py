# SPDX-License-Identifier: Apache-2.0
"""One training run: model, optimiser and progress.

A step consists of micro-batches, numbered over all processes and accumulations. All random choices are functions of
(seed, step, micro-batch). So an interrupted run ends with the same weights as an uninterrupted one, and a run of two
processes with those of one process that accumulates two micro-batches, except that sums are rounded in another order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerFast, VisionEncoderDecoderModel

from drawings.draw_samples import SKETCH_BRAND, training_samples
from training.caption_dataset import (
    IGNORED,
    AuxiliaryClasses,
    Batch,
    CaptionDataset,
    OtherPhotos,
    phone_sets,
    tokenize,
)
from training.caption_model import (
    CaptionerInTraining,
    ConvStem,
    HybridStem,
    Predictions,
    embedding_of,
    encoder_of,
    normalise,
    refresh_batch_statistics,
    stem_of,
)
from training.feature_cache import FeatureCache
from training.losses import (
    AUXILIARY_SHARE,
    contrastive_loss,
    guided_targets,
    label_loss,
    set_losses,
    soft_token_losses,
    token_losses,
    token_weights,
)
from training.neighbour_names import NeighbourNames
from training.phone_photos import PhonePhotoSet
from training.prepare_data import Product, ProductSet
from training.presets import Part, Precision, Preset
from training.processes import Processes
from training.query_classes import QueryClasses
from training.schedule import apply_stage, learning_rate, part_of, parts_that_move

STATE_FILE = "training_state.pt"
OWN_TRUST = 0.5  # weight of the query head's own output in the targets of phone photos, see `losses.guided_targets`
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class StateError(ValueError):
    """A run cannot continue from a saved state. The message says why and what to do."""


class DivergedError(ArithmeticError):
    """The gradient is not finite. The message says at which step and what to do."""


class BatchError(ValueError):
    """A batch cannot be divided into micro-batches. The message says why and what to do."""


def with_sketches(data: ProductSet, preset: Preset, count: int) -> ProductSet:
    """Add `count` drawn samples to the products, so that the model can also caption the demo's pictures."""
    if not count:
        return data
    products = list(data.products)
    # 3:4 like the photos, with white borders.
    width = preset.image_height * 3 // 4
    canvas = np.full((count, preset.image_height, preset.image_width, 3), 255, dtype=np.uint8)
    left = (preset.image_width - width) // 2
    samples = training_samples(count, preset.seed, width, preset.image_height)
    for i, (picture, row) in enumerate(samples):
        canvas[i, :, left : left + width] = np.asarray(picture)
        # Without the brand of the demo's shop, which the model would otherwise assign to every unknown product.
        name = row["productDisplayName"].removeprefix(f"{SKETCH_BRAND} ")
        products.append(Product(f"sketch-{i}", name, row["articleType"], row["baseColour"], row["gender"]))
    return ProductSet(products, np.concatenate([data.pixels, canvas]))


def optimiser_of(model: torch.nn.Module, preset: Preset) -> torch.optim.AdamW:
    """AdamW in which only matrices decay (not biases, norms and other vectors) and the trunk has its own rate."""
    groups: list[dict[str, Any]] = []
    for is_trunk in (False, True):
        parameters = [p for name, p in model.named_parameters() if (part_of(name) == "trunk") == is_trunk]
        rate = preset.trunk_rate if is_trunk else 1.0
        for decayed in (True, False):
            chosen = [p for p in parameters if (p.ndim >= 2) == decayed]
            decay = preset.weight_decay if decayed else 0.0
            groups.append({"params": chosen, "weight_decay": decay, "relative_rate": rate})
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=preset.peak_learning_rate, betas=(0.9, 0.98), fused=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingExtras:
    """The optional parts of a run."""

    queries: QueryClasses | None = None  # classes of the query head; None: the encoder has no such head
    others: OtherPhotos | None = None  # further training photos
    phone_validation: PhonePhotoSet | None = None  # phone photos to measure on
    neighbours: NeighbourNames | None = None  # soft targets for the training products, without rows for drawn samples
    half_size: bool = False  # as of `CaptionDataset`


class Trainer:
    """Trains a captioner.

    Args:
        preset: the settings.
        training: products to train on.
        validation: products to measure on.
        captioner: is trained in place.
        tokenizer: of the captions.
        processes: None: this process alone, on the CPU.
        origin: a text that identifies the weights at the start, for saved states.
        extras: optional parts; None: there are none.

    Raises:
        BatchError: the batch cannot be divided into equal micro-batches, or there are fewer photos than micro-batches.
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
        extras: TrainingExtras | None = None,
    ):
        extras = extras or TrainingExtras()
        self.preset = preset
        self.processes = processes or Processes(0, 1, torch.device("cpu"))
        self.tokenizer = tokenizer
        self._device = self.processes.device
        self._micro_batches = preset.accumulation * self.processes.count
        if preset.batch_size % self._micro_batches:
            raise BatchError(
                f"a batch of {preset.batch_size} photos cannot be divided into {self._micro_batches} equal "
                f"micro-batches ({self.processes.count} processes x accumulation {preset.accumulation}): "
                "choose another --batch-size"
            )
        self.num_sketches = min(preset.sketches, len(training))
        training = with_sketches(training, preset, self.num_sketches)
        neighbours = _padded(extras.neighbours, self.num_sketches)
        products = [dataclasses.astuple(product) for part in (training, validation) for product in part.products]
        phone = extras.others.phone if extras.others is not None else None
        # A saved state belongs to this run only if all of these are equal.
        self._identity = {
            "preset": dataclasses.asdict(preset),
            "data": hashlib.sha256(repr((products, [] if phone is None else phone.photos)).encode()).hexdigest(),
            "targets": _digest(extras),
            "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
            "micro-batches": self._micro_batches,
            "weights it began with": origin,
        }
        classes = AuxiliaryClasses.from_products(training.products)
        self.classes = classes.values if preset.auxiliary_weight else {}
        self.queries = extras.queries
        self.training = CaptionDataset(
            training, tokenizer, classes, preset.max_tokens, queries=extras.queries, others=extras.others,
            neighbours=neighbours, half_size=extras.half_size,
        )  # fmt: skip
        self.validation = CaptionDataset(validation, tokenizer, classes, preset.max_tokens, queries=extras.queries)
        if len(self.training) < self._micro_batches:
            raise BatchError(
                f"{len(self.training)} photos cannot be divided into {self._micro_batches} micro-batches: "
                "give more photos"
            )
        self._phone_validation = extras.phone_validation
        self._phone_truth = phone_sets(extras.phone_validation, classes, extras.queries)
        # The labels of each query class as a caption, which phone photos get.
        self._class_labels = tokenize(extras.queries.captions, tokenizer, preset.max_tokens) if extras.queries else None
        # A label without frequent values (few products, or an empty column) has no head.
        sizes = {label: len(values) for label, values in self.classes.items() if values}
        torch.manual_seed(preset.seed)
        self.model = CaptionerInTraining(captioner, sizes, with_titles=preset.title_weight > 0)
        # Channels last saves 6 % of a step, in the stem.
        self.model.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # not annotated
        self.optimiser = optimiser_of(self.model, preset)
        # Without it FP16's smallest gradients would be zero; for the other precisions it does nothing.
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=preset.precision == "fp16")
        self._moving: frozenset[Part] = frozenset()
        self._shared: torch.nn.Module | None = None
        self.steps_per_epoch = self.training.steps_per_epoch(preset.batch_size)
        self.total_steps = self.steps_per_epoch * preset.epochs
        self.feature_cache: FeatureCache | None = None
        self.step = 0
        self.seconds = 0.0  # training time, interruptions not included
        self.epoch_losses: list[float] = []
        self.history: list[dict[str, float]] = []

    def train_step(self) -> float:
        """Do one optimiser step.

        Returns:
            The captions' loss in nats per token, over all processes.

        Raises:
            DivergedError: the gradient is not finite.
        """
        shared = self._enter_stage()
        self.model.train()
        arguments = (self.step, self.preset.batch_size, self.preset.seed)
        whole = _Counts.of(self.training, self.training.training_rows(*arguments), self.preset)
        nats = 0.0
        for i in range(self.preset.accumulation):
            index = self.processes.rank * self.preset.accumulation + i
            part, features = self._training_batch(index)
            torch.manual_seed(self.preset.seed * 15_485_863 + self.step + index * 32_452_843)  # dropout
            last = i == self.preset.accumulation - 1
            with self.processes.accumulating(shared, last=last), self._cached(features):
                nats += self._backward(shared, part.to(self._device), whole)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, self.total_steps, self.preset) * group["relative_rate"]
        self._scaler.unscale_(self.optimiser)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.preset.max_gradient_norm)
        # The scaler skips an FP16 step that overflowed and continues with a smaller scale.
        if self.preset.precision != "fp16" and not torch.isfinite(norm):
            raise DivergedError(
                f"step {self.step}: the gradient's norm is {float(norm)}; the last saved state is untouched: continue "
                "from it with a lower --learning-rate, or start again"
            )
        self._scaler.step(self.optimiser)
        self._scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        return self.processes.sum(nats)[0] / max(1, whole.tokens)

    def _training_batch(self, index: int) -> tuple[Batch, torch.Tensor | None]:
        """Micro-batch `index` of this step, and the trunk's features where they are cached."""
        arguments = (self.step, self.preset.batch_size, self.preset.seed)
        if self.feature_cache is None or "trunk" in self._moving:
            return self.training.training_batch(*arguments, index, self._micro_batches), None
        rows = np.array_split(self.training.training_rows(*arguments), self._micro_batches)[index]
        pixels, features = self.feature_cache.batch(rows, self.step // self.steps_per_epoch)
        return Batch(pixels, self.training.targets(rows)), features.to(self._device)

    def _cached(self, features: torch.Tensor | None) -> AbstractContextManager[None]:
        stem = self._stem
        return stem.cached(features) if isinstance(stem, HybridStem) else contextlib.nullcontext()

    def open_feature_cache(self, folder: Path, views: int) -> None:
        """Compute the trunk's features of all training photos once, for the epochs that do not train the trunk.

        Args:
            folder: for the cache's files.
            views: how often each photo is augmented; the epochs use the views in turn.
        """
        stem = self._stem
        if not isinstance(stem, HybridStem) or "trunk" in parts_that_move(
            self.preset, self.step // self.steps_per_epoch
        ):
            return
        identity = repr({name: self._identity[name] for name in ("preset", "data", "targets", "weights it began with")})
        self.feature_cache = FeatureCache(folder, identity, views)
        self.feature_cache.open(self.training, stem, self.preset.seed, progress=self.processes.is_main)

    def _enter_stage(self) -> torch.nn.Module:
        """Freeze what this step's epoch does not train; return the model that shares gradients between processes."""
        moving = parts_that_move(self.preset, self.step // self.steps_per_epoch)
        if moving != self._moving or self._shared is None:
            apply_stage(self.model, moving)
            stem = self._stem
            if isinstance(stem, HybridStem):
                blocks = stem.trunk.blocks
                frozen = self.preset.frozen_trunk_blocks if "trunk" in moving else len(blocks)
                stem.num_frozen_blocks = frozen
                for module in (stem.trunk.stem, *blocks[:frozen]) if frozen else ():
                    module.requires_grad_(False)
            if self.feature_cache is not None and "trunk" in moving:
                self.feature_cache.remove()
                self.feature_cache = None
            self._moving = moving
            self._shared = None  # removes its hooks on the gradients
            gc.collect()
            self._shared = self.processes.share_gradients_of(self.model)
        return self._shared

    @property
    def _stem(self) -> ConvStem | HybridStem | None:
        return stem_of(self.model.captioner)

    def _backward(self, model: torch.nn.Module, batch: Batch, whole: _Counts) -> float:
        """Add the gradients of one micro-batch, as its share of the whole batch; return its captions' nats."""
        targets = batch.targets
        phone_captions = _PhoneCaptions(targets.labels, targets.query_weights, self._class_labels)
        predictions = self._forward(model, batch, phone_captions)
        hard = token_losses(predictions.logits, targets.labels)
        losses = hard
        if self.preset.soft_target_share:
            losses = soft_token_losses(
                predictions.logits, targets.labels, targets.soft_tokens, targets.soft_weights,
                self.preset.soft_target_share,
            )  # fmt: skip
        loss = (losses * token_weights(targets.labels, targets.in_query, self.preset.query_weight)).sum()
        loss = loss / max(1.0, whole.weight)
        for name, logits in predictions.labels.items():
            share = self.preset.auxiliary_weight * AUXILIARY_SHARE[name]
            nats = label_loss(logits, targets.auxiliary[name])
            if name == "article_type" and targets.types.shape[1]:
                nats = nats + set_losses(logits, targets.types).sum()
            loss = loss + share * nats / max(1, whole.known[name])
        if predictions.queries is not None and self.preset.query_head_weight:
            loss = loss + self.preset.query_head_weight * self._query_loss(predictions, batch) / max(1, whole.queries)
        if self.preset.title_weight and self.model.titles is not None:
            loss = loss + self.preset.title_weight * self._title_loss(predictions, targets.labels) / max(1, whole.names)
        if phone_captions.labels is not None and self.preset.phone_caption_weight:
            of_phones = token_losses(predictions.logits, phone_captions.labels).sum()
            loss = loss + self.preset.phone_caption_weight * of_phones / max(1, whole.phone)
        # The processes' gradients are averaged, but the sum is needed.
        self._scaler.scale(loss * self.processes.count).backward()
        return float(hard.detach().sum())

    def _forward(
        self, model: torch.nn.Module, batch: Batch, phone_captions: _PhoneCaptions | None = None
    ) -> Predictions:
        """Predict a batch; with `phone_captions`, the decoder also reads the captions of phone photos."""
        precision = DTYPES[self.preset.precision]
        labels = batch.labels
        predictions: Predictions
        with torch.autocast(self._device.type, dtype=precision, enabled=precision != torch.float32):
            if phone_captions is None:
                predictions = model(batch.pixels, labels)
                return predictions

            def inputs(queries: torch.Tensor | None) -> torch.Tensor:
                return self._decoder_inputs(phone_captions.choose(queries))

            if phone_captions.is_needed:
                predictions = model(batch.pixels, labels, None, inputs)
            else:
                predictions = model(batch.pixels, labels, inputs(None))
            return predictions

    def _decoder_inputs(self, labels: torch.Tensor) -> torch.Tensor:
        """BOS and all labels but the last, some of them replaced by PAD; int64 [B, T']."""
        config = self.model.captioner.config
        start, pad = config.decoder_start_token_id, config.pad_token_id
        assert start is not None
        assert pad is not None
        inputs = torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1]], dim=1)
        if self.preset.word_dropout:
            hidden = torch.rand(inputs.shape, device=inputs.device) < self.preset.word_dropout
            hidden[:, 0] = False
            inputs = inputs.masked_fill(hidden, pad)
        return inputs.masked_fill(inputs == IGNORED, pad)

    def _query_loss(self, predictions: Predictions, batch: Batch) -> torch.Tensor:
        """Nats of the query classes, summed over the photos."""
        assert predictions.queries is not None
        targets = batch.targets
        hard = torch.nn.functional.cross_entropy(
            predictions.queries.float(), targets.queries, ignore_index=IGNORED, reduction="none"
        )
        log_probabilities = predictions.queries.float().log_softmax(dim=-1)
        soft = -(log_probabilities * targets.soft_queries).sum(dim=-1)
        share = self.preset.soft_target_share * ((targets.soft_queries.sum(dim=-1) > 0) & (targets.queries != IGNORED))
        guided = guided_targets(predictions.queries, targets.query_weights, OWN_TRUST)
        return ((1 - share) * hard + share * soft).sum() - (log_probabilities * guided).sum()

    def _title_loss(self, predictions: Predictions, labels: torch.Tensor) -> torch.Tensor:
        """The contrastive loss of photos and names, summed over the photos that have a name."""
        assert self.model.titles is not None
        assert self.model.title_scale is not None
        named = (labels != IGNORED).any(dim=1)
        if int(named.sum()) < 2:
            # With several processes, every parameter needs a gradient.
            unused = sum(parameter.sum() for parameter in (*self.model.titles.parameters(), self.model.title_scale))
            return (predictions.embedding.sum() + unused) * 0.0
        tokens = labels[named]
        is_word = (tokens != IGNORED) & (tokens != self.tokenizer.eos_token_id)
        # Random words are left out, since a title keeps its meaning without them.
        kept = is_word & (torch.rand(tokens.shape, device=tokens.device) > 0.2)
        kept = torch.where(kept.any(dim=1, keepdim=True), kept, is_word)
        titles = self.model.titles(tokens.clamp(min=0), kept.float())
        photos = torch.nn.functional.normalize(predictions.embedding[named], dim=-1)
        same = (tokens[:, None] == tokens[None, :]).all(dim=-1)
        return contrastive_loss(photos, titles, self.model.title_scale.exp().clamp(max=100.0), same)

    def refresh_batch_statistics(self, batches: int = 40, size: int = 128) -> None:
        """Measure BatchNorm's statistics again, with the current weights, on the first training products."""
        stem = self._stem
        if stem is None:
            return  # a plain ViT has no BatchNorm
        count = min(self.training.num_products, batches * size)
        starts = range(0, count, size)
        refresh_batch_statistics(
            stem, (self.training.batch(range(i, min(i + size, count))).pixels.to(self._device) for i in starts)
        )

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Measure the whole validation set.

        Returns:
            "validation_loss" in nats per token, and shares of right answers: "article_type_accuracy",
            "colour_accuracy", and where there are such heads and photos "query_accuracy" and "phone_accuracy".
        """
        self.model.eval()
        nats, tokens = 0.0, 0
        names = ("article_type", "colour")
        right, known = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
        query_hits, query_rows = 0, 0
        for batch in self._validation_batches():
            predictions = self._forward(self.model, batch)
            nats += float(token_losses(predictions.logits, batch.labels).sum())
            tokens += int((batch.labels != IGNORED).sum())
            for name in right.keys() & predictions.labels.keys():
                truth = batch.targets.auxiliary[name]
                right[name] += int((predictions.labels[name].argmax(dim=1) == truth).sum())
                known[name] += int((truth != IGNORED).sum())
            if predictions.queries is not None:
                chosen = predictions.queries[:, 1:].argmax(dim=1) + 1
                query_hits += int((chosen == batch.targets.queries).sum())
                query_rows += len(chosen)
        nats, tokens_everywhere, *counts = self.processes.sum(nats, tokens, *right.values(), *known.values())
        accuracies = {
            f"{name}_accuracy": hits / max(1.0, of)
            for name, hits, of in zip(names, counts[: len(names)], counts[len(names) :], strict=True)
        }
        hits, rows = self.processes.sum(query_hits, query_rows)
        if rows:
            accuracies["query_accuracy"] = hits / rows
        if self._phone_validation is not None and self._names_garments:
            accuracies["phone_accuracy"] = self._phone_accuracy(self._phone_validation)
        return {"validation_loss": nats / max(1.0, tokens_everywhere), **accuracies}

    @property
    def _names_garments(self) -> bool:
        return "article_type" in self.model.heads or hasattr(encoder_of(self.model.captioner), "query_head")

    def _phone_accuracy(self, phone: PhonePhotoSet, size: int = 128) -> float:
        """How often the likeliest query's last word, or without a query head the articleType, names the garment."""
        types, queries = self._phone_truth
        encoder = encoder_of(self.model.captioner)
        hits = 0
        for start in range(0, len(phone), size):
            rows = slice(start, start + size)
            pixels = torch.from_numpy(phone.pixels[rows]).permute(0, 3, 1, 2).float().to(self._device)
            embedding = embedding_of(encoder(pixel_values=normalise(pixels)).last_hidden_state)
            head = getattr(encoder, "query_head", None)
            if head is None:
                logits, truth = self.model.heads["article_type"](embedding), types[rows]
            else:
                logits, truth = head(embedding)[:, 1:], queries[rows, 1:]
            chosen = logits.argmax(dim=1, keepdim=True).cpu()
            hits += int(truth.gather(1, chosen).sum())
        return hits / len(phone)

    def _validation_batches(self, size: int = 128) -> Iterator[Batch]:
        """This process's share of the validation set."""
        starts = range(0, len(self.validation), size)
        for start in starts[self.processes.rank :: self.processes.count]:
            batch = self.validation.batch(range(start, min(start + size, len(self.validation))))
            yield batch.to(self._device)

    def save_state(self, folder: Path) -> None:
        """Write everything that is needed to continue; a kill in between leaves the last saved state."""
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
        """Continue from a saved state.

        Returns:
            False where there is no such state.

        Raises:
            StateError: the state belongs to another run (other preset, tokenizer, number of micro-batches, data or
                weights at the start), or not every process finds it.
        """
        path = folder / STATE_FILE
        found = round(self.processes.sum(float(path.is_file()))[0])
        if not found:
            return False
        if found < self.processes.count:  # otherwise the processes without a state would start from the beginning
            raise StateError(
                f"only {found} of {self.processes.count} processes find {path}: give --state a folder that every host "
                "reads, or --restart to forget it"
            )
        state = torch.load(path, map_location=self._device, weights_only=True)
        identity = state.get("identity", {})
        if other := [name for name, value in self._identity.items() if identity.get(name) != value]:
            raise StateError(f"{path} belongs to another run ({', '.join(other)}): give --restart to forget it")
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self._scaler.load_state_dict(state["scaler"])
        for name in ("step", "seconds", "epoch_losses", "history"):
            setattr(self, name, state[name])
        return True

    def forget_state(self, folder: Path) -> None:
        """Remove a saved state and no other file."""
        if self.processes.is_main:
            for name in (STATE_FILE, STATE_FILE + ".part"):
                (folder / name).unlink(missing_ok=True)
        self.processes.wait()


@dataclasses.dataclass(frozen=True)
class _Counts:
    """The divisors of the sums over a whole batch, the same for all processes."""

    tokens: int
    weight: float  # of all tokens
    known: dict[str, int]  # label -> photos with a class
    queries: int  # photos with a target for the query head
    names: int
    phone: int

    @classmethod
    def of(cls, data: CaptionDataset, rows: npt.NDArray[np.int64], preset: Preset) -> _Counts:
        targets = data.targets(rows)
        known = {name: int((ids != IGNORED).sum()) for name, ids in targets.auxiliary.items()}
        if "article_type" in known:
            known["article_type"] += int(targets.types.any(dim=1).sum())
        is_label = targets.labels != IGNORED
        return cls(
            tokens=int(is_label.sum()),
            weight=float(token_weights(targets.labels, targets.in_query, preset.query_weight).sum()),
            known=known,
            queries=int(((targets.queries != IGNORED) | (targets.query_weights > 0).any(dim=1)).sum()),
            names=int(is_label.any(dim=1).sum()),
            phone=int(data.is_phone(rows).sum()),
        )


class _PhoneCaptions:
    """Captions for the phone photos of a batch, which have no names: the likeliest of their guided query targets."""

    def __init__(self, labels: torch.Tensor, query_weights: torch.Tensor, class_labels: torch.Tensor | None):
        self._names, self._weights, self._class_labels = labels, query_weights, class_labels
        self._rows = (query_weights > 0).any(dim=1)
        self.labels: torch.Tensor | None = None  # int64 [B, T'], IGNORED for other photos; set by `choose`

    @property
    def is_needed(self) -> bool:
        """Whether there is a phone photo in the batch."""
        return self._class_labels is not None and bool(self._rows.any())

    def choose(self, queries: torch.Tensor | None) -> torch.Tensor:
        """Set `labels` by the logits of the query classes, float [B, Q]; return the labels of all photos."""
        if queries is None or self._class_labels is None:
            return self._names
        chosen = guided_targets(queries, self._weights, OWN_TRUST).argmax(dim=1).cpu()
        captions = self._class_labels[chosen].to(self._names.device)
        self.labels = torch.where(self._rows[:, None], captions[:, : self._names.shape[1]], IGNORED)
        return torch.where(self._rows[:, None], self.labels, self._names)


def _digest(extras: TrainingExtras) -> str:
    """A hash of everything in `extras` except the phone photos' labels, which the identity has already."""
    digest = hashlib.sha256(repr((extras.queries, extras.half_size)).encode())
    others = extras.others or OtherPhotos()
    arrays = [others.large_rows, others.phone_query_weights]
    if extras.neighbours is not None:
        arrays += [getattr(extras.neighbours, field.name) for field in dataclasses.fields(extras.neighbours)]
    for array in arrays:
        digest.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
    digest.update(repr(0 if others.nothing is None else len(others.nothing)).encode())
    return digest.hexdigest()


def _padded(neighbours: NeighbourNames | None, rows: int) -> NeighbourNames | None:
    """Append `rows` photos without soft targets."""
    if neighbours is None or not rows:
        return neighbours
    arrays = (getattr(neighbours, field.name) for field in dataclasses.fields(neighbours))
    return NeighbourNames(*(np.concatenate([one, np.zeros((rows, *one.shape[1:]), one.dtype)]) for one in arrays))
