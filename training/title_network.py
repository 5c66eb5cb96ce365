# SPDX-License-Identifier: Apache-2.0
"""The network of `captioner.title_reader` in torch, to be trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from captioner.title_reader import TitleParameters, rows_of, title_words
from training.presets import TitlePreset

_LARGEST = 127  # of int8


class TitleNetwork(nn.Module):
    """The network with random weights.

    Args:
        preset: has the sizes and what is dropped in training.
        num_types: T.
        num_colours: C.
    """

    def __init__(self, preset: TitlePreset, num_types: int, num_colours: int):
        super().__init__()
        size, hidden = preset.word_size, preset.hidden_size
        self.preset = preset
        self.table = nn.EmbeddingBag(preset.rows, size, mode="sum")
        nn.init.normal_(self.table.weight, std=0.1)
        self.context = nn.Linear(3 * size, hidden)
        self.nothing = nn.Parameter(torch.zeros(hidden))
        self.attention = nn.Linear(hidden, 2, bias=False)
        self.type_head = nn.Linear(2 * hidden, num_types)
        self.colour_head = nn.Linear(2 * hidden, num_colours)
        self._rows: dict[str, list[int]] = {}  # of words seen before

    def forward(self, titles: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The logits of n titles for type and colour, float32 [n, T] and [n, C]."""
        split = [title_words(title) for title in titles]
        length = max(map(len, split)) + 1
        numbers: dict[str, int] = {}  # of the batch's words, from 1
        places = torch.zeros(len(titles), length + 1, dtype=torch.int64)  # the first and the last are no words
        for row, words in enumerate(split):
            for place, word in enumerate(words, 1):
                places[row, place] = numbers.setdefault(word, len(numbers) + 1)
        vectors = functional.embedding(places, self._word_vectors(list(numbers)))
        previous = functional.pad(vectors[:, : length - 1], (0, 0, 1, 0))
        seen = self.context(torch.cat([previous, vectors[:, :length], vectors[:, 1:]], dim=2)).relu()
        seen = functional.dropout(seen, self.preset.dropout, self.training)
        seen = torch.cat([self.nothing.expand(len(titles), 1, -1), seen[:, 1:]], dim=1)
        is_padding = places[:, :length] == 0
        is_padding[:, 0] = False
        shares = self.attention(seen).masked_fill(is_padding[..., None], -torch.inf).softmax(dim=1)
        pooled = torch.einsum("nlh,nlk->nkh", seen, shares).flatten(1)
        return self.type_head(pooled), self.colour_head(pooled)

    def _word_vectors(self, words: Sequence[str]) -> Tensor:
        """The vectors of words, float32 [1 + words, W]; the first is zero."""
        if not words:
            return torch.zeros(1, self.preset.word_size)
        for word in words:
            if word not in self._rows:
                self._rows[word] = rows_of(word, self.preset.rows)
        rows = [self._rows[word] for word in words]
        starts = torch.tensor(np.cumsum([0, *map(len, rows[:-1])]))
        shares = torch.tensor([share for one in rows for share in (1.0, *[1 / (len(one) - 1)] * (len(one) - 1))])
        if self.training:
            shares[starts] *= (torch.rand(len(starts)) >= self.preset.word_dropout).float()
        flat = torch.tensor([row for one in rows for row in one])
        return functional.pad(self.table(flat, starts, per_sample_weights=shares), (0, 0, 1, 0))

    @torch.no_grad()
    def parameters_for_serving(self, temperatures: tuple[float, float] = (1.0, 1.0)) -> TitleParameters:
        """The parameters with an int8 table, the logits of type and colour divided by the temperatures."""
        table = self.table.weight.numpy()
        scale = np.abs(table).max(axis=0) / _LARGEST
        of_type, of_colour = temperatures

        def array(values: Tensor) -> npt.NDArray[np.float32]:
            return np.ascontiguousarray(values.numpy(), np.float32)

        return TitleParameters(
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
