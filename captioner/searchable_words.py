# SPDX-License-Identifier: Apache-2.0
"""Which words of a caption, or of what people type, an image search can use. Pure.

`searchable_words.json` holds five kinds of words, the first folded as `fold` does:
    two_word_things: names of things that are one word for a search ("track pants").
    audiences: for whom a thing is; never the thing.
    units, sizes: left out, as numbers are.
    empty: words that say nothing about the product.
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
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
_DASHES = re.compile("[\u2010-\u2015\u2212_/|,;:()\\[\\]]")


class _Lists:
    def __init__(self) -> None:
        text = resources.files("captioner").joinpath("searchable_words.json").read_text(encoding="utf-8")
        lists: dict[str, list[str]] = json.loads(text)
        self.two_word_things = {tuple(map(fold, name.split())) for name in lists["two_word_things"]}
        self.audiences = {fold(word) for word in lists["audiences"]}
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
    parts = [
        part for word in plain.split() if not re.match(r"-\w", word) for one in words_of(word) for part in _parts(one)
    ]
    kept = tuple(word for word in parts if not any(map(str.isdigit, word)) and word.lower() not in _lists().left_out)
    return kept or tuple(words_of(text))


def _parts(word: str) -> list[str]:
    parts = word.split("-")
    if min(map(len, parts)) < 2 or Colours.builtin().kinds([word]) != [Colour.NONE]:
        return [word]
    if any(map(str.isdigit, word)):
        return [part for part in parts if not part.isupper()]  # of the code "MTP-1239D" nothing is a word
    return parts


def salient_words(caption: str) -> tuple[str, ...]:
    """The colour and the thing of a caption: ("Navy", "Blue", "Shirt") of "Turtle Check Men Navy Blue Shirt".

    The thing is the last word that is no colour and no audience, with the word before it if both are one name ("Track
    Pants"). What follows "with" is no thing. The colours are those nearest to the thing. Without a colour the word
    before a thing of one word takes its place ("Striped Shirt").
    """
    words = searchable_words(re.split(r"(?<=\w)\s+with\s", caption, maxsplit=1, flags=re.IGNORECASE)[0])
    folded = [fold(word) for word in words]
    coloured = [kind is not Colour.NONE for kind in Colours.builtin().kinds(words)]
    things = [place for place, word in enumerate(folded) if not coloured[place] and word not in _lists().audiences] or [
        place for place in range(len(words)) if not coloured[place]
    ]
    if not things:
        return words[-2:]
    end = things[-1] + 1
    start = end - 2 if end > 1 and tuple(folded[end - 2 : end]) in _lists().two_word_things else end - 1
    runs = _runs(coloured)
    if runs:
        nearest = min(runs, key=lambda run: (max(start - run[1], run[0] - end), run[0] >= end))
        attribute = words[nearest[0] : nearest[1]]
    else:
        attribute = words[max(0, end - 2) : start]
    return (*attribute, *words[start:end])


def _runs(chosen: list[bool]) -> list[tuple[int, int]]:
    """Start and end of each run of true values."""
    edges = [
        place
        for place in range(len(chosen) + 1)
        if (place < len(chosen) and chosen[place]) != (place > 0 and chosen[place - 1])
    ]
    return list(zip(edges[::2], edges[1::2], strict=True))
