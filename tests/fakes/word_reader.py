# SPDX-License-Identifier: Apache-2.0
"""A reader of titles that knows a few words, in the place of the trained one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

from captioner.title_reader import TitleReader, TitleReadings

TYPES = ("Shirts", "Dresses", "Caps", "")
COLOURS = ("Red", "Blue", "Black")
WORDS_OF_TYPES = {"shirt": 0, "shirts": 0, "hemd": 0, "dress": 1, "kleid": 1, "cap": 2, "other": 3}
_COLOUR_WORDS = {"red": 0, "rot": 0, "blue": 1, "black": 2, "schwarz": 2}


class WordReader:
    """Says with a probability of 0.97 what one of its words names, and else that all is possible.

    Attributes:
        read_titles: how many titles it read.
    """

    def __init__(self) -> None:
        self.type_names, self.colour_names = TYPES, COLOURS
        self.read_titles = 0

    def read(self, titles: Sequence[str]) -> TitleReadings:
        self.read_titles += len(titles)
        return TitleReadings(
            np.stack([_shares(title, WORDS_OF_TYPES, len(TYPES)) for title in titles]),
            np.stack([_shares(title, _COLOUR_WORDS, len(COLOURS)) for title in titles]),
        )

    def read_one(self, title: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        said = self.read([title])
        return said.types[0], said.colours[0]


def word_reader() -> TitleReader:
    """A `WordReader` with the type of the trained one."""
    return cast(TitleReader, WordReader())


def _shares(title: str, classes: dict[str, int], count: int) -> npt.NDArray[np.float32]:
    found = [classes[word] for word in re.findall(r"[a-z]+", title.lower()) if word in classes]
    shares = np.full(count, 1 / count, np.float32)
    if found:
        shares = np.full(count, 0.03 / (count - 1), np.float32)
        shares[found[0]] = 0.97
    return shares
