# SPDX-License-Identifier: Apache-2.0
"""Splits texts into words, and folds the case, hyphens and plurals of words, for search and evaluation."""

from __future__ import annotations

import re
import unicodedata

# A word keeps what is inside it (T-shirt, Levi's, 3/4) and loses what is around it ("Blue," or "(Shirt)").
_EDGES = re.compile(r"^[^\w]+|[^\w]+$")

# "T Shirt" is one word, of which "shirt" is no part: a T-shirt is no shirt.
T_SHIRT = re.compile(r"(?<!\w)t(?:ee)?[-\s]+(?=shirt)", re.IGNORECASE)

_ES_ENDINGS = ("ches", "shes", "sses", "xes", "zes")


def words_of(text: str) -> list[str]:
    """The words of a caption or title, punctuation around them removed, in order; pure punctuation is no word."""
    cleaned = (_EDGES.sub("", word) for word in unicodedata.normalize("NFC", text).split())
    return [word for word in cleaned if word]


def fold(word: str) -> str:
    """Fold a word, so that its spellings become equal.

    "T-Shirts" becomes "tshirt", "Watches" "watch" and "Accessories" "accessory". Words of up to three letters keep
    their ending.
    """
    folded = "".join(character for character in word.lower() if character.isalnum())
    if len(folded) <= 3 or folded.endswith("ss"):
        return folded
    if folded.endswith("ies") and len(folded) > 4:
        return folded[:-3] + "y"
    if folded.endswith(_ES_ENDINGS):
        return folded[:-2]
    return folded.removesuffix("s")
