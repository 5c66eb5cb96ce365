# SPDX-License-Identifier: Apache-2.0
"""Perplexity of true names per GPT-2 token, whatever tokenizer the model has.

A perplexity per token depends on how long the tokens are. So the nats of the raw names, EOS included, are divided by
the number of GPT-2 tokens of these names, with one EOS each, which makes models with different tokenizers comparable.
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
    """GPT-2's BPE cannot be read. The message says which file and what to do."""


class Gpt2Bpe:
    """GPT-2's byte-level BPE, without a space before a text: "Nike Shirt" begins with "Nike", not with " Nike".

    Args:
        folder: holds `vocab.json` and `merges.txt`.

    Raises:
        Gpt2FilesError: a file is missing or cannot be read.
    """

    def __init__(self, folder: Path):
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
    """exp of nats per token, EOS included, over the names that fit the model."""

    names_scored: int  # number of these names
    names_cut: int  # number of names that are longer than the model's captions; they are in none of the figures
    loss_nats_per_token: float  # of the model's own tokenizer
    perplexity_per_token: float  # the same as perplexity
    perplexity_per_gpt2_token: float | None  # None without GPT-2's BPE
    perplexity_paper_protocol: float | None  # see `PerplexityMeter`; None without GPT-2's BPE


class PerplexityMeter:
    """Accumulates the perplexity of batches.

    The paper ("Reverse Image Search Using Image Captioning", Patel and Patel) trains without BOS and shifts the labels
    twice, so its loss leaves out each caption's first GPT-2 token. Its protocol for n names with G GPT-2 tokens, N nats
    in all and F nats for the first tokens is exp((N - F) / (G - n)). `FirstToken` computes F for other tokenizers.

    Args:
        tokenizer: of the model.
        gpt2: None leaves the figures per GPT-2 token out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, gpt2: Gpt2Bpe | None):
        self._eos = tokenizer.eos_token_id
        self._gpt2 = gpt2
        self._first_token = FirstToken(tokenizer, gpt2) if gpt2 is not None else None
        self._nats, self._first_nats = 0.0, 0.0
        self._tokens, self._gpt2_tokens = 0, 0
        self._names, self._cut = 0, 0

    def add(self, log_probabilities: torch.Tensor, labels: torch.Tensor, names: Sequence[str]) -> None:
        """Add a batch.

        Args:
            log_probabilities: float [B, T', V], in nats.
            labels: int64 [B, T'], from `tokenize`.
            names: B names.

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
        """The perplexity of all batches so far.

        Raises:
            ValueError: no name fitted the model.
        """
        if not self._names:
            raise ValueError(f"all {self._cut} names are too long for the model: there is no perplexity")
        loss = self._nats / self._tokens
        per_gpt2 = paper = None
        if self._gpt2 is not None:
            per_gpt2 = math.exp(self._nats / self._gpt2_tokens)
            paper = math.exp((self._nats - self._first_nats) / (self._gpt2_tokens - self._names))
        return Perplexity(self._names, self._cut, loss, math.exp(loss), per_gpt2, paper)


class FirstToken:
    """The nats that a model with its own byte-level BPE needs for the first GPT-2 token of a name.

    These are -log P(the text begins with that token's bytes), along the name's canonical own tokens: the sum of -log P
    over the own tokens that end inside the GPT-2 token, and for the one that reaches its end, -log of the summed
    probability of all vocabulary entries that begin with the remaining bytes.

    There are two approximations of opposite sign. Other tokenisations of the same bytes are not summed, which makes the
    nats of first tokens too large and the paper protocol's perplexity too small; a model trained on canonical tokens
    gives the others very little probability. And a text that begins with the bytes may have another first GPT-2 token
    ("Nikes" does not begin with the token "Nike"), which makes the nats too small and the perplexity too large. Where
    the model's tokenizer is GPT-2's own, the nats are exactly those of its first token.

    Args:
        tokenizer: of the model.
        gpt2: GPT-2's BPE.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, gpt2: Gpt2Bpe):
        special = set(tokenizer.all_special_ids)
        pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        # Special tokens have no text.
        self._pieces: list[str | None] = [None if i in special else piece for i, piece in enumerate(pieces)]
        own = {piece: i for i, piece in enumerate(self._pieces) if piece is not None}
        known = {piece: i for piece, i in gpt2.vocabulary.items() if i not in special}
        self._is_gpt2 = own == known
        self._continuations: dict[tuple[str, bool], torch.Tensor] = {}

    def nats(self, log_probabilities: torch.Tensor, tokens: Sequence[int], gpt2_pieces: Sequence[str]) -> float:
        """The nats of one name's first GPT-2 token.

        Args:
            log_probabilities: float [T', V], in nats.
            tokens: the name's own tokens without EOS.
            gpt2_pieces: its GPT-2 tokens.

        Raises:
            ValueError: the two are not tokens of the same text.
        """
        own = [self._pieces[token] or "" for token in tokens]
        text, wanted = "".join(own), "".join(gpt2_pieces)
        spaced = text == SPACE + wanted  # the tokenizer writes a space before the first word
        if not wanted or not (spaced or text == wanted):
            raise ValueError(
                f"the model's tokens are {text!r}, GPT-2's are {wanted!r}: only byte-level tokenizers can be compared"
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
        raise AssertionError("the own tokens are at least as long as the first GPT-2 token")

    def _beginning_with(self, start: str, at_start: bool) -> torch.Tensor:
        """Ids of the entries whose text begins with `start`, at the start of a name with or without the space."""
        key = (start, at_start)
        if key not in self._continuations:
            forms = (start, SPACE + start) if at_start else (start,)
            self._continuations[key] = torch.tensor(
                [i for i, piece in enumerate(self._pieces) if piece is not None and piece.startswith(forms)]
            )
        return self._continuations[key]
