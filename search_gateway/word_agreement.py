# SPDX-License-Identifier: Apache-2.0
"""How well a title agrees with the words of a query, word by word. Pure text.

Words agree when they are the same after folding (case, hyphens, plural) or stand in one group of `synonyms.json`, the
synonyms of the trade.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from importlib import resources

from captioner.query import words_of
from captioner.word_folding import fold

# "T Shirt" is one word, of which "shirt" is no part: a T-shirt is no shirt.
_T_SHIRT = re.compile(r"(?<!\w)t(?:ee)?[-\s]+(?=shirt)", re.IGNORECASE)


class Synonyms:
    """Groups of words that mean the same in the trade."""

    def __init__(self, groups: Iterable[Iterable[str]]):
        self._groups: dict[str, set[int]] = {}
        for number, group in enumerate(groups):
            for word in group:
                self._groups.setdefault(fold(word), set()).add(number)

    @classmethod
    def of_the_trade(cls) -> Synonyms:
        """The groups in `synonyms.json`."""
        text = resources.files("search_gateway").joinpath("synonyms.json").read_text(encoding="utf-8")
        return cls(json.loads(text)["groups"])

    def agree(self, one: str, other: str) -> bool:
        """Whether two words mean the same."""
        one, other = fold(one), fold(other)
        return one == other or bool(self._groups.get(one, set()) & self._groups.get(other, set()))


def agreement(query: str, title: str, synonyms: Synonyms) -> tuple[float, tuple[str, ...]]:
    """Share of the query's words that the title has, 0 to 1, and the words it lacks.

    A query without words agrees with everything.
    """
    wanted = _words(query)
    if not wanted:
        return 1.0, ()
    # "Light-blue" has both its parts and the whole.
    has = [part for word in _words(title) for part in {word, *word.replace("/", "-").split("-")} if part]
    missing = tuple(word for word in wanted if not any(synonyms.agree(word, one) for one in has))
    return 1 - len(missing) / len(wanted), missing


def _words(text: str) -> list[str]:
    return words_of(_T_SHIRT.sub("t", text))
