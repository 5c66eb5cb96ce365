# SPDX-License-Identifier: Apache-2.0
"""Which words of a query or a title are colours, by the list in `colours.json`. Pure.

The list holds five kinds of words:
    colours: a title with such a word is of that colour.
    vague: the same, but sellers disagree on it ("mauve") or it may stand beside any ("multi").
    shades: directly before another colour they only shade it ("turquoise blue").
    also_things: they are colours only before another word, as the last one they are what is sold ("face cream").
    not_colours: phrases in which no word is a colour, mostly brands ("red tape").
"""

from __future__ import annotations

import enum
import functools
import json
from collections.abc import Iterable, Sequence
from importlib import resources

from captioner.foreign_words import english
from captioner.word_folding import fold


class Colour(enum.Enum):
    """What a word is as a colour."""

    NONE = "none"
    SURE = "sure"
    VAGUE = "vague"  # it may agree with a wanted colour, but speaks against none


class Colours:
    """Args: the five kinds of words above, in any spelling."""

    def __init__(
        self,
        colours: Iterable[str] = (),
        *,
        vague: Iterable[str] = (),
        shades: Iterable[str] = (),
        also_things: Iterable[str] = (),
        not_colours: Iterable[str] = (),
    ):
        self._sure = {fold(word) for word in colours}
        self._all = self._sure.union(map(fold, vague))
        self._shades = {fold(word) for word in shades}
        self._also_things = {fold(word) for word in also_things}
        self._not_colours = {tuple(map(fold, phrase.split())) for phrase in not_colours}

    @classmethod
    @functools.cache
    def builtin(cls) -> Colours:
        """The words in `colours.json`, read once."""
        text = resources.files("captioner").joinpath("colours.json").read_text(encoding="utf-8")
        return cls(**json.loads(text))

    def kinds(self, words: Sequence[str]) -> list[Colour]:
        """What each word is, in its company; also of words that `english` knows."""
        folded = [fold(english(word) or word) for word in words]
        kinds = [self._kind(folded, place) if word in self._all else Colour.NONE for place, word in enumerate(folded)]
        for place in range(len(folded) - 1):
            if kinds[place] is Colour.SURE and kinds[place + 1] is Colour.SURE and folded[place] in self._shades:
                kinds[place] = Colour.VAGUE
        return kinds

    def _kind(self, folded: Sequence[str], place: int) -> Colour:
        word = folded[place]
        if word in self._also_things and place == len(folded) - 1 and place > 0:
            return Colour.NONE
        if any(tuple(folded[start : start + 2]) in self._not_colours for start in (place - 1, place) if start >= 0):
            return Colour.NONE
        return Colour.SURE if word in self._sure else Colour.VAGUE
