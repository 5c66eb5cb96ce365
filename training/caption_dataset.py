# SPDX-License-Identifier: Apache-2.0
"""Training batches: names become token ids, labels become class ids, photos are augmented.

Every random choice is a function of (seed, step), so an interrupted run continues exactly as it would have.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from captioner.query import QUERY_WORDS
from training.augmentation import augment, augment_street
from training.neighbour_names import NeighbourNames
from training.phone_photos import PhonePhotoSet
from training.prepare_data import Product, ProductSet
from training.query_classes import NO_PRODUCT_CLASS, QueryClasses

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
IGNORED = -100  # the label that torch's cross entropy skips

AUXILIARY_LABELS = ("article_type", "colour", "gender")


def train_tokenizer(names: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on product names; GPT-2's 50,257 pieces would need more weights than the whole model.

    Args:
        names: product names.
        vocab_size: largest number of pieces, special tokens included.

    Returns:
        A tokenizer with BOS, EOS and PAD that puts a space before the first word.
    """
    tokenizer = Tokenizer(models.BPE())
    # With the space before it, a word has the same token at the start of a name as inside.
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
    """The classes of the auxiliary heads."""

    values: dict[str, list[str]]  # label -> its frequent values in alphabetical order; the others are not learned

    @classmethod
    def from_products(cls, products: Sequence[Product], min_count: int = 20) -> AuxiliaryClasses:
        """Take each label's values that at least `min_count` of the products have."""
        values = {}
        for label in AUXILIARY_LABELS:
            counts = Counter(getattr(product, label) for product in products)
            values[label] = sorted(value for value, count in counts.items() if value and count >= min_count)
        return cls(values)

    def ids(self, products: Sequence[Product]) -> dict[str, torch.Tensor]:
        """Label -> the class of each product, int64 [n]; IGNORED where its value is not among the classes."""
        result = {}
        for label, values in self.values.items():
            index = {value: i for i, value in enumerate(values)}
            result[label] = torch.tensor([index.get(getattr(p, label), IGNORED) for p in products])
        return result


def tokenize(names: Sequence[str], tokenizer: PreTrainedTokenizerFast, max_tokens: int) -> torch.Tensor:
    """Turn names into labels.

    BOS is not among the labels: the model puts it before them as the decoder's first input, in training and decoding.
    A longer name is cut after `max_tokens` tokens and has no EOS, since it does not end there.

    Args:
        names: n names.
        tokenizer: has an EOS token.
        max_tokens: EOS included.

    Returns:
        int64 [n, max_tokens]: each name's tokens and EOS, then IGNORED.
    """
    labels = torch.full((len(names), max_tokens), IGNORED)
    for row, name in zip(labels, names, strict=True):
        tokens = [*tokenizer.encode(name, add_special_tokens=False), tokenizer.eos_token_id][:max_tokens]
        row[: len(tokens)] = torch.tensor(tokens)
    return labels


def in_query(labels: torch.Tensor, tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """Mark the labels of the query: the tokens of each name's last two words, and EOS; bool, shape of `labels`."""
    begins = torch.tensor(
        [piece.startswith("Ġ") for piece in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]
    )
    is_label = labels != IGNORED
    first_of_word = begins[labels.clamp(min=0)] & is_label
    # How many words begin at this token or later; a token belongs to the last word that began before or at it.
    to_come = first_of_word.long().flip(1).cumsum(1).flip(1)
    words_after = to_come - first_of_word.long()
    return is_label & (words_after < QUERY_WORDS)


@dataclass(frozen=True)
class Targets:
    """The targets of a batch of B photos; T' is the length of its longest caption.

    Attributes:
        labels: tokens and EOS, int64 [B, T']; a row of IGNORED where the photo has no name.
        in_query: which labels belong to the query, bool [B, T'].
        auxiliary: label -> class, int64 [B] each.
        types: the articleTypes that the photo may show, bool [B, classes]; all False where `auxiliary` has the type.
        queries: query class, int64 [B].
        query_weights: prior probability of each query class, float [B, Q]; a row of 0 where `queries` has the class.
        soft_tokens: next tokens in the names of similar photos, int64 [B, T', k].
        soft_weights: the probabilities of `soft_tokens`, float [B, T', k].
        soft_queries: distribution of the similar photos' query classes, float [B, Q]; a row of 0 where there is none.
    """

    labels: torch.Tensor
    in_query: torch.Tensor
    auxiliary: dict[str, torch.Tensor]
    types: torch.Tensor
    queries: torch.Tensor
    query_weights: torch.Tensor
    soft_tokens: torch.Tensor
    soft_weights: torch.Tensor
    soft_queries: torch.Tensor

    def to(self, device: torch.device) -> Targets:
        """Copy to a device."""
        tensors: dict[str, Any] = {
            field.name: getattr(self, field.name).to(device)
            for field in dataclasses.fields(self)
            if field.name != "auxiliary"
        }
        return Targets(auxiliary={name: one.to(device) for name, one in self.auxiliary.items()}, **tensors)


@dataclass(frozen=True)
class Batch:
    """Photos, float32 [B, 3, height, width] in 0 to 255, with their targets."""

    pixels: torch.Tensor
    targets: Targets

    @property
    def labels(self) -> torch.Tensor:
        """The labels of the targets, int64 [B, T']."""
        return self.targets.labels

    def to(self, device: torch.device) -> Batch:
        """Copy to a device."""
        return Batch(self.pixels.to(device), self.targets.to(device))


@dataclass(frozen=True)
class OtherPhotos:
    """Training photos other than the products' own.

    Attributes:
        large: uint8 [m, height, width, 3], photos of products from files with more pixels.
        large_rows: int64 [m], the products that `large` shows.
        phone: photos that people took of their clothes.
        phone_query_weights: float32 [number of phone photos, Q] from `phone_queries.query_weights`; None: all query
            classes that name the garment are equally likely.
        phone_repeats: how often an epoch shows each phone photo.
        nothing: uint8 [n, height, width, 3], pictures without a product.
    """

    large: npt.NDArray[np.uint8] | None = None
    large_rows: npt.NDArray[np.int64] | None = None
    phone: PhonePhotoSet | None = None
    phone_query_weights: npt.NDArray[np.float32] | None = None
    phone_repeats: int = 1
    nothing: npt.NDArray[np.uint8] | None = None


class CaptionDataset:
    """Rows to train or validate on: products, then phone photos, then pictures without a product.

    Args:
        data: products.
        tokenizer: turns names into labels.
        classes: of the auxiliary heads.
        max_tokens: of a caption, EOS included.
        queries: the query head's classes; None: there is no query head.
        others: further training photos.
        neighbours: soft targets, one row for each of `data`.
        half_size: whether the products' files have fewer than half of the encoder's pixels a side, so that their
            photos lose nothing when they are augmented at half the size.
    """

    def __init__(
        self,
        data: ProductSet,
        tokenizer: PreTrainedTokenizerFast,
        classes: AuxiliaryClasses,
        max_tokens: int,
        *,
        queries: QueryClasses | None = None,
        others: OtherPhotos | None = None,
        neighbours: NeighbourNames | None = None,
        half_size: bool = False,
    ):
        others = others or OtherPhotos()
        names = [product.name for product in data.products]
        self._pixels = data.pixels
        self._half_size = half_size
        self._large = others.large
        self._large_index = np.full(len(names), -1, dtype=np.int64)
        if others.large_rows is not None:
            self._large_index[others.large_rows] = np.arange(len(others.large_rows))
        self._labels = tokenize(names, tokenizer, max_tokens)
        self._in_query = in_query(self._labels, tokenizer)
        self._auxiliary = classes.ids(data.products)
        ids = [None] * len(names) if queries is None else queries.ids(names)
        self._queries = torch.tensor([IGNORED if one is None else one for one in ids], dtype=torch.int64)
        self._neighbours = neighbours
        self._num_queries = 0 if queries is None else len(queries)
        self._phone, self._phone_repeats = others.phone, others.phone_repeats
        self._nothing = others.nothing
        self._phone_types, named = phone_sets(others.phone, classes, queries)
        self._phone_queries = named / named.sum(dim=1, keepdim=True).clamp(min=1)
        if others.phone_query_weights is not None:
            self._phone_queries = torch.from_numpy(others.phone_query_weights)
        # The caption of a phone photo is that of a query class: its labels need room for the longest of them.
        captions = tokenize(queries.captions, tokenizer, max_tokens) if queries is not None else self._labels[:0]
        self._longest_query = int((captions != IGNORED).sum(dim=1).max()) if len(captions) else 1

    @property
    def num_products(self) -> int:
        """How many of the rows, the first ones, are products."""
        return len(self._labels)

    @property
    def num_phone_rows(self) -> int:
        """How many rows are phone photos, repetitions counted."""
        return self._num_phone * self._phone_repeats

    @property
    def num_without_product(self) -> int:
        """How many rows are pictures without a product."""
        return 0 if self._nothing is None else len(self._nothing)

    @property
    def _num_phone(self) -> int:
        return 0 if self._phone is None else len(self._phone)

    @property
    def _first_nothing(self) -> int:
        return self.num_products + self.num_phone_rows

    def __len__(self) -> int:
        return self._first_nothing + self.num_without_product

    def is_phone(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which rows are phone photos, bool of the shape of `rows`."""
        return (rows >= self.num_products) & (rows < self._first_nothing)

    def batch(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Batch:
        """The photos of some rows without augmentation, and their targets."""
        rows = np.asarray(indices)
        pixels = torch.from_numpy(self._photos(rows, large=False)).permute(0, 3, 1, 2).float()
        return Batch(pixels, self.targets(rows))

    def _photos(self, rows: npt.NDArray[np.int64], *, large: bool) -> npt.NDArray[np.uint8]:
        """The rows' photos, uint8 [B, height, width, 3]; with `large`, products' larger files where there are any."""
        result = np.empty((len(rows), *self._pixels.shape[1:]), dtype=np.uint8)
        phone, nothing = self.is_phone(rows), rows >= self._first_nothing
        product = rows < self.num_products
        result[product] = self._pixels[rows[product]]
        if large and self._large is not None:
            index = np.where(product, self._large_index[np.where(product, rows, 0)], -1)
            result[index >= 0] = self._large[index[index >= 0]]
        if self._phone is not None:
            result[phone] = self._phone.pixels[(rows[phone] - self.num_products) % self._num_phone]
        if self._nothing is not None:
            result[nothing] = self._nothing[rows[nothing] - self._first_nothing]
        return result

    def targets(self, indices: npt.NDArray[np.int64]) -> Targets:
        """The targets of some rows; `indices` int64 [B]."""
        rows = np.asarray(indices)
        product = torch.from_numpy(rows < self.num_products)
        own = torch.from_numpy(np.where(rows < self.num_products, rows, 0))
        labels = torch.where(product[:, None], self._labels[own], IGNORED)
        phone = self.is_phone(rows)
        least = self._longest_query if phone.any() else 1
        longest = max(least, int((labels != IGNORED).sum(dim=1).max()))
        auxiliary = {name: torch.where(product, ids[own], IGNORED) for name, ids in self._auxiliary.items()}
        queries = torch.where(product, self._queries[own], IGNORED)
        queries[torch.from_numpy(rows >= self._first_nothing)] = NO_PRODUCT_CLASS
        types = torch.zeros((len(rows), self._phone_types.shape[1]), dtype=torch.bool)
        query_weights = torch.zeros((len(rows), self._num_queries))
        if phone.any():
            which = torch.from_numpy((rows[phone] - self.num_products) % self._num_phone)
            types[torch.from_numpy(phone)] = self._phone_types[which]
            query_weights[torch.from_numpy(phone)] = self._phone_queries[which]
        soft_tokens, soft_weights, soft_queries = self._soft(rows, labels.shape[1])
        return Targets(
            labels[:, :longest],
            self._in_query[own, :longest] & product[:, None],
            auxiliary,
            types,
            queries,
            query_weights,
            soft_tokens[:, :longest],
            soft_weights[:, :longest],
            soft_queries,
        )

    def _soft(self, rows: npt.NDArray[np.int64], length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        queries = torch.zeros((len(rows), self._num_queries))
        if self._neighbours is None:
            return torch.zeros((len(rows), length, 1), dtype=torch.int64), torch.zeros((len(rows), length, 1)), queries
        product = rows < self.num_products
        own = np.where(product, rows, 0)
        weights = torch.from_numpy(self._neighbours.weights[own]).float() * torch.from_numpy(product)[:, None, None]
        ids = torch.from_numpy(self._neighbours.query_ids[own]).long()
        of_ids = torch.from_numpy(self._neighbours.query_weights[own]).float() * torch.from_numpy(product)[:, None]
        if self._num_queries:
            queries.scatter_add_(1, ids.clamp(min=0), of_ids * (ids >= 0))
            queries = (
                queries / queries.sum(dim=1, keepdim=True).clamp(min=1e-6) * (queries.sum(dim=1, keepdim=True) > 0)
            )
        return torch.from_numpy(self._neighbours.tokens[own]).long(), weights, queries

    def training_rows(self, step: int, batch_size: int, seed: int) -> npt.NDArray[np.int64]:
        """The rows of an optimiser step, int64 [batch_size]; each epoch has its own order of all rows."""
        epoch, position = divmod(step, self.steps_per_epoch(batch_size))
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        return order[position * batch_size : (position + 1) * batch_size].numpy()

    def training_batch(self, step: int, batch_size: int, seed: int, part: int = 0, parts: int = 1) -> Batch:
        """The augmented batch of an optimiser step, a function of the arguments alone.

        Args:
            step: counted from 0 over all epochs.
            batch_size: photos of the step.
            seed: of the run.
            part: the micro-batch to return, counted from 0.
            parts: the number of equal micro-batches.

        Returns:
            Micro-batch `part`.
        """
        rows = np.array_split(self.training_rows(step, batch_size, seed), parts)[part]
        generator = torch.Generator().manual_seed(seed * 7_919 + 2_000_000_011 + step + part * 49_979_687)
        # Every other epoch shows the larger files, so that the encoder learns both sharp and blurred products.
        large = (step // self.steps_per_epoch(batch_size)) % 2 == 1
        return Batch(self.augmented(rows, generator, large=large), self.targets(rows))

    def augmented(self, rows: npt.NDArray[np.int64], generator: torch.Generator, *, large: bool) -> torch.Tensor:
        """The augmented photos of some rows.

        Args:
            rows: int64 [B].
            generator: the source of every random choice.
            large: use products' larger files where there are any.

        Returns:
            float32 [B, 3, height, width], 0 to 255.
        """
        pixels = torch.from_numpy(self._photos(rows, large=large)).permute(0, 3, 1, 2).float()
        product = rows < self.num_products
        fine = ~product
        if not self._half_size:
            fine[:] = True
        elif large:
            fine |= self._large_index[np.where(product, rows, 0)] >= 0
        result = torch.empty_like(pixels)
        grounds = self._grounds(generator)
        for chosen, halved in ((fine & product, False), (~fine & product, True)):
            if chosen.any():
                where = torch.from_numpy(chosen)
                photos = functional.avg_pool2d(pixels[where], 2) if halved else pixels[where]
                photos = augment(photos, generator, grounds)
                if halved:
                    photos = functional.interpolate(photos, scale_factor=2, mode="bicubic").clamp(0, 255)
                result[where] = photos
        if (~product).any():
            where = torch.from_numpy(~product)
            result[where] = augment_street(pixels[where], generator)
        return result

    def _grounds(self, generator: torch.Generator) -> torch.Tensor | None:
        """A few phone photos, whose corners show floors, walls and beds; float32 [n, 3, height, width]."""
        if self._phone is None:
            return None
        which = torch.randint(self._num_phone, (8,), generator=generator).numpy()
        return torch.from_numpy(self._phone.pixels[which]).permute(0, 3, 1, 2).float()

    def steps_per_epoch(self, batch_size: int) -> int:
        """Full batches in an epoch; the rest is left out, which concerns other photos in each epoch."""
        return max(1, len(self) // batch_size)


def phone_sets(
    phone: PhonePhotoSet | None, classes: AuxiliaryClasses, queries: QueryClasses | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The articleTypes, bool [n, types], and the query classes, bool [n, Q], that each phone photo's label allows."""
    photos = [] if phone is None else phone.photos
    values = classes.values.get("article_type", [])
    types = torch.zeros((len(photos), len(values)), dtype=torch.bool)
    sets = torch.zeros((len(photos), 0 if queries is None else len(queries)), dtype=torch.bool)
    for row, photo in enumerate(photos):
        for i, value in enumerate(values):
            types[row, i] = value in photo.garment.types
        if queries is not None:
            sets[row, queries.ending_with(photo.garment.words)] = True
    return types, sets
