# SPDX-License-Identifier: Apache-2.0
"""English for words of clothes shops in German and in Hindi written in Latin letters, by `foreign_words.json`. Pure.

It is a small lexicon of single words, for what people type and for titles of other shops. Endings of German adjectives
and plurals ("rote", "Handtaschen") and the audience in front ("Damenhandtasche") are taken off.
"""

from __future__ import annotations

import functools
import json
from importlib import resources

_ENDINGS = ("", "e", "n", "s", "en", "er", "es", "em")
_PREFIXES = ("damen", "herren", "kinder")
_MIN_LETTERS = 3  # of what is left without the ending


@functools.cache
def _lexicon() -> dict[str, str]:
    text = resources.files("captioner").joinpath("foreign_words.json").read_text(encoding="utf-8")
    words: dict[str, str] = json.loads(text)
    return words


@functools.lru_cache(maxsize=2**14)
def english(word: str) -> str | None:
    """Return the English word, in lower case; None for a word that is not in the lexicon."""
    lower = word.casefold()
    for prefix in ("", *_PREFIXES):
        if not lower.startswith(prefix):
            continue
        rest = lower.removeprefix(prefix)
        for ending in _ENDINGS:
            if rest.endswith(ending):
                stem = rest.removesuffix(ending)
                if len(stem) >= _MIN_LETTERS and (found := _lexicon().get(stem)):
                    return found
    return None
