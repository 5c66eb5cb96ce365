# SPDX-License-Identifier: Apache-2.0
"""Titles as shops write them, made of a product's name and labels at random, to train the title reader on.

A title keeps the name, or is written anew of the labels' words; either in English, German or Hindi-English. Words
change their order or go missing, the colour moves or is not named, and brands, sizes, packs, prices, codes and
phrases of shops stand before and after it. `title_words.json` has the words. Case, accents and punctuation are left
alone, because the reader does not see them.
"""

from __future__ import annotations

import functools
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

from training.prepare_data import Product

LANGUAGES = ("en", "de", "hi")
_RARE_SHARE = 0.35
OTHER_TYPE = ""  # the class of all article types that are none of the others
_SYLLABLES = (
    "ka", "lo", "mi", "ver", "ton", "sa", "ri", "bel", "dan", "ix", "or", "ne", "zu", "fa", "gre", "st", "al", "ro",
    "vi", "ma", "na", "el", "ta", "hin", "wo", "pex", "qu", "by", "jo", "ash", "lin",
)  # fmt: skip


@dataclass(frozen=True)
class LabelledTitle:
    """A title with what it should be read as; None where that is not known."""

    text: str
    article_type: str | None
    colour: str | None


class TitleMaker:
    """Makes titles. Args: the content of `title_words.json`."""

    def __init__(self, words: Mapping[str, Any]):
        self._words = words
        self._types: Mapping[str, Mapping[str, list[str]]] = words["types"]
        self._colours: Mapping[str, Mapping[str, list[str]]] = words["colours"]
        self._audiences: Mapping[str, Mapping[str, list[str]]] = words["audiences"]

    @classmethod
    def builtin(cls) -> TitleMaker:
        """With the words that come with this package."""
        return cls(json.loads(resources.files("training").joinpath("title_words.json").read_text(encoding="utf-8")))

    def title(self, product: Product, draw: random.Random) -> LabelledTitle:
        """Make a title of a product's name or labels."""
        chance = draw.random()
        if chance < 0.05:
            return LabelledTitle(self._without_product(draw), product.article_type, product.colour)
        if chance < 0.08:
            return self._of_other_product(product, draw)
        language = draw.choices(LANGUAGES, (0.7, 0.15, 0.15))[0]
        if draw.random() < 0.3 and product.article_type in self._types:
            product = self._with_rare_labels(product, draw)
            text = self._written_anew(product, language, draw)
        else:
            text = self._changed(self._translated(product, language, draw), product, language, draw)
        if draw.random() < 0.7:
            text = self._decorated(text, product, language, draw)
        return LabelledTitle(text, product.article_type, product.colour)

    def _words_for(self, table: Mapping[str, Mapping[str, list[str]]], label: str, language: str) -> Sequence[str]:
        entry = table.get(label, {})
        return entry.get(language) or entry.get("en") or [label.lower()]

    def _with_rare_labels(self, product: Product, draw: random.Random) -> Product:
        """Exchange type and colour in a third of the cases each, so that the words of rare ones are learned, too."""
        if draw.random() < _RARE_SHARE:
            product = replace(product, article_type=draw.choice(list(self._types)))
        if draw.random() < _RARE_SHARE:
            product = replace(product, colour=draw.choice(list(self._colours)))
        return product

    def _written_anew(self, product: Product, language: str, draw: random.Random) -> str:
        def one(table: Mapping[str, Mapping[str, list[str]]], label: str) -> str:
            # Sellers mix languages: a word stays English now and then.
            return draw.choice(self._words_for(table, label, language if draw.random() < 0.85 else "en"))

        kind = one(self._types, product.article_type)
        audience = one(self._audiences, product.gender)
        parts = [kind]
        if language == "de" and draw.random() < 0.25 and product.gender in ("Men", "Women"):
            parts = [("Herren" if product.gender == "Men" else "Damen") + kind.lower()]
        elif draw.random() < 0.5:
            parts.insert(draw.randint(0, 1), audience)
        if draw.random() < 0.85:
            colour = one(self._colours, product.colour)
            parts.insert(draw.choice((0, 0, len(parts), draw.randint(0, len(parts)))), colour)
        for _ in range(draw.choice((0, 0, 1, 1, 2))):
            parts.insert(draw.randint(0, len(parts)), draw.choice(self._words["attributes"]))
        if draw.random() < 0.4:
            brand = " ".join(product.name.split()[: draw.randint(1, 2)]) if draw.random() < 0.3 else _made_up_word(draw)
            parts.insert(0, brand)
        return " ".join(parts)

    def _translated(self, product: Product, language: str, draw: random.Random) -> str:
        text = product.name
        if language == "en":
            return text
        for table, label in (
            (self._types, product.article_type),
            (self._colours, product.colour),
            (self._audiences, product.gender),
        ):
            if draw.random() < 0.9 and label in table:
                word = draw.choice(self._words_for(table, label, language))
                text = _pattern(tuple(table[label]["en"])).sub(word, text, count=1)
        for english, others in self._words["words"].items():
            text = _pattern((english,)).sub(draw.choice(others[language]), text)
        return text

    def _changed(self, text: str, product: Product, language: str, draw: random.Random) -> str:
        """Move or remove the colour, change the order, leave words out."""
        chance = draw.random()
        words = text.split()
        if chance < 0.2:
            entry = self._colours.get(product.colour, {"en": [product.colour]})
            known = tuple(word for one in LANGUAGES for word in entry.get(one, ()))
            rest = " ".join(_pattern(known).sub("", text).split()) or text
            if chance < 0.07:
                return rest
            colour = draw.choice(self._words_for(self._colours, product.colour, language))
            template = draw.choice(
                ("{0} - {1}", "{0} ({1})", "{0}, {1}", "{1} {0}", "{0} / {1}", "{0} colour {1}", "{0}: in {1}")
            )
            return template.format(rest, colour)
        if chance < 0.35:
            draw.shuffle(words)
        elif chance < 0.45:
            words = [word for word in words if draw.random() > 0.2] or words
        elif chance < 0.55:
            words = words[-draw.randint(1, 4) :]
        return " ".join(words)

    def _decorated(self, text: str, product: Product, language: str, draw: random.Random) -> str:
        """Put around a title what says nothing about type and colour."""
        if draw.random() < 0.3:
            text += " " + draw.choice(self._words_for(self._audiences, product.gender, language))
        for name, share in (("sizes", 0.3), ("packs", 0.15)):
            if draw.random() < share:
                text += f" - {draw.choice(self._words[name])}"
        if draw.random() < 0.3:
            text = f"{self._phrase('before', draw)} {text}"
        if draw.random() < 0.3:
            text += " " + self._phrase("after", draw)
        if draw.random() < 0.25:
            text = f"{_made_up_word(draw)} {text}"
        if draw.random() < 0.1:
            text += " " + _made_up_word(draw)
        if draw.random() < 0.1:
            code = _code(draw)
            text = f"{code} {text}" if draw.random() < 0.5 else f"{text} {code}"
        return text

    def _phrase(self, kind: str, draw: random.Random) -> str:
        """One of the phrases, or a few words that titles are filled with, in any order."""
        if draw.random() < 0.5:
            return str(draw.choice(self._words[kind]))
        return " ".join(draw.choices(self._words["filler"], k=draw.randint(1, 7)))

    def _without_product(self, draw: random.Random) -> str:
        """A title that says neither what is sold nor its colour; it may be empty."""
        parts: list[str] = []
        for _ in range(draw.choice((0, 1, 1, 2, 3, 5))):
            part = draw.choice(("no_product", "no_product", "before", "after", "sizes", "word", "word", "code"))
            if part == "word":
                parts.append(_made_up_word(draw))
            elif part == "code":
                parts.append(_code(draw))
            else:
                parts.append(self._phrase(part, draw))
        return " ".join(parts)

    def _of_other_product(self, product: Product, draw: random.Random) -> LabelledTitle:
        text = draw.choice(self._words["other_products"])
        if draw.random() < 0.6:
            return LabelledTitle(self._decorated(text, product, "en", draw), OTHER_TYPE, None)
        language = draw.choice(LANGUAGES)
        text = f"{draw.choice(self._words_for(self._colours, product.colour, language))} {text}"
        return LabelledTitle(self._decorated(text, product, language, draw), OTHER_TYPE, product.colour)


@functools.lru_cache(1000)
def _pattern(phrases: tuple[str, ...]) -> re.Pattern[str]:
    """Finds one of the phrases, the longest first, in any case and with a plural's ending."""
    longest_first = sorted(phrases, key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?:e?s)?(?!\w)", re.IGNORECASE)


def _made_up_word(draw: random.Random) -> str:
    if draw.random() < 0.2:
        return "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(1, 9)))
    return "".join(draw.choices(_SYLLABLES, k=draw.randint(2, 4))).capitalize()


def _code(draw: random.Random) -> str:
    letters = "".join(draw.choices("ABCDEFGHKLMNPRSTVWX", k=draw.randint(0, 3)))
    return f"{letters}{draw.randint(10, 10 ** draw.randint(2, 9))}"
