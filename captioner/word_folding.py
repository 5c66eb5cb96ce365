# SPDX-License-Identifier: Apache-2.0
"""Folds the case, hyphens and plurals of words, for search and evaluation."""

from __future__ import annotations

_ES_ENDINGS = ("ches", "shes", "sses", "xes", "zes")


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
