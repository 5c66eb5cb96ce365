# SPDX-License-Identifier: Apache-2.0
"""Perplexity of true names per token of GPT-2, whatever tokenizer the model has. Knows no model and no photo.

A perplexity per token depends on how long the tokens are. So the nats a model needs for the raw names, EOS included,
are divided by the number of GPT-2 tokens of these names, one EOS each: models with other tokenizers become comparable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from training.caption_dataset import IGNORED

SPACE = "Ġ"  # how byte-level BPE writes the byte 0x20; every byte has one such character


class Gpt2FilesError(ValueError):
    """GPT-2's BPE cannot be read. The message says from where and what should be there."""


class Gpt2Bpe:
    """GPT-2's own byte-level BPE. A text has no space before it: "Nike Shirt" begins with "Nike", not with " Nike"."""

    def __init__(self, folder: Path):
        """Read `vocab.json` and `merges.txt`.

        Raises:
            Gpt2FilesError: one of them is missing or cannot be read.
        """
        files = folder / "vocab.json", folder / "merges.txt"
        for file in files:
            if not file.is_file():
                raise Gpt2FilesError(
                    f"{file} is missing: give --gpt2-tokenizer a folder with GPT-2's vocab.json and merges.txt"
                )
        try:
            self._bpe = Tokenizer(models.BPE.from_file(str(files[0]), str(files[1])))
        except Exception as error:  # tokenizers raises plain Exception
            raise Gpt2FilesError(f"{folder} does not hold GPT-2's vocab.json and merges.txt: {error}") from error
        self._bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self.vocabulary: dict[str, int] = self._bpe.get_vocab()

    def pieces(self, names: Sequence[str]) -> list[list[str]]:
        """Each name's tokens without EOS, as byte-level strings."""
        return [encoding.tokens for encoding in self._bpe.encode_batch(list(names))]


@dataclass(frozen=True)
class Perplexity:
    """exp of nats per token, EOS included, over the names that fit the model; None without GPT-2's BPE."""

    names_scored: int
    names_cut: int  # longer than the model's most tokens: no EOS, so they are in none of the figures
    loss_nats_per_token: float  # of the model's own tokenizer
    perplexity_per_token: float
    perplexity_per_gpt2_token: float | None
    perplexity_paper_protocol: float | None


class PerplexityMeter:
    """Adds up batches.

    The protocol of the paper ("Reverse Image Search Using Image Captioning", Patel and Patel): its training has no BOS
    and shifts the labels twice, so the loss leaves out each caption's first GPT-2 token. With nats N of all names, F of
    their first tokens, and G GPT-2 tokens of n names: exp((N - F) / (G - n)). F of a model with another tokenizer is
    what `FirstToken` gives.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, gpt2: Gpt2Bpe | None):
        self._eos = tokenizer.eos_token_id
        self._gpt2 = gpt2
        self._first_token = FirstToken(tokenizer, gpt2) if gpt2 is not None else None
        self._nats, self._first_nats = 0.0, 0.0
        self._tokens, self._gpt2_tokens = 0, 0
        self._names, self._cut = 0, 0

    def add(self, log_probabilities: torch.Tensor, labels: torch.Tensor, names: Sequence[str]) -> None:
        """Count a batch; log-probabilities float [B, T', V], labels int64 [B, T'] as of `tokenize`, B names.

        Raises:
            ValueError: the labels are not the tokens of the names.
        """
        is_label = labels != IGNORED
        nats = -log_probabilities.gather(2, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1).double() * is_label
        lengths = is_label.sum(dim=1)
        last = labels.gather(1, (lengths - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
        whole = ((lengths > 0) & (last == self._eos)).nonzero().flatten().tolist()
        self._cut += len(names) - len(whole)
        self._names += len(whole)
        self._nats += float(nats[whole].sum())
        self._tokens += int(lengths[whole].sum())
        if self._gpt2 is None or self._first_token is None:
            return
        for row, pieces in zip(whole, self._gpt2.pieces([names[row] for row in whole]), strict=True):
            length = int(lengths[row]) - 1  # without EOS
            self._gpt2_tokens += len(pieces) + 1
            self._first_nats += self._first_token.nats(log_probabilities[row], labels[row, :length].tolist(), pieces)

    def result(self) -> Perplexity:
        """Of all batches so far.

        Raises:
            ValueError: not one name fitted the model.
        """
        if not self._names:
            raise ValueError(f"none of {self._cut} names fits the model's most tokens: there is no perplexity")
        loss = self._nats / self._tokens
        per_gpt2 = paper = None
        if self._gpt2 is not None:
            per_gpt2 = math.exp(self._nats / self._gpt2_tokens)
            paper = math.exp((self._nats - self._first_nats) / (self._gpt2_tokens - self._names))
        return Perplexity(self._names, self._cut, loss, math.exp(loss), per_gpt2, paper)


class FirstToken:
    """Nats a model with its own byte-level BPE spends on the first GPT-2 token of a name.

    They are -log P(the text begins with that token's bytes), along the name's own canonical tokens: -log P of each own
    token that ends inside the GPT-2 token, and at the one that reaches its end -log of the sum over all entries of the
    vocabulary that begin with what is left.

    Two approximations, of opposite sign. Other tokenisations of the same bytes are not summed, which makes the nats of
    first tokens too large and the paper protocol's perplexity too small; a model trained on canonical tokens gives the
    others next to nothing. And a text that begins with the bytes may have another first GPT-2 token (one that begins
    "Nikes", but not with the token "Nike"), which makes those nats too small and the perplexity too large. Where the
    model's tokenizer is GPT-2's own, neither is needed and the nats are plainly those of its first token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, gpt2: Gpt2Bpe):
        special = set(tokenizer.all_special_ids)
        pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        # Special tokens write no text, so none of them begins with anything.
        self._pieces: list[str | None] = [None if i in special else piece for i, piece in enumerate(pieces)]
        own = {piece: i for i, piece in enumerate(self._pieces) if piece is not None}
        known = {piece: i for piece, i in gpt2.vocabulary.items() if i not in special}
        self._is_gpt2 = own == known
        self._continuations: dict[tuple[str, bool], torch.Tensor] = {}

    def nats(self, log_probabilities: torch.Tensor, tokens: Sequence[int], gpt2_pieces: Sequence[str]) -> float:
        """Log-probabilities float [T', V] of one name, its own tokens without EOS, its GPT-2 tokens.

        Raises:
            ValueError: the two are not tokens of one text.
        """
        own = [self._pieces[token] or "" for token in tokens]
        text, wanted = "".join(own), "".join(gpt2_pieces)
        spaced = text == SPACE + wanted  # the tokenizer writes a space before the first word
        if not wanted or not (spaced or text == wanted):
            raise ValueError(
                f"the model's tokens say {text!r}, GPT-2's {wanted!r}: only byte-level tokenizers can be compared"
            )
        if self._is_gpt2 and own[0] == gpt2_pieces[0]:
            return -float(log_probabilities[0, tokens[0]])
        left, nats = gpt2_pieces[0], 0.0
        for position, (token, piece) in enumerate(zip(tokens, own, strict=True)):
            at_start = spaced and position == 0
            if at_start:
                piece = piece.removeprefix(SPACE)
            if len(piece) >= len(left):
                entries = self._beginning_with(left, at_start)
                return nats - float(log_probabilities[position, entries].double().logsumexp(dim=0))
            nats -= float(log_probabilities[position, token])
            left = left[len(piece) :]
        raise AssertionError("the own tokens are as long as the name, and the name as its first GPT-2 token")

    def _beginning_with(self, start: str, at_start: bool) -> torch.Tensor:
        """Ids of the entries whose text begins so; at the start with or without the space, which captions lose."""
        key = (start, at_start)
        if key not in self._continuations:
            forms = (start, SPACE + start) if at_start else (start,)
            self._continuations[key] = torch.tensor(
                [i for i, piece in enumerate(self._pieces) if piece is not None and piece.startswith(forms)]
            )
        return self._continuations[key]
