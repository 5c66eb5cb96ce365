# SPDX-License-Identifier: Apache-2.0
"""Turns token ids into words with Hugging Face's `tokenizer.json`, without transformers.

The ids of BOS and EOS are in the model contract.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from captioner.model_contract import ContractError

TOKENIZER_FILE = "tokenizer.json"

# How a byte-level BPE writes the space before a word: the byte 0x20, shifted into the printable range.
_SPACE = "\u0120"


class CaptionTokenizer:
    """The tokenizer of captions.

    Args:
        folder: has the file `tokenizer.json`.

    Raises:
        FileNotFoundError: there is no such file.
        ContractError: it is damaged, or cannot be read.
    """

    def __init__(self, folder: Path):
        path = folder / TOKENIZER_FILE
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: run `python -m export.install_models`")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises no other class
            raise ContractError(
                f"{path} is not a tokenizer ({error}): copy it from the checkpoint again, or run "
                "`python -m export.install_models`"
            ) from error

    @property
    def vocab_size(self) -> int:
        """The number of tokens, with special ones."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without special tokens and without white space at the ends."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()

    def starts_word(self, token: int) -> bool:
        """Return whether a token begins a word instead of continuing one."""
        piece = self._tokenizer.id_to_token(token)
        return piece is not None and piece.startswith(_SPACE)

    def word_spans(self, tokens: Sequence[int]) -> list[tuple[int, int]]:
        """Return [start, end) of each word in tokens without special ones; the words follow each other without gaps."""
        starts = [i for i, token in enumerate(tokens) if i == 0 or self.starts_word(token)]
        return list(itertools.pairwise([*starts, len(tokens)]))
