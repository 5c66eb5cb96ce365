# SPDX-License-Identifier: Apache-2.0
"""Splits texts into words, and folds the case, hyphens and plurals of words, for search and evaluation."""

from __future__ import annotations

import functools
import re
import unicodedata

# A word keeps what is inside it (T-shirt, Levi's, 3/4) and loses what is around it ("Blue," or "(Shirt)").
_WORD = re.compile(r"\w(?:\S*\w)?")

# "T Shirt" is one word, of which "shirt" is no part: a T-shirt is no shirt.
T_SHIRT = re.compile(r"(?<!\w)t(?:ee)?[-\s]+(?=shirt)", re.IGNORECASE)

_ES_ENDINGS = ("ches", "shes", "sses", "xes", "zes")


def words_of(text: str) -> list[str]:
    """The words of a caption or title, punctuation around them removed, in order; pure punctuation is no word."""
    found: list[str] = _WORD.findall(unicodedata.normalize("NFC", text))
    return found


# A search folds the words of a hundred titles: many titles are new, but nearly all of their words are known.
@functools.lru_cache(maxsize=2**14)
def fold(word: str) -> str:
    """Fold a word, so that its spellings become equal.

    "T-Shirts" becomes "tshirt", "Watches" "watch" and "Accessories" "accessory". Words of up to three letters keep
    their ending.
    """
    folded = "".join(filter(str.isalnum, word.lower()))
    if len(folded) <= 3 or folded.endswith("ss"):
        return folded
    if folded.endswith("ies") and len(folded) > 4:
        return folded[:-3] + "y"
    if folded.endswith(_ES_ENDINGS):
        return folded[:-2]
    return folded.removesuffix("s")
