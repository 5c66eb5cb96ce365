# SPDX-License-Identifier: Apache-2.0
"""When two spellings are one word: case, hyphens and plurals folded. Pure text, shared by search and evaluation."""

from __future__ import annotations

_ES_ENDINGS = ("ches", "shes", "sses", "xes", "zes")


def fold(word: str) -> str:
    """ "T-Shirts" -> "tshirt", "Watches" -> "watch", "Accessories" -> "accessory"; up to three letters stay."""
    folded = "".join(character for character in word.lower() if character.isalnum())
    if len(folded) <= 3 or folded.endswith("ss"):
        return folded
    if folded.endswith("ies") and len(folded) > 4:
        return folded[:-3] + "y"
    if folded.endswith(_ES_ENDINGS):
        return folded[:-2]
    return folded.removesuffix("s")
