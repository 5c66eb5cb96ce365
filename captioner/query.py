# SPDX-License-Identifier: Apache-2.0
"""Caption -> search query: the paper's last two words, colour and thing, and back. Pure."""

from __future__ import annotations

import enum
import functools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from captioner.colours import Colour, Colours
from captioner.searchable_words import fits_any_thing, is_tint, salient_words, searchable_words, thing_start
from captioner.word_folding import T_SHIRT as T_SHIRT  # part of this module, as `words_of`
from captioner.word_folding import fold
from captioner.word_folding import words_of as words_of

QUERY_WORDS = 2
_COLOURED = frozenset({"coloured", "colored", "colour", "color", "toned"})  # "skin coloured", "gold toned"
_COLOUR_JOINTS = frozenset({"and", "or", "with", "n"})
_SPELLINGS = {"gray": "grey", "color": "colour", "colored": "coloured", "jewelry": "jewellery"}


class QueryRule(enum.Enum):
    """Where a query comes from. `LIKELIEST_WORDS` needs a model with a query head (`captioner.query_distribution`)."""

    LAST_TWO_WORDS = "last_two_words"
    FULL_CAPTION = "full_caption"
    LIKELIEST_WORDS = "likeliest_words"
    SALIENT = "salient"


def query_from_caption(caption: str, rule: QueryRule = QueryRule.LAST_TWO_WORDS) -> str:
    """The query for a caption: its last two words in lower case ("Turtle Check Men Navy Blue Shirt" -> "blue shirt").

    A caption of one word is a query of one word, an empty caption an empty query. With the rule `LIKELIEST_WORDS` the
    caption is one that ends with the query. `SALIENT` follows `salient_words`.
    """
    words = list(salient_words(caption)) if rule is QueryRule.SALIENT else words_of(caption)
    if rule in (QueryRule.LAST_TWO_WORDS, QueryRule.LIKELIEST_WORDS):
        words = words[-QUERY_WORDS:]
    return " ".join(words).lower()


@dataclass(frozen=True)
class Query:
    """What to search for, read once. Two queries are equal when their texts are.

    `key` tells when two queries are one question to an image search. It merges only what no search engine tells apart:
    case, spaces, and the two ways in which Unicode writes an accent. Plurals, hyphens, the order of words and the
    punctuation around them (`shirt -red`, `"polo neck"`) make another question.

    Attributes:
        text: as providers are asked and callers are told; "" where there is nothing to search for.
        words: without the punctuation around them.
        terms: the words with "T shirt" joined to the one word "t-shirt", as titles are compared with them.
        key: the text cut at its spaces, casefolded and composed (NFC).
        colours: places in `terms`.
        product_type: place in `terms` of the last word that is no colour and has no digit (a size, a year), else of the
            last one that is no colour; None where all are colours.
    """

    text: str
    words: tuple[str, ...] = field(compare=False)
    terms: tuple[str, ...] = field(compare=False)
    key: tuple[str, ...] = field(compare=False)
    colours: frozenset[int] = field(compare=False)
    product_type: int | None = field(compare=False)

    @classmethod
    def of(cls, text: str, colours: Colours | None = None) -> Query:
        """Read a text as a query.

        Args:
            text: stays as it is.
            colours: the words that are colours; None: those of `colours.json`.
        """
        return _read(text, colours or Colours.builtin())

    @classmethod
    def typed(cls, text: str) -> Query:
        """Read what people type: `text` stays, and the words are its `searchable_words`."""
        read = cls.of(" ".join(searchable_words(text)))
        return replace(read, text=text, key=cls.of(text).key)

    @classmethod
    def of_caption(cls, caption: str, rule: QueryRule = QueryRule.LAST_TWO_WORDS) -> Query:
        """The query for a caption, see `query_from_caption`."""
        return cls.of(query_from_caption(caption, rule))

    @property
    def thing(self) -> range:
        """The places in `terms` of the product type's name, which may have two words ("track pants")."""
        if self.product_type is None:
            return range(0)
        return range(thing_start(self.terms, self.product_type + 1), self.product_type + 1)

    @functools.cached_property
    def spelling(self) -> str:
        """Equal for the spellings of one name: "T-Shirts" and "tshirt", "flip-flop" and "flip flops"."""
        return "".join(_SPELLINGS.get(word, word) for word in map(fold, self.terms))

    def replaced(self, *, colour: str | None, product_type: str | None, colours: Colours | None = None) -> Query:
        """The query in lower case with its colours, its product type or both replaced; None keeps what it has.

        A query without a colour gets it in front; a query without a product type gets it at the end. With the product
        type go the words that only its name has: of "flip flops", "dial watch" or "briefs 1004" nothing is left, but
        "women watches" stay for women and a "printed kurta" printed. With the colour goes its tint ("light blue").
        """
        if colour is None and product_type is None:
            return self
        words: list[str | None] = list(self.terms)
        if product_type is not None:
            for place in self._only_of_the_thing():
                words[place] = None
            if self.product_type is None:
                words.append(product_type)
            else:
                words[self.product_type] = product_type
        if colour is not None:
            places = self._of_the_colours()
            for place in places:
                words[place] = None
            if places:
                words[places[0]] = colour
            else:
                words.insert(0, colour)
        return Query.of(" ".join(word for word in words if word).lower(), colours)

    def _only_of_the_thing(self) -> list[int]:
        """The places of the words that go with the product type."""
        if self.product_type is None:
            return []
        start = self.thing.start
        while start > 0 and start - 1 not in self.colours and not fits_any_thing(self.terms[start - 1]):
            start -= 1
        codes = range(self.product_type + 1, len(self.terms))
        return [*range(start, self.product_type + 1), *(place for place in codes if _has_digit(self.terms[place]))]

    def _of_the_colours(self) -> list[int]:
        """The places of the colours, of their tints, of what joins them, and of "coloured"."""
        found = set(self.colours)
        for place, word in enumerate(self.terms):
            if place in self.thing:
                continue
            is_joint = place - 1 in self.colours and place + 1 in self.colours and fold(word) in _COLOUR_JOINTS
            is_tinting = place + 1 in self.colours and is_tint(word)
            if is_joint or is_tinting or fold(word) in _COLOURED:
                found.add(place)
        return sorted(found)

    def without(self, excluded: Sequence[str], colours: Colours | None = None) -> Query:
        """The query without excluded words, or groups of words; itself if it has none of them, or nothing else."""
        if not excluded:
            return self
        words = list(map(fold, self.terms))
        left_out: set[int] = set()
        for one in excluded:
            group = [fold(word) for word in words_of(T_SHIRT.sub("t-", one))]
            starts = [place for place in range(len(words)) if group and words[place : place + len(group)] == group]
            left_out.update(place + number for place in starts for number in range(len(group)))
        kept = [word for place, word in enumerate(self.terms) if place not in left_out]
        return self if len(kept) in (0, len(words)) else Query.of(" ".join(kept), colours)

    def excluding(self, excluded: Sequence[str]) -> Query:
        """The query as image searches understand exclusions, "shirt -striped"; its words stay the wanted ones."""
        if not excluded or not self.text:
            return self
        minus = [f"-{one}" if len(one.split()) == 1 else f'-"{one}"' for one in excluded]
        text = " ".join([self.text, *minus])
        return replace(self, text=text, key=Query.of(text).key)


@functools.lru_cache(maxsize=2**12)  # the names of products recur; callers choose others, so the cache is bounded
def _read(text: str, colours: Colours) -> Query:
    terms = tuple(words_of(T_SHIRT.sub("t-", text)))
    kinds = colours.kinds(terms)
    coloured = frozenset(place for place, kind in enumerate(kinds) if kind is not Colour.NONE)
    others = [place for place in range(len(terms)) if place not in coloured]
    plain = [place for place in others if not _has_digit(terms[place])]
    # Composed again: folding the case of a composed letter can take it apart.
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    product_type = next(reversed(plain or others), None)
    return Query(text, tuple(words_of(text)), terms, tuple(folded.split()), coloured, product_type)


def _has_digit(word: str) -> bool:
    return any(map(str.isdigit, word))


def split_colour(text: str) -> tuple[str | None, str]:
    """Split "navy blue shirt" into the colour in front and the rest; None for a text that has none, or nothing else."""
    query = Query.of(text)
    end = 0
    while end < len(query.terms) and (end in query.colours or is_tint(query.terms[end])):
        end += 1
    if end == len(query.terms) or query.colours.isdisjoint(range(end)):
        return None, text
    return " ".join(query.terms[:end]), " ".join(query.terms[end:])


def caption_words(query: str) -> list[str]:
    """The words of a query as captions write them: "sports shoes" -> ["Sports", "Shoes"], "t-shirt" -> ["T-shirt"]."""
    return [word[:1].upper() + word[1:] for word in words_of(query)]


def caption_with_query(caption: str, query: str) -> str:
    """The caption with its last two words replaced by the query's, where it does not end with them already.

    Case, hyphens and plurals do not matter: "Nike Men Blue Shirts" ends with "blue shirt". Words before them that the
    query begins with are not repeated: "Black Digital Watch M119" becomes "Black Digital Watch". An empty query changes
    nothing.
    """
    wanted = [fold(word) for word in words_of(query)]
    words = words_of(caption)
    if not wanted or [fold(word) for word in words[-len(wanted) :]] == wanted:
        return caption
    kept = words[:-QUERY_WORDS]
    for overlap in range(min(len(kept), len(wanted)), 0, -1):
        if [fold(word) for word in kept[-overlap:]] == wanted[:overlap]:
            kept = kept[:-overlap]
            break
    return " ".join([*kept, *caption_words(query)])
