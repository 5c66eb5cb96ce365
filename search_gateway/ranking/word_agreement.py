# SPDX-License-Identifier: Apache-2.0
"""How well a title agrees with the words of a query, word by word, colour and thing apart. Pure text.

Words agree when they are the same after folding (case, hyphens, plural) or stand in one group of `synonyms.json`, the
synonyms of the trade. A title that names another colour contradicts; one that names none leaves the colour open. What
a title leaves open, the words of its picture's own caption may settle.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

from captioner.query import words_of
from captioner.word_folding import fold
from search_gateway.ranking.colours import Colour, Colours

# "T Shirt" is one word, of which "shirt" is no part (in a title that has "tshirt"): a T-shirt is no shirt.
_T_SHIRT = re.compile(r"(?<!\w)t(?:ee)?[-\s]+(?=shirt)", re.IGNORECASE)
_JOINTS = re.compile(r"[\W_]+")
_REMEMBERED_WORDS = 10_000


class Synonyms:
    """Groups of words that mean the same in the trade, and its colours."""

    def __init__(self, groups: Iterable[Iterable[str]], colours: Colours | None = None):
        self.colours = colours if colours is not None else Colours()
        self._groups: dict[str, set[int]] = {}
        for number, group in enumerate(groups):
            for word in group:
                self._groups.setdefault(fold(word), set()).add(number)
        # The same words come again and again, and strangers choose them: remembered, but not all.
        self.meanings = lru_cache(maxsize=_REMEMBERED_WORDS)(self._meanings)

    @classmethod
    def of_the_trade(cls) -> Synonyms:
        """The groups in `synonyms.json` and the colours in `colours.json`."""
        text = resources.files("search_gateway.ranking").joinpath("synonyms.json").read_text(encoding="utf-8")
        return cls(json.loads(text)["groups"], Colours.of_the_trade())

    def agree(self, one: str, other: str) -> bool:
        """Whether two words mean the same."""
        return not self.meanings(one).isdisjoint(self.meanings(other))

    def _meanings(self, word: str) -> frozenset[str | int]:
        """What a word has in common with those that mean the same: itself, folded, and the numbers of its groups."""
        folded = fold(word)
        return frozenset({folded, *self._groups.get(folded, ())})


@dataclass(frozen=True, kw_only=True)
class WordWeights:
    """What a word of the query is worth, and what half an agreement is. All from 0 to 1."""

    # Who looks for a blue shirt would rather see a black shirt than a blue bag. The other words share the rest.
    thing_weight: float = 0.6
    mixed_colour: float = 0.75  # the title has the colour and another beside it
    unsaid_colour: float = 0.5  # the title names no colour
    # Of the picture's caption against a title that leaves a word open: about as often as a caption's word is right.
    picture_trust: float = 0.7

    def __post_init__(self) -> None:
        for name in ("thing_weight", "mixed_colour", "unsaid_colour", "picture_trust"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it goes from 0 to 1")
        if self.unsaid_colour > self.mixed_colour:
            raise ValueError(
                f"unsaid_colour is {self.unsaid_colour}: it is at most mixed_colour, {self.mixed_colour}, "
                "or a title would lose by naming the colour"
            )


@dataclass(frozen=True)
class QueryWords:
    """The words of a query: its colours, its thing, and what else there is ("women")."""

    words: tuple[str, ...]
    colours: frozenset[int]  # places in `words`
    thing: int | None  # place in `words`

    @classmethod
    def of(cls, query: str, colours: Colours) -> QueryWords:
        """The thing is the last word that is no colour and has no digit (a size, a year), if there is such a word."""
        words = tuple(words_of(_T_SHIRT.sub("t-", query)))
        coloured = frozenset(place for place, kind in enumerate(colours.kinds(words)) if kind is not Colour.NONE)
        others = [place for place in range(len(words)) if place not in coloured]
        plain = [place for place in others if not any(character.isdigit() for character in words[place])]
        candidates = plain or others
        return cls(words, coloured, candidates[-1] if candidates else None)

    def weights(self, thing_weight: float) -> list[float]:
        """What each word counts, 1 together."""
        others = len(self.words) - 1
        if self.thing is None or not others:
            return [1 / len(self.words)] * len(self.words)
        return [thing_weight if place == self.thing else (1 - thing_weight) / others for place in range(others + 1)]


class TextWords:
    """The words of a title or a caption, taken apart once for any number of queries."""

    def __init__(self, text: str, synonyms: Synonyms):
        words = words_of(_T_SHIRT.sub("t", text))
        # "Light-blue" has both its parts and the whole.
        flat = [part for word in words for part in _JOINTS.split(word) if part]
        self.meanings = frozenset().union(*(synonyms.meanings(one) for one in {*words, *flat}))
        kinds = synonyms.colours.kinds(flat)
        # The colours that it says for sure, each with what it means.
        self.colours = {
            part.lower(): synonyms.meanings(part) for part, kind in zip(flat, kinds, strict=True) if kind is Colour.SURE
        }

    def other_colours(self, asked: Collection[frozenset[str | int]]) -> list[str]:
        """The colours that it says and that mean none of those asked for."""
        return [name for name, own in self.colours.items() if all(own.isdisjoint(one) for one in asked)]


@dataclass(frozen=True)
class WantedWord:
    """A word of a query. Two queries may have the same one.

    Attributes:
        asked: what each colour of its query means, where it is one of them; None for another word.
    """

    meanings: frozenset[str | int]
    asked: frozenset[frozenset[str | int]] | None

    def is_in(self, text: TextWords) -> bool:
        return not self.meanings.isdisjoint(text.meanings)

    def value(self, title: TextWords, picture: TextWords, weights: WordWeights) -> tuple[float, bool]:
        """How much of this word a title has, 0 to 1, and whether it leaves the word open.

        What it leaves open, the words of its picture may settle, as far as they are trusted.
        """
        own, is_open = self._own_value(title, weights)
        opinion = self._opinion(picture) if is_open else None
        if opinion is not None:
            own += weights.picture_trust * (opinion - own)
        return own, is_open

    def _own_value(self, title: TextWords, weights: WordWeights) -> tuple[float, bool]:
        has = self.is_in(title)
        if self.asked is None:
            return (1.0, False) if has else (0.0, True)
        has_others = bool(title.other_colours(self.asked))
        if has:
            return (weights.mixed_colour, True) if has_others else (1.0, False)
        return (0.0, False) if has_others else (weights.unsaid_colour, True)

    def _opinion(self, picture: TextWords) -> float | None:
        """What the picture says of it, 0 or 1; it is not asked about what it does not say."""
        if self.is_in(picture):
            return 1.0
        return 0.0 if self.asked is not None and picture.other_colours(self.asked) else None


def wanted_words(query: QueryWords, synonyms: Synonyms) -> list[WantedWord]:
    """The words of a query as a title is asked for them, in order."""
    meanings = [synonyms.meanings(word) for word in query.words]
    # The blue of "light-blue" is asked for as well, though the whole is no colour that is known.
    parts = (synonyms.meanings(part) for word in query.words for part in _JOINTS.split(word) if part)
    asked = frozenset({*(meanings[place] for place in query.colours), *parts})
    return [WantedWord(one, asked if place in query.colours else None) for place, one in enumerate(meanings)]


def wording(query: QueryWords, title: TextWords, synonyms: Synonyms) -> str:
    """What a title says and does not say, such as "says black, not blue, and lacks 'shirt'"."""
    wanted = wanted_words(query, synonyms)
    absent = [place for place, one in enumerate(wanted) if not one.is_in(title)]
    colours = [place for place in absent if place in query.colours]
    asked = next((one.asked for one in wanted if one.asked is not None), None)
    others = title.other_colours(asked) if asked is not None else []
    sentences = []
    if colours and others:
        sentences.append(f"says {_and(others)}, not {_and(query.words[place] for place in colours)}")
    elif others:
        has_all = "" if absent else "has every word and "
        sentences.append(f"{has_all}also says {_and(others)}")
    lacking = [place for place in absent if not (others and place in query.colours)]
    if lacking:
        sentences.append(f"lacks {_and(repr(query.words[place]) for place in lacking)}")
    # A comma where the first part has one already.
    return ", and ".join(sentences) or "has every word"


def with_words(query: str, colours: Colours, *, colour: str | None, thing: str | None) -> str:
    """The query with another colour or another thing in the place of its own, in lower case.

    A query without a colour gets it in front; one without a thing gets it at the end.
    """
    wanted = QueryWords.of(query, colours)
    words = list(wanted.words)
    if thing is not None:
        if wanted.thing is None:
            words.append(thing)
        else:
            words[wanted.thing] = thing
    if colour is not None:
        places = sorted(wanted.colours)
        words = [word for place, word in enumerate(words) if place not in places[1:]]
        if places:
            words[places[0]] = colour
        else:
            words.insert(0, colour)
    return " ".join(words).lower()


def _and(words: Iterable[str]) -> str:
    return " and ".join(words)
