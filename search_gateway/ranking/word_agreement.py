# SPDX-License-Identifier: Apache-2.0
"""How well a title agrees with the words of a query, word by word; colour and product type have their own weights.

Words agree when they are equal after folding (case, hyphens, plural) or belong to one group of `synonyms.json`. A title
that names another colour contradicts the query; a title that names none leaves the colour undetermined.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources

from captioner.colours import Colour, Colours
from captioner.foreign_words import english
from captioner.query import Query, words_of
from captioner.word_folding import T_SHIRT, fold
from search_gateway.ranking.findings import Finding

# Words of the groups of other colours: without navy there may still be blue, but without blue there is no navy.
_SHADES = frozenset(
    {"beige", "burgundy", "camel", "charcoal", "choco", "chocolate", "cream", "fuchsia", "ivory", "lavender", "lemon",
     "lime", "maroon", "navy", "offwhite", "olive", "slate", "steel", "tan", "teal", "turquoise", "violet", "wine"}
)  # fmt: skip
_JOINTS = re.compile(r"[\W_]+")
_REMEMBERED_WORDS = 10_000
_REMEMBERED_TITLES = 2_000
_REMEMBERED_QUERIES = 2_000
_LONGEST_REMEMBERED = 300  # characters of a title


class Synonyms:
    """Groups of words with the same meaning in fashion shops, and the names of colours."""

    def __init__(self, groups: Iterable[Iterable[str]], colours: Colours | None = None):
        self.colours = colours if colours is not None else Colours()
        self._groups: dict[str, set[int]] = {}
        for number, group in enumerate(groups):
            for word in group:
                self._groups.setdefault(fold(word), set()).add(number)
        # The same words recur. The cache is bounded, since callers choose the words.
        self.meanings = lru_cache(maxsize=_REMEMBERED_WORDS)(self._meanings)
        self.read_title = lru_cache(maxsize=_REMEMBERED_TITLES)(lambda title: TextWords(title, self))
        self.read_query = lru_cache(maxsize=_REMEMBERED_QUERIES)(lambda query: tuple(_wanted_words(query, self)))

    @classmethod
    def builtin(cls) -> Synonyms:
        """The groups in `synonyms.json` and the colours in `colours.json`."""
        text = resources.files("search_gateway.ranking").joinpath("synonyms.json").read_text(encoding="utf-8")
        return cls(json.loads(text)["groups"], Colours.builtin())

    def agree(self, one: str, other: str) -> bool:
        """Whether two words mean the same."""
        return not self.meanings(one).isdisjoint(self.meanings(other))

    def excluded(self, word: str) -> frozenset[str | int]:
        """What a word excludes: what it means, but a shade, such as navy, excludes only itself."""
        own = {fold(word), fold(english(word) or word)}
        is_shade = not own.isdisjoint(_SHADES) and self.colours.kinds([word]) != [Colour.NONE]
        return frozenset(own) if is_shade else self.meanings(word)

    def _meanings(self, word: str) -> frozenset[str | int]:
        """Return what words with the same meaning share: the word, its English (both folded), its groups' numbers."""
        folded = fold(word)
        own = {folded, fold(english(word) or word)}
        return frozenset(own.union(*(self._groups.get(one, ()) for one in own)))


@dataclass(frozen=True, kw_only=True)
class WordWeights:
    """The weights of a query's words, and the scores of partial agreement. All from 0 to 1."""

    # In a search for a blue shirt, a black shirt is better than a blue bag. The other words share the rest.
    product_type_weight: float = 0.6
    mixed_colour: float = 0.75  # the title has the colour and another beside it
    unsaid_colour: float = 0.5  # the title names no colour

    def __post_init__(self) -> None:
        for name in ("product_type_weight", "mixed_colour", "unsaid_colour"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it goes from 0 to 1")
        if self.unsaid_colour > self.mixed_colour:
            raise ValueError(
                f"unsaid_colour is {self.unsaid_colour}: it is at most mixed_colour, {self.mixed_colour}, "
                "or a title would lose by naming the colour"
            )


def word_weights(query: Query, product_type_weight: float) -> list[float]:
    """Return the weight of each word of a query that has words; they add up to 1."""
    others = len(query.terms) - 1
    if query.product_type is None or not others:
        return [1 / len(query.terms)] * len(query.terms)
    return [
        product_type_weight if place == query.product_type else (1 - product_type_weight) / others
        for place in range(others + 1)
    ]


class TextWords:
    """The words of a title, or of a query taken as a title; parsed once for any number of queries.

    Attributes:
        synonyms: that were given.
        texts: the words.
        meanings: those of all words, also of the parts of "light-blue".
        colours: the certain colours, each with its meanings.
        uncoloured: the text without words that are colours.
    """

    @classmethod
    def of(cls, title: str, synonyms: Synonyms) -> TextWords:
        """The words of a title; those of the last titles are remembered."""
        return synonyms.read_title(title) if len(title) <= _LONGEST_REMEMBERED else cls(title, synonyms)

    def __init__(self, text: str | Query, synonyms: Synonyms):
        self.synonyms = synonyms
        # "T-shirt" is one word here, without the part "shirt".
        if isinstance(text, Query):
            words = [T_SHIRT.sub("t", word) for word in text.terms]
        else:
            words = words_of(T_SHIRT.sub("t", text))
        # "Light-blue" counts as a whole and as its parts.
        flat = [part for part in _JOINTS.split(" ".join(words)) if part]
        self.texts = words
        self.meanings = frozenset().union(*(synonyms.meanings(one) for one in {*words, *flat}))
        self._flat = flat
        kinds = synonyms.colours.kinds(flat)
        self.uncoloured = " ".join(part for part, kind in zip(flat, kinds, strict=True) if kind is Colour.NONE)
        self.colours = {
            part.lower(): synonyms.meanings(part) for part, kind in zip(flat, kinds, strict=True) if kind is Colour.SURE
        }

    @cached_property
    def joined(self) -> frozenset[str | int]:
        """The meanings of neighbouring words as one word, such as "vneck" in "V Neck"."""
        pairs = {f"{one}{other}" for one, other in itertools.pairwise(self._flat)}
        return frozenset().union(*map(self.synonyms.meanings, pairs))

    def other_colours(self, asked: Collection[frozenset[str | int]]) -> list[str]:
        """Return the colours that it names and that mean none of those in `asked`."""
        return [name for name, own in self.colours.items() if all(own.isdisjoint(one) for one in asked)]


@dataclass(frozen=True)
class WantedWord:
    """A word of a query. Two queries may have the same one.

    Attributes:
        meanings: of the word.
        asked: meanings of all colours of its query if the word is one of them; None for other words.
    """

    meanings: frozenset[str | int]
    asked: frozenset[frozenset[str | int]] | None

    def is_in(self, text: TextWords) -> bool:
        """Whether a title has the word."""
        return not self.meanings.isdisjoint(text.meanings)

    def value(self, title: TextWords, weights: WordWeights) -> float:
        """Return how well a title agrees with this word, 0 to 1."""
        has = self.is_in(title)
        if self.asked is None:
            return 1.0 if has else 0.0
        has_others = bool(title.other_colours(self.asked))
        if has:
            return weights.mixed_colour if has_others else 1.0
        return 0.0 if has_others else weights.unsaid_colour


def wanted_words(query: Query, synonyms: Synonyms) -> Sequence[WantedWord]:
    """Return the words of a query, in order, to be looked up in titles; those of the last queries are remembered."""
    return synonyms.read_query(query)


def _wanted_words(query: Query, synonyms: Synonyms) -> list[WantedWord]:
    meanings = [synonyms.meanings(word) for word in query.terms]
    # The blue of "light-blue" counts too, although the whole is not a known colour.
    parts = (synonyms.meanings(part) for word in query.terms for part in _JOINTS.split(word) if part)
    asked = frozenset({*(meanings[place] for place in query.colours), *parts})
    return [WantedWord(one, asked if place in query.colours else None) for place, one in enumerate(meanings)]


def title_findings(
    query: Query, title: TextWords, synonyms: Synonyms, meant: Collection[int] = (), other_colour: str = ""
) -> list[Finding]:
    """Return what a title says and lacks.

    Args:
        query: whose words are looked up.
        title: the words of the title.
        synonyms: words that agree with each other.
        meant: places of the query's words that the title means, in whatever words.
        other_colour: one that the title means instead of the query's, if its words name no other.
    """
    wanted = wanted_words(query, synonyms)
    absent = [place for place, one in enumerate(wanted) if place not in meant and not one.is_in(title)]
    colours = [place for place in absent if place in query.colours]
    asked = next((one.asked for one in wanted if one.asked is not None), None)
    others = title.other_colours(asked) if asked is not None else []
    if colours and not others and other_colour:
        others = [other_colour]
    found = {
        "other_colours": others,
        "instead_of": [query.terms[place] for place in colours if others],
        "missing": [query.terms[place] for place in absent if not (others and place in query.colours)],
    }
    return [Finding(kind, tuple(words)) for kind, words in found.items() if words]
