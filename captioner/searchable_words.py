# SPDX-License-Identifier: Apache-2.0
"""Which words of a caption, or of what people type, an image search can use. Pure.

`searchable_words.json` holds these kinds of words; they are compared as `fold` makes them, units to empty as they are:
    two_word_things: names of things that are one word for a search ("track pants").
    audiences: for whom a thing is; never the thing.
    units, sizes: left out, as numbers are.
    empty: words that say nothing about the product.
    attributes: patterns, materials and occasions, which another thing can have, too ("printed").
    tints: they belong to the colour behind them ("light blue", "off white").
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import unicodedata
from collections.abc import Sequence
from importlib import resources

from captioner.colours import Colour, Colours
from captioner.word_folding import T_SHIRT, fold, words_of

_NUMBER = r"\d[\d.,]*"
_CURRENCY = r"(?:[$€£₹]|rs\.?|inr|usd|eur(?:os?)?|gbp|dollars?|rupees?|pounds?)"
_LIMIT = r"(?:under|below|less\s+than|up\s*to|over|above|around|max\.?|unter|bis|ab)"
_NOISE = re.compile(
    rf"(?<!\w)(?:(?:{_LIMIT}\s*)?(?:{_CURRENCY}\s*{_NUMBER}|{_NUMBER}\s*{_CURRENCY}(?!\w))|{_LIMIT}\s*{_NUMBER}"
    r"|(?:pack|set|combo|box|lot|pair)s?\s+of\s+\w+|\d+\s*-?\s*(?:er)?-?\s*(?:pack|pcs|pieces)(?!\w)"
    r"|(?:size|gr(?:ö|oe)(?:ß|ss)e)\s*:?\s*\w+)",
    re.IGNORECASE,
)
_WITH = re.compile(r"(?<=\w)\s+with\s+", re.IGNORECASE)
_EXCLUDED = re.compile(r"-\w")
_DASHES = re.compile("[\u2010-\u2015\u2212_/|,;:()\\[\\]]")


class _Lists:
    def __init__(self) -> None:
        text = resources.files("captioner").joinpath("searchable_words.json").read_text(encoding="utf-8")
        lists: dict[str, list[str]] = json.loads(text)
        self.two_word_things = {tuple(map(fold, name.split())) for name in lists["two_word_things"]}
        self.audiences, self.attributes, self.tints = (
            {fold(word) for word in lists[name]} for name in ("audiences", "attributes", "tints")
        )
        self.left_out = {*lists["units"], *lists["sizes"], *lists["empty"]}


@functools.cache
def _lists() -> _Lists:
    return _Lists()


def searchable_words(text: str) -> tuple[str, ...]:
    """The words of a text without prices, packs, sizes, numbers, codes, units and filler, in order.

    A word with a hyphen becomes its parts ("red-handbag"), unless it is a colour ("off-white") or a part is one letter
    ("t-shirt", "v-neck"). A word behind a minus is excluded, not searched for.

    Returns:
        The words as they are spelled; all words of the text if none is searchable.
    """
    plain = " ".join(_DASHES.sub(" - ", unicodedata.normalize("NFKC", text)).split())
    plain = T_SHIRT.sub("t-", _NOISE.sub(" ", plain))
    kept = tuple(itertools.chain.from_iterable(map(_searchable_parts, plain.split())))
    return kept or tuple(words_of(text))


# Many titles are new, but nearly all of their words are known.
@functools.lru_cache(maxsize=2**14)
def _searchable_parts(text: str) -> tuple[str, ...]:
    """The searchable words of a text without spaces."""
    if _EXCLUDED.match(text):
        return ()
    parts = [part for word in words_of(text) for part in _parts(word)]
    return tuple(word for word in parts if not _has_digit(word) and word.lower() not in _lists().left_out)


def _parts(word: str) -> list[str]:
    parts = word.split("-")
    if min(map(len, parts)) < 2 or _has_colour([word]):
        return [word]
    if _has_digit(word):
        return [part for part in parts if not part.isupper()]  # of the code "MTP-1239D" nothing is a word
    return parts


def thing_start(words: Sequence[str], end: int) -> int:
    """The place of the first word of the thing that ends before `end`: the name of a thing may have two words."""
    pair = tuple(map(fold, words[max(0, end - 2) : end]))
    return end - 2 if pair in _lists().two_word_things else end - 1


def fits_any_thing(word: str) -> bool:
    """Whether a word, such as "printed" or "women", says something that another thing can be, too."""
    return fold(word) in _lists().audiences or fold(word) in _lists().attributes


def is_tint(word: str) -> bool:
    """Whether a word belongs to the colour behind it."""
    return fold(word) in _lists().tints


def salient_words(caption: str) -> tuple[str, ...]:
    """The colour and the thing of a caption: ("Navy", "Blue", "Shirt") of "Turtle Check Men Navy Blue Shirt".

    The thing is the last word that is no colour and no audience, with the word before it if both are one name ("Track
    Pants"). The colour is the last one before the thing, with its shade, or the first one after it. Without a colour
    the word before a thing of one word takes its place ("Striped Shirt"). What follows "with" is left out, unless it
    names a colour as the name of a product does ("Polo with Stripes Navy T-shirt").
    """
    front, *tails = _WITH.split(caption, maxsplit=1)
    words = searchable_words(caption if any(_has_colour(words_of(tail)) for tail in tails) else front)
    folded = [fold(word) for word in words]
    kinds = Colours.builtin().kinds(words)
    coloured = [place for place, kind in enumerate(kinds) if kind is not Colour.NONE]
    others = [place for place in range(len(words)) if place not in coloured]
    things = [place for place in others if folded[place] not in _lists().audiences] or others
    if not things:
        return words[-2:]
    end = things[-1] + 1
    start = thing_start(words, end)
    before, after = [place for place in coloured if place < start], [place for place in coloured if place >= end]
    if not coloured or not (before or after):
        return words[max(0, end - 2) : end]
    last = before[-1] if before else after[0]
    if not before and kinds[last] is Colour.VAGUE and last + 1 in after:
        last += 1  # "Shirt Navy Blue"
    first = last - 1 if last - 1 in coloured and kinds[last - 1] is Colour.VAGUE else last
    return (*words[first : last + 1], *words[start:end])


def _has_digit(word: str) -> bool:
    return any(map(str.isdigit, word))


def _has_colour(words: list[str]) -> bool:
    return any(kind is not Colour.NONE for kind in Colours.builtin().kinds(words))
