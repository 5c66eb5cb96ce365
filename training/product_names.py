# SPDX-License-Identifier: Apache-2.0
"""Rules that make a caption of a product's name.

The last two words of a name become the query, so "Titan Women Blue Dial Watch N9769SM01" would search for
"watch n9769sm01". No photo shows such a code, so the rule "clean" removes it. The listed name decides the split
(`prepare_data.ProductSet`), so a rule does not change it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_NUMBER = r"(?:\d+|two|three|four|five|six|seven|eight|nine|ten|twelve)"
_PACK = re.compile(rf"\(?\b(?:(?:combo\s+)?(?:pack|set)\s+of\s+{_NUMBER}|combo\s+pack)\)?$", re.IGNORECASE)
_WORD = re.compile(r"\S+")
_QUANTITY = re.compile(r"\b\d+(?:\.\d+)?\s*(?:ml|l|gms?|g|oz)$", re.IGNORECASE)  # "Perfume 150 ml"
_NO_CODE = re.compile(r"\d/\d|.*[a-z]{3}.*")  # "Capri 3/4" is a length, in "2Briefs" a space is missing
_JOINED_CODE = re.compile(r"(?<=[a-z]{2})[-'(][A-Z]*\d[^\sa-z]*$")  # "Bra-BGDR01", "Cheater'13"
_CODE_LETTERS = re.compile(r"[A-Z]{2,4}")  # "MAYS 1016-162", "SPF 15": one code in two words
_JOINT = re.compile(r"[\s\-–,;:#(/+&|]+$")  # what separated the name from the removed ending


def clean_name(name: str) -> str:
    """Remove endings that no photo shows: codes, numbers, "Pack of 3".

    Only the end of a name is removed ("Levis 501 Jeans" stays), and the rest has at least one letter.
    """
    while (shorter := _without_ending(name)) != name:
        name = shorter
    return name


def _without_ending(name: str) -> str:
    """Remove the last code, number or pack; return the name where there is none or nothing would be left."""
    words = list(_WORD.finditer(name))
    if not words:
        return name
    last = words[-1]
    end = last.end()
    found = _PACK.search(name, 0, end) or _QUANTITY.search(name, 0, end) or _JOINED_CODE.search(name, last.start(), end)
    if found:
        start = found.start()
    elif any(character.isdigit() for character in last[0]) and not _NO_CODE.fullmatch(last[0]):
        start = words[-_words_of_code([word[0] for word in words])].start()
    else:
        return name
    shorter = _JOINT.sub("", name[:start])
    return shorter if any(character.isalpha() for character in shorter) else name


def _words_of_code(words: list[str]) -> int:
    """How many of the last words form one code: "EX030" is 1, "MAYS 1016-162" is 2, "with SPF 75" is 3."""
    if len(words) < 3 or not words[-1][0].isdigit() or not _CODE_LETTERS.fullmatch(words[-2]):
        return 1
    if words[-3].isupper():  # "HUGO BOSS 50": a brand, not a code's letters
        return 1
    return 3 if words[-3] == "with" and len(words) > 3 else 2


def raw_name(name: str) -> str:
    """Keep the listed name."""
    return name


NAME_RULES: dict[str, Callable[[str], str]] = {"raw": raw_name, "clean": clean_name}
