# SPDX-License-Identifier: Apache-2.0
"""The network of `captioner.title_reader` in torch, to be trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from captioner.title_reader import TitleParameters, features_of, title_words
from training.presets import TitlePreset

_LARGEST = 127  # of int8


class TitleNetwork(nn.Module):
    """The network with random weights.

    Args:
        preset: has the sizes and what is dropped in training.
        features: the hashes of the F features that it knows.
        num_types: T.
        num_colours: C.
    """

    def __init__(self, preset: TitlePreset, features: Sequence[int], num_types: int, num_colours: int):
        super().__init__()
        size, hidden = preset.word_size, preset.hidden_size
        self.preset = preset
        self.features = tuple(features)
        self._numbers = {feature: row for row, feature in enumerate(features)}
        self.table = nn.EmbeddingBag(len(features), size, mode="sum")
        nn.init.normal_(self.table.weight, std=0.1)
        self.context = nn.Linear(3 * size, hidden)
        self.nothing = nn.Parameter(torch.zeros(hidden))
        self.attention = nn.Linear(hidden, 2, bias=False)
        self.type_head = nn.Linear(2 * hidden, num_types)
        self.colour_head = nn.Linear(2 * hidden, num_colours)
        self._rows: dict[str, tuple[list[int], list[float]]] = {}  # rows and their shares, of words seen before

    def forward(self, titles: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The logits of n titles for type and colour, float32 [n, T] and [n, C]."""
        split = [[word for word in title_words(title) if self._rows_of(word)[0]] for title in titles]
        numbers: dict[str, int] = {}  # of the batch's words, from 1; 0 stands for the end of a title and no word
        flat = [
            number for words in split for number in (0, *[numbers.setdefault(word, len(numbers) + 1) for word in words])
        ]
        lengths = torch.tensor([len(words) + 1 for words in split])
        owners = torch.arange(len(titles)).repeat_interleave(lengths)
        vectors = functional.embedding(torch.tensor([0, *flat, 0]), self._word_vectors(list(numbers)))
        seen = self.context(torch.cat([vectors[:-2], vectors[1:-1], vectors[2:]], dim=1)).relu()
        seen = functional.dropout(seen, self.preset.dropout, self.training)
        seen = torch.where(torch.tensor(flat)[:, None] == 0, self.nothing, seen)
        scores = self.attention(seen)
        highest = torch.full((len(titles), 2), -torch.inf).index_reduce(0, owners, scores.detach(), "amax")
        shares = (scores - highest[owners]).exp()
        total = torch.zeros(len(titles), 2).index_add(0, owners, shares)
        pooled = torch.stack(
            [
                torch.zeros(len(titles), seen.shape[1]).index_add(0, owners, seen * shares[:, place : place + 1])
                for place in (0, 1)
            ],
            dim=1,
        )
        pooled = (pooled / total[..., None]).flatten(1)
        return self.type_head(pooled), self.colour_head(pooled)

    def _word_vectors(self, words: Sequence[str]) -> Tensor:
        """The vectors of words, float32 [1 + words, W]; the first is zero."""
        if not words:
            return torch.zeros(1, self.preset.word_size)
        rows, shares = zip(*map(self._rows_of, words), strict=True)
        starts = torch.tensor(np.cumsum([0, *map(len, rows[:-1])]))
        weights = torch.tensor([share for one in shares for share in one])
        if self.training:
            is_own = torch.tensor([one[0] == 1.0 for one in shares])
            is_dropped = (torch.rand(len(words)) < self.preset.word_dropout) & is_own
            weights[starts[is_dropped]] = 0.0
        flat = torch.tensor([row for one in rows for row in one])
        return functional.pad(self.table(flat, starts, per_sample_weights=weights), (0, 0, 1, 0))

    def _rows_of(self, word: str) -> tuple[list[int], list[float]]:
        """The rows of a word's known features and what each counts: the word itself 1, its n-grams together 1."""
        if word not in self._rows:
            own, *parts = features_of(word)
            known = [self._numbers[part] for part in parts if part in self._numbers]
            has_own = own in self._numbers
            self._rows[word] = (
                [*([self._numbers[own]] if has_own else []), *known],
                [*([1.0] if has_own else []), *[1 / len(parts)] * len(known)],
            )
        return self._rows[word]

    @torch.no_grad()
    def parameters_for_serving(self, temperatures: tuple[float, float] = (1.0, 1.0)) -> TitleParameters:
        """The parameters with an int8 table, the logits of type and colour divided by the temperatures."""
        table = self.table.weight.numpy()
        scale = np.abs(table).max(axis=0) / _LARGEST
        of_type, of_colour = temperatures

        def array(values: Tensor) -> npt.NDArray[np.float32]:
            return np.ascontiguousarray(values.numpy(), np.float32)

        return TitleParameters(
            features=np.array(self.features, np.uint32),
            table=np.rint(table / scale).astype(np.int8),
            table_scale=scale.astype(np.float32),
            context=array(self.context.weight.T),
            context_bias=array(self.context.bias),
            nothing=array(self.nothing),
            attention=array(self.attention.weight.T),
            type_weight=array(self.type_head.weight.T / of_type),
            type_bias=array(self.type_head.bias / of_type),
            colour_weight=array(self.colour_head.weight.T / of_colour),
            colour_bias=array(self.colour_head.bias / of_colour),
        )
