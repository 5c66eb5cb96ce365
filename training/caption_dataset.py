# SPDX-License-Identifier: Apache-2.0
"""Names -> token ids, labels -> class ids, photos -> augmented batches. Every random choice is a function of
(seed, step), so a run that was interrupted goes on exactly as it would have.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from captioner.query import QUERY_WORDS
from training.augmentation import augment
from training.prepare_data import Product, ProductSet

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
IGNORED = -100  # what torch's cross entropy leaves out

AUXILIARY_LABELS = ("article_type", "colour", "gender")


def train_tokenizer(names: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE over product names. GPT-2's own 50,257 pieces would cost more weights than the whole model."""
    tokenizer = Tokenizer(models.BPE())
    # The first word is written as any other, with the space before it, so that it has the same token everywhere.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(names, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, add_prefix_space=True, bos_token=BOS, eos_token=EOS, pad_token=PAD
    )


@dataclass(frozen=True)
class AuxiliaryClasses:
    """The values of each label that are frequent enough to learn from; others are ignored."""

    values: dict[str, list[str]]

    @classmethod
    def from_products(cls, products: Sequence[Product], min_count: int = 20) -> AuxiliaryClasses:
        values = {}
        for label in AUXILIARY_LABELS:
            counts = Counter(getattr(product, label) for product in products)
            values[label] = sorted(value for value, count in counts.items() if value and count >= min_count)
        return cls(values)

    def ids(self, products: Sequence[Product]) -> dict[str, torch.Tensor]:
        """Per label the class id of each product, int64 [n]; IGNORED where its value is not among the classes."""
        result = {}
        for label, values in self.values.items():
            index = {value: i for i, value in enumerate(values)}
            result[label] = torch.tensor([index.get(getattr(p, label), IGNORED) for p in products])
        return result


def tokenize(names: Sequence[str], tokenizer: PreTrainedTokenizerFast, max_tokens: int) -> torch.Tensor:
    """Labels: each name's tokens and EOS, IGNORED behind it; int64 [n, max_tokens].

    BOS is not among the labels: the model puts it before them as the decoder's first input, in training as in decoding.
    A name longer than max_tokens is cut and has no EOS, since that is not where it ends.
    """
    labels = torch.full((len(names), max_tokens), IGNORED)
    for row, name in zip(labels, names, strict=True):
        tokens = [*tokenizer.encode(name, add_special_tokens=False), tokenizer.eos_token_id][:max_tokens]
        row[: len(tokens)] = torch.tensor(tokens)
    return labels


def in_query(labels: torch.Tensor, tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """Which labels are the query: the tokens of each name's last two words, and its EOS; bool, as `labels`."""
    begins = torch.tensor(
        [piece.startswith("Ġ") for piece in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]
    )
    is_label = labels != IGNORED
    first_of_word = begins[labels.clamp(min=0)] & is_label
    # Words that begin at this token or later; a token belongs to the word that began at or before it.
    to_come = first_of_word.long().flip(1).cumsum(1).flip(1)
    words_after = to_come - first_of_word.long()
    return is_label & (words_after < QUERY_WORDS)


@dataclass(frozen=True)
class Batch:
    pixels: torch.Tensor  # float32 [B, 3, height, width], 0 to 255
    labels: torch.Tensor  # int64 [B, longest of the batch]
    in_query: torch.Tensor  # bool [B, longest of the batch]
    auxiliary: dict[str, torch.Tensor]  # int64 [B] each

    def to(self, device: torch.device) -> Batch:
        return Batch(
            self.pixels.to(device),
            self.labels.to(device),
            self.in_query.to(device),
            {name: ids.to(device) for name, ids in self.auxiliary.items()},
        )


@dataclass(frozen=True)
class Targets:
    """What a batch is to learn, without its photos; fields as in `Batch`, labels of full length."""

    labels: torch.Tensor
    in_query: torch.Tensor
    auxiliary: dict[str, torch.Tensor]


class CaptionDataset:
    def __init__(
        self, data: ProductSet, tokenizer: PreTrainedTokenizerFast, classes: AuxiliaryClasses, max_tokens: int
    ):
        self._pixels = data.pixels
        self._labels = tokenize([product.name for product in data.products], tokenizer, max_tokens)
        self._in_query = in_query(self._labels, tokenizer)
        self._auxiliary = classes.ids(data.products)

    def __len__(self) -> int:
        return len(self._labels)

    def batch(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Batch:
        """These products as they are, unaugmented."""
        rows = torch.as_tensor(np.asarray(indices))
        labels = self._labels[rows]
        longest = int((labels != IGNORED).sum(dim=1).max())
        pixels = torch.from_numpy(self._pixels[rows.numpy()]).permute(0, 3, 1, 2).float()
        auxiliary = {name: ids[rows] for name, ids in self._auxiliary.items()}
        return Batch(pixels, labels[:, :longest], self._in_query[rows, :longest], auxiliary)

    def targets(self, indices: npt.NDArray[np.int64]) -> Targets:
        """What these products are to teach, for sums over a batch that other processes see parts of."""
        rows = torch.as_tensor(indices)
        return Targets(
            self._labels[rows], self._in_query[rows], {name: ids[rows] for name, ids in self._auxiliary.items()}
        )

    def training_rows(self, step: int, batch_size: int, seed: int) -> npt.NDArray[np.int64]:
        """Which products optimiser step `step` sees: each epoch all of them, in another order."""
        epoch, position = divmod(step, self.steps_per_epoch(batch_size))
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        return order[position * batch_size : (position + 1) * batch_size].numpy()

    def training_batch(self, step: int, batch_size: int, seed: int, part: int = 0, parts: int = 1) -> Batch:
        """The batch of optimiser step `step`, augmented; the same for the same arguments, whatever was asked before.

        Args:
            part, parts: only the micro-batch `part` of `parts` equal ones, counted from 0.
        """
        rows = np.array_split(self.training_rows(step, batch_size, seed), parts)[part]
        generator = torch.Generator().manual_seed(seed * 7_919 + 2_000_000_011 + step + part * 49_979_687)
        batch = self.batch(rows)
        return dataclasses.replace(batch, pixels=augment(batch.pixels, generator))

    def steps_per_epoch(self, batch_size: int) -> int:
        """The last, smaller batch is left out: its few photos come in another place next epoch."""
        return max(1, len(self) // batch_size)
