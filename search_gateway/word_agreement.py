# SPDX-License-Identifier: Apache-2.0
"""How well a title agrees with the words of a query, word by word, colour and thing apart. Pure text.

Words agree when they are the same after folding (case, hyphens, plural) or stand in one group of `synonyms.json`, the
synonyms of the trade. A title that names another colour contradicts; one that names none leaves the colour open. What
a title leaves open, the words of its picture's own caption may settle.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources

from captioner.query import words_of
from captioner.word_folding import fold
from search_gateway.colours import Colour, Colours

# "T Shirt" is one word, of which "shirt" is no part (in a title that has "tshirt"): a T-shirt is no shirt.
_T_SHIRT = re.compile(r"(?<!\w)t(?:ee)?[-\s]+(?=shirt)", re.IGNORECASE)
_JOINTS = re.compile(r"[\W_]+")


class Synonyms:
    """Groups of words that mean the same in the trade, and its colours."""

    def __init__(self, groups: Iterable[Iterable[str]], colours: Colours | None = None):
        self.colours = colours if colours is not None else Colours()
        self._groups: dict[str, set[int]] = {}
        for number, group in enumerate(groups):
            for word in group:
                self._groups.setdefault(fold(word), set()).add(number)

    @classmethod
    def of_the_trade(cls) -> Synonyms:
        """The groups in `synonyms.json` and the colours in `colours.json`."""
        text = resources.files("search_gateway").joinpath("synonyms.json").read_text(encoding="utf-8")
        return cls(json.loads(text)["groups"], Colours.of_the_trade())

    def agree(self, one: str, other: str) -> bool:
        """Whether two words mean the same."""
        one, other = fold(one), fold(other)
        return one == other or bool(self._groups.get(one, set()) & self._groups.get(other, set()))


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


@dataclass(frozen=True)
class Agreement:
    """Attributes:
    score: 0 to 1.
    wording: what a title does or does not say, to go on after "its title".
    is_open: whether the title leaves a word open, so that its picture may be asked.
    """

    score: float
    wording: str
    is_open: bool


def agreement(
    query: str, title: str, synonyms: Synonyms, weights: WordWeights | None = None, picture_words: str = ""
) -> Agreement:
    """How well a title has the words of a query.

    A query without words agrees with everything.

    Args:
        picture_words: the last words of the caption of the title's picture; empty where nobody asked for it.
    """
    weights = weights or WordWeights()
    wanted = QueryWords.of(query, synonyms.colours)
    if not wanted.words:
        return Agreement(1.0, "has every word", is_open=False)
    own, seen = _Text(title, wanted, synonyms), _Text(picture_words, wanted, synonyms)
    score, is_open = 0.0, False
    for place, weight in enumerate(wanted.weights(weights.thing_weight)):
        value, word_is_open = own.value(place, weights)
        if word_is_open:
            is_open = True
            opinion = seen.opinion(place)
            if opinion is not None:
                value += weights.picture_trust * (opinion - value)
        score += weight * value
    return Agreement(min(max(score, 0.0), 1.0), own.wording(), is_open)


class _Text:
    """What a title or caption says of the words that are wanted."""

    def __init__(self, text: str, wanted: QueryWords, synonyms: Synonyms):
        words = words_of(_T_SHIRT.sub("t", text))
        # "Light-blue" has both its parts and the whole.
        parts = [[part for part in _JOINTS.split(word) if part] for word in words]
        has = words + [part for group in parts for part in group]
        flat = [part for group in parts for part in group]
        kinds = synonyms.colours.kinds(flat)
        named = [part.lower() for part, kind in zip(flat, kinds, strict=True) if kind is Colour.SURE]
        self._wanted = wanted
        self._has = [any(synonyms.agree(word, one) for one in has) for word in wanted.words]
        asked = [wanted.words[place] for place in wanted.colours]
        self._others = tuple(
            dict.fromkeys(one for one in named if not any(synonyms.agree(one, word) for word in asked))
        )

    def value(self, place: int, weights: WordWeights) -> tuple[float, bool]:
        """How much of this word it has, 0 to 1, and whether it leaves it open."""
        if place not in self._wanted.colours:
            return (1.0, False) if self._has[place] else (0.0, True)
        if self._has[place]:
            return (weights.mixed_colour, True) if self._others else (1.0, False)
        return (0.0, False) if self._others else (weights.unsaid_colour, True)

    def opinion(self, place: int) -> float | None:
        """As `value`, of a text that is not asked about what it does not say: None where it says nothing."""
        if self._has[place]:
            return 1.0
        return 0.0 if place in self._wanted.colours and self._others else None

    def wording(self) -> str:
        """What it says and does not say, such as "says black, not blue, and lacks 'shirt'"."""
        wanted = self._wanted
        absent = [place for place in range(len(wanted.words)) if not self._has[place]]
        colours = [place for place in absent if place in wanted.colours]
        sentences = []
        if colours and self._others:
            sentences.append(f"says {_and(self._others)}, not {_and(wanted.words[place] for place in colours)}")
        elif self._others and wanted.colours:
            has_all = "" if absent else "has every word and "
            sentences.append(f"{has_all}also says {_and(self._others)}")
        lacking = [place for place in absent if not (self._others and place in wanted.colours)]
        if lacking:
            sentences.append(f"lacks {_and(repr(wanted.words[place]) for place in lacking)}")
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
