# SPDX-License-Identifier: Apache-2.0
"""Titles as other shops would write them: each style is a pure function from a title of the set to another title.

What is drawn (a brand, a phrase) depends on the title alone. The training of the title reader uses other templates,
brands and phrases. The German and Hindi-English words are those of `title_lexicon.json`.
"""

from __future__ import annotations

import functools
import json
import re
import zlib
from collections.abc import Callable, Sequence
from importlib import resources

from captioner.colours import Colour, Colours

_BRANDS = ("Northbay", "Veltona", "Kessler & Sons", "Ubra", "Mira Lune", "Ostend 1912", "Tamarind Co.")
_PHRASES = (
    "NEW IN! Free shipping on", "Bestseller: our customers love this", "Limited offer - save 20% on the",
    "Must-have of the season:", "Perfect gift for every occasion |",
)  # fmt: skip


def _unchanged(title: str) -> str:
    return title


def _audience(title: str) -> str:
    return f"{title} for Women"


def _size(title: str) -> str:
    return f"{title} - Size M"


def _pack(title: str) -> str:
    return f"{title} (Pack of 1)"


def _brand(title: str) -> str:
    colour, rest = _split_colour(title)
    return " - ".join(part for part in (f"{_drawn(_BRANDS, title)} Women's {rest}", colour, "M") if part)


def _colour_and_size(title: str) -> str:
    colour, rest = _split_colour(title)
    return " ".join(f"{rest} {colour} Large".split())


def _reversed(title: str) -> str:
    return " ".join(reversed(title.split()))


def _in_colour(title: str) -> str:
    colour, rest = _split_colour(title)
    return f"{rest} in {colour.lower()}" if colour else title


def _article_code(title: str) -> str:
    """As H&M's articles are numbered: ten digits, the first 0."""
    return f"{_digest(title) % 10**9:010} {title}"


def _capitals(title: str) -> str:
    return title.upper()


def _slug(title: str) -> str:
    return "-".join(re.findall(r"\w+", title.lower()))


def _german(title: str) -> str:
    return _translated(title, "german")


def _hinglish(title: str) -> str:
    return _translated(title, "hinglish")


def _marketing(title: str) -> str:
    return f"{_drawn(_PHRASES, title)} {title}"


def _without_colour(title: str) -> str:
    return _split_colour(title)[1]


def _half_missing(title: str) -> str:
    return title if _digest(title) % 2 else ""


TITLE_STYLES: dict[str, Callable[[str], str]] = {
    "unchanged": _unchanged,
    "audience": _audience,
    "size": _size,
    "pack": _pack,
    "brand": _brand,
    "colour-and-size": _colour_and_size,
    "reversed": _reversed,
    "in-colour": _in_colour,
    "article-code": _article_code,
    "capitals": _capitals,
    "slug": _slug,
    "german": _german,
    "hinglish": _hinglish,
    "marketing": _marketing,
    "no-colour": _without_colour,
    "half-missing": _half_missing,
}


def _digest(title: str) -> int:
    return zlib.crc32(title.encode())


def _drawn(choices: Sequence[str], title: str) -> str:
    return choices[_digest(title) % len(choices)]


def _split_colour(title: str) -> tuple[str, str]:
    """The colour words of a title, and the title without them; both in order."""
    words = title.split()
    kinds = Colours.builtin().kinds([word.strip(",;.()") for word in words])
    named = [word for word, kind in zip(words, kinds, strict=True) if kind is not Colour.NONE]
    rest = [word for word, kind in zip(words, kinds, strict=True) if kind is Colour.NONE]
    return " ".join(named).strip(",;.()"), " ".join(rest)


@functools.cache
def _lexicon(language: str) -> dict[str, str]:
    text = resources.files("benchmarks.retrieval").joinpath("title_lexicon.json").read_text(encoding="utf-8")
    words: dict[str, str] = json.loads(text)[language]
    return words


def _translated(title: str, language: str) -> str:
    return " ".join(_lexicon(language).get(word.lower(), word) for word in title.split())
