# SPDX-License-Identifier: Apache-2.0
"""Which articleType and baseColour the words of a caption name, by a published list. Pure text; knows no model.

`label_words.json` holds the list: words and two-word phrases, folded as the search folds them, and what they stand for.
Its colours are kept by hand: every baseColour under its own name, other words under the baseColour most training names
with that word have, and null for what only looks like a colour (the brand "Red Tape"). Its types are counted from the
training names; `python -m training.label_words --data DIR --write` writes them anew, and without --write the command
only prints how often a name agrees with its own product.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from captioner.query import words_of
from captioner.word_folding import fold
from training.prepare_data import DataError, Product, is_validation, read_styles

LABEL_WORDS_FILE = Path(__file__).with_suffix(".json")
PHRASE_WORDS = 2
MIN_NAMES = 3  # training names a phrase must end to be listed
MIN_SHARE = 0.5  # of them, what must be of one articleType
_JOINING = {"and", "n"}  # "Red and White" is one group of colours; words_of already drops "&"


@dataclass(frozen=True)
class LabelAccuracy:
    """How often the words of captions name the right label. Shares, 0 to 1.

    Attributes:
        type_accuracy: of all products, those whose caption names exactly their articleType.
        colour_accuracy: of all products, those whose caption names exactly their baseColour.
        colour_accuracy_where_named: the same of the products whose true name names any colour; None if none does.
        named_type: of all captions, those that name any articleType.
        named_colour: of all captions, those that name any baseColour.
    """

    type_accuracy: float
    colour_accuracy: float
    colour_accuracy_where_named: float | None
    named_type: float
    named_colour: float


@dataclass(frozen=True)
class LabelWords:
    """Folded phrases of one or two words and the label each stands for.

    Attributes:
        colours: baseColour by phrase; None says that the phrase names no colour, though a part of it does.
        types: articleType by phrase.
    """

    colours: Mapping[str, str | None]
    types: Mapping[str, str]

    @classmethod
    def load(cls) -> LabelWords:
        """The published list."""
        content = json.loads(LABEL_WORDS_FILE.read_text(encoding="utf-8"))
        return cls(content["colours"], content["types"])

    def type_of(self, caption: str) -> str | None:
        """The articleType of the phrase that ends last ("Puma Men Running Shoes 2011"), the longer one if two do."""
        words = _folded(words_of(caption))
        for end in range(len(words), 0, -1):
            for start in range(max(0, end - PHRASE_WORDS), end):
                if (label := self.types.get(" ".join(words[start:end]))) is not None:
                    return label
        return None

    def colour_of(self, caption: str) -> str | None:
        """The baseColour of the main colour: the first of the last group, as in "Red Tape Men Black & White Shoes".

        This agrees with baseColour more often than the first or the last colour of the name; the command prints it.
        """
        groups = self.colour_groups(caption)
        return groups[-1][0] if groups else None

    def colour_groups(self, caption: str) -> list[list[str]]:
        """All baseColours a caption names, in order; those in a row, or joined by "and", are one group."""
        # Also inside a word: "Off-White", "Silver-Toned", "Dk.Grey".
        words = _folded(part for word in words_of(caption) for part in re.split(r"[\W_]+", word))
        groups: list[list[str]] = []
        start, group_is_open = 0, False
        while start < len(words):
            length = next((n for n in range(PHRASE_WORDS, 0, -1) if self._phrase(words, start, n) in self.colours), 0)
            label = self.colours[self._phrase(words, start, length)] if length else None
            if label is not None and group_is_open:
                groups[-1].append(label)
            elif label is not None:
                groups.append([label])
            group_is_open = label is not None or (group_is_open and words[start] in _JOINING)
            start += max(length, 1)
        return groups

    @staticmethod
    def _phrase(words: Sequence[str], start: int, length: int) -> str:
        return " ".join(words[start : start + length])


def label_accuracy(captions: Sequence[str], products: Sequence[Product]) -> LabelAccuracy:
    """Compare what captions name with the labels of their products, one by one.

    This measures words, not sight: a caption that names the right colour counts even if it guessed. A true name is not
    always right either ("Men Black Shoes" may be Casual, Sports or Formal Shoes; some names give no colour), so the
    ceiling is not 1 but what the products' own names reach: `label_accuracy(names, products)`.

    Raises:
        ValueError: there is nothing to compare, or the two differ in length.
    """
    if not captions:
        raise ValueError("there is not one caption to compare")
    label_words = LabelWords.load()
    types = [label_words.type_of(caption) for caption in captions]
    colours = [label_words.colour_of(caption) for caption in captions]
    type_is_right = [label == product.article_type for label, product in zip(types, products, strict=True)]
    colour_is_right = [label == product.colour for label, product in zip(colours, products, strict=True)]
    where_named = [
        right
        for right, product in zip(colour_is_right, products, strict=True)
        if label_words.colour_of(product.name) is not None
    ]
    return LabelAccuracy(
        type_accuracy=_share(type_is_right),
        colour_accuracy=_share(colour_is_right),
        colour_accuracy_where_named=_share(where_named) if where_named else None,
        named_type=_share([label is not None for label in types]),
        named_colour=_share([label is not None for label in colours]),
    )


def derive_types(products: Sequence[Product], colours: Mapping[str, str | None]) -> dict[str, str]:
    """The articleType of each phrase that ends enough names, if most of those products have it.

    A name ends before its trailing codes and sizes ("Lipstick 529", "Eau de Toilette 90 ml"). A phrase that names a
    colour says nothing of the type, though yellow shoes are mostly for sports; codes do not either. Two words are
    listed only where they stand for something else than the second of them alone.
    """
    colour_words = LabelWords(colours, {})
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for product in products:
        words = _folded(words_of(product.name))
        while words and not _is_plain(words[-1]):
            words.pop()
        for length in range(1, min(PHRASE_WORDS, len(words)) + 1):
            counts[" ".join(words[-length:])][product.article_type] += 1
    types: dict[str, str] = {}
    for phrase, labels in sorted(counts.items(), key=lambda item: item[0].count(" ")):  # single words first
        label, count = min(labels.items(), key=lambda item: (-item[1], item[0]))
        if labels.total() < MIN_NAMES or count < MIN_SHARE * labels.total():
            continue
        if any(character.isdigit() for character in phrase) or colour_words.colour_of(phrase) is not None:
            continue
        if types.get(phrase.split()[-1]) != label:
            types[phrase] = label
    return dict(sorted(types.items()))


def _folded(words: Iterable[str]) -> list[str]:
    return [folded for word in words if (folded := fold(word))]


def _is_plain(word: str) -> bool:
    """Whether a name may end in this word: three letters at least and no digit."""
    return len(word) >= 3 and not any(character.isdigit() for character in word)


def _share(outcomes: Sequence[bool]) -> float:
    return sum(outcomes) / len(outcomes)


def _print_agreement(title: str, products: Sequence[Product], label_words: LabelWords) -> None:
    """How often names agree with their own products: the ceiling, and why the main colour is the one it is."""
    print(f"{title}: {len(products)} names")
    for key, value in dataclasses.asdict(label_accuracy([product.name for product in products], products)).items():
        print(f"  {key:<28}{value:8.4f}")
    named = [(groups, p.colour) for p in products if (groups := label_words.colour_groups(p.name))]
    for which, group, position in (("first colour", 0, 0), ("last colour", -1, -1), ("first of last group", -1, 0)):
        print(f"  {which:<28}{_share([groups[group][position] == colour for groups, colour in named]):8.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and styles.csv")
    parser.add_argument("--write", action="store_true", help="count the types anew and write label_words.json")
    args = parser.parse_args()
    try:
        products = list(read_styles(args.data, Counter()))
    except DataError as error:
        raise SystemExit(str(error)) from None
    training = [product for product in products if not is_validation(product.name)]
    if args.write:
        colours = LabelWords.load().colours
        content = {"colours": dict(sorted(colours.items())), "types": derive_types(training, colours)}
        LABEL_WORDS_FILE.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    label_words = LabelWords.load()
    _print_agreement("training", training, label_words)
    _print_agreement("validation", [product for product in products if is_validation(product.name)], label_words)


if __name__ == "__main__":
    main()
