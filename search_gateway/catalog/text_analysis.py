# SPDX-License-Identifier: Apache-2.0
"""Turns titles and queries into the same words ("T-Shirt", "t shirt" and "tee" are all "tshirt"). Pure.

In a file, FTS5's porter tokenizer handles plurals and accents; for stores on a server they are removed here, so that
all servers find the same. The words have letters, numbers and marks only, so that nothing in a query can become an
operator of a search language.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from captioner.foreign_words import english

# A query has two words by default and a whole caption at most; longer ones are cut.
MAX_QUERY_CHARACTERS = 1000
MAX_QUERY_WORDS = 24

_MAX_WORD_CHARACTERS = 64  # the porter tokenizer ignores the rest too

# Words of a clothes shop that porter stemming does not unify.
_SAME_WORD = {
    "tee": "tshirt",
    "tees": "tshirt",
    "ties": "tie",
    "scarves": "scarf",
    "man": "men",
    "woman": "women",
    "gray": "grey",
}
_T_SHIRT = re.compile(r"(?<!\w)t(?:ee)?-(?=shirt)|(?<![\w-])t(?:ee)? (?=shirt)")
# Without their apostrophe "Men's" and "Levi's" have the stems of "Men" and "Levis".
_CHARACTERS = {ord(mark): None for mark in "'\u2018\u2019\u00ad"} | {0x2010: "-"}


def one_line(text: str) -> str:
    """Return the text as SQLite can store it: one line, without NULs and unpaired surrogates."""
    return " ".join(text.replace("\0", " ").encode("utf-8", "replace").decode("utf-8").split())


def index_words(title: str) -> str:
    """Return the words of a title that are indexed: without hyphens, and the parts of hyphenated words, and English."""
    indexed: list[str] = []
    for word in _plain_words(title):
        indexed += [_joined(word), *_parts(word)]
    return " ".join([*indexed, *(known for word in indexed if (known := english(word)))])


def query_phrases(words: Sequence[str]) -> list[str]:
    """Return an FTS5 expression for each different word."""
    phrases: list[str] = []
    for word in _plain_words(" ".join(words)[:MAX_QUERY_CHARACTERS]):
        # Joined as in the index, or its parts in sequence, so that "off-white" also finds "Off White".
        # "handtasche" also finds handbags, in a German catalogue Handtaschen.
        alternatives = [_joined(word), " ".join(_parts(word)), english(word) or ""]
        phrases.append(" OR ".join(f'"{text}"' for text in alternatives if text))
    return list(dict.fromkeys(phrases))[:MAX_QUERY_WORDS]


def stems(title: str) -> list[str]:
    """Return the words of `index_words` in order, in the singular and without accents."""
    return [_stem(word) for word in index_words(title).split()]


def query_stems(words: Sequence[str]) -> list[tuple[str, ...]]:
    """Return for each different word its stem as in `stems`, followed by those of its parts if it is hyphenated."""
    plain = _plain_words(" ".join(words)[:MAX_QUERY_CHARACTERS])
    return list(dict.fromkeys((_stem(_joined(word)), *map(_stem, _parts(word))) for word in plain))[:MAX_QUERY_WORDS]


def _stem(word: str) -> str:
    """Return a word without accents and without the ending of an English plural."""
    word = "".join(c for c in unicodedata.normalize("NFD", word) if unicodedata.category(c) != "Mn") or word
    if len(word) > 4 and word.endswith("ies"):
        return f"{word[:-3]}y"
    if len(word) > 4 and word.endswith(("sses", "shes", "ches", "xes", "zes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def _plain_words(text: str) -> list[str]:
    """Return words in lower case without apostrophes and punctuation; hyphens inside words stay."""
    text = unicodedata.normalize("NFKC", text).casefold().translate(_CHARACTERS)
    # Letters, numbers and marks, as FTS5's tokenizer sees them: NULs and quotes end a word.
    kept = "".join(c if c == "-" or unicodedata.category(c)[0] in "LNM" else " " for c in text)
    words = (word.strip("-") for word in kept.split())
    joined = _T_SHIRT.sub("t", " ".join(word for word in words if word))
    cut = (word[:_MAX_WORD_CHARACTERS] for word in joined.split())
    return [word for word in cut if any(map(str.isalnum, word))]


def _joined(word: str) -> str:
    word = word.replace("-", "")
    return _SAME_WORD.get(word, word)


def _parts(word: str) -> list[str]:
    """Return the parts of a hyphenated word that can stand alone: both of "off-white", none of "g-shock".

    With more than two parts it is likely a title as it stands in addresses: "nike-men-blue-t-shirt".
    """
    parts = [part for part in word.split("-") if part]
    if len(parts) < 2 or (len(parts) == 2 and min(map(len, parts)) < 2):
        return []
    return [_joined(part) for part in _T_SHIRT.sub("t", " ".join(parts)).split()]
